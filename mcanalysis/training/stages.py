"""The trainings that a run consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.store.hashing import hash_json


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


def make_stages(train: Sequence[tuple[str, list[EncodedExample]]], schedule: str, num_steps: int) -> list[Stage]:
    """The trainings of a run, given each task's name and examples in order and a strategy's `schedule`."""
    if schedule == "none":
        return []
    if schedule == "joint":
        return [Stage(len(train), "JOINT", [e for _, task in train for e in task], num_steps * len(train))]
    return [Stage(k, name, examples, num_steps) for k, (name, examples) in enumerate(train, start=1)]
