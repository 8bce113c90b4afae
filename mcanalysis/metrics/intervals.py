"""95 % intervals over examples: of means, of their contrasts, and of maxima of contrasts, of which barriers are.

An `Estimate` holds means at several points with the `influence` of each example on them. The interval of one mean or
contrast is Student's t around it, widened on the side of the longer tail by the first term of Johnson's expansion
(Johnson 1978, "Modified t tests and confidence intervals for asymmetrical populations"), and never narrowed.

A barrier is a maximum over points of contrasts, or of the smaller of two. The percentile bootstrap fails for such: each
resample adds noise, of which the maximum takes the largest, so that its interval excludes 0 where there is no barrier.
Instead the two ends follow from what a maximum is (Chernozhukov, Lee & Rosen 2013, "Intersection bounds"):

- low: the highest point of a band below the contrasts that holds at all points at once (the bootstrap tells how wide
  such a band is, for any dependence between the points), since any point may be the highest by chance;
- high: the highest point of the upper ends of the single contrasts, since it is enough that the one holds which is the
  true maximum. For a minimum of two the roles are exchanged.

Where fewer than `FEWEST_EVENTS` examples make most of the variance, or a task has fewer than `FEWEST_EXAMPLES`, no
interval can promise its 95 %: it is flagged `few_events`. For a score in [0, 1] it is then as wide as unseen changes of
single examples allow (Wilson 1927), never of width zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError
from mcanalysis.metrics.bootstrap import Sample, resampled_means

__all__ = [
    "FEWEST_EVENTS",
    "FEWEST_EXAMPLES",
    "Estimate",
    "Interval",
    "argmax_interval",
    "contrast_intervals",
    "half_width",
    "maximum_interval",
    "mean_interval",
    "paired_difference_interval",
    "raised_interval",
    "weighted",
]

FEWEST_EVENTS = 5
FEWEST_EXAMPLES = 50
NUM_RESAMPLES = 1000
_TAIL = 0.975
_NORMAL = 1.959963984540054  # its quantile
_SKEWNESS = 1.5  # small samples of long-tailed values look less skew than they are; found by `coverage.py`
_ROUNDING = 1e-12  # of the largest value: a spread below it is rounding

Array = NDArray[np.float64]
Contrasts = Callable[[Array], Array]
"""From values (..., points) to contrasts, linearly: (..., k), or (..., k, j) of which the smallest over j counts."""


class Interval(NamedTuple):
    """`low` and `high`, and where `few_events` says that the 95 % are not promised: arrays of one shape."""

    low: Array
    high: Array
    few_events: NDArray[np.bool_]

    def at(self, index: int) -> Interval:
        """One of several intervals."""
        return Interval(self.low[index], self.high[index], self.few_events[index])

    def columns(self, name: str) -> dict[str, float]:
        """`<name>_low` and `<name>_high` of a single interval."""
        return {f"{name}_low": float(self.low), f"{name}_high": float(self.high)}


@dataclass(frozen=True, eq=False)
class Estimate:
    """Means at points, (points,), with what their intervals are made from.

    `influence` (examples, points): how much each example moves them, so that their covariance is the sum of the outer
    products of its rows. `draw` makes `resampled`. `smallest`: examples of the smallest task. `step`: the most that one
    example can move a mean, NaN where unknown. `parts`: of `weighted`, the weights and estimates it is made of.

    >>> one = Estimate.of(Sample([[0.0, 1.0], [1.0, 1.0]]))
    >>> one.point.tolist(), one.smallest
    ([0.5, 1.0], 2)
    """

    point: Array
    influence: Array
    draw: Callable[[], Array] = field(repr=False)
    smallest: int
    step: float
    parts: tuple[tuple[float, Estimate], ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, sample: Sample, *, is_score: bool = False, seed: int = 0) -> Estimate:
        """The means of one task; `is_score` says that values lie in [0, 1], where they do.

        Raises `UserError` for a malformed sample.
        """
        point = np.atleast_1d(sample.mean())
        values = np.atleast_2d(np.asarray(sample.values, dtype=np.float64))
        number = values.shape[-1]
        sizes = np.ones(number) if sample.denominators is None else np.asarray(sample.denominators, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale = np.sqrt(number / (number - 1.0)) if number > 1 else np.nan
            influence = scale * (values - point[:, None] * sizes).T / sizes.sum()
        inside = bool(((values >= 0) & (values <= 1)).all())
        step = float(sizes.max() / sizes.sum()) if is_score and inside else np.nan

        def draw() -> Array:
            return resampled_means(values, sample.denominators, num_resamples=NUM_RESAMPLES, rng=seed)

        return cls(point, influence, draw, number, step)

    @property
    def rests_on_few(self) -> bool:
        """Whether a mean of the curve is that of a score which fewer than `FEWEST_EVENTS` examples lower or raise."""
        return bool(_spread(self, lambda values: values).rare.any())

    @cached_property
    def resampled(self) -> Array:
        """(resamples, points): the means of examples drawn anew, the same ones at all points, each task by itself."""
        return self.draw()


def weighted(parts: Sequence[tuple[float, Estimate]]) -> Estimate:
    """Return Σ weight · estimate of independent samples (tasks), measured at the same points.

    >>> a, b = (Estimate.of(Sample([[v, 1.0]])) for v in (0.0, 1.0))
    >>> weighted([(0.5, a), (0.5, b)]).point.tolist()
    [0.75]
    """
    with np.errstate(invalid="ignore"):
        return Estimate(
            np.sum([w * e.point for w, e in parts], axis=0),
            np.concatenate([w * e.influence for w, e in parts]),
            lambda: np.sum([w * e.resampled for w, e in parts], axis=0),
            min(e.smallest for _, e in parts),
            float(np.max([w * e.step for w, e in parts])),
            tuple(parts),
        )


def mean_interval(estimate: Estimate, confidence: float = 0.95, *, least: float = -np.inf) -> Interval:
    """Return the interval of the mean at each point, (points,), each by itself.

    No end lies below `least`, or above 1 for a score. NaN where the mean is, and with a single example; an infinite
    mean is its own interval. Raises `UserError` for a confidence outside (0, 1).

    >>> low, high, few = mean_interval(Estimate.of(Sample(np.arange(100.0) % 5)))
    >>> [round(float(v), 3) for v in (low[0], high[0])], bool(few[0])
    ([1.718, 2.282], False)
    """
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence in (0, 1), got {confidence}; pass 0.95 for 95 %.")
    student = _student_quantile((1 + confidence) / 2, estimate.smallest - 1)
    found = _around(estimate, lambda values: values, _spread(estimate, lambda values: values), student)
    most = np.inf if np.isnan(estimate.step) else 1.0
    return found._replace(low=np.clip(found.low, least, most), high=np.clip(found.high, least, most))


def paired_difference_interval(
    a: ArrayLike, b: ArrayLike, denominators: ArrayLike | None = None, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return mean(a) − mean(b) with its interval over examples, both measured on the same ones.

    Args:
        a: shape `(examples,)`.
        b: shape `(examples,)`, entry j from the same example as entry j of `a`.
        denominators: shape `(examples,)`, as in `Sample`; None for plain means.
        confidence: in (0, 1).

    Returns:
        `(difference, low, high)` in the unit of the means; NaN when a value is.

    Raises:
        UserError: the two do not hold the same number of examples, or `confidence` lies outside (0, 1).

    >>> paired_difference_interval([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    (1.0, 1.0, 1.0)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise UserError(
            f"Expected two arrays of shape (examples,) over the same examples, got {a.shape} and {b.shape}; "
            "measure both on one split."
        )
    with np.errstate(invalid="ignore"):
        estimate = Estimate.of(Sample(a - b, denominators))
    found = mean_interval(estimate, confidence).at(0)
    return float(estimate.point[0]), float(found.low), float(found.high)


def half_width(estimate: Estimate, risk: float) -> Array:
    """Return the half-widths of two-sided intervals that each miss with probability `risk`, (points,).

    The longer side of `mean_interval` counts for both; ∞ where an interval would be flagged `few_events`.
    """
    spread = _spread(estimate, lambda values: values)
    critical = _student_quantile(1 - risk / 2, estimate.smallest - 1)
    few = (spread.events < FEWEST_EVENTS) | (estimate.smallest < FEWEST_EXAMPLES)
    return np.where(few, np.inf, np.maximum(_distance(spread, critical, 1), _distance(spread, critical, -1)))


def contrast_intervals(estimate: Estimate, contrasts: Contrasts) -> Interval:
    """Return intervals of all contrasts, (k,), that hold together: for one that was chosen by looking at the values."""
    spread = _spread(estimate, contrasts)
    ratios = np.abs(_ratios(estimate, contrasts, spread))
    critical = np.quantile(ratios.max(axis=1), 2 * _TAIL - 1) * _small_sample(estimate)
    return _around(estimate, contrasts, spread, max(float(critical), _student(estimate)))


def maximum_interval(
    estimate: Estimate, contrasts: Contrasts, *, least: float = -np.inf, most: float = np.inf
) -> Interval:
    """Return the interval of max_k of the contrasts, or of max_k min_j where they have the shape (..., k, j).

    `least` and `most` are what the maximum cannot pass by definition. NaN where a contrast is NaN.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=(5, 400)) + np.array([0.0, 0.0, 1.0, 0.0, 0.0])[:, None]
    >>> low, high, few = maximum_interval(Estimate.of(Sample(values)), lambda v: v)
    >>> bool(0.8 < low < 1 < high < 1.2)
    True
    """

    def paired(values: Array) -> Array:
        made = contrasts(values)
        return made if made.ndim == values.ndim + 1 else made[..., None]

    with np.errstate(invalid="ignore"):
        point = paired(estimate.point)
    value = point.min(axis=-1).max()
    if not np.isfinite(value):  # NaN, or an infinite mean, which is what it is
        return Interval(np.asarray(value), np.asarray(value), np.asarray(True))
    spread = _spread(estimate, paired)
    student, factor = _student(estimate), _small_sample(estimate)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(point)  # what is −∞ is never the maximum, what is ∞ never the minimum
        critical = np.quantile(_largest(_ratios(estimate, paired, spread), (1, 2)), _TAIL) * factor
        distance = _distance(spread, max(float(critical), student), -1)
        low = (point - np.where(finite, distance, 0.0)).min(axis=-1).max()
        critical = student
        if point.shape[-1] > 1:
            of_pairs = _largest(_ratios(estimate, paired, spread), 2)
            critical = np.maximum(np.quantile(of_pairs, _TAIL, axis=0) * factor, student)[:, None]
        upper = point + np.where(finite, _distance(spread, critical, 1), 0.0)
        high = upper.min(axis=-1).max()
    few = estimate.smallest < FEWEST_EXAMPLES or spread.num_events < FEWEST_EVENTS
    if not few and np.isnan(estimate.step):  # of a score the end lies as far off as unseen changes may reach
        highest = np.unravel_index(np.nanargmin(np.where(upper == high, spread.events, np.nan)), upper.shape)
        few = bool(spread.events[highest] < FEWEST_EVENTS and not spread.fixed[highest])
    return Interval(np.clip(low, least, most), np.clip(high, least, most), np.asarray(few))


def argmax_interval(estimate: Estimate, points: slice = slice(None)) -> tuple[int, int]:
    """Return the first and the last of `points` that may be where the mean is highest, by their indices among them.

    The points that no other one beats by more than a test at 5 % allows which looks at all others at once: the best
    point is among them in 95 % of samples (of several equally good ones, each is).

    Raises `UserError` where a mean is not finite.

    >>> argmax_interval(Estimate.of(Sample(np.array([[0.0] * 50, [1.0] * 50, [0.0, 1.0] * 25]))))
    (1, 1)
    """
    chosen = estimate.point[points]
    if not np.isfinite(chosen).all():
        raise UserError("Expected finite means to compare, got one that is not; leave that point out.")
    kept = []
    for index in range(len(chosen)):

        def ahead(values: Array, index: int = index) -> Array:
            return values[..., points] - values[..., points][..., [index]]

        spread = _spread(estimate, ahead)
        ratios = _ratios(estimate, ahead, spread)
        critical = np.quantile(_largest(ratios, 1), 2 * _TAIL - 1) * _small_sample(estimate)
        # Of one example nothing is known of the spread (NaN), and any point may be the best.
        if not (ahead(estimate.point) - _distance(spread, float(critical), -1)).max() > _ROUNDING:
            kept.append(index)
    return kept[0], kept[-1]


def raised_interval(
    raised: Callable[..., Array],
    estimates: Sequence[Estimate],
    minus: Callable[..., Array] | None = None,
    *,
    least: float = -np.inf,
    most: float = np.inf,
) -> Interval:
    """Return the interval of a statistic that noise raises, as the area under a front, or of one minus another.

    Resamples lie above the estimate, but by less than that lies above the truth, since noise has already told apart
    what is equally good. The low end is therefore mirrored at the estimate, and by the mean excess of the resamples
    farther down; the high end is the farther one of the mirrored and of the percentile interval. For `minus` the roles
    are exchanged.

    Args:
        raised: a function of arrays (..., points), one per estimate, that returns (...).
        estimates: independent curves at the same points.
        minus: the same, to be subtracted.
        least: what the statistic cannot fall below.
        most: what it cannot pass.
    """
    value = np.asarray(raised(*(e.point for e in estimates)))
    apart = raised(*(e.resampled for e in estimates)) - value
    lower, raise_ = max(float(np.mean(apart)), 0.0), 0.0
    if minus is not None:
        end = np.asarray(minus(*(e.point for e in estimates)))
        of_end = minus(*(e.resampled for e in estimates)) - end
        value, apart, raise_ = value - end, apart - of_end, max(float(np.mean(of_end)), 0.0)
    fewest = min(estimates, key=lambda e: e.smallest)
    above, below = (max(float(np.quantile(side, _TAIL)) * _small_sample(fewest), 0.0) for side in (apart, -apart))
    few = fewest.smallest < FEWEST_EXAMPLES or any(
        _spread(e, lambda values: values).num_events < FEWEST_EVENTS for e in estimates
    )
    low, high = value - above - lower, value + max(above, below) + raise_
    return Interval(np.clip(low, least, most), np.clip(high, least, most), np.asarray(few))


class _Spread(NamedTuple):
    """Of each contrast: standard error, skewness of the mean, how many examples make the variance, `rare`, `unit`.

    `rare`: of a score, whether little varies there, compared with the others or at all, and changes of the size `unit`,
    the most that one example does, are too few to be counted. `fixed`: whether a contrast is 0 whatever the values, as
    that of an end with the chord. `parts`: the weights of tasks and the same of each, where the means are over tasks:
    what is rare in a small task is not seen beside the many changes of a large one.
    """

    error: Array
    skewness: Array
    events: Array
    rare: NDArray[np.bool_]
    unit: float
    fixed: NDArray[np.bool_]
    parts: tuple[tuple[float, _Spread], ...] = ()

    @property
    def num_events(self) -> float:
        """How many examples make the variance of the contrasts that vary most; 0 where none varies."""
        error = np.nan_to_num(self.error)
        return float(np.median(self.events[error >= error.max() / 2]))


def _spread(estimate: Estimate, contrasts: Contrasts) -> _Spread:
    with np.errstate(invalid="ignore", divide="ignore"):
        each = contrasts(estimate.influence)  # (examples, ...)
        squares = each**2
        second, fourth = squares.sum(axis=0), (squares**2).sum(axis=0)
        error = np.sqrt(second)
        finite = estimate.point[np.isfinite(estimate.point)]
        error[error <= _ROUNDING * np.abs(finite).max(initial=0.0)] = 0.0
        some = error > 0
        skewness = np.where(some, (squares * each).sum(axis=0) / second**1.5, 0.0)
        events = np.where(some, second**2 / fourth, 0.0)
        fixed = np.abs(contrasts(np.random.default_rng(0).normal(size=estimate.point.shape))) < _ROUNDING
        found = _Spread(error, skewness, events, np.zeros(error.shape, dtype=bool), np.nan, fixed)
        if np.isnan(estimate.step):
            return found
        unit = float(np.abs(each).max()) if found.num_events >= FEWEST_EVENTS else estimate.step
        little = (events < FEWEST_EVENTS) | (error < error.max(initial=0.0) / 2)
        rare = little & (second < FEWEST_EVENTS * unit**2) & ~fixed
        parts = tuple((weight, _spread(part, contrasts)) for weight, part in estimate.parts)
        return found._replace(rare=rare, unit=unit, parts=parts)


def _ratios(estimate: Estimate, contrasts: Contrasts, spread: _Spread) -> Array:
    """(resamples, ...): the critical value with which an interval reaches a resample; 0 where nothing varies.

    Standard errors, and where `rare` those with the variance of one more change, as in `_distance`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = contrasts(estimate.resampled - estimate.point)
        variance = spread.error**2 + np.where(spread.rare, spread.unit * np.abs(apart), 0.0)
        return np.where((spread.error > 0) & np.isfinite(apart), apart / np.sqrt(variance), 0.0)


