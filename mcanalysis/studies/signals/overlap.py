"""Whether the update reads and writes where the one before it did: principal angles of their leading directions."""

from __future__ import annotations

from mcanalysis.params.lora import ranks
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.subspace_overlap import SIDES, subspace_overlap
from mcanalysis.studies.signals.base import Move, Signal, mean


def overlap(move: Move) -> dict[str, float]:
    """Mean cos² of the principal angles of the updates' leading column and row spaces, in [0, 1]; mean over modules.

    Of each update the r leading directions, r the rank of the minima. An update is a difference of two adapters and has
    rank 2r; the start is part of both updates, so that among all 2r directions r are shared whatever training does.
    """
    rank = max(ranks(move.start).values())
    update, previous = (truncate(point, rank)[0] for point in (move.update, move.previous))
    return {
        side: mean({module: found.overlap for module, found in subspace_overlap(update, previous, side).items()})
        for side in SIDES
    }


SIGNAL = Signal(
    "overlap",
    overlap,
    "none",
    "Björck & Golub 1973; Hu et al. 2022, arXiv 2106.09685, §7.2",
    parts=SIDES,
    version=2,  # 1: all 2r directions
)
