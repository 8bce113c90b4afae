"""The paths between minima trained elsewhere, adapters or whole models, on data files or by a loss of one's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import ArrayLike

from mcanalysis.errors import UserError
from mcanalysis.evaluation.differentiable import WholeLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.harness import HarnessObjective
from mcanalysis.evaluation.harness_engine import HarnessEngine
from mcanalysis.evaluation.harness_tasks import PREFIX, Harness, harness_tasks
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.models.adapter_files import warn_of_missing
from mcanalysis.models.base_identity import accepted_identities, identity_marker
from mcanalysis.models.base_names import check_same_base, same_base
from mcanalysis.models.base_source import recorded_source
from mcanalysis.models.chat_template import AUTO as AUTO_TEMPLATE
from mcanalysis.models.chat_template import NONE, choose_template, use_template, warn_of_others
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.whole_model import SHARES, WholeModel
from mcanalysis.params.lora import base_point
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import get_space
from mcanalysis.paths.path_kinds import path_kind, path_kind_names
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.transitions import SavedPoint, Transition, from_base
from mcanalysis.store import base_minimum
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.manifest import (
    claim_run_directory,
    manifest_in,
    mark_finished,
    open_template,
    record_evaluation,
    record_hashes,
    recorded_base,
)
from mcanalysis.studies.connectivity.barrier_matrix import barrier_matrix, matrix_pictures
from mcanalysis.studies.connectivity.measuring import PathName, RunPaths
from mcanalysis.studies.connectivity.stored_path import Lengths, StoredPath
from mcanalysis.studies.connectivity.study import PATHS, Connectivity
from mcanalysis.studies.engine import Steps, Workers
from mcanalysis.studies.minima import labels, put_on, read_minimum
from mcanalysis.studies.own_objective import own_objective, own_task
from mcanalysis.studies.study import Outcome, Setting, Tables, carry_out
from mcanalysis.tasks.task import TaskData
from mcanalysis.tasks.trace_files import load_files

if TYPE_CHECKING:
    from mcanalysis.plotting.picture import Picture

logger = logging.getLogger(__name__)


class AdaptersOpening(NamedTuple):
    """Minima (two or more), a base and data files, by their names: what opens them in another process, too.

    `adapters`: folders of adapters, or folders and hub ids of whole models (`studies.minima`). `directory` is where
    results go. `max_new_tokens`: the most tokens generated for an answer, by default 64, or the task's own for a file
    named after a task. `chat_template`: as in `RunConfig`; results that are there keep theirs.
    In place of files there may be tasks of lm-eval (`harness_tasks`), whose `score` is a metric there, `num_fewshot`:
    examples in their prompts, by default the task's own; or an `objective`, as `module:function`.
    `halves`: every second example of a file is its eval split, on which t* is chosen, the others are its test split, so
    that there is a gain that is not positive by selection; else all are the test split.
    """

    adapters: tuple[str, ...]
    model_name: str
    data_files: tuple[str, ...]
    directory: Path
    dtype: str = "auto"
    device: str | None = None
    engine: EngineSettings = AUTO
    score: str | None = None
    max_new_tokens: int | None = None
    max_length: int = 1024
    revision: str | None = None
    chat_template: str = "auto"
    num_fewshot: int | None = None
    halves: bool = False
    objective: str | None = None

    @property
    def run(self) -> AdapterPair:
        """The opened pair, the same object each time."""
        return _open.get(self) or _opened(self)


class AdapterPair:
    """Minima on one base, measured like those of a run whose only learner is `fast`.

    `points`, `keys` and `labels` are theirs, in order. Raises `UserError` for minima that do not fit the base or the
    data.
    """

    answering_learner, seed, order = "fast", 0, None

    def __init__(self, opening: AdaptersOpening) -> None:
        self.directory = opening.directory
        named = harness_tasks(opening.data_files)
        _check_harness(opening, bool(named))
        self.harness = Harness(named, opening.score, opening.num_fewshot) if named else None
        if opening.objective is not None:
            self.tasks = [own_task(opening.objective)]
        elif self.harness:
            self.tasks = self.harness.data
        else:
            self.tasks = load_files(list(opening.data_files), opening.score, opening.max_new_tokens)
        self.splits = ("eval", "test") if opening.halves else ("test",)
        if opening.halves:
            self.tasks = [_halved(data) for data in self.tasks]
        minima = [(place, read_minimum(place)) for place in opening.adapters]
        self.base_names = [a.base_name for _, a in minima if a is not None and a.base_name]
        self.has_unknown_base = check_same_base(self.base_names)
        base, self.tokenizer = load_base(
            opening.model_name, opening.dtype, opening.device or default_device(), revision=opening.revision
        )
        asked = open_template(opening.chat_template, manifest_in(self.directory))
        as_given = self.harness or opening.objective
        template = NONE if as_given else choose_template(asked, self.tokenizer, self.tasks)
        use_template(self.tokenizer, template)
        if asked == AUTO_TEMPLATE and not as_given:
            warn_of_others([Path(place) for place, adapter in minima if adapter is not None], self.tokenizer)
        self.opening = opening._replace(chat_template=template)  # workers are told, and decide nothing
        for directory, adapter in minima:
            if adapter is not None:
                warn_of_missing(adapter, base, directory)
        self.model, self.points, self.keys = put_on(base, self.tokenizer, opening.model_name, minima, opening.revision)
        self.labels = labels(opening.adapters)
        self._objectives: dict[tuple[str, str, int | None], Objective] = {}
        _open[self.opening] = self

    @property
    def strategy(self) -> str:
        """What the minima are, which stands for a strategy in tables: `adapters`, or `models` where these are whole."""
        return "models" if isinstance(self.model, WholeModel) else "adapters"

    @cached_property
    def engine(self) -> Engine:
        """The evaluation engine on the base."""
        return (HarnessEngine if self.harness else Engine)(self.model, self.opening.engine)

    @cached_property
    def marker(self) -> str:
        """What keys of stored values bear where the base they were measured on is not established, mostly nothing."""
        name, output = self.opening.model_name, self.directory
        recorded = recorded_base(manifest_in(output), name)
        return "" if recorded is None else identity_marker(recorded, name, output)

    def task_objective(self, task: str, split: str = "test", num_examples: int | None = None) -> Objective:
        """The first examples of a data file, or of a task of lm-eval, or a loss of the user's own (made once)."""
        key = (task, split, num_examples)
        if key not in self._objectives and self.opening.objective:
            self._objectives[key] = own_objective(self.opening.objective, self.marker)
        if self.harness and key not in self._objectives:
            from mcanalysis.evaluation.point_lm import PointLM

            made = HarnessObjective(self.harness, PointLM(self.model), num_examples, base_marker=self.marker)
            self._objectives |= {(o.name, split, num_examples): o for o in made.objectives}
        if key not in self._objectives:
            (data,) = [t for t in self.tasks if t.task.name == task]
            length = self.opening.max_length
            self._objectives[key] = make_objective(
                data, split, self.tokenizer, length, num_examples, base_marker=self.marker
            )
        return self._objectives[key]

    def objectives(self, num_examples: int | None) -> list[Objective]:
        """The first examples of every data file."""
        return [self.task_objective(t.task.name, s, num_examples) for t in self.tasks for s in self.splits]

    def minima_of(self, learner: str) -> list[SavedPoint]:
        """The minima by their places."""
        return [SavedPoint(Path(d)) for d in self.opening.adapters]

    def paths(self, learner: str, study: Connectivity) -> AdapterPaths:
        """What leads from one to the other."""
        return AdapterPaths(self, study)