def _largest(ratios: Array, axis: int | tuple[int, ...]) -> Array:
    """The largest of each resample and of its mirror image: the skewness, of the wrong sign here, has its own term."""
    if axis != 2:  # over all but the first: along columns NumPy is ten times as fast as along short rows
        ratios, axis = np.ascontiguousarray(ratios.reshape(len(ratios), -1).T), 0
    return np.concatenate([ratios.max(axis=axis), -ratios.min(axis=axis)])


def _distance(spread: _Spread, critical: float | Array, side: int) -> Array:
    """How far an end lies from the estimate: above it for `side` 1, below it for −1."""
    longer = np.maximum(side * _SKEWNESS * spread.skewness, 0.0) * (2 * np.square(critical) + 1) / 6
    seen = np.square(critical * spread.error)
    distance = np.sqrt(seen + _unseen_in_parts(spread, critical)) + spread.error * longer
    return np.where(spread.rare, np.maximum(distance, np.sqrt(seen + _unseen(spread, critical))), distance)


def _unseen(spread: _Spread, critical: float | Array) -> Array:
    """By how much the square of a distance grows with the variance of one more change."""
    half = np.square(critical) * spread.unit / 2
    return np.square(half + np.sqrt(np.square(critical * spread.error) + half**2)) - np.square(critical * spread.error)


