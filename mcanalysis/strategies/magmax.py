"""MagMax: sequential fine-tuning, and one adapter of the largest change that each weight has seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mcanalysis.errors import UserError
from mcanalysis.params.merging import magmax
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import MergesAll, StrategyConfig


@dataclass(frozen=True)
class MagMaxConfig(StrategyConfig):
    """Settings of MagMax.

    `scale`: what the merged ΔW is multiplied by; 0.5 in all evaluations of the authors' code, which are of vision
    models. `rank`: of the merged adapter, which is then the nearest one; None for an exact one, whose rank is a layer's
    whole width.
    """

    scale: float = 0.5
    rank: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"Expected a finite scale, got {self.scale}; leave it out to use 0.5.")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"Expected a rank of at least 1, got {self.rank}; leave it out to merge exactly.")


class MagMax(MergesAll):
    """ΔW_merged = scale · ΔW_{i*}, i* per entry the task after which |ΔW_i| was largest (the last of equal ones).

    One adapter is trained on task after task, as by `sequential`; ΔW_i = B_i·A_i is its whole change of the base after
    task i, not that of task i alone. The authors merge all weights of a model; here it is done in ΔW, those weights
    that an adapter changes, and never on the factors: (B·R, R⁻¹·A) is the same adapter, and has to merge alike.
    Training goes on from the trained adapter, not from the merged one, which answers.

    Where `rank` cuts the merged adapter, `report` says how far it is off, ‖ΔW − ΔW_rank‖ / ‖ΔW‖ after each task.

    The paper's text was not read; the rule is that of the authors' code (danielm1405/magmax, `merge_max_abs`).

    >>> MagMax.learners, MagMax(MagMaxConfig(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "magmax"
    reference = "Marczak et al. 2024, arXiv 2407.06322"
    config_class = MagMaxConfig
    # 0.5 is the authors', for images; the others are ours, up to the merged change itself.
    searched = {"scale": (0.25, 0.5, 0.75, 1.0)}

    def merge_all(self) -> Point:
        return magmax(self.adapters, self.config.scale)
