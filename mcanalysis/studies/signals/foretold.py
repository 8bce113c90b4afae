"""What the old tasks' loss is foretold to rise by, to second order, and its curvature along the update."""

from __future__ import annotations

from mcanalysis.params.point import dot, norm, subtract
from mcanalysis.studies.signals.base import Move, Signal


def foretold(move: Move) -> dict[str, float]:
    """`rise` g·Δ + ½ΔᵀHΔ, its parts `first` and `second`, and `curvature` ΔᵀHΔ/‖Δ‖² (0 for Δ = 0), of factors."""
    step = subtract(move.end, move.start)
    form, length = dot(step, move.old_loss.product(step)), norm(step)
    first = dot(move.old_loss.gradient(), step)
    curvature = form / length**2 if length else 0.0
    return {"rise": first + form / 2, "first": first, "second": form / 2, "curvature": curvature}


COST = "2 forward, 4 backward (old)"
SOURCE = "Mirzadeh et al. 2020, arXiv 2006.06958"
SIGNAL = Signal("foretold", foretold, COST, SOURCE, True, ("rise", "first", "second", "curvature"))
