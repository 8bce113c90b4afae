"""A finished run, evaluated further: its minima, paths and objectives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from glob import escape
from multiprocessing import parent_process
from pathlib import Path as FilePath
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from torch import Tensor

from mcanalysis.errors import RunDirectoryError, UnknownNameError, UserError, shortened
from mcanalysis.evaluation.batch_losses import batch_losses
from mcanalysis.evaluation.differentiable import MinibatchLoss, WholeLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.objective import Objective, encode_split, make_objective
from mcanalysis.evaluation.sampled import SampledObjective
from mcanalysis.models.adapter_files import LoraSettings, load_adapter, save_adapter
from mcanalysis.models.base_identity import base_identity, check_identity, identity_marker
from mcanalysis.models.chat_template import NONE, use_template
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.loading import default_device, load_base, load_tokenizer
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import base_point
from mcanalysis.params.point import Point, content_hash
from mcanalysis.params.spaces import Space
from mcanalysis.paths import Curve, Linear, get_path
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store import base_minimum
from mcanalysis.store.measurements import Measurement
from mcanalysis.store.point_files import read_points
from mcanalysis.strategies import get_strategy, make_strategy
from mcanalysis.tasks.names import GENERAL
from mcanalysis.tasks.task import TaskData


class Opening(NamedTuple):
    """What opens a run, in another process too: where it lies, on which device, how its points are evaluated.

    `num_tasks`: of a run that still trains, how many tasks it has learned (None: it has ended).
    """

    directory: FilePath
    device: str | None = None
    engine: EngineSettings = AUTO
    num_tasks: int | None = None

    @property
    def run(self) -> Run:
        """The run; the same object each time, so that its model and data are loaded once in a process."""
        return _open.get(self) or _opened(self)


def check_space(strategy: str, space: str | Space) -> None:
    """Raise `UserError` for a space of factors where those of a strategy's minima were not what was trained.

    >>> check_space("osf", "delta")
    """
    name = getattr(space, "name", space)
    if name != "delta" and not get_strategy(strategy).has_factors:
        raise UserError(
            f"Expected the space delta for minima of {strategy}, which are weight changes without factors of their "
            f"own, got {name}; choose delta (--paths linear-delta, --other-paths linear-delta or --space delta)."
        )


@dataclass(frozen=True)
class Minimum:
    """A saved adapter: where the model stood after a task. `label` is `<k>-<TASK>`."""

    label: str
    task: str
    learner: str
    directory: FilePath

    @cached_property
    def point(self) -> Point:
        """The adapter as a point (scaling multiplied into B)."""
        return load_adapter(self.directory).point

    @cached_property
    def key(self) -> str:
        """A hash of the point's contents."""
        return content_hash(self.point)


@dataclass(frozen=True)
class BaseMinimum(Minimum):
    """The base model as a minimum, the same for every learner: the adapter (A, 0), its A that of the one in the folder.

    Its point computes the base's own outputs bit for bit; its key is that of row 0 of the accuracy matrix.
    """

    @classmethod
    def beside(cls, minimum: Minimum) -> BaseMinimum:
        """The base in the coordinates of a minimum, so that every straight path between the two is t·ΔW."""
        label = base_minimum.LABEL
        return cls(label, label.partition("-")[2], minimum.learner, minimum.directory)

    @cached_property
    def point(self) -> Point:
        """The adapter (A, 0)."""
        return base_point(load_adapter(self.directory).point)

    @cached_property
    def key(self) -> str:
        """What the store calls it."""
        return base_minimum.KEY