def _unseen_in_parts(spread: _Spread, critical: float | Array) -> Array | float:
    """The same of all tasks in which little varies; 0 where there is one task alone."""
    return sum(
        weight**2
        * (_unseen_in_parts(part, critical) if part.parts else np.where(part.rare, _unseen(part, critical), 0.0))
        for weight, part in spread.parts
    )


def _around(estimate: Estimate, contrasts: Contrasts, spread: _Spread, critical: float) -> Interval:
    with np.errstate(invalid="ignore"):
        point = contrasts(estimate.point)
        low, high = point - _distance(spread, critical, -1), point + _distance(spread, critical, 1)
    infinite = np.isinf(point)
    low, high = np.where(infinite, point, low), np.where(infinite, point, high)
    few = (spread.events < FEWEST_EVENTS) | (estimate.smallest < FEWEST_EXAMPLES)
    return Interval(low, high, few)


def _student(estimate: Estimate) -> float:
    """Student's t with as many degrees of freedom as the smallest task gives; NaN for one example."""
    return _student_quantile(_TAIL, estimate.smallest - 1)


@cache
def _student_quantile(level: float, degrees: int) -> float:
    from scipy.special import stdtrit  # scipy.stats, which calls it, takes half a second

    return float(stdtrit(degrees, level)) if degrees > 0 else np.nan


def _small_sample(estimate: Estimate) -> float:
    """By how much Student's t is wider than the normal distribution, which a bootstrap of n examples comes near."""
    return _student(estimate) / _NORMAL
