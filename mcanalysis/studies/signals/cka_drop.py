"""1 − CKA of hidden states on old tasks: how far representations were turned."""

from __future__ import annotations

import math

import numpy as np

from mcanalysis.metrics.representation_similarity import SMALLEST_BATCH
from mcanalysis.studies.signals.base import Move, Signal


def cka_drop(move: Move) -> float:
    """One minus the mean over layers of linear, unbiased CKA of start and end; NaN for fewer than 4 old examples."""
    if move.num_old_examples * len(move.old) < SMALLEST_BATCH[True]:
        return math.nan
    return 1.0 - float(np.mean([cka.value() for cka in move.on_old.cka]))


SIGNAL = Signal("cka_drop", cka_drop, "2 forward (old)", "Kornblith et al. 2019, arXiv 1905.00414", True)