class AdapterPaths(RunPaths):
    """The paths between every two minima. Curves are fitted on the data files, as there is no train split."""

    general: list[Objective] = []  # noqa: RUF012 (they have none)

    def __init__(self, pair: AdapterPair, study: Connectivity) -> None:
        self.run, self.learner, self.study = pair, pair.answering_learner, study  # type: ignore[assignment]
        self.splits = pair.splits
        *old, new = [t.task.name for t in pair.tasks]
        data = hash_json([o.settings_key for o in pair.objectives(study.num_examples)])
        self.minima = list(zip(pair.labels, pair.points, pair.keys, strict=True))
        self.transitions = [
            Transition(start, end, (first, second), (key, other), tuple(old), new, data_key=data)
            for (start, first, key), (end, second, other) in combinations(self.minima, 2)
        ]
        self._from_base: list[Transition] = []
        if study.from_base and len(pair.points) == 2 and isinstance(pair.model, LoraModel):
            folders = zip(self.minima, pair.opening.adapters, strict=True)
            self._from_base = [from_base(end, Path(d), key, tuple(old), new, data) for (end, _, key), d in folders]
        elif study.from_base:
            of_base = (base_minimum.LABEL, base_minimum.KEY)
            self._from_base = [
                Transition(
                    of_base[0], end, (_base_of(pair.model, point), point), (of_base[1], key), tuple(old), new, data
                )
                for end, point, key in self.minima
            ]

    @property
    def all_transitions(self) -> list[str]:
        return [f"{t.start} → {t.end}" for t in self.transitions]

    @property
    def curves(self) -> Path:
        return self.run.directory / "curves"

    @property
    def ensembles(self) -> Path:
        return self.run.directory / "ensembles"

    def names(self, kind: str) -> list[PathName]:
        return [PathName(self.learner, kind, n) for n in range(len(self.transitions))]

    def path(self, name: PathName) -> StoredPath:
        transition = (self._from_base if name.from_base else self.transitions)[name.number]
        if isinstance(self.run.model, WholeModel):
            return _WholePath(transition, name.kind, self.study, self.curves, self.run.model)
        return StoredPath(transition, name.kind, self.study, self.curves)

    def loss(self, path: StoredPath) -> WholeLoss:
        assert isinstance(self.run.model, LoraModel)  # of whole models no path is fitted
        return WholeLoss(self.run.model, [o.encoded[:16] for o in self.objectives(path)])


