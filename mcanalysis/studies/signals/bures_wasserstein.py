"""How unlike the update and the adapter so far are in the directions of the input that they react to."""

from __future__ import annotations

from mcanalysis.params.spectra import bures_wasserstein
from mcanalysis.studies.signals.base import Move, Signal, mean


def conflict(move: Move) -> float:
    """Bures–Wasserstein distance of the covariances of update and start, traces 1, in [0, √2]; mean over modules."""
    return mean(bures_wasserstein(move.update, move.start))


SOURCE = "Wang et al. 2026, arXiv 2605.09608; the state is ΔW so far, without their projection to a shared space"
SIGNAL = Signal("bures_wasserstein", conflict, "none", SOURCE)
