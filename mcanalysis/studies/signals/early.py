"""What the first 5 to 10 % of the new task's training did to the weights and to its loss."""

from __future__ import annotations

import math

from mcanalysis.params.weight_distance import weight_distance
from mcanalysis.studies.signals.base import Move, Signal


def early(move: Move) -> dict[str, float]:
    """`distance` in ΔW and `fall` of the new task's loss (nats per target token); NaN without snapshots that early."""
    found = move.early()
    if found is None:
        return {"distance": math.nan, "fall": math.nan}
    before, after = found
    losses = [move.new_loss_at(point) for point in found]
    return {"distance": weight_distance(before, after, "delta").distance, "fall": losses[0] - losses[1]}


SOURCE = "after arXiv 2606.19549, which reads other numbers of the first steps"
SIGNAL = Signal("early", early, "2 forward (new)", SOURCE, parts=("distance", "fall"))