def _base_of(model: LoraModel | WholeModel, point: Point) -> Point:
    return model.base_point() if isinstance(model, WholeModel) else base_point(point)


class _WholePath(StoredPath):
    """A straight path between whole models, of which `points` are shares: lengths are those of the weights."""

    def __init__(
        self, transition: Transition, kind: str, settings: Connectivity, curves: Path, model: WholeModel
    ) -> None:
        super().__init__(transition, kind, settings, curves)
        self.model = model

    def lengths(self, ts: ArrayLike) -> Lengths:
        first, second = (int(point[SHARES].argmax()) for point in self.transition.points)
        apart = float(self.model.distances[first, second])
        return Lengths(np.asarray(ts, dtype=float) * apart, apart, apart, apart)


_open: WeakValueDictionary[AdaptersOpening, AdapterPair] = WeakValueDictionary()


@lru_cache(maxsize=2)
def _opened(opening: AdaptersOpening) -> AdapterPair:
    return AdapterPair(opening)


@dataclass(frozen=True)
class AdapterConnectivity(Connectivity):
    """The same study of minima from elsewhere, which have no metrics and nothing to be compared with.

    `marked`: a path and t that figures point out, those of a recipe.
    """

    marked: tuple[str, float] | None = None

    @property
    def mark(self) -> tuple[str, float] | None:
        return self.marked

    def compare(self, tables: Tables, runs: Sequence[object]) -> Tables:
        return {}

    def pictures_of_all(self, tables: Tables) -> tuple[()]:
        return ()


def _check_harness(opening: AdaptersOpening, has_tasks: bool) -> None:
    """Raise `UserError` for a setting of data files beside tasks of lm-eval, which have their own, or the reverse."""
    if has_tasks and opening.halves:
        raise UserError(f"Expected data files for a card, got {PREFIX} tasks, which are measured whole; name files.")
    if not has_tasks and opening.num_fewshot is not None:
        raise UserError(f"--num-fewshot is for tasks of lm-eval, --data {PREFIX}TASK: leave it out.")
    unused = {
        "--score": opening.score is not None,
        "--max-new-tokens": opening.max_new_tokens is not None,
        "--chat-template": opening.chat_template not in (AUTO_TEMPLATE, NONE),
        "--max-length": opening.max_length != AdaptersOpening._field_defaults["max_length"],
    }
    if opening.objective is not None and any(unused.values()):
        named = next(flag for flag, typed in unused.items() if typed)
        raise UserError(f"{named} is for data files, not for --objective, whose function reads its own: leave it out.")
    del unused["--score"]  # tasks of lm-eval have several
    if has_tasks and any(unused.values()):
        raise UserError(
            f"{', '.join(unused)} are for data files, not for --data {PREFIX}TASK, whose YAML file, or whose model, "
            "has them: leave them out."
        )


