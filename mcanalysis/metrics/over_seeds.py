"""Intervals over seeds: what the randomness of training does to a number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from mcanalysis.errors import UserError

__all__ = ["student_interval"]


def student_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high of Student's t interval over independent runs.

    Mean ± t·s/√n with n − 1 degrees of freedom, which supposes roughly normal values. A percentile bootstrap of three
    to five seeds would be far too narrow: it never leaves the range of the values. The ends are NaN for n < 2, and all
    is NaN where a value is.

    Args:
        values: shape (n,), one number per seed, n ≥ 1.
        confidence: in (0, 1).

    Raises:
        UserError: there is no value, or `confidence` lies outside (0, 1).

    >>> [round(v, 3) for v in student_interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise UserError(f"Expected values of shape (n,), one per seed, got {numbers.shape}; pass at least one.")
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence in (0, 1), got {confidence}; pass 0.95 for 95 %.")
    mean, n = float(numbers.mean()), len(numbers)
    if n < 2:
        return mean, float("nan"), float("nan")
    half = float(stdtrit(n - 1, (1 + confidence) / 2) * numbers.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half
