"""How much of the simplex between minima is good: a share of its volume, with the interval of its sampling."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from mcanalysis.errors import UserError


class Share(NamedTuple):
    """A share of a simplex's volume, `num_samples` points of which were looked at, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_samples: int


def simplex_samples(num_corners: int, num_samples: int, seed: int = 0) -> np.ndarray:
    """Return points drawn uniformly from a simplex: barycentric coordinates of Dirichlet(1, …, 1), shape (n, k).

    The first points are the same whatever `num_samples` is, so that more of them can be added.

    >>> simplex_samples(3, 2).sum(axis=1).round(12).tolist()
    [1.0, 1.0]
    """
    if num_corners < 2 or num_samples < 1:
        raise UserError(f"Expected two corners and a sample, got {num_corners} and {num_samples}; raise them.")
    drawn = np.random.default_rng(seed).exponential(size=(num_samples, num_corners))  # row by row
    return drawn / drawn.sum(axis=1, keepdims=True)


def connected_volume(values: ArrayLike, threshold: float, confidence: float = 0.95) -> Share:
    """Return the share of uniform samples of a simplex whose value is at least a threshold, with its interval.

    The interval is the exact one for a binomial share (Clopper & Pearson 1934), never of width zero. It is of the
    sampling of points alone: the values are taken as they are, measured on some examples. Whether the good part hangs
    together is not asked.

    Args:
        values: shape (n,), at independent uniform samples (`simplex_samples`); NaN counts as below.
        threshold: τ, in units of the values.
        confidence: in (0, 1).

    Raises:
        UserError: for no values, or other shapes.

    >>> share = connected_volume([0.9, 0.8, 0.2, 0.9], threshold=0.5)
    >>> share.value, round(share.low, 4), round(share.high, 4)
    (0.75, 0.1941, 0.9937)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise UserError(f"Expected values of shape (n,), one per sample, got {numbers.shape}; pass at least one.")
    n, good, tail = len(numbers), int((numbers >= threshold).sum()), (1 - confidence) / 2
    low = 0.0 if good == 0 else float(betaincinv(good, n - good + 1, tail))
    high = 1.0 if good == n else float(betaincinv(good + 1, n - good, 1 - tail))
    return Share(good / n, low, high, n)
