"""Model merging: an adapter for each task, trained apart, and one made of what they do to the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.merging import average, task_arithmetic, ties
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import MergesAll, StrategyConfig


@dataclass(frozen=True)
class MergeConfig(StrategyConfig):
    """Settings of merging.

    `method`: the mean of the ΔW; `task_arithmetic`, `scale` times their sum; or `ties`. `scale`: both papers choose it
    on validation data (0.1 to 1 for task arithmetic, 0.8 to 2.5 for TIES); 1 leaves it out. `density`: the part of a
    ΔW's entries that TIES keeps (0.2, the paper's). `rank`: of the merged adapter, which is then the nearest one; None
    for an exact one, whose rank is the sum of ranks, and for TIES a layer's whole width.
    """

    method: Literal["average", "task_arithmetic", "ties"] = "average"
    scale: float = 1.0
    density: float = 0.2
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.method not in ("average", "task_arithmetic", "ties"):
            raise UserError(
                f"Expected method to be average, task_arithmetic or ties, got '{self.method}'; choose one of these."
            )
        if not math.isfinite(self.scale):
            raise UserError(f"Expected a finite scale, got {self.scale}; choose 1 for no scaling.")
        if not 0 < self.density <= 1:
            raise UserError(f"Expected a density in (0, 1], got {self.density}; leave it out to use 0.2.")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"Expected a rank of at least 1, got {self.rank}; leave it out to merge exactly.")


class Merge(MergesAll):
    """After each task the merged adapter is made anew of the adapters so far, in ΔW = B·A, and answers.

    Every task trains from the same fresh adapter, so its result does not depend on its place. Where `rank` cuts the
    merged adapter, `report` says how far it is off, ‖ΔW − ΔW_rank‖ / ‖ΔW‖ after each task.

    >>> Merge.learners, Merge(MergeConfig(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "merge"
    reference = "task arithmetic: Ilharco et al. 2023, arXiv 2212.04089; TIES: Yadav et al. 2023, arXiv 2306.01708"
    config_class = MergeConfig
    # The papers choose scales of 0.1 to 1 (task arithmetic) and 0.8 to 2.5 (TIES). The average is the default.
    searched = {"method": ("task_arithmetic", "ties"), "scale": (0.25, 0.5, 1.0, 2.0)}

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        model.fresh(self.seed)

    def merge_all(self) -> Point:
        config = self.config
        if config.method == "average":
            return average(self.adapters)
        if config.method == "task_arithmetic":
            return task_arithmetic(self.adapters, config.scale)
        return ties(self.adapters, config.density, config.scale)
