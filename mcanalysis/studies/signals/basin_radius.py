"""How far the old tasks let the start be moved in random directions."""

from __future__ import annotations

from mcanalysis.landscape.basin_radius import basin_radius
from mcanalysis.studies.signals.base import Move, Signal


def radius(move: Move) -> float:
    """The distance, in factors, at which the mean old loss has risen by 0.05 nats; two directions."""
    return basin_radius(move.old_loss.loss, move.start)


SIGNAL = Signal("basin_radius", radius, "11 to 31 forward (old)", "this project", True)