class Run(FinishedRun):
    """A finished run whose points can be evaluated; models and data are loaded when first needed."""

    num_tasks: int | None = None  # see `Opening`

    def __init__(
        self,
        directory: str | FilePath,
        device: str | None = None,
        engine: EngineSettings = AUTO,
        scored_split: str = "test",
    ) -> None:
        super().__init__(directory, scored_split)
        self.device = device
        self.engine_settings = engine
        self._objectives: dict[tuple, Objective] = {}

    @property
    def opening(self) -> Opening:
        """What opens this run in another process, and gives this very object in this one."""
        opening = Opening(self.directory, self.device, self.engine_settings, self.num_tasks)
        _open[opening] = self
        return opening

    @property
    def minima(self) -> list[Minimum]:
        """The answering learner's minima, in order."""
        return self.minima_of(self.answering_learner)

    def minima_of(self, learner: str) -> list[Minimum]:
        """The minima of one learner, in order."""
        if not get_strategy(self.strategy).has_paths:
            raise UserError(
                f"Expected a run whose minima are LoRA adapters, got one of {self.strategy}, which has none; "
                "choose a run of another strategy for paths, slices and curvature."
            )
        if learner not in self.learners:
            raise UnknownNameError(f"learner of {self.directory}", learner, self.learners)
        number, schedule = len(self.task_names), get_strategy(self.strategy).schedule
        stages = [(number, "JOINT")] if schedule == "joint" else [*enumerate(self.task_names, start=1)]
        minima = []
        for k, task in stages:  # by what was trained, not by what lies there: a missing one must not shift the others
            folder = self.directory / "minima" / f"{k}-{task}" / learner
            if not folder.is_dir():
                raise RunDirectoryError(
                    f"Expected the minimum {k}-{task} in '{folder}', got no such folder; restore it from a copy or "
                    "train the run again in another --output-dir."
                )
            minima.append(Minimum(f"{k}-{task}", task, learner, folder))
        return minima

    def minimum(self, which: int | str | Minimum, learner: str | None = None) -> Minimum:
        """A minimum by its number (from 1) or its label `<k>-<TASK>`; the base by 0, "base" or "0-BASE".

        One of this run that is a `Minimum` already is given back.

        Raises `UserError` for a strategy whose minima are no LoRA adapters, or a minimum of another run, and
        `UnknownNameError` for one that is not there. The base is in the coordinates of the first minimum; `ends` puts
        it into those of any other.
        """
        if isinstance(which, Minimum):
            folders = [minimum.directory.resolve() for minimum in self.minima_of(learner or which.learner)]
            if which.directory.resolve() not in folders:
                raise UserError(
                    f"Expected a minimum of {learner or 'a learner'} of the run '{self.directory}', got {which.label} "
                    f"in '{which.directory}'; for a path between any two give both minima's .point to mc.Linear."
                )
            return which
        minima = self.minima_of(learner or self.answering_learner)
        if which in base_minimum.NAMES:
            return BaseMinimum.beside(minima[0])
        for number, minimum in enumerate(minima, start=1):
            if which in (number, minimum.label):
                return minimum
        raise UnknownNameError("minimum", str(which), [base_minimum.LABEL, *(m.label for m in minima)])

    def ends(
        self, start: int | str | Minimum, end: int | str | Minimum, learner: str | None = None
    ) -> tuple[Minimum, Minimum]:
        """The two ends of a path, named as for `minimum`; the base in the coordinates of the other one."""
        first, last = (self.minimum(which, learner) for which in (start, end))
        if isinstance(first, BaseMinimum) and isinstance(last, BaseMinimum):
            raise UserError("Expected a path between the base and a minimum, got the base twice; name a minimum.")
        if isinstance(first, BaseMinimum):
            return BaseMinimum.beside(last), last
        return first, BaseMinimum.beside(first) if isinstance(last, BaseMinimum) else last

    def path(
        self,
        start: int | str | Minimum,
        end: int | str | Minimum,
        space: str | Space = "factor",
        learner: str | None = None,
        *,
        extrapolate: bool = False,
    ) -> Linear:
        """The straight path between any two minima in a space; t may leave [0, 1] only with `extrapolate=True`.

        Between the base ("base", or 0) and a minimum it is the line t·ΔW in every space: rewinding.
        """
        check_space(self.strategy, space)
        points = [minimum.point for minimum in self.ends(start, end, learner)]
        return Linear(*points, space=space, extrapolate=extrapolate)

    def explore(self, start: int | str | None = None, end: int | str | None = None, **choices: Any) -> Any:
        """A widget to walk along a path with, in a notebook; elsewhere a picture: `mcanalysis.explore.explore`."""
        from mcanalysis.explore import explore  # which lies above runs

        return explore(self, start, end, **choices)

    def curve(
        self,
        start: int | str,
        end: int | str,
        path: str = "bezier",
        space: str = "factor",
        learner: str | None = None,
        *,
        key: str | None = None,
        extrapolate: bool = False,
    ) -> Curve:
        """A curve that `connectivity.py` has fitted; raises `UserError` where there is no such curve, or several.

        `path`, `space`: registered names; `segmented_bezier` leads from the first minimum to the last through all.
        `key`: the end of the file's name in `curves/<learner>/`, where curves of several settings are there.
        """
        check_space(self.strategy, space)
        learner = learner or self.answering_learner
        ends = self.ends(start, end, learner)
        kind = get_path(path)
        if not issubclass(kind, Curve):
            raise UserError(f"Expected a path that is fitted, got {path}; use Run.path for straight ones.")
        if any(isinstance(end, BaseMinimum) for end in ends):
            raise UserError(
                "Expected a curve between two minima, got one from the base, of which connectivity.py fits none; use "
                "Run.path, or fit mc.Bezier between the points of Run.ends with mc.fit_curve."
            )
        stem = f"{ends[0].label}--{ends[1].label}-{path}-{space}"
        files = sorted((self.directory / "curves" / learner).glob(f"{escape(stem)}-{key or '????????'}.safetensors"))
        if len(files) != 1:
            keys = ", ".join(f.stem.rpartition("-")[2] for f in files)
            remedy = f"choose one by key: {keys}" if files else f"fit it with connectivity.py --paths {path}-{space}"
            raise UserError(f"Expected one stored curve {stem} in '{self.directory}', got {len(files)}; {remedy}.")
        first, last = (int(m.label.partition("-")[0]) for m in ends)
        minima = self.minima_of(learner)[first - 1 : last] if kind.through_many else ends
        points, bends = [m.point for m in minima], read_points(files[0])
        return kind(*points, bends=bends, space=space, extrapolate=extrapolate)  # type: ignore[call-arg]

    @cached_property
    def model(self) -> LoraModel:
        """The base model with an adapter slot of this run's shape."""
        c = self.config
        self._check_base()
        device = self.device or default_device()
        base, tokenizer = load_base(c["model"], c["dtype"], device, c.get("quantization"), self.revision)
        use_template(tokenizer, c.get("chat_template", NONE))
        settings = LoraSettings(
            c["lora_rank"], c["lora_alpha"], 0.0, c["target_modules"] and tuple(c["target_modules"])
        )
        return LoraModel.attach(base, tokenizer, settings, c["seed"], c["model"])

    @cached_property
    def engine(self) -> Engine:
        """The evaluation engine on this run's model."""
        return Engine(self.model, self.engine_settings)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer (without its weights), which has the run's chat template, if any."""
        self._check_base()
        tokenizer = load_tokenizer(self.config["model"], self.revision)
        use_template(tokenizer, self.config.get("chat_template", NONE))
        return tokenizer

    def _check_base(self) -> None:
        check_identity(self.recorded_base, self.config["model"], self.directory)

    @cached_property
    def base_marker(self) -> str:
        """What the keys of stored values bear where the manifest does not establish the base, mostly nothing.

        Raises `RunDirectoryError` if the base has changed since.
        """
        self._check_base()
        name = self.config["model"]
        if base_identity(name, self.revision) is None:
            _ = self.tokenizer  # brings a model of the hub here
        return identity_marker(self.recorded_base, name, self.directory, warn=parent_process() is None)

    def task_objective(self, task: str, split: str = "test", num_examples: int | None = None) -> Objective:
        """The tokenised examples of a split (made once); of a general task `general/<NAME>`, or its name alone."""
        data = self._data_of(task)
        key = (data.task.name, split, num_examples)
        if key not in self._objectives:
            self._objectives[key] = make_objective(
                data,
                split,
                self.tokenizer,
                self.config["training"]["max_length"],
                num_examples,
                base_marker=self.base_marker,
            )
        return self._objectives[key]

    def _data_of(self, task: str) -> TaskData:
        if not isinstance(task, str):
            raise UserError(f"Expected the name of a task, got {shortened(task)}; give one name as text.")
        if task in self.task_names:
            return self.tasks[task]
        by_name = {name.removeprefix(GENERAL): data for name, data in self.general_tasks.items()}
        if (name := task.removeprefix(GENERAL)) in by_name:
            return by_name[name]
        raise UnknownNameError("task of this run", task, [*self.task_names, *self.general_tasks])

    def objective(
        self, task: str, split: str = "test", num_examples: int | None = None
    ) -> Callable[[Mapping[str, Tensor]], Measurement]:
        """A function of a point that returns loss and score with their per-example values."""
        chosen = self.task_objective(task, split, num_examples)

        def measure_at(point: Mapping[str, Tensor]) -> Measurement:
            return self.engine.measure(point, [chosen])[0]

        return measure_at

    def sampled_objective(
        self, task: str, split: str = "test", num_examples: int | None = None, *, scores: bool = False
    ) -> SampledObjective:
        """A function of a point and of numbers of examples (from 0) that returns their losses, and if asked for their
        scores, for `early_profile` and `barrier_certificate`."""
        return SampledObjective(self.engine, self.task_objective(task, split, num_examples), scores)

    def loss(
        self, tasks: Sequence[Sequence[str]], batch_size: int = 16, seed: int = 0, split: str = "train"
    ) -> MinibatchLoss:
        """A differentiable minibatch loss for `fit_curve`: the mean, over groups of tasks, of each group's loss.

        `tasks=[["A", "B"], ["C"]]` weighs old tasks A and B together as much as the new task C. Each call draws
        `batch_size` examples per group, from a stream that `seed` fixes.
        """
        return MinibatchLoss(self.model, self._groups(tasks, split), batch_size, seed)

    def whole_loss(self, tasks: Sequence[Sequence[str]], split: str = "train") -> WholeLoss:
        """The same on all examples, for `fit_curve`: it yields terms, so that one batch is in memory at a time."""
        return WholeLoss(self.model, self._groups(tasks, split))

    def batch_losses(
        self,
        tasks: str | Sequence[str],
        split: str = "test",
        num_examples: int | None = None,
        token_budget: int | None = None,
    ) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
        """The loss on a split as one differentiable function per batch, for `HessianOperator`: their sum is the loss.

        The loss is the mean over target tokens of a task, in nats, and the mean of that over several tasks, on the
        first `num_examples` of each (None: all). `token_budget`: padded tokens of a batch; None: as many as let a
        Hessian product be made in the memory that the base takes (see `evaluation.batch_losses`).
        """
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        if not names:
            raise UserError("Expected at least one task, got none; name the tasks.")
        groups = [self.task_objective(name, split, num_examples).encoded for name in names]
        return batch_losses(self.model, groups, token_budget)

    def _groups(self, tasks: Sequence[Sequence[str]], split: str) -> list[list[EncodedExample]]:
        if isinstance(tasks, str) or any(isinstance(group, str) for group in tasks):
            raise UserError(
                f'Expected groups of tasks such as [["A", "B"], ["C"]], got {shortened(repr(tasks))}; put each group '
                "into a list."
            )
        if not tasks or not all(tasks):
            raise UserError("Expected groups of tasks, each with at least one, got an empty group; name the tasks.")
        for name in (n for group in tasks for n in group):
            if name not in self.tasks:
                raise UnknownNameError("task of this run", name, self.tasks)
        length = self.config["training"]["max_length"]
        return [
            [e for name in group for e in encode_split(self.tasks[name], split, self.tokenizer, length)[0]]
            for group in tasks
        ]

    def save_point(self, point: Mapping[str, Tensor], directory: str | FilePath, rank: int | None = None) -> float:
        """Write a point, of any path, as a PEFT adapter of this run's base; see `models.adapter_files.save_adapter`.

        Returns the relative error of ΔW that truncation to `rank` made; 0 without one.
        """
        return save_adapter(point, directory, self.config["model"], rank)


