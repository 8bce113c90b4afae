"""What a continual-learning strategy is: a few hooks that return values; the loop is never theirs to change."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mcanalysis.models.encoding import Batch, EncodedExample
from mcanalysis.models.forward import Forward, forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point


@dataclass(frozen=True)
class Totals:
    """Counts over the whole accumulated batch, which every micro-batch's sums are divided by.

    So the micro-batches' losses *add up* to the loss of the whole batch, however it was cut.
    """

    current_targets: int
    replay_targets: int
    replay_tokens: int


@dataclass(frozen=True)
class Step:
    """One micro-batch: the rows of the current task first, then the replayed rows, in one padded batch."""

    network: torch.nn.Module  # the model as the engine wrapped it (DDP and the like)
    model: LoraModel
    batch: Batch
    num_current: int
    totals: Totals

    @property
    def num_replay(self) -> int:
        """Replayed rows; 0 before replay starts."""
        return self.batch.input_ids.shape[0] - self.num_current

    def forward(self, hidden_states: bool = False) -> Forward:
        """The pass of the trainable adapter over all rows, current and replayed together."""
        return forward(self.network, self.batch, hidden_states)

    def replay_batch(self) -> Batch:
        """The replayed rows alone, padded as in `batch`, so that positions of hidden states match."""
        b, n = self.batch, self.num_current
        mask = None if b.attention_mask is None else b.attention_mask[n:]
        return Batch(b.input_ids[n:], b.labels[n:], mask, b.position_ids[n:], b.num_answer_columns)

    def current_loss(self, result: Forward) -> Tensor:
        """Cross entropy on the current rows, in nats per target token of the accumulated batch."""
        return result.nll[: self.num_current].sum() / self.totals.current_targets

    def replay_loss(self, result: Forward) -> Tensor:
        """Cross entropy on the replayed rows, likewise."""
        return result.nll[self.num_current :].sum() / self.totals.replay_targets


@dataclass(frozen=True)
class StrategyConfig:
    """Settings of a strategy; each strategy has its own frozen subclass."""


class Strategy(ABC):
    """A strategy: subclass it in a file of its own, with `name`, `reference`, a `config_class` and the hooks it needs.

    Order of calls: `begin`, then per task `begin_task`, then per optimiser step `draw_replay` (once, so that what is
    drawn does not depend on gradient accumulation), `loss` (once per micro-batch), `after_step`; then `end_task`.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    config_class: ClassVar[type[StrategyConfig]] = StrategyConfig
    learners: ClassVar[tuple[str, ...]] = ("fast",)

    def __init__(self, config: StrategyConfig, seed: int) -> None:
        self.config: Any = config
        self.seed = seed
        self.task_index = -1

    @property
    def answering_learner(self) -> str:
        """The learner whose scores are *the* scores of the run."""
        return "fast"

    def begin(self, model: LoraModel) -> None:
        """Called once, when the adapter has just been attached."""

    def begin_task(self, model: LoraModel, task_index: int) -> None:
        """Called before a task's first step; `task_index` counts from 0."""
        self.task_index = task_index

    def draw_replay(self, number: int) -> list[EncodedExample]:
        """Examples to put beside the `number` current ones of the next optimiser step."""
        return []

    def loss(self, step: Step) -> Tensor:
        """The loss of one micro-batch, normalised by `step.totals`."""
        return step.current_loss(step.forward())

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        """Called after each optimiser step with the current examples that it used."""

    def end_task(self, model: LoraModel) -> None:
        """Called after a task's last step."""

    def learner_point(self, model: LoraModel, learner: str) -> Point:
        """The minimum a learner has reached, as a copy."""
        return model.point()

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        """Write a learner's minimum as a standard PEFT adapter."""
        model.save(directory)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What must survive a stop: tensors, and JSON types."""
        return {}, {}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
