"""How many tasks were learned before: what any other signal has to beat."""

from __future__ import annotations

from mcanalysis.studies.signals.base import Move, Signal


def position(move: Move) -> float:
    """The number of old tasks."""
    return float(len(move.old))


SIGNAL = Signal("position", position, "none", "baseline of this project")
