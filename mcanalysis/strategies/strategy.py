"""What a continual-learning strategy is: a few hooks that return values; the loop is never theirs to change.

Every process of a data-parallel run calls every hook but `loss` with the same arguments, so what a strategy draws or
keeps is the same everywhere without a word between them; `loss` sees each process's share of the rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from random import Random
from types import UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mcanalysis.errors import UnknownNameError, UserError, shortened
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import Batch, EncodedExample
from mcanalysis.models.forward import Forward, forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.merging import with_one_rank
from mcanalysis.params.point import Point

_MOST = 1_000_000_000
"""Of whatever a strategy's setting counts, which has an end long before."""
Schedule = Literal["sequence", "joint", "none"]
GradientOf = Callable[[Sequence[EncodedExample]], dict[str, Tensor]]
"""The gradient, by parameter name, of the cross entropy on some examples (nats per target token) where the model is."""


@dataclass(frozen=True)
class Totals:
    """Counts over the whole accumulated batch of all processes, which every micro-batch's sums are divided by.

    So the micro-batches' losses *add up* to the loss of the whole batch, however it was cut.
    """

    current_targets: int
    replay_targets: int
    replay_tokens: int


@dataclass(frozen=True)
class Step:
    """One micro-batch: the rows of the current task first, then the replayed rows, in one padded batch.

    `share` is its part of the accumulated batch of all processes: what a term that belongs to the step as a whole (a
    penalty on the parameters) is multiplied by.
    """

    network: torch.nn.Module  # the model as the engine wrapped it (DDP and the like)
    model: Any  # what `Strategy.attach` returned
    batch: Batch
    num_current: int
    totals: Totals
    share: float = 1.0

    @property
    def num_replay(self) -> int:
        """Replayed rows; 0 before replay starts."""
        return self.batch.input_ids.shape[0] - self.num_current

    def forward(self, hidden_states: bool = False, extra: Mapping[str, Any] | None = None) -> Forward:
        """The pass of what is trained over all rows, current and replayed together."""
        return forward(self.network, self.batch, hidden_states, extra=extra)

    def _rows(self, rows: slice) -> Batch:
        b = self.batch
        mask = None if b.attention_mask is None else b.attention_mask[rows]
        return Batch(b.input_ids[rows], b.labels[rows], mask, b.position_ids[rows], b.num_answer_columns)

    def current_batch(self) -> Batch:
        """The current rows alone, padded as in `batch`."""
        return self._rows(slice(None, self.num_current))

    def replay_batch(self) -> Batch:
        """The replayed rows alone, padded as in `batch`, so that positions of hidden states match."""
        return self._rows(slice(self.num_current, None))

    def current_loss(self, result: Forward) -> Tensor:
        """Cross entropy on the current rows, in nats per target token of the accumulated batch."""
        return result.nll[: self.num_current].sum() / self.totals.current_targets

    def replay_loss(self, result: Forward) -> Tensor:
        """Cross entropy on the replayed rows, likewise; 0 where nothing is replayed."""
        return result.nll[self.num_current :].sum() / max(self.totals.replay_targets, 1)


@dataclass(frozen=True)
class StrategyConfig:
    """Settings of a strategy; each strategy has its own frozen subclass, whose annotations say what values fit."""

    @classmethod
    def of(cls, strategy: str, settings: Mapping[str, Any]) -> Self:
        """The configuration with these settings; a whole number where a fraction is wanted, or 1e2, is taken as such.

        Raises `UnknownNameError` for a setting that there is not, `UserError` for a value of another type.

        >>> StrategyConfig.of("sequential", {})
        StrategyConfig()
        """
        known = [f.name for f in fields(cls)]
        for name in settings:
            if name not in known and not known:
                raise UserError(f"Expected no settings of {strategy}, which has none, got {name}; leave it out.")
            if name not in known:
                raise UnknownNameError(f"setting of {strategy}", name, known)
        hints = get_type_hints(cls)
        return cls(**{name: _fitting(name, strategy, value, hints[name]) for name, value in settings.items()})

    def num_remembered(self, num_examples: Sequence[int]) -> int | None:
        """How many examples `memory_size` is, a number or a share in (0, 1) of all tasks' train examples; None without.

        `num_examples`: of each task. Raises `UserError` where that is less than one for each of them.
        """
        size = getattr(self, "memory_size", None)
        if size is None:
            return None
        number = size if size >= 1 else round(size * sum(num_examples))
        if number < len(num_examples):
            share = "" if size >= 1 else f", {size:g} of {sum(num_examples)} train examples"
            raise UserError(
                f"Expected a memory_size of at least one example for each of {len(num_examples)} tasks, got "
                f"{number}{share}; raise it."
            )
        return number

    def recorded(self) -> dict[str, Any]:
        """The settings as a run's manifest keeps them, by name: what two runs must share to be the same run.

        A setting that is newer than runs of the strategy is left out where its value is what they were trained with.
        """
        return asdict(self)