class RunSoFar(Run):
    """The first tasks of a run that still trains, as if it had ended after `num_tasks` of them.

    Points on its paths have the keys in the store that they have when it has ended.
    """

    has_ended = False

    def __init__(
        self, directory: str | FilePath, device: str | None = None, engine: EngineSettings = AUTO, num_tasks: int = 2
    ) -> None:
        super().__init__(directory, device, engine)
        self.num_tasks = num_tasks

    @property
    def task_names(self) -> list[str]:
        """The tasks learned so far."""
        return super().task_names[: self.num_tasks]

    @cached_property
    def answering_learner(self) -> str:
        """The learner whose scores will be the run's scores."""
        return make_strategy(self.strategy, self.seed, **self.config["strategy_settings"]).answering_learner

    def let_go(self) -> None:
        """Forget the model: the training that goes on has one of its own."""
        for name in ("model", "engine"):
            vars(self).pop(name, None)


_open: WeakValueDictionary[Opening, Run] = WeakValueDictionary()


@lru_cache(maxsize=4)  # each may hold a model
def _opened(opening: Opening) -> Run:
    directory, device, engine, num_tasks = opening
    if num_tasks is None:
        return load_run(directory, device, engine)
    return RunSoFar(directory, device, engine, num_tasks)


def load_run(
    directory: str | FilePath,
    device: str | None = None,
    engine: EngineSettings = AUTO,
    scored_split: str = "test",
) -> Run:
    """Read a finished run, to be evaluated as `engine` says.

    Raises `RunDirectoryError` for an unfinished one, one that is scored on another split, or a folder that is no run.
    """
    return Run(directory, device, engine, scored_split)
