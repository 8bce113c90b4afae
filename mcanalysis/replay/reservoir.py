"""Reservoir sampling: a fixed-size, uniformly random subset of a stream of unknown length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.replay.random_state import random_state, set_random_state


@dataclass(frozen=True)
class ReplayItem:
    """One remembered example: ids and labels (in the encoded example, padded anew in each batch) and its task."""

    example: EncodedExample
    task_index: int


def check_memory_size(size: float) -> None:
    """Raise `UserError` unless it is a number of examples, or a share of them that is a number once the data are known.

    >>> check_memory_size(500), check_memory_size(0.02)
    (None, None)
    """
    if not (0 < size < 1 or (size >= 1 and size == int(size))):
        raise UserError(
            "Expected memory_size as a whole number of at least 1, or a share of the train examples in (0, 1), got "
            f"{size}; choose the strategy sequential to train without replay."
        )


class ReservoirBuffer:
    """Algorithm R (Vitter 1985): after n items each of them is kept with probability min(1, capacity / n).

    A capacity in (0, 1) is a share of a stream whose length is not known yet: to be replaced before the first item.

    Its random state is its own, so that what is replayed depends on nothing else.

    >>> buffer = ReservoirBuffer(capacity=2, seed=0)
    >>> for i in range(10):
    ...     buffer.add(ReplayItem(EncodedExample((i,), (i,)), task_index=0))
    >>> len(buffer), buffer.num_seen
    (2, 10)
    """

    def __init__(self, capacity: float, seed: int) -> None:
        check_memory_size(capacity)
        self.capacity = capacity
        self.items: list[ReplayItem] = []
        self.num_seen = 0
        self._rng = Random(f"replay/{seed}")

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: ReplayItem) -> None:
        """Show the buffer one item of the stream; it may replace an older one or be passed over."""
        if self.capacity < 1:
            raise UserError(f"Expected a number of examples as memory, got the share {self.capacity}; settle it first.")
        self.num_seen += 1
        if len(self.items) < self.capacity:
            self.items.append(item)
            return
        place = self._rng.randrange(self.num_seen)
        if place < self.capacity:
            self.items[place] = item

    def sample(self, number: int) -> list[ReplayItem]:
        """Draw distinct items; with repetition only where more are asked for than there are."""
        if number <= len(self.items):
            return self._rng.sample(self.items, number)
        return self._rng.choices(self.items, k=number)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as JSON types."""
        return {
            "num_seen": self.num_seen,
            "rng": random_state(self._rng),
            "items": [[i.example.prompt_ids, i.example.answer_ids, i.task_index] for i in self.items],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.num_seen = int(state["num_seen"])
        set_random_state(self._rng, state["rng"])
        self.items = [ReplayItem(EncodedExample(tuple(p), tuple(a)), int(k)) for p, a, k in state["items"]]


class Rehearsal:
    """When to replay and what to remember: the rules that every replay strategy shares.

    Replay starts with the second task, or, with `from_first_step`, as soon as the buffer holds anything. An example is
    remembered after the step that used it, and only on its first pass through the data, so that several epochs do not
    fill the reservoir with copies.
    """

    def __init__(self, capacity: float, seed: int, from_first_step: bool = False) -> None:
        self.buffer = ReservoirBuffer(capacity, seed)
        self.from_first_step = from_first_step

    def draw(self, number: int, task_index: int) -> list[EncodedExample]:
        """The examples to replay beside `number` current ones; none before replay starts."""
        if not len(self.buffer) or (task_index == 0 and not self.from_first_step):
            return []
        return [item.example for item in self.buffer.sample(number)]

    def remember(self, examples: Sequence[EncodedExample], first_pass: Sequence[bool], task_index: int) -> None:
        """Show the buffer the examples of a finished step."""
        for example, first in zip(examples, first_pass, strict=True):
            if first:
                self.buffer.add(ReplayItem(example, task_index))
