"""From when on two forks of one training end in one basin, and how sure a median of such numbers is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from scipy.special import bdtr

from mcanalysis.errors import UserError


class Median(NamedTuple):
    """A median with the ends of its interval; an end that the sample cannot give is −∞ or ∞."""

    value: float
    low: float
    high: float


def stable_from(ks: Sequence[float], barriers: Sequence[float], threshold: float) -> tuple[float, float]:
    """Return the smallest k from which on all barriers are below a threshold, and the k measured before it.

    The instability analysis of Frankle et al. 2020 (arXiv 1912.05671): two copies of a training that share their first
    k steps. The true k lies above the second number and is at most the first.

    Args:
        ks: increasing.
        barriers: at each k; NaN counts as a barrier.
        threshold: in units of the barriers.

    Returns:
        (k, the k before it). (∞, the last k) where the last barrier is not below the threshold, (the first k, −∞) where
        all are.

    Raises:
        UserError: for no barriers, or ks that do not increase or are not as many.

    >>> stable_from([0, 10, 20, 40], [0.3, 0.04, 0.06, 0.01], 0.05)
    (40, 20)
    >>> stable_from([0, 10], [0.3, 0.2], 0.05), stable_from([0, 10], [0.0, 0.0], 0.05)
    ((inf, 10), (0, -inf))
    """
    if not ks or len(ks) != len(barriers) or any(a >= b for a, b in pairwise(ks)):
        raise UserError(f"Expected a barrier at each of increasing k, got {len(barriers)} at {list(ks)}; sort them.")
    high = [i for i, barrier in enumerate(barriers) if not barrier < threshold]
    last = high[-1] if high else -1
    return (ks[last + 1] if last + 1 < len(ks) else math.inf), (ks[last] if high else -math.inf)


def median_with_interval(values: Sequence[float], confidence: float = 0.95) -> Median:
    """Return the lower median with an interval between two of the values, right for whatever distribution.

    The ends are the j-th smallest and the j-th largest value, j the largest with P(Binomial(n, ½) < j) ≤ (1 − c)/2, so
    that independent values cover their median with at least that confidence (David & Nagaraja 2003, Order Statistics,
    §7.1). Values may be ∞ (censored); fewer than six leave both ends infinite. The lower median is the smallest value
    that at least half of them do not pass.

    Raises `UserError` for no value, or NaN.

    >>> median_with_interval([1, 2, 3, 4, 5, 6])
    Median(value=3, low=1, high=6)
    >>> median_with_interval([1, 2, 3])
    Median(value=2, low=-inf, high=inf)
    """
    ordered = sorted(values)
    if not ordered or any(math.isnan(v) for v in ordered):
        raise UserError(f"Expected numbers to take the median of, got {list(values)}; leave out what is NaN.")
    n, j = len(ordered), 0
    while bdtr(j, n, 0.5) <= (1 - confidence) / 2:
        j += 1
    ends = (ordered[j - 1], ordered[n - j]) if j else (-math.inf, math.inf)
    return Median(ordered[(n - 1) // 2], *ends)
