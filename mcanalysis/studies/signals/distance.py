"""How far the minima lie apart in weights: in factors, in aligned factors and in ΔW."""

from __future__ import annotations

import math

from mcanalysis.params.weight_distance import weight_distance
from mcanalysis.strategies import get_strategy
from mcanalysis.studies.signals.base import Move, Signal


def distance(move: Move) -> dict[str, float]:
    """‖end − start‖ in each space; NaN in those of factors where these were not what was trained."""
    has_factors = get_strategy(move.run.strategy).has_factors
    return {
        space: weight_distance(move.start, move.end, space).distance if has_factors or space == "delta" else math.nan
        for space in ("factor", "aligned", "delta")
    }


SIGNAL = Signal("distance", distance, "none", "Euclid", parts=("factor", "aligned", "delta"))
