"""The trainings that a run consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.store.hashing import hash_json
from mcanalysis.training.config import TrainingConfig


@dataclass(frozen=True)
class Stage:
    """One training: the row of the accuracy matrix it leads to, its folder's name, its examples and steps."""

    row: int
    name: str
    examples: list[EncodedExample]
    num_steps: int

    @property
    def label(self) -> str:
        """`<k>-<TASK>`."""
        return f"{self.row}-{self.name}"

    def order_seed(self, seed: int, phase: int) -> str:
        """Fixes the order of the examples; by what they say, so that neither a task's name nor its place matters."""
        return f"{seed}/{hash_json([[e.prompt_ids, e.answer_ids] for e in self.examples])}/{phase}"


def make_stages(
    train: Sequence[tuple[str, list[EncodedExample]]], schedule: str, training: TrainingConfig
) -> list[Stage]:
    """The trainings of a run, given each task's name and examples in order and a strategy's `schedule`.

    Joint training has as many steps as all tasks together. Raises `UserError` for a task without steps.
    """
    if schedule == "none":
        return []
    steps = [training.steps_of(name, len(examples)) for name, examples in train]
    if schedule == "joint":
        return [Stage(len(train), "JOINT", [e for _, task in train for e in task], sum(steps))]
    return [Stage(k, *of, number) for k, (of, number) in enumerate(zip(train, steps, strict=True), start=1)]
