"""Whether predicted probabilities can be believed: calibration error and Brier score of plain arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError

__all__ = ["ReliabilityBins", "brier_scores", "expected_calibration_error", "reliability_bins"]

NUM_BINS = 15
"""As in Guo et al. 2017."""


class ReliabilityBins(NamedTuple):
    """What a reliability diagram draws, per bin of confidence: (0, 1/M], (1/M, 2/M], …, 0 being in the first.

    `counts` (bins,), `confidence` and `accuracy` (bins,), means in [0, 1], NaN in an empty bin.
    """

    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability_bins(confidences: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> ReliabilityBins:
    """Return count, mean confidence and accuracy in each of `num_bins` bins of equal width (Guo et al. 2017).

    Args:
        confidences: shape (n,), the probability given to the predicted class, in [0, 1].
        correct: shape (n,), whether it was the right one.
        num_bins: M, at least 1; 15 in the paper.

    Raises:
        UserError: the shapes differ, there is no prediction, a confidence lies outside [0, 1], or `num_bins` < 1.

    >>> reliability_bins([0.2, 0.9, 1.0], [False, True, False], num_bins=2).counts.tolist()
    [1, 2]
    """
    p, hit = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.ndim != 1 or p.shape != hit.shape or len(p) == 0:
        raise UserError(
            f"Expected confidences and correct of one shape (n,) with n ≥ 1, got {p.shape} and {hit.shape}; "
            "pass one of each per prediction."
        )
    if num_bins < 1:
        raise UserError(f"Expected num_bins of 1 or more, got {num_bins}; use the default of {NUM_BINS}.")
    if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
        raise UserError(
            f"Expected confidences in [0, 1], got {p.min():g} to {p.max():g}; pass probabilities, not logits."
        )
    if np.isnan(hit).any():
        raise UserError(
            f"Expected right or wrong for each prediction, got NaN for {int(np.isnan(hit).sum())}; leave these out."
        )
    index = np.searchsorted(np.arange(1, num_bins) / num_bins, p)  # (k/M, (k+1)/M], whatever p·M is rounded to
    counts = np.bincount(index, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(index, weights=w, minlength=num_bins) / counts for w in (p, hit)]
    return ReliabilityBins(counts, *means)


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Return ECE = Σ_m (n_m / n)·|accuracy_m − confidence_m| over bins of equal width (Guo et al. 2017, eq. 3).

    In [0, 1]; 0 for predictions that are right as often as they say. Arguments and errors as for `reliability_bins`.

    >>> expected_calibration_error([0.75, 0.75, 0.75, 0.75], [True, True, True, False])
    0.0
    """
    bins = reliability_bins(confidences, correct, num_bins)
    gaps = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(bins.counts * gaps) / bins.counts.sum())


def brier_scores(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Return Σ_c (p_c − [c = label])² of each prediction, in [0, 2]; its mean is the score of Brier 1950.

    Args:
        probabilities: shape (n, classes), rows summing to one.
        labels: shape (n,), the right class's number.

    Returns:
        shape (n,).

    Raises:
        UserError: the shapes do not match, or a label is no class.

    >>> brier_scores([[0.5, 0.5], [0.0, 1.0]], [0, 1]).tolist()
    [0.5, 0.0]
    """
    p, label = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if p.ndim != 2 or label.shape != p.shape[:1]:
        raise UserError(
            f"Expected probabilities (n, classes) and labels (n,), got {p.shape} and {label.shape}; "
            "pass one row and one label per prediction."
        )
    if len(label) and not (label.min() >= 0 and label.max() < p.shape[1]):
        raise UserError(
            f"Expected labels below {p.shape[1]}, got {label.min()} to {label.max()}; number the classes from 0."
        )
    right = p[np.arange(len(p)), label]
    return (p**2).sum(axis=1) - 2 * right + 1
