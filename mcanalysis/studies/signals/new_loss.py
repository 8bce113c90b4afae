"""What the base and the start already know of the new task."""

from __future__ import annotations

from mcanalysis.studies.signals.base import Move, Signal


def new_loss(move: Move) -> dict[str, float]:
    """The new task's loss, nats per target token, of the `base` and at the `start`."""
    return {"base": move.new_loss.loss(move.base), "start": move.new_loss.loss()}


SIGNAL = Signal("new_loss", new_loss, "2 forward (new)", "this project", parts=("base", "start"))
