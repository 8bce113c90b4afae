"""Over how many directions the update is spread."""

from __future__ import annotations

from mcanalysis.params.spectra import effective_rank
from mcanalysis.studies.signals.base import Move, Signal, mean


def of_update(move: Move) -> float:
    """exp of the entropy of the update's singular values; mean over modules."""
    return mean(effective_rank(move.update))


SIGNAL = Signal("effective_rank", of_update, "none", "Roy & Vetterli 2007, EUSIPCO")
