"""One memory per task: the last examples of each, so that a gradient can be taken of every past task by itself."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample


class TaskMemory:
    """The last `capacity` examples of each task (Lopez-Paz & Ranzato 2017); a new one pushes the oldest out.

    The examples of a step are of one age. They come sorted by length, and are taken in in another order, drawn by
    `seed`: of a step that has room for a part only, it would be the long ones that stay.

    >>> memory = TaskMemory(capacity=2)
    >>> for i in range(5):
    ...     memory.remember([EncodedExample((i,), (i,))], [True], task_index=0)
    >>> [e.answer_ids for e in memory.examples[0]], memory.before(0)
    ([(3,), (4,)], [])
    """

    def __init__(self, capacity: int, seed: int = 0) -> None:
        if capacity < 1:
            raise UserError(
                f"Expected a memory_per_task of at least 1, got {capacity}; choose the strategy sequential to train "
                "without memory."
            )
        self.capacity = capacity
        self.seed = seed
        self.examples: dict[int, list[EncodedExample]] = {}

    def remember(self, examples: Sequence[EncodedExample], first_pass: Sequence[bool], task_index: int) -> None:
        """Take in the examples of a finished step; each once, on its first pass, so that no memory holds copies."""
        memory = self.examples.setdefault(task_index, [])
        new = [example for example, first in zip(examples, first_pass, strict=True) if first]
        drawn_by = f"task memory/{self.seed}/{task_index}/{[e.prompt_ids + e.answer_ids for e in new]}"
        Random(drawn_by).shuffle(new)  # by what is there, so that there is no random state to save
        memory += new
        del memory[: -self.capacity]

    def before(self, task_index: int) -> list[list[EncodedExample]]:
        """What is remembered of each task before `task_index`, in the order of the tasks."""
        return [memory for index, memory in sorted(self.examples.items()) if index < task_index and memory]

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as JSON types."""
        tasks = sorted(self.examples.items())
        return {"tasks": [[k, [[e.prompt_ids, e.answer_ids] for e in memory]] for k, memory in tasks]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.examples = {
            int(k): [EncodedExample(tuple(p), tuple(a)) for p, a in memory] for k, memory in state["tasks"]
        }
