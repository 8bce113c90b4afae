"""The cosine of the new task's gradient and the old tasks' at the start; negative: they pull apart."""

from __future__ import annotations

import math

from mcanalysis.params.point import dot, norm
from mcanalysis.studies.signals.base import Move, Signal


def gradient_conflict(move: Move) -> float:
    """In [−1, 1], in the coordinates of the factors; NaN where a gradient is 0."""
    new, old = move.new_loss.gradient(), move.old_loss.gradient()
    lengths = norm(new) * norm(old)
    return dot(new, old) / lengths if lengths else math.nan


COST = "1 forward, 1 backward (new); 1 forward, 1 backward (old)"
SIGNAL = Signal("gradient_conflict", gradient_conflict, COST, "Lopez-Paz & Ranzato 2017, arXiv 1706.08840", True)
