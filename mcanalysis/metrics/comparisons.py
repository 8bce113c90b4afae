"""Several strategies compared over the same runs: paired differences, corrections for their number, ranks.

What is repeated is the run, of one seed and one order of the tasks; two strategies are paired by both. The tasks are
the same in all runs, so that an interval speaks of new seeds and new orders of *these* tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit  # scipy.stats takes half a second to import

from mcanalysis.errors import UserError

__all__ = ["crossed_mean", "holm", "mean_ranks", "rank_sets", "student_intervals", "student_p"]

Array = NDArray[np.float64]

_ROUNDING = 1e-12  # of numbers of the size of 1: below it a standard error is none


def crossed_mean(values: ArrayLike) -> tuple[Array, Array, Array]:
    """Return mean, standard error and degrees of freedom of paired differences over seeds × orders.

    With residuals e from the mean of the n pairs, S seeds and O orders,
    SE² = [S/(S−1) · Σ_s(Σ_o e_so)² + O/(O−1) · Σ_o(Σ_s e_so)²] / n²: the two-way clustered variance (Cameron, Gelbach &
    Miller 2011) without the term they subtract, in a full grid (MS_seeds + MS_orders)/n. Its expectation is then at
    least the variance of the mean, whatever seeds and orders share. The degrees are the fewer of S − 1 and O − 1:
    P(|Z| > q√u) is convex in u, so that by Jensen's inequality the t interval of normal values misses at most as
    often as it says (in full grids; somewhat more often where pairs are missing). A factor
    with one level is left out: of a single order this is the paired t over seeds.

    Args:
        values: shape `(*b, seeds, orders)`, NaN where there is no pair.

    Returns:
        Three arrays of shape `(*b,)`. The mean is NaN without a pair; the error is NaN with a single one, and where all
        pairs are the same up to rounding, as that does not show how they vary.

    >>> mean, error, degrees = crossed_mean([[0.1], [0.2], [0.3]])  # three seeds, one order
    >>> round(float(mean), 6), round(float(error), 6), float(degrees)
    (0.2, 0.057735, 2.0)
    """
    values = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(values)
    number = there.sum(axis=(-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(there, values, 0.0).sum(axis=(-2, -1)) / number
        apart = np.where(there, values - mean[..., None, None], 0.0)
        variance, degrees = np.zeros(number.shape), np.full(number.shape, np.inf)
        for others in (-1, -2):  # sums over the orders of each seed, then over the seeds of each order
            levels = there.any(axis=others).sum(axis=-1)
            of_levels = (apart.sum(axis=others) ** 2).sum(axis=-1) * levels / (levels - 1)
            variance += np.where(levels > 1, of_levels, 0.0)
            degrees = np.where(levels > 1, np.minimum(degrees, levels - 1), degrees)
        error = np.sqrt(variance) / number
    size = np.maximum(np.abs(np.where(there, values, 0.0)).max(axis=(-2, -1), initial=0.0), 1.0)
    known = np.isfinite(degrees) & (error > _ROUNDING * size)
    return mean, np.where(known, error, np.nan), np.where(np.isfinite(degrees), degrees, np.nan)


def student_p(mean: ArrayLike, error: ArrayLike, degrees: ArrayLike) -> Array:
    """Return two-sided p values of Student's t for a mean of 0, of the arguments' common shape; NaN where one is."""
    return 2 * stdtr(np.asarray(degrees), -np.abs(np.divide(mean, error)))


def student_intervals(
    mean: ArrayLike, error: ArrayLike, degrees: ArrayLike, confidence: float = 0.95, *, together: int = 1
) -> tuple[Array, Array]:
    """Return the ends of Student's t intervals, each of the arguments' common shape.

    With `together` = m each one has the confidence 1 − (1 − confidence)/m, so that m of them all hold with the stated
    one (Bonferroni), however they depend on each other. Dunnett's are shorter, but not for paired values:
    `scipy.stats.dunnett` supposes independent groups of one variance.

    Raises `UserError` for a confidence outside (0, 1).

    >>> low, high = student_intervals(0.0, 1.0, 2.0)
    >>> round(float(high), 3)
    4.303
    """
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence in (0, 1), got {confidence}; pass 0.95 for 95 %.")
    half = stdtrit(np.asarray(degrees), 1 - (1 - confidence) / max(together, 1) / 2) * np.asarray(error)
    return np.asarray(mean) - half, np.asarray(mean) + half


def holm(p_values: ArrayLike) -> Array:
    """Return p values adjusted for their number, shape (n,), after Holm (1979).

    The k-th smallest becomes max over i ≤ k of min(1, (n − i + 1)·p₍ᵢ₎). Rejecting those at most α rejects any true
    hypothesis with probability at most α, however the tests depend on each other. NaN (no test was possible) stays NaN
    and counts among the n.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)  # NaN last
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def rank_sets(
    mean: ArrayLike, error: ArrayLike, degrees: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lowest and the highest rank that each of k strategies may have, 1 being the largest mean.

    Strategy j may have the ranks 1 + (number significantly above it) to k − (number significantly below it). All of
    these sets contain the true ranks at once with at least the stated confidence (Mogstad, Romano, Shaikh & Wilhelm
    2024, *Inference for Ranks*, there by bootstrap), as the k(k − 1) one-sided t tests are corrected by `holm`. Equal
    means may have any of the ranks they share. What cannot be tested (NaN) tells nothing apart.

    Args:
        mean: shape (k, k), entry (i, j) of strategy i minus strategy j.
        error: shape (k, k), its standard error.
        degrees: shape (k, k), its degrees of freedom.
        confidence: in (0, 1).

    >>> gaps = np.subtract.outer([0.9, 0.5, 0.45], [0.9, 0.5, 0.45])
    >>> [ends.tolist() for ends in rank_sets(gaps, np.full((3, 3), 0.02), np.full((3, 3), 4.0))]
    [[1, 2, 2], [1, 3, 3]]
    """
    p = stdtr(np.asarray(degrees), -np.divide(mean, error))  # of "i is not above j"
    apart = ~np.eye(len(p), dtype=bool)
    above = np.zeros(p.shape, dtype=bool)
    above[apart] = holm(p[apart]) <= 1 - confidence
    return 1 + above.sum(axis=0), len(p) - above.sum(axis=1)


def mean_ranks(scores: ArrayLike) -> Array:
    """Return the mean rank of each strategy over the runs that all have, shape (k,).

    Equal scores share the mean of their ranks.

    Args:
        scores: shape (k, runs), larger is better, NaN where a run is missing. NaN for all if no run is left.

    >>> mean_ranks([[0.9, 0.5, 0.1], [0.9, 0.7, np.nan], [0.1, 0.1, 0.8]]).tolist()
    [1.75, 1.25, 3.0]
    """
    scores = np.asarray(scores, dtype=np.float64)
    scores = scores[:, ~np.isnan(scores).any(axis=0)]
    larger = (scores[None] > scores[:, None]).sum(axis=1)
    equal = (scores[None] == scores[:, None]).sum(axis=1)
    ranks = larger + (equal + 1) / 2
    return ranks.mean(axis=1) if scores.shape[1] else np.full(len(scores), np.nan)
