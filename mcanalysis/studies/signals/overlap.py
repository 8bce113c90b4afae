"""Whether the update reads and writes where the one before it did: principal angles of their spaces."""

from __future__ import annotations

from mcanalysis.params.subspace_overlap import SIDES, subspace_overlap
from mcanalysis.studies.signals.base import Move, Signal, mean


def overlap(move: Move) -> dict[str, float]:
    """Mean cos² of the principal angles of the two updates' column and row spaces, in [0, 1]; mean over modules."""
    return {
        side: mean(
            {module: found.overlap for module, found in subspace_overlap(move.update, move.previous, side).items()}
        )
        for side in SIDES
    }


SIGNAL = Signal("overlap", overlap, "none", "Björck & Golub 1973; Hu et al. 2022, arXiv 2106.09685, §7.2", parts=SIDES)
