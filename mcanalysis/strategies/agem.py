"""Averaged GEM: a gradient that would undo what a memory of earlier tasks asks for loses that part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import dot
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import GradientOf, Strategy, StrategyConfig


@dataclass(frozen=True)
class AgemConfig(StrategyConfig):
    """Settings of A-GEM.

    `memory_size`: examples remembered over the whole stream (256: the authors keep some per class, which text has not).
    `reference_batch_size`: examples of earlier tasks that the reference gradient is taken of, drawn anew each step; all
    there are if they are fewer (256, the authors' code). Each costs as much as a training example.
    """

    memory_size: int | float = 256
    reference_batch_size: int = 256

    def __post_init__(self) -> None:
        if self.reference_batch_size < 1:
            raise UserError(
                f"Expected a reference_batch_size of at least 1, got {self.reference_batch_size}; choose the "
                "strategy sequential to train without one."
            )


class Agem(Strategy):
    """If g·r < 0: g ← g − (g·r / r·r)·r, with g the gradient of a step and r that of a batch from memory.

    Both are one vector over all trained parameters and the mean loss per target token; g is of the whole accumulated
    batch and edited before it is clipped. Adam and clipping come after, so it is the gradient that does not conflict,
    not the step. The memory is a reservoir over the stream: each example enters on its first pass after the step that
    used it, and r is taken, from the second task on, of those in it that belong to earlier tasks.

    >>> Agem.config_class()
    AgemConfig(memory_size=256, reference_batch_size=256)
    """

    name = "agem"
    reference = "Chaudhry et al. 2019, arXiv 1812.00420"
    config_class = AgemConfig
    edits_gradient = True

    def __init__(self, config: AgemConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed)
        self.num_steps = 0

    def edit_gradient(self, gradient: dict[str, Tensor], gradient_of: GradientOf) -> dict[str, Tensor]:
        examples = self._draw()
        if not examples:
            return gradient
        reference = gradient_of(examples)
        product = dot(gradient, reference)
        if not product < 0:  # so is a gradient that is no number, at which the trainer will stop
            return gradient
        factor = product / dot(reference, reference)  # not 0, or the product were
        return {name: g.sub(reference[name], alpha=factor) for name, g in gradient.items()}

    def _draw(self) -> list[EncodedExample]:
        """Distinct examples of earlier tasks; by seed and step alone, so that there is no random state to save."""
        past = [item.example for item in self.rehearsal.buffer.items if item.task_index < self.task_index]
        number = self.config.reference_batch_size
        return past if len(past) <= number else Random(f"agem/{self.seed}/{self.num_steps}").sample(past, number)

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.rehearsal.remember(examples, first_pass, self.task_index)
        self.num_steps += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"num_steps": self.num_steps, "buffer": self.rehearsal.buffer.state()}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.num_steps = int(values["num_steps"])
        self.rehearsal.buffer.load_state(values["buffer"])
