"""How far the old tasks let the start be moved in random directions."""

from __future__ import annotations

import math
from statistics import geometric_mean

import torch

from mcanalysis.landscape.basin_radius import RADII, basin_radius
from mcanalysis.landscape.slices import filter_direction
from mcanalysis.params.lora import delta_norm
from mcanalysis.studies.signals.base import Move, Signal

RISE = 0.05  # nats


def radius(move: Move) -> float:
    """The distance in ΔW at which the mean old loss has risen by 0.05 nats; geometric mean of two directions.

    The basin by a score, `basin_radius`, of the score exp(−loss), which is `keep` = exp(−0.05) of its value there. A
    direction along which it holds at all steps counts with the last one, twice as long as the start.
    """

    def score(point: dict[str, torch.Tensor]) -> float:
        return math.exp(-move.old_loss_at(point))

    directions = (filter_direction(move.start, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    radii = [basin_radius(score, move.start, d, keep=math.exp(-RISE)).value for d in directions]
    return delta_norm(move.start) * geometric_mean([min(r, RADII[-1]) for r in radii])


SIGNAL = Signal("basin_radius", radius, "4 to 24 forward (old)", "after Chen et al. 2025, arXiv 2505.17646", True)
