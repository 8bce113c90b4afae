"""Totals over a finite population of which only a part has been looked at: intervals for what the rest may add.

Units are drawn one by one without replacement, the next one with a probability in proportion to its size among the ones
left (successive sampling); `drawing_order` draws the whole order at once. With g_k the value of the k-th unit drawn,
a_k its size and A_k the sizes of all that were left before it,

    Z_k = g_1 + … + g_{k−1} + g_k · A_k / a_k

has the total G as its conditional mean given all that was drawn before (Des Raj 1956, "Some estimators in sampling with
varying probabilities without replacement"). Two intervals follow from it:

- `bounded_total`, where every value is known to lie between two numbers: exact for every population and every number of
  units drawn, by a betting martingale (Waudby-Smith & Ramdas 2020, "Confidence sequences for sampling without
  replacement", and 2024, "Estimating means of bounded random variables by betting"; with weights and control variates
  Shekhar et al. 2023, "Risk-limiting financial audits via weighted sampling without replacement");
- `regression_total`, where nothing bounds the values, as with losses: the regression estimator with control variates
  that are known of all units (Cochran 1977, ch. 7), and Student's t. Its coverage is asymptotic: it holds where the
  units not drawn are like those drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.metrics.intervals import Estimate, half_width

__all__ = ["Total", "bounded_total", "drawing_order", "regression_total"]

_LARGEST_BET = 0.9
_HALVINGS = 60
_PRIOR_VARIANCE = 0.25  # of values in a range of one, before any was seen; counts as one unit

Array = NDArray[np.float64]


class Total(NamedTuple):
    """An estimate of a total with an interval for it."""

    estimate: float
    low: float
    high: float


def drawing_order(sizes: ArrayLike, seed: int) -> NDArray[np.int64]:
    """Return an order of all units, (N,), in which each next one is drawn in proportion to its size among those left.

    By exponential waiting times E_i / a_i, whose order of arrival is such a draw. `sizes` (N,) are positive.

    >>> sorted(drawing_order([1.0, 2.0, 3.0], seed=0).tolist())
    [0, 1, 2]
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    return np.argsort(np.random.default_rng(seed).exponential(size=len(sizes)) / sizes, kind="stable")


def bounded_total(
    values: ArrayLike, sizes: ArrayLike, order: NDArray[np.int64], least: ArrayLike, most: ArrayLike, risk: float
) -> Total:
    """Return the total of all units with an interval that misses it with probability at most `risk`, whatever they are.

    Let L_k and U_k be the least and the most that Z_k can be given what was drawn before, B_k = U_k − L_k, and λ_k any
    number in [0, 1) that was chosen before the k-th draw. At the true total G the capital Π (1 + λ_k(Z_k − G)/B_k) of a
    gambler who bets that Z_k lies above G is a martingale of positive numbers that starts at 1, so that it exceeds
    2/risk with a probability of at most risk/2 (Markov, Ville 1939); and so on the other side. It falls with G, and the
    ends of the interval are where it equals 2/risk, cut off at what the units not drawn can add at least and at most.

    Args:
        values: shape `(n,)`, of the units `order[:n]`.
        sizes: shape `(N,)`, positive: those that `order` was drawn by.
        order: shape `(N,)`, from `drawing_order`; it must not depend on the values.
        least: shape `(N,)`: the least that each unit's value can be.
        most: shape `(N,)`.
        risk: in (0, 1), for both sides together and this n alone.

    >>> total = bounded_total([1.0, 0.0], [1.0, 1.0], np.array([0, 1]), [0.0, 0.0], [1.0, 1.0], risk=0.05)
    >>> total.low, total.high  # all units were drawn
    (1.0, 1.0)
    """
    values, least, most = (np.asarray(array, dtype=np.float64) for array in (values, least, most))
    n, total = len(values), float(np.sum(values))
    if n == len(order):
        return Total(total, total, total)
    rest = order[n:]
    floor, ceiling = total + float(least[rest].sum()), total + float(most[rest].sum())
    draws, left, ordered = _draws(values, np.asarray(sizes, dtype=np.float64), order)
    before = draws - values * left[:n] / ordered[:n]
    lowest = before + (left * _from_the_end(np.minimum, least[order] / ordered))[:n]
    highest = before + (left * _from_the_end(np.maximum, most[order] / ordered))[:n]
    width = np.maximum(highest - lowest, np.finfo(np.float64).tiny)
    weights = left[:n] ** -2.0
    mean = _mean(draws, weights)
    growth = (len(order) / np.arange(len(order), len(order) - n, -1.0)) ** 2  # of equal sizes: known beforehand
    log = np.log(2 / risk)
    variance = _variance_before(draws, weights, lowest, highest)
    bets = np.minimum(np.sqrt(2 * log / (variance * growth.sum())) * left[0] / left[:n], _LARGEST_BET)

    def end(side: int, low: float, high: float) -> float:
        """The total that a gambler on one side just cannot rule out; `low` and `high` hold it, or the interval ends."""
        for _ in range(_HALVINGS):
            total = (low + high) / 2
            ruled_out = float(np.log1p(side * bets * (draws - total) / width).sum()) > log
            low, high = (total, high) if ruled_out == (side == 1) else (low, total)
        return low if side == 1 else high  # the outer one

    low, high = end(1, floor, ceiling), end(-1, floor, ceiling)
    return Total(float(np.clip(mean, low, max(low, high))), low, max(low, high))