@dataclass(frozen=True)
class BarrierMatrix(AdapterConnectivity):
    """The same study of more than two minima: a path between every two, their barriers as a matrix, its clusters."""

    def measure(self, run: Any, setting: Setting) -> Steps[Tables]:
        tables = yield from super().measure(run, replace(setting, draw=lambda folder, pictures: None))
        return {**tables, "barrier_matrix": barrier_matrix(tables["barriers"], run.labels)}

    def pictures(self, tables: Tables, so_far: str = "", lacking: str = "") -> Iterator[Picture]:
        yield from matrix_pictures(tables["barrier_matrix"])

    def cost(self, pair: AdapterPair) -> str:
        """What there is to measure, in words."""
        k, kinds = len(pair.points), len(self.paths)
        paths = k * (k - 1) // 2
        points = k + kinds * paths * (self.num_points - 2)
        return f"{k} minima: {paths} paths of {self.num_points} points, {points} points in all (ends are shared)"


def checked_pair(opening: AdaptersOpening, study: Connectivity) -> tuple[AdapterPair, Connectivity, list[Objective]]:
    """The opened minima, the study as it is made of them, and what is measured.

    Raises `UserError` for what the study cannot do, with nothing written. Where paths were left as they are by default,
    those that are defined are taken: of whole models the straight one in the weights, of a loss of one's own no fitted
    ones, of more than two minima the straight one in the weights, which says how they lie to each other.
    """
    if len(opening.adapters) < 2:
        raise UserError(
            f"Expected two or more --minima, DIR1,DIR2 or a pattern such as 'out/checkpoint-*', got "
            f"{len(opening.adapters)}; name more."
        )
    if opening.objective is None and len(opening.data_files) not in (1, 2) and not harness_tasks(opening.data_files):
        raise UserError(f"--data takes one or two data files, FILE[,FILE2]; got {len(opening.data_files)}.")
    if opening.objective is not None and study.num_examples not in (None, Connectivity.num_examples):
        raise UserError(
            "--num-examples is for data files, not for --objective, whose function has its own examples: leave it out."
        )
    if study.simplex:
        raise UserError("Expected runs for --simplex, got --minima; leave it out.")
    pair, name = AdapterPair(opening), opening.model_name  # files may have changed
    if pair.harness and (study.ensemble or study.tolerance is not None):
        raise UserError(
            f"--data {PREFIX} measures whole tasks on a grid, not with --ensemble or --tolerance: leave these out."
        )
    others = [b for b in dict.fromkeys(pair.base_names) if same_base(b, name) is not True]
    if others or pair.has_unknown_base:
        logger.warning(
            "the adapters were trained on %s, and --model is '%s': that these are the same weights could not be "
            "established, and what is measured means something only if they are; to make sure, give --model a folder "
            "or id that both adapter_config.json name as base_model_name_or_path",
            " and ".join(f"'{base}'" for base in dict.fromkeys(pair.base_names)),
            name,
        )
    study = _of_these(study, pair)
    if study.mark is not None and study.mark[0] not in study.paths:
        raise UserError(
            f"Expected the path of the recipe, {study.mark[0]}, among --paths, got {', '.join(study.paths)}; add it."
        )
    low, high = study.extrapolate or (0.0, 1.0)
    if study.mark is not None and not low <= study.mark[1] <= high:
        raise UserError(
            f"Expected the t of the recipe among what is measured, {low:g} to {high:g}, got {study.mark[1]:g}; "
            "--extrapolate LOW,HIGH measures straight paths beyond their ends, and no other."
        )
    objectives = pair.objectives(study.num_examples)
    if isinstance(pair.model, WholeModel):
        _ = pair.model.distances  # refuses weights that are no numbers
    for kind in study.paths:  # refuses adapters that a space cannot join, before anything is written
        get_space(kind.rpartition("-")[2]).embed(pair.points)
    pair.engine.check_room(objectives)
    return pair, study, objectives


