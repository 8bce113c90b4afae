"""Percentile bootstrap over examples, paired along a path.

A `Sample` holds what each example of one task gave at each point of a path. `resampled_means` draws examples
with replacement, **the same ones at every point**, and returns whole resampled curves; any statistic of a
curve then has its percentile interval (Efron & Tibshirani 1993, chapter 13) by `percentile_interval`;
`bootstrap_interval` does both. It is for smooth statistics of many examples. **It does not cover maxima**, such as
barriers and dips, nor rare events: `mcanalysis.metrics.intervals` is for these, and what all tables use.

A NaN of one example makes its point NaN in every resample: it is never silently dropped. An infinite value
makes the resamples infinite that draw it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError

__all__ = ["Sample", "bootstrap_interval", "percentile_interval", "resampled_means"]

_BLOCK = 4_000_000  # counts held at once: bounds the memory for large test sets
_KEPT = 1_000_000  # counts kept from one curve to the next, of each seed


class Sample(NamedTuple):
    """What each example of one task gave, at each point.

    Its mean is sum(values) / sum(denominators): the loss per target token when `values` are summed negative
    log-likelihoods and `denominators` numbers of target tokens; the plain mean when there are none.

    >>> Sample(np.array([[2.0, 6.0], [1.0, 1.0]]), np.array([1, 3])).mean().tolist()
    [2.0, 0.5]
    """

    values: ArrayLike
    """Shape `(points, examples)`, or `(examples,)` for a single point."""
    denominators: ArrayLike | None = None
    """Shape `(examples,)`, the same at every point, or None for one each."""

    def mean(self) -> NDArray[np.float64]:
        """Return the point estimate, shape `(points,)`, or a scalar for a single point."""
        values, denominators = _checked(self.values, self.denominators)
        with np.errstate(invalid="ignore", divide="ignore"):
            return values.sum(axis=-1) / denominators.sum()


def resampled_means(
    values: ArrayLike,
    denominators: ArrayLike | None = None,
    *,
    num_resamples: int = 1000,
    rng: np.random.Generator | int = 0,
) -> NDArray[np.float64]:
    """Return the curves of means that resampling the examples gives, one row per resample.

    Resample r draws `examples` examples with replacement and uses them at every point, so that the points of
    a row are paired. The mean is sum(values) / sum(denominators) over the drawn examples: a resample of a
    loss is total negative log-likelihood over total target tokens. Counts times values: one matrix product.
    The draws depend on the number of examples, `num_resamples` and the seed only: the same seed pairs two
    calls.

    Args:
        values: shape `(points, examples)`, or `(examples,)` for a single point.
        denominators: shape `(examples,)`, non-negative; None for a plain mean.
        num_resamples: how many curves.
        rng: a generator, which moves on, or a seed.

    Returns:
        Shape `(num_resamples, points)`, or `(num_resamples,)` for a single point, in the unit of
        values / denominators; NaN for a point with a NaN value, and where the denominators drawn
        sum to 0.

    Raises:
        UserError: the shapes do not match, there is no example, or `num_resamples` < 1.

    >>> resampled_means([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], num_resamples=2).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    values, denominators = _checked(values, denominators)
    if num_resamples < 1:
        raise UserError(f"Expected num_resamples of 1 or more, got {num_resamples}; ask for about 1000.")
    columns = np.concatenate([np.atleast_2d(values), denominators[None, :]]).T  # (examples, points + 1)
    num_examples = len(columns)
    rows_at_once = max(1, _BLOCK // num_examples)
    sums = np.empty((num_resamples, columns.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore"):
        if isinstance(rng, int) and num_resamples * num_examples <= _KEPT:
            sums = _weighted_sums(_counts_of_seed(num_resamples, num_examples, rng), columns)
            return _means(sums, values)
        generator = np.random.default_rng(rng)
        for start in range(0, num_resamples, rows_at_once):
            stop = min(start + rows_at_once, num_resamples)
            sums[start:stop] = _weighted_sums(_counts(stop - start, num_examples, generator), columns)
        return _means(sums, values)


def percentile_interval(
    samples: ArrayLike, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (1 ± confidence)/2 quantiles of resampled statistics, taken over the first axis.

    Args:
        samples: shape `(num_resamples, ...)`, a statistic of each resample.
        confidence: the share of resamples inside, in (0, 1).

    Returns:
        `(low, high)`, each of shape `(...)`, in the unit of the samples; NaN where a sample is NaN.

    Raises:
        UserError: there is no sample, or `confidence` lies outside (0, 1).

    >>> low, high = percentile_interval(np.arange(101.0), confidence=0.9)
    >>> float(low), float(high)
    (5.0, 95.0)
    """
    samples = np.asarray(samples, dtype=np.float64)
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence in (0, 1), got {confidence}; pass 0.95 for 95 %.")
    if samples.ndim == 0 or len(samples) == 0:
        raise UserError(
            f"Expected samples of shape (num_resamples, ...) with at least one, got {samples.shape}; resample first."
        )
    tail = round((1 - confidence) / 2, 12)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
        if np.isinf(samples).any():  # between two infinities interpolation gives NaN: take a sample itself
            exact = np.quantile(samples, [tail, 1 - tail], axis=0, method="inverted_cdf")
            lost = np.isnan([low, high]) & ~np.isnan(samples).any(axis=0)
            low, high = np.where(lost, exact, [low, high])
    return low, high


def bootstrap_interval(
    statistic: Callable[..., Any],
    *samples: Sample | tuple[ArrayLike, ArrayLike | None] | ArrayLike,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the percentile interval of `statistic` when the examples of each sample are drawn anew.

    Within a sample (one task) the same examples are drawn at every point; samples are drawn independently of
    each other. `statistic` is called once, on all resamples: it gets one array of shape
    `(num_resamples, points)` per sample and must return shape `(num_resamples, ...)`. Its point estimate is
    `statistic(*(sample.mean() for sample in samples))`. For smooth statistics only: of a barrier use
    `barrier_interval`, since percentiles of a maximum exclude 0 in about half of the samples where it is 0.

    Args:
        statistic: a vectorised function of the resampled curves.
        samples: a `Sample`, a tuple `(values, denominators)`, or an array of values of shape
            `(points, examples)` or `(examples,)`.
        num_resamples: how many resamples.
        confidence: the share of resamples inside, in (0, 1).
        seed: seed of the draws.

    Returns:
        `(low, high)`, each of shape `(...)`, in the unit of the statistic; NaN where the statistic of a
        resample is.

    Raises:
        UserError: no sample, a malformed sample, or a statistic that is not vectorised.

    >>> low, high = bootstrap_interval(lambda means: means, np.array([0.0, 1.0, 1.0, 0.0] * 25))
    >>> bool(0.35 < low < 0.45 and 0.55 < high < 0.65)
    True
    """
    if not samples:
        raise UserError("Expected at least one sample, got none; pass the per-example values of each task.")
    rng = np.random.default_rng(seed)
    curves = []
    for sample in samples:
        values, denominators = sample if isinstance(sample, tuple) else (sample, None)
        curves.append(resampled_means(values, denominators, num_resamples=num_resamples, rng=rng))
    resampled = np.asarray(statistic(*curves), dtype=np.float64)
    if resampled.ndim == 0 or len(resampled) != num_resamples:
        raise UserError(
            f"Expected a statistic of shape ({num_resamples}, ...), one per resample, got {resampled.shape}; "
            "reduce over the last axis only."
        )
    return percentile_interval(resampled, confidence)


def _counts(num_resamples: int, num_examples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each resample draws each example: uniform multinomial rows, by counting drawn indices."""
    drawn = rng.integers(num_examples, size=(num_resamples, num_examples))
    drawn += num_examples * np.arange(num_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num_examples)
    return counts.reshape(num_resamples, num_examples).astype(np.float64)


@lru_cache(maxsize=8)
def _counts_of_seed(num_resamples: int, num_examples: int, seed: int) -> NDArray[np.float64]:
    """`_counts` by a seed, kept for the next curve of as many examples: drawing takes most of a bootstrap's time."""
    counts = _counts(num_resamples, num_examples, np.random.default_rng(seed))
    counts.flags.writeable = False
    return counts


def _means(sums: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    means = sums[:, :-1] / sums[:, -1:]
    return means if values.ndim == 2 else means[:, 0]


def _weighted_sums(counts: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """counts @ columns, but 0 · ∞ = 0: an infinite value counts only where it is drawn. NaN counts always."""
    infinite = np.isinf(columns)
    if not infinite.any():
        return counts @ columns
    sums = counts @ np.where(infinite, 0.0, columns)
    for sign in (np.inf, -np.inf):
        sums = np.where(counts @ (columns == sign) > 0, sums + sign, sums)
    return sums


def _checked(values: ArrayLike, denominators: ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64 arrays, the denominators filled in; or a UserError."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or values.shape[-1] == 0:
        raise UserError(
            f"Expected values of shape (points, examples) or (examples,) with at least one example, got "
            f"{values.shape}; put the examples on the last axis."
        )
    if denominators is None:
        return values, np.ones(values.shape[-1])
    denominators = np.asarray(denominators, dtype=np.float64)
    if denominators.shape != values.shape[-1:]:
        raise UserError(
            f"Expected denominators of shape {values.shape[-1:]}, one per example, got {denominators.shape}; "
            "pass num_targets of the same examples."
        )
    if (denominators < 0).any():
        raise UserError(f"Expected denominators of 0 or more, got {denominators.min()}; pass numbers of target tokens.")
    return values, denominators
