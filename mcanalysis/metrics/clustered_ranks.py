"""Rank correlations and ratios of what was measured several times in each run, and prediction of runs left out.

Transitions of one run are not independent: a run is the unit that intervals, p values and predictions are of.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from mcanalysis.errors import UserError
from mcanalysis.metrics.comparisons import student_intervals, student_p

__all__ = [
    "ClusteredRatio",
    "RankCorrelation",
    "clustered_ratio",
    "clustered_spearman",
    "leave_one_run_out",
    "num_needed",
]

Array = NDArray[np.float64]
LEAST_RUNS = 3  # below, leaving one out leaves nothing to compare


class RankCorrelation(NamedTuple):
    """Spearman's `rho` in [−1, 1], its 95 % interval, the p value of rho = 0, and how many pairs and runs it is of.

    NaN where a side is constant; interval and p where there are fewer than 3 runs, or none of them changes rho.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int
    num_runs: int


class ClusteredRatio(NamedTuple):
    """A ratio of sums over runs, its 95 % interval, the p value of a ratio of 0, and how many runs it is of.

    The value is NaN where the whole is 0; interval and p where leaving out a run leaves nothing, or changes nothing.
    """

    value: float
    low: float
    high: float
    p: float
    num_runs: int


def clustered_ratio(part: ArrayLike, whole: ArrayLike, runs: ArrayLike) -> ClusteredRatio:
    """Return Σ part / Σ whole with an interval and a p value that are over runs.

    The standard error is the jackknife's that leaves out one run at a time, √((G−1)/G · Σ(r_g − r̄)²), used with
    Student's t of G − 1 degrees of freedom (Efron & Tibshirani 1993, ch. 11; by clusters).

    Args:
        part: shape (n,).
        whole: shape (n,), not negative; rows with a NaN in either are left out.
        runs: shape (n,), which run each is of.

    >>> found = clustered_ratio([1, 0, 1, 1], [1, 1, 1, 1], ["a", "a", "b", "c"])
    >>> found.value, round(found.low, 3), found.num_runs
    (0.75, -0.206, 3)
    """
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    there = ~(np.isnan(part) | np.isnan(whole))
    groups = np.unique(np.asarray(runs)[there], return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    parts, wholes = (np.bincount(groups, of[there], count) for of in (part, whole))
    value = float(parts.sum() / wholes.sum()) if wholes.sum() > 0 else math.nan
    nothing = ClusteredRatio(value, math.nan, math.nan, math.nan, count)
    left = wholes.sum() - wholes
    if count < 2 or not left.min() > 0:
        return nothing
    without = (parts.sum() - parts) / left
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    if not error > 1e-12 * max(abs(value), 1.0):
        return nothing
    low, high = (float(end) for end in student_intervals(value, error, count - 1))
    return nothing._replace(low=low, high=high, p=float(student_p(value, error, count - 1)))


def num_needed(rho: float, num_tests: int = 1, alpha: float = 0.05) -> int:
    """Return how many independent pairs show a Spearman correlation of `rho` to be none by chance, in so many tests.

    The least n at which |artanh ρ| is z_{1 − α/(2·num_tests)} standard errors √(1.06/(n − 3)) (Fieller, Hartley &
    Pearson 1957); the first step of Holm's correction. Pairs of one run are worth less than as many of different runs.

    Raises `UserError` for rho = 0 or beyond 1, or fewer than one test.

    >>> num_needed(0.6), num_needed(0.6, num_tests=22)
    (12, 24)
    """
    if not 0 < abs(rho) < 1 or num_tests < 1:
        raise UserError(f"Expected a correlation between 0 and 1 and a test, got {rho} in {num_tests}; say 0.6.")
    z = float(ndtri(1 - alpha / 2 / num_tests))
    return math.ceil(3 + 1.06 * (z / math.atanh(rho)) ** 2)


def clustered_spearman(x: ArrayLike, y: ArrayLike, runs: ArrayLike, strata: ArrayLike | None = None) -> RankCorrelation:
    """Return Spearman's ρ of pairs from several runs, with an interval and a p value that are over runs.

    The standard error of artanh ρ is the jackknife's that leaves out one run at a time, √((G−1)/G · Σ(z_g − z̄)²), used
    with Student's t of G − 1 degrees of freedom (Efron & Tibshirani 1993, ch. 11; by clusters). With `strata` ranks are
    taken within each (divided by their number + 1, about ½) and correlated together: differences between strata are
    out of it.

    Args:
        x: shape (n,); pairs with a NaN on either side are left out.
        y: shape (n,).
        runs: shape (n,), which run each is of.
        strata: shape (n,), or None: all are one.

    >>> found = clustered_spearman([1, 2, 3, 1, 2, 3], [1, 2, 9, 5, 4, 8], [0, 0, 0, 1, 1, 1])
    >>> round(found.rho, 3), found.n, found.num_runs
    (0.717, 6, 2)
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    whole = ~(np.isnan(x) | np.isnan(y))
    groups = np.unique(np.asarray(runs)[whole], return_inverse=True)[1]
    layers = (
        np.zeros(len(groups), int) if strata is None else np.unique(np.asarray(strata)[whole], return_inverse=True)[1]
    )
    x, y = x[whole], y[whole]
    rho, count = _rho(x, y, layers), int(groups.max(initial=-1)) + 1
    nothing = RankCorrelation(rho, math.nan, math.nan, math.nan, len(x), count)
    if count < LEAST_RUNS or math.isnan(rho):
        return nothing
    without = np.array([_rho(x[groups != g], y[groups != g], layers[groups != g]) for g in range(count)])
    z = np.arctanh(np.clip(without, -1 + 1e-12, 1 - 1e-12))
    error = math.sqrt((count - 1) / count * float(((z - z.mean()) ** 2).sum()))
    if not error > 1e-9:
        return nothing
    centre = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    low, high = (float(np.tanh(end)) for end in student_intervals(centre, error, count - 1))
    return nothing._replace(low=low, high=high, p=float(student_p(centre, error, count - 1)))


def _rho(x: Array, y: Array, layers: NDArray[np.int64]) -> float:
    ranks = np.empty((2, len(x)))
    for layer in np.unique(layers):
        inside = layers == layer
        for row, values in zip(ranks, (x, y), strict=True):
            row[inside] = rankdata(values[inside]) / (inside.sum() + 1) - 0.5
    centred = ranks - ranks.mean(axis=1, keepdims=True) if len(x) else ranks
    sizes = np.sqrt((centred**2).sum(axis=1))
    return (
        float(np.clip(centred[0] @ centred[1] / sizes.prod(), -1, 1))
        if len(x) > 2 and sizes.min() > 1e-12
        else math.nan
    )


def leave_one_run_out(signals: ArrayLike, outcome: ArrayLike, runs: ArrayLike) -> tuple[Array, Array]:
    """Return predictions of each run from all others, shape (n,), and the others' mean outcome, shape (n,).

    Signals become their place among the others' values, in [−½, ½] (NaN: 0); each counts with the sign of its
    correlation with the ranks of the outcome in the other runs, all with one weight (Dawes 1979), and a straight line
    leads from their mean to the outcome: two numbers are fitted, however many signals there are.
    R² out of run is 1 − Σ(y − prediction)²/Σ(y − mean)².

    Args:
        signals: shape (n, k).
        outcome: shape (n,), without NaN.
        runs: shape (n,); at least two different ones.

    Raises:
        UserError: a single run.

    >>> x = [[1.0], [2.0], [3.0], [4.0]]
    >>> leave_one_run_out(x, [0.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"])[1].tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    signals, y = np.asarray(signals, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    groups = np.unique(np.asarray(runs), return_inverse=True)[1]
    if len(set(groups)) < 2:
        raise UserError("Expected at least two runs, got one; a run is predicted from the others.")
    predicted, means = np.empty(len(y)), np.empty(len(y))
    for g in range(int(groups.max()) + 1):
        out, others = groups == g, groups != g
        places = np.zeros_like(signals)
        for place, values in zip(places.T, signals.T, strict=True):
            there = ~np.isnan(values)
            known = np.sort(values[others & there])
            if len(known):
                ends = [np.searchsorted(known, values[there], side) for side in ("left", "right")]
                place[there] = (ends[0] + ends[1]) / 2 / len(known) - 0.5
        ranks = rankdata(y[others])
        signs = np.sign(np.round((places[others] - places[others].mean(axis=0)).T @ (ranks - ranks.mean()), 9))
        index = places @ signs / max(len(signs), 1)
        spread = index[others] - index[others].mean()
        means[out] = y[others].mean()
        slope = float(spread @ y[others]) / float(spread @ spread) if spread.any() else 0.0
        predicted[out] = means[out] + slope * (index[out] - index[others].mean())
    return predicted, means