def _fitting(name: str, strategy: str, value: Any, hint: Any) -> Any:
    """The value as one of the types that the annotation allows."""
    allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    expected = []
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not (abs(value) <= _MOST or (int not in allowed and math.isfinite(value))):
        raise UserError(
            f"Expected a number of at most {_MOST:,} for {name} of {strategy}, got {shortened(value)}; change "
            "--settings."
        )
    for one in allowed:
        if get_origin(one) is Literal:
            fits, words = value in get_args(one), " or ".join(map(str, get_args(one)))
        elif one is bool:
            fits, words = isinstance(value, bool), "true or false"
        elif one is int:
            fits, words = is_number and value == int(value), "a whole number"
        elif one is float:
            fits, words = is_number, "a number"
        elif one is type(None):
            fits, words = value is None, "none"
        else:  # of a strategy from elsewhere, which checks it itself
            return value
        if fits:
            return one(value) if one in (int, float) else value
        expected.append(words)
    if "a number" in expected:  # of which whole ones are some
        expected = [words for words in expected if words != "a whole number"]
    raise UserError(
        f"Expected {' or '.join(expected)} for {name} of {strategy}, got {shortened(repr(value))}; change --settings."
    )


class Strategy(ABC):
    """A strategy: subclass it in a file of its own, with `name`, `reference`, a `config_class` and the hooks it needs.

    Order of calls: `attach` and `begin` once; per task `begin_task`, then per phase `begin_phase`, then per optimiser
    step `draw_replay` (once, so that what is drawn does not depend on gradient accumulation), `loss` (once per
    micro-batch), `edit_gradient` (if `edits_gradient`), `after_step`; then `end_task`. A resumed run calls `begin` and
    `load_state`, and goes on in the middle of a task without calling `begin_task` or `begin_phase` again.

    `learners`: the minima that are saved after each task, by name. `schedule`: task after task; all tasks shuffled
    together ("joint"); or no training at all ("none"). `has_paths`: whether its minima lie in one parameter space.
    `has_factors`: whether the A and B of its minima were trained, so that their own paths mean something.
    `resting_learners`: those that change between tasks only, hence have no trajectory within one.
    `own_task_learner`: a name for the scores with task identity, where the paper has them: each task is answered by
    what answered when it had just been learned, which the strategy keeps. `rehearsal`: the reservoir, where it has one.
    `edits_gradient`: whether `edit_gradient` is to be called; it needs whole gradients, which DeepSpeed shards.
    `searched`: values by setting that `tune.py` tries, beside learning rates; none where there is nothing but these.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    config_class: ClassVar[type[StrategyConfig]] = StrategyConfig
    searched: ClassVar[Mapping[str, Sequence[Any]]] = {}
    learners: ClassVar[tuple[str, ...]] = ("fast",)
    resting_learners: ClassVar[tuple[str, ...]] = ()
    schedule: ClassVar[Schedule] = "sequence"
    has_paths: ClassVar[bool] = True
    has_factors: ClassVar[bool] = True
    edits_gradient: ClassVar[bool] = False
    own_task_learner: ClassVar[str | None] = None
    rehearsal: Any = None  # a `Rehearsal`

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        name = getattr(cls, "name", cls.__name__)
        if cls.schedule not in get_args(Schedule):
            known = ", ".join(get_args(Schedule))
            raise UserError(f"Expected schedule of {name} to be one of {known}, got {cls.schedule!r}; change it.")
        if not all(isinstance(values, list | tuple) and values for values in cls.searched.values()):
            raise UserError(f"Expected a list of values for each setting in searched of {name}, got {cls.searched}.")

    def __init__(self, config: StrategyConfig, seed: int) -> None:
        self.config: Any = config
        self.seed = seed
        self.task_index = -1
        self.report: dict[str, Any] = {}  # JSON types: what is worth a table of its own; part of `state`

    @property
    def answering_learner(self) -> str:
        """The learner whose scores are *the* scores of the run."""
        return self.learners[0]

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate is multiplied by, a setting of strategies that do not train adapters; else 1."""
        return getattr(self.config, "learning_rate_factor", 1.0)

    def attach(self, base: torch.nn.Module, tokenizer: Any, lora: LoraSettings, name: str) -> AdaptedModel:
        """Put what is trained about the base; by default one LoRA adapter."""
        return LoraModel.attach(base, tokenizer, lora, self.seed, name)

    def settle_memory(self, num_examples: Sequence[int]) -> None:
        """Make a `memory_size` that is a share a number, given each task's train examples; before `begin`."""
        if getattr(self.config, "memory_size", 1) < 1:
            self.config = replace(self.config, memory_size=self.config.num_remembered(num_examples))
            if self.rehearsal is not None:
                self.rehearsal.buffer.capacity = self.config.memory_size

    def kept_examples(self) -> Sequence[EncodedExample]:
        """The examples that are remembered, for the account of what is kept; their ids only, tensors are in `state`."""
        return [] if self.rehearsal is None else [item.example for item in self.rehearsal.buffer.items]

    def begin(self, model: Any, num_tasks: int) -> None:
        """Called once, when the model has just been attached."""

    def begin_task(self, model: Any, task_index: int, examples: Sequence[EncodedExample]) -> None:
        """Called before a task's first step, with its train examples; `task_index` counts from 0."""
        self.task_index = task_index

    def num_prompts(self, num_tasks: int) -> int:
        """Trained vectors before a row at the end of so many tasks; they take positions of the base."""
        return 0

    def num_phases(self) -> int:
        """How many times the task is gone through, each with `num_steps` steps and an optimiser of its own."""
        return 1

    def begin_phase(self, model: Any, phase: int) -> None:
        """Called before the first step of each phase, counted from 0."""

    def draw_replay(self, number: int) -> list[EncodedExample]:
        """Examples to put beside the `number` current ones of the next optimiser step; as many, or none."""
        return []

    def loss(self, step: Step) -> Tensor:
        """The loss of one micro-batch, normalised by `step.totals`: over a step's micro-batches the values add up."""
        return step.current_loss(step.forward())

    def edit_gradient(self, gradient: dict[str, Tensor], gradient_of: GradientOf) -> dict[str, Tensor]:
        """The gradient to clip and step with, given the one of the whole accumulated batch."""
        return gradient

    def after_step(self, model: Any, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        """Called after each optimiser step with the current examples that it used."""

    def end_task(self, model: Any, examples: Sequence[EncodedExample]) -> None:
        """Called after a task's last step, with its train examples."""

    def scored_tasks(self, task_index: int, num_tasks: int) -> list[int]:
        """The tasks that are scored after the task `task_index`; the others' cells stay empty."""
        return list(range(num_tasks))

    def save_learner(self, model: Any, learner: str, directory: Any) -> None:
        """Write a learner's minimum, as a standard PEFT adapter where it is one."""
        model.save(directory)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What must survive a stop beside the trained tensors and `task_index`: tensors, and JSON types."""
        return {}, {}

    def load_state(self, model: Any, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a saved state."""


class SummedAdapters(Strategy):
    """A strategy with an adapter of its own for each task, beside the fixed ones of earlier tasks.

    When a task begins, what is there becomes fixed, and a new adapter, A random and B zero, is put beside it:
    ΔW = Σ_t B_t·A_t, each with the same scaling α/r. The minimum that is saved is that sum, one adapter of rank r·t, so
    minima of different tasks are joined in product space. Dropout acts on the new adapter only.
    """

    def __init__(self, config: StrategyConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.frozen: Point = {}

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index > 0:  # the first task's adapter is the one that was attached
            self.frozen = model.whole_point()
            model.freeze(self.frozen)
            model.fresh(Random(f"{self.name}/{self.seed}/{task_index}").getrandbits(31))

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, model.whole_point() if model.frozen else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.frozen, {}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.frozen = {k: v.to(model.device) for k, v in tensors.items()}
        model.freeze(self.frozen)


class MergedAnswers(Strategy):
    """A strategy that trains an adapter, and answers with another one, merged after each task and not trained."""

    learners = ("fast", "merged")
    resting_learners = ("merged",)

    @property
    def answering_learner(self) -> str:
        return "merged"

    @abstractmethod
    def merged_point(self) -> Point:
        """The merged adapter, as it is to be saved: of one rank in all modules."""

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self.merged_point() if learner == "merged" else None)


class MergesAll(MergedAnswers):
    """One that keeps the adapter of every task, as its low ranks, and merges all of them anew.

    Where the config's `rank` cuts the merged adapter, `report` says how far it is off, ‖ΔW − ΔW_rank‖ / ‖ΔW‖ after each
    task.
    """

    def __init__(self, config: StrategyConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.adapters: list[Point] = []

    @abstractmethod
    def merge_all(self) -> Point:
        """The adapters so far, merged exactly."""

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        self.adapters.append(model.point())
        if self.config.rank is not None:
            self.report.setdefault("truncation_error", []).append(truncate(self.merge_all(), self.config.rank)[1])

    def merged_point(self) -> Point:
        merged, rank = self.merge_all(), self.config.rank
        return with_one_rank(merged if rank is None else truncate(merged, rank)[0])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{i}/{k}": v for i, adapter in enumerate(self.adapters) for k, v in adapter.items()}
        return tensors, {"report": self.report}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        number = len(tensors) // len(model.parameters)
        self.adapters = [{k: tensors[f"{i}/{k}"].to(model.device) for k in model.parameters} for i in range(number)]
        self.report = dict(values["report"])