def _of_these(study: Connectivity, pair: AdapterPair) -> Connectivity:
    """The study with paths that these minima have; raises `UserError` where others were asked for by name."""
    is_whole, is_own, many = pair.strategy == "models", pair.opening.objective is not None, len(pair.points) > 2
    words = "whole models" if is_whole else "--objective"
    has_path = {name: not path_kind(name).is_fitted for name in path_kind_names()}
    if is_whole:
        has_path = {name: name == "linear-delta" for name in has_path}
    if is_whole or is_own:
        apart = [f"--{name}" for name in ("gauges", "ensemble") if getattr(study, name)]
        apart += ["--tolerance"] if is_own and study.tolerance is not None else []
        if apart:
            raise UserError(f"Expected {' and '.join(apart)} with adapters and --data, got {words}; leave it out.")
    if study.paths == PATHS:
        kept = ["linear-delta"] if many else [name for name in PATHS if has_path[name] or not (is_whole or is_own)]
        study = replace(study, paths=tuple(kept))
    elif (is_whole or is_own) and (other := [name for name in study.paths if not has_path[name]]):
        raise UserError(
            f"Expected straight paths in the weights with {words}, got {', '.join(other)}; give --paths linear-delta."
        )
    return BarrierMatrix(**vars(study)) if many else study


def connect_adapters(
    opening: AdaptersOpening,
    study: Connectivity,
    workers: Workers | None = None,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    on_growing: Callable[[Path], None] = lambda _: None,
    on_cost: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """The paths between minima trained elsewhere, measured on one data file, or on two: old task, new task.

    In the spaces delta and aligned ranks and adapted modules of adapters may differ. With t* chosen on the data it is
    measured on a gain would be positive by selection, so none is reported. Of more than two minima there is a matrix
    of barriers, besides; `on_cost` is told beforehand how many paths and points these are.
    """
    pair, study, objectives = checked_pair(opening, study)
    if isinstance(study, BarrierMatrix):
        on_cost(study.cost(pair))
    output, name = opening.directory, opening.model_name
    number = "two" if len(pair.points) == 2 else len(pair.points)
    identity = {
        "analysis": f"connectivity of {number} {pair.strategy}", "model": name, "dtype": opening.dtype,
        "minima": [f"{label} {key[:12]}" for label, key in zip(pair.labels, pair.keys, strict=True)],
        "data": [f"{t.task.name} {t.content_hash[:12]}" for t in pair.tasks],
        "score": [t.task.score for t in pair.tasks], "max_length": opening.max_length,
    }  # fmt: skip
    if pair.harness:
        identity["score"] = list(pair.harness.metrics.values())
    if opening.max_new_tokens is not None:  # else the tasks' own, which version 0.1 did not write
        identity["max_new_tokens"] = opening.max_new_tokens
    if pair.opening.chat_template != NONE:
        identity["chat_template"] = pair.opening.chat_template
    if opening.halves:
        identity["halves"] = True
    if opening.revision is not None:
        identity["revision"] = opening.revision
    now, former = accepted_identities(name, None, opening.revision) or [None, None]
    if claim_run_directory(output, identity, resume=True, base_hash=now, former_base_hash=former) == "new":
        record_hashes(output, "base_source", recorded_source(name))
    record_evaluation(output, pair.engine.choices(objectives))
    outcome = carry_out(
        study, [pair], output, workers,  # type: ignore[list-item]
        progress=progress, on_figure=on_figure, on_growing=on_growing,
    )  # fmt: skip
    mark_finished(output)
    return outcome


def _halved(data: TaskData) -> TaskData:
    """The examples of a file, of which every second one chooses t*."""
    examples = data.splits["test"]
    if len(examples) < 2:
        raise UserError(
            f"Expected two or more examples of {data.task.name}, half of which choose t*, got {len(examples)}; add one."
        )
    return TaskData.of(data.task, {"eval": examples[1::2], "test": examples[::2]})
