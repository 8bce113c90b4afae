"""Individual adapters: a fresh one for each task, so that nothing is forgotten and nothing shared."""

from __future__ import annotations

from collections.abc import Sequence

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies.strategy import Strategy


class Individual(Strategy):
    """Every task starts from the same fresh adapter and is scored with its own: the diagonal of the accuracy matrix.

    The start and the order of the examples depend on the seed and the task alone, so a task's result does not depend
    on its place in the sequence.

    >>> Individual(Individual.config_class(), seed=0).scored_tasks(task_index=1, num_tasks=3)
    [1]
    """

    name = "individual"
    reference = "one model per task, e.g. Lopez-Paz & Ranzato 2017, arXiv 1706.08840"

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        model.fresh(self.seed)

    def scored_tasks(self, task_index: int, num_tasks: int) -> list[int]:
        return [task_index]
