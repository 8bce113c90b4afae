"""The path between two adapters trained elsewhere, measured on data files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from mcanalysis.errors import UserError
from mcanalysis.evaluation.adapter_objective import attach_slot
from mcanalysis.evaluation.differentiable import WholeLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.harness import HarnessObjective
from mcanalysis.evaluation.harness_engine import HarnessEngine
from mcanalysis.evaluation.harness_tasks import PREFIX, Harness, harness_tasks
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.models.adapter_files import load_adapter, warn_of_missing
from mcanalysis.models.base_identity import accepted_identities, identity_marker
from mcanalysis.models.base_names import check_same_base, same_base
from mcanalysis.models.base_source import recorded_source
from mcanalysis.models.chat_template import AUTO as AUTO_TEMPLATE
from mcanalysis.models.chat_template import NONE, choose_template, use_template
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import content_hash
from mcanalysis.params.spaces import get_space
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.transitions import SavedPoint, Transition, from_base
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
from mcanalysis.studies.connectivity.measuring import PathName, RunPaths
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Workers
from mcanalysis.studies.study import Outcome, Tables, carry_out
from mcanalysis.tasks.task import TaskData
from mcanalysis.tasks.trace_files import load_files

logger = logging.getLogger(__name__)


class AdaptersOpening(NamedTuple):
    """Two adapters, a base and data files, by their names: what opens them in another process, too.

    `directory` is where results go. `max_new_tokens`: the most tokens generated for an answer, by default 64, or the
    task's own for a file named after a task. `chat_template`: as in `RunConfig`; results that are there keep theirs.
    In place of files there may be tasks of lm-eval (`harness_tasks`), whose `score` is a metric there; `num_fewshot`:
    examples in their prompts, by default the task's own.
    `halves`: every second example of a file is its eval split, on which t* is chosen, the others are its test split, so
    that there is a gain that is not positive by selection; else all are the test split.
    """

    adapters: tuple[str, str]
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

    @property
    def run(self) -> AdapterPair:
        """The opened pair, the same object each time."""
        return _open.get(self) or _opened(self)


class AdapterPair:
    """Two adapters on one base, measured like a run of two minima whose only learner is `fast`.

    Raises `UserError` for adapters that do not fit the base or the data.
    """

    strategy, answering_learner, seed, order = "adapters", "fast", 0, None

    def __init__(self, opening: AdaptersOpening) -> None:
        self.directory = opening.directory
        named = harness_tasks(opening.data_files)
        _check_harness(opening, bool(named))
        self.harness = Harness(named, opening.score, opening.num_fewshot) if named else None
        files = list(opening.data_files)
        self.tasks = self.harness.data if self.harness else load_files(files, opening.score, opening.max_new_tokens)
        self.splits = ("eval", "test") if opening.halves else ("test",)
        if opening.halves:
            self.tasks = [_halved(data) for data in self.tasks]
        adapters = [load_adapter(d) for d in opening.adapters]
        self.base_names = [a.base_name for a in adapters if a.base_name]
        self.has_unknown_base = check_same_base(self.base_names)
        base, self.tokenizer = load_base(
            opening.model_name, opening.dtype, opening.device or default_device(), revision=opening.revision
        )
        asked = open_template(opening.chat_template, manifest_in(self.directory))
        template = NONE if self.harness else choose_template(asked, self.tokenizer, self.tasks)
        use_template(self.tokenizer, template)
        self.opening = opening._replace(chat_template=template)  # workers are told, and decide nothing
        for adapter, directory in zip(adapters, opening.adapters, strict=True):
            warn_of_missing(adapter, base, directory)
        self.points = (adapters[0].point, adapters[1].point)
        self.model: LoraModel = attach_slot(base, self.tokenizer, self.points, opening.model_name)
        self._objectives: dict[tuple[str, str, int | None], Objective] = {}
        _open[self.opening] = self

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
        """The first examples of a data file, or of a task of lm-eval (made once)."""
        key = (task, split, num_examples)
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
        """The two adapters."""
        return [SavedPoint(Path(d)) for d in self.opening.adapters]

    def paths(self, learner: str, study: Connectivity) -> AdapterPaths:
        """What leads from one to the other."""
        return AdapterPaths(self, study)


class AdapterPaths(RunPaths):
    """The paths between two adapters. Curves are fitted on the data files themselves, as there is no train split."""

    general: list[Objective] = []  # noqa: RUF012 (two adapters have none)

    def __init__(self, pair: AdapterPair, study: Connectivity) -> None:
        self.run, self.learner, self.study = pair, pair.answering_learner, study  # type: ignore[assignment]
        self.splits = pair.splits
        # A run's minima have numbers already.
        names = [re.sub(r"^\d+-", "", name) for name in short_names(pair.opening.adapters)]
        start, end = (f"{k}-{name}" for k, name in enumerate(names, start=1))
        *old, new = [t.task.name for t in pair.tasks]
        keys = tuple(map(content_hash, pair.points))
        data = hash_json([o.settings_key for o in pair.objectives(study.num_examples)])
        self.transition = Transition(start, end, pair.points, keys, tuple(old), new, data_key=data)
        adapters = zip((start, end), pair.opening.adapters, keys, strict=True)
        rewound = [from_base(name, Path(d), key, tuple(old), new, data) for name, d, key in adapters]
        self._from_base = rewound if study.from_base else []

    @property
    def all_transitions(self) -> list[str]:
        return [f"{self.transition.start} → {self.transition.end}"]

    @property
    def curves(self) -> Path:
        return self.run.directory / "curves"

    @property
    def ensembles(self) -> Path:
        return self.run.directory / "ensembles"

    def names(self, kind: str) -> list[PathName]:
        return [PathName(self.learner, kind, 0)]

    def path(self, name: PathName) -> StoredPath:
        transition = self._from_base[name.number] if name.from_base else self.transition
        return StoredPath(transition, name.kind, self.study, self.curves)

    def loss(self, path: StoredPath) -> WholeLoss:
        return WholeLoss(self.run.model, [o.encoded[:16] for o in self.objectives(path)])


_open: WeakValueDictionary[AdaptersOpening, AdapterPair] = WeakValueDictionary()


@lru_cache(maxsize=2)
def _opened(opening: AdaptersOpening) -> AdapterPair:
    return AdapterPair(opening)


@dataclass(frozen=True)
class AdapterConnectivity(Connectivity):
    """The same study of two adapters, which have no metrics and nothing to be compared with."""

    def compare(self, tables: Tables, runs: Sequence[object]) -> Tables:
        return {}

    def pictures_of_all(self, tables: Tables) -> tuple[()]:
        return ()


def _check_harness(opening: AdaptersOpening, has_tasks: bool) -> None:
    """Raise `UserError` for a setting of data files beside tasks of lm-eval, which have their own, or the reverse."""
    if not has_tasks and opening.num_fewshot is not None:
        raise UserError(f"--num-fewshot is for tasks of lm-eval, --data {PREFIX}TASK: leave it out.")
    if has_tasks and (opening.max_new_tokens is not None or opening.chat_template not in (AUTO_TEMPLATE, NONE)):
        raise UserError(
            f"--max-new-tokens and --chat-template are for data files, not for --data {PREFIX}TASK, whose YAML file "
            "has them: leave them out."
        )


def checked_pair(opening: AdaptersOpening, study: Connectivity) -> tuple[AdapterPair, list[Objective]]:
    """The opened pair and what is measured; raises `UserError` for what the study cannot do, with nothing written."""
    if len(opening.adapters) != 2:
        raise UserError(f"--minima takes two adapter folders, DIR1,DIR2; got {len(opening.adapters)}.")
    if len(opening.data_files) not in (1, 2) and not harness_tasks(opening.data_files):
        raise UserError(f"--data takes one or two data files, FILE[,FILE2]; got {len(opening.data_files)}.")
    if study.simplex:
        raise UserError("Two adapters span a line: --simplex needs runs, with three minima or more.")
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
    objectives = pair.objectives(study.num_examples)
    for kind in study.paths:  # refuses adapters that a space cannot join, before anything is written
        get_space(kind.rpartition("-")[2]).embed(pair.points)
    pair.engine.check_room(objectives)
    return pair, objectives


def connect_adapters(
    opening: AdaptersOpening,
    study: Connectivity,
    workers: Workers | None = None,
    *,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    on_growing: Callable[[Path], None] = lambda _: None,
) -> Outcome:
    """The path between two adapters trained elsewhere, measured on one data file, or on two: old task, new task.

    In the spaces delta and aligned their ranks and adapted modules may differ. With t* chosen on the data it is
    measured on a gain would be positive by selection, so none is reported.
    """
    pair, objectives = checked_pair(opening, study)
    output, name = opening.directory, opening.model_name
    transition = pair.paths("fast", study).transition
    identity = {
        "analysis": "connectivity of two adapters", "model": name, "dtype": opening.dtype,
        "minima": [
            f"{label} {key[:12]}"
            for label, key in zip((transition.start, transition.end), transition.keys, strict=True)
        ],
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


def short_names(directories: Sequence[str]) -> list[str]:
    """What tells two folders apart: the last part of their paths that differs."""
    parts = [Path(d).resolve().parts for d in directories]
    for first, second in zip(*(reversed(p) for p in parts), strict=False):
        if first != second:
            return [first, second]
    return [p[-1] for p in parts]