def regression_total(
    values: ArrayLike, controls: ArrayLike, sizes: ArrayLike, order: NDArray[np.int64], risk: float
) -> Total:
    """Return the total of all units by regression on control variates, with an interval from the residuals.

    Ĝ = Σ over all units of x·β + the mean of Z_k of the residuals g − x·β, weighted by 1/A_k², which for equal sizes is
    the variance σ²·N(N−n)/n of sampling without replacement. β by least squares with weights 1/a. Half-widths as
    `intervals.half_width`: Student's t, wider for skew residuals, and ∞ with fewer than 50 units or where fewer than
    five make most of the variance: a sample that does not vary says nothing of the rest.

    Args:
        values: shape `(n,)`, of the units `order[:n]`.
        controls: shape `(N, p)`: what is known of all units.
        sizes: shape `(N,)`, positive: those that `order` was drawn by.
        order: shape `(N,)`, from `drawing_order`.
        risk: in (0, 1), for both sides together.

    >>> controls = np.arange(200.0)[:, None]
    >>> noise = np.random.default_rng(0).normal(size=200)
    >>> order = drawing_order(np.ones(200), seed=1)
    >>> found = regression_total((3 * controls[:, 0] + noise)[order[:60]], controls, np.ones(200), order, risk=0.05)
    >>> bool(found.low < 3 * controls.sum() + noise.sum() < found.high)
    True
    """
    values, controls = np.asarray(values, dtype=np.float64), np.asarray(controls, dtype=np.float64)
    sizes = np.asarray(sizes, dtype=np.float64)
    n = len(values)
    if n == len(order):
        total = float(np.sum(values))
        return Total(total, total, total)
    drawn = controls[order[:n]]
    root = sizes[order[:n]] ** -0.5
    beta, _, rank, _ = np.linalg.lstsq(drawn * root[:, None], values * root, rcond=1e-10)
    draws, left, _ = _draws(values - drawn @ beta, sizes, order)
    weights = left[:n] ** -2.0
    mean = _mean(draws, weights)
    influence = weights / weights.sum() * (draws - mean) * np.sqrt(n / max(n - int(rank) - 1, 1))
    estimate = float((controls @ beta).sum()) + mean
    whole = Estimate(np.array([estimate]), influence[:, None], _nothing, n, np.nan)
    half = float(half_width(whole, risk)[0])
    return Total(estimate, estimate - half, estimate + half)


def _draws(values: Array, sizes: Array, order: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Z_k (n,), A_k (N,) and a_k (N,)."""
    ordered = sizes[order]
    left = np.cumsum(ordered[::-1])[::-1]
    n = len(values)
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    return before + values * left[:n] / ordered[:n], left, ordered


def _variance_before(draws: Array, weights: Array, lowest: Array, highest: Array) -> Array:
    """Of Z_k in units of its range, guessed from those before: any guess is allowed, good ones make short intervals."""
    sums, total = (np.concatenate([[0.0], np.cumsum(values)[:-1]]) for values in (weights * draws, weights))
    guesses = np.clip(sums / (weights[0] + total), lowest, highest)
    apart = (draws - guesses) / np.maximum(highest - lowest, np.finfo(np.float64).tiny)
    seen = np.concatenate([[0.0], np.cumsum(apart**2)[:-1]])
    return (_PRIOR_VARIANCE + seen) / np.arange(1, len(draws) + 1)


def _from_the_end(extreme: np.ufunc, values: Array) -> Array:
    """The extreme of each entry and all after it."""
    return extreme.accumulate(values[::-1])[::-1]


def _mean(draws: Array, weights: Array) -> float:
    return float((weights * draws).sum() / weights.sum())


def _nothing() -> Array:
    raise AssertionError("no resamples of a drawn sample")  # `half_width` asks for none
