"""How far a path rises above, or dips below, what its two ends promise.

Every function reads `ts: (n,)`, the positions of the measured points, and `values: (..., n)`, one value per
point and any number of curves in front (tasks, bootstrap resamples). The unit of a result is the unit of the
values: nats per target token for a loss, a fraction for a score. A NaN value makes its curve's result NaN; no
point is ever left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError
from mcanalysis.metrics.intervals import Estimate, Interval, argmax_interval, maximum_interval

__all__ = [
    "balanced_score",
    "barrier_interval",
    "chord_barrier",
    "chord_dip",
    "gain_interval",
    "interpolation_gain",
    "max_barrier",
    "mean_barrier",
    "t_star",
    "t_star_interval",
]

_TIE = 1e-12  # scores this close are one score: means of the same numbers differ by rounding
_SAME_T = 1e-12  # two positions this close are one position


def chord_barrier(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return max_t [L(t) − ((1−t)·L(0) + t·L(1))], the highest rise above the straight line between the ends.

    The definition is that of Entezari et al. 2022 ("The role of permutation invariance in linear mode
    connectivity"). The maximum includes both ends, so the result is ≥ 0.

    Args:
        ts: shape `(n,)`, strictly increasing from 0 to 1.
        values: shape `(..., n)`, a loss, or a score when `higher_is_better`.
        higher_is_better: flips the sign of the values, so that the result is always "how much worse".

    Returns:
        Shape `(...)`, in the unit of the values, in [0, ∞); NaN where a value is NaN or an end is infinite.

    Raises:
        UserError: `ts` does not run from 0 to 1 in increasing order, or the shapes do not match.

    >>> float(chord_barrier([0, 0.5, 1], [1.0, 3.5, 2.0]))
    2.0
    >>> float(chord_barrier([0, 0.5, 1], [0.75, 0.25, 0.25], higher_is_better=True))
    0.25
    """
    return _highest(above_chord(ts, values, higher_is_better=higher_is_better))


def mean_barrier(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return max_t L(t) − ½·(L(0) + L(1)), the highest rise above the mean of the two ends.

    The definition is that of Frankle et al. 2020 ("Linear mode connectivity and the lottery ticket
    hypothesis"). The maximum includes both ends, so the result is ≥ ½·|L(1) − L(0)|, whatever lies between
    them.

    Arguments, unit and errors are those of `chord_barrier`.

    >>> float(mean_barrier([0, 0.5, 1], [1.0, 3.5, 2.0]))
    2.0
    """
    return _highest(above_mean(ts, values, higher_is_better=higher_is_better))


def max_barrier(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return max_t L(t) − max(L(0), L(1)), the highest rise above the worse of the two ends.

    It is the strictest of the three barriers (no source of its own; geometry of this project): 0 says that no
    point of the path is worse than the worse end.

    Arguments, unit and errors are those of `chord_barrier`.

    >>> float(max_barrier([0, 0.5, 1], [1.0, 3.5, 2.0]))
    1.5
    """
    return _highest(above_ends(ts, values, higher_is_better=higher_is_better))


def chord_dip(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return max_t [((1−t)·L(0) + t·L(1)) − L(t)], how far the path lies below the line between the ends.

    The mirror image of `chord_barrier`: a positive dip is a place that is better than the ends promise. The
    maximum includes both ends, so the result is ≥ 0.

    Arguments, unit and errors are those of `chord_barrier`; of a score it is how far above the line the path lies.

    >>> float(chord_dip([0, 0.5, 1], [1.0, 0.5, 2.0]))
    1.0
    """
    return _highest(above_chord(ts, values, higher_is_better=not higher_is_better))


BY_NAME: Mapping[str, Callable[..., NDArray[np.float64]]] = {
    "chord_barrier": chord_barrier,
    "mean_barrier": mean_barrier,
    "max_barrier": max_barrier,
    "chord_dip": chord_dip,
}
"""Everything that a table says of a curve, by the name of its column."""


def above_chord(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return L(t) − ((1−t)·L(0) + t·L(1)) at each t, (..., n, 1): `chord_barrier` is its maximum.

    Of −L it is what `chord_dip` is the maximum of. Arguments and errors as for the barriers.

    >>> above_chord([0, 0.5, 1], [1.0, 3.5, 2.0])[:, 0].tolist()
    [0.0, 2.0, 0.0]
    """
    loss, chord = _losses_and_chord(ts, values, higher_is_better)
    with np.errstate(invalid="ignore"):
        return (loss - chord)[..., None]


def above_mean(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return L(t) − ½·(L(0) + L(1)) at each t, (..., n, 1): `mean_barrier` is its maximum. Else as `above_chord`."""
    _, loss = _checked(ts, values, higher_is_better)
    with np.errstate(invalid="ignore"):
        return (loss - (loss[..., :1] + loss[..., -1:]) / 2)[..., None]


def above_ends(ts: ArrayLike, values: ArrayLike, *, higher_is_better: bool = False) -> NDArray[np.float64]:
    """Return L(t) − L(0) and L(t) − L(1) at each t, (..., n, 2): `max_barrier` is the maximum of the smaller one.

    Else as `above_chord`.
    """
    _, loss = _checked(ts, values, higher_is_better)
    with np.errstate(invalid="ignore"):
        return np.stack([loss - loss[..., :1], loss - loss[..., -1:]], axis=-1)


def barrier_interval(name: str, ts: ArrayLike, estimate: Estimate, *, higher_is_better: bool = False) -> Interval:
    """Return the 95 % interval over examples of a barrier or of the dip, by its name.

    Args:
        name: one of `BY_NAME`.
        ts: shape `(n,)`, strictly increasing from 0 to 1.
        estimate: means at these points (`mcanalysis.metrics.intervals`).
        higher_is_better: of a score; the interval is then cut off at 1, if values lie in [0, 1].

    Raises:
        UserError: as for the barriers.

    >>> from mcanalysis.metrics.bootstrap import Sample
    >>> curves = np.array([[0.0], [2.0], [0.0]]) + np.random.default_rng(0).normal(size=100)
    >>> low, high, few_events = barrier_interval("chord_barrier", [0, 0.5, 1], Estimate.of(Sample(curves)))
    >>> round(float(low), 6), round(float(high), 6)  # noise that is the same at all points is not in the barrier
    (2.0, 2.0)
    """
    flipped = higher_is_better != (name == "chord_dip")
    contrasts = {"mean_barrier": above_mean, "max_barrier": above_ends}.get(name, above_chord)
    most = 1.0 if not np.isnan(estimate.step) else np.inf
    return maximum_interval(
        estimate, lambda values: contrasts(ts, values, higher_is_better=flipped), least=0.0, most=most
    )


def gain_interval(ts: ArrayLike, estimate: Estimate, t_star: float) -> Interval:
    """Return the 95 % interval over examples of `interpolation_gain`, t* held fixed; NaN where t* is.

    The gain is the smaller of S(t*) − S(0) and S(t*) − S(1). Where the ends tie it is estimated too low, since the
    better of two equally good ends is better by chance; the interval allows for that.
    """
    if np.isnan(t_star):
        return Interval(np.asarray(np.nan), np.asarray(np.nan), np.asarray(True))
    index = _index_of(_checked(ts, estimate.point, False)[0], t_star)

    def contrasts(scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return scores[..., [index], None] - scores[..., None, [0, -1]]

    bound = np.inf if np.isnan(estimate.step) else 1.0
    return maximum_interval(estimate, contrasts, least=-bound, most=bound)


def balanced_score(old: ArrayLike, new: ArrayLike) -> NDArray[np.float64]:
    """Return S̄ = ½·(mean over the earlier tasks + the new task), the score that interpolation is judged by.

    Earlier and new tasks weigh the same in total, however many earlier tasks there are.

    Args:
        old: shape `(num_old_tasks, ...)`, one entry per earlier task.
        new: shape `(...)`, the new task.

    Returns:
        Shape `(...)`, unit and range of the input; NaN where an entry is NaN.

    Raises:
        UserError: there is no earlier task, or the shapes differ.

    >>> balanced_score([[1.0, 0.5], [0.5, 0.0]], [0.25, 0.75]).tolist()
    [0.5, 0.5]
    """
    old, new = np.asarray(old, dtype=np.float64), np.asarray(new, dtype=np.float64)
    if old.ndim == 0 or len(old) == 0 or old.shape[1:] != new.shape:
        raise UserError(
            f"Expected old scores of shape (num_old_tasks, *{new.shape}) with at least "
            f"one task, got {old.shape}; pass one row per earlier task, measured at the same points."
        )
    return (old.mean(axis=0) + new) / 2


def t_star(ts: ArrayLike, scores: ArrayLike) -> float:
    """Return t* = arg max of the scores over 0 < t < 1, the best point strictly between the ends.

    Give it scores of the *eval* split (higher is better), and judge the choice on the test split with
    `interpolation_gain`. Scores within 1e-12 of the highest are tied; of tied points the one nearest to t = ½
    wins, and of two equally near ones the smaller t.

    Args:
        ts: shape `(n,)`, strictly increasing from 0 to 1.
        scores: shape `(n,)`.

    Returns:
        One of `ts`, in (0, 1); NaN when a score between the ends is NaN.

    Raises:
        UserError: as for the barriers, or no point lies between the ends.

    >>> t_star([0, 0.25, 0.5, 0.75, 1], [0.9, 0.7, 0.6, 0.7, 0.2])
    0.25
    """
    ts, values = _checked(ts, scores, False)
    if values.ndim != 1:
        raise UserError(
            f"Expected one curve of scores of shape ({len(ts)},), got shape {values.shape}; call t_star once per curve."
        )
    if len(ts) < 3:
        raise UserError("Expected at least one point with 0 < t < 1, got the two ends only; measure 3 or more points.")
    inner, t = values[1:-1], ts[1:-1]
    if np.isnan(inner).any():
        return float("nan")
    tied = t[inner >= inner.max() - _TIE]
    off_centre = np.round(np.abs(tied - 0.5), 12)
    return float(tied[np.lexsort((tied, off_centre))[0]])


def interpolation_gain(ts: ArrayLike, s_test: ArrayLike, t_star: float) -> NDArray[np.float64]:
    """Return S(t*) − max(S(0), S(1)), what the chosen interpolation gains over the better end.

    t* comes from the eval split (function `t_star`), the scores from the test split; the gain can then be
    negative. The same maximum taken on one split is positive nearly always, by selection.

    Args:
        ts: shape `(n,)`, strictly increasing from 0 to 1.
        s_test: shape `(..., n)`, scores (higher is better).
        t_star: one of `ts`; held fixed for all curves in front, as a bootstrap needs it.

    Returns:
        Shape `(...)`, in the unit of the scores, in [−1, 1] for scores in [0, 1]; NaN where a score that
        enters is NaN, or t* is.

    Raises:
        UserError: as for the barriers, or `t_star` is not among `ts`.

    >>> float(interpolation_gain([0, 0.5, 1], [0.5, 0.75, 0.25], t_star=0.5))
    0.25
    """
    ts, scores = _checked(ts, s_test, False)
    if np.isnan(t_star):
        return np.full(scores.shape[:-1], np.nan)[()]
    index = _index_of(ts, t_star)
    with np.errstate(invalid="ignore"):
        return scores[..., index] - np.maximum(scores[..., 0], scores[..., -1])


def t_star_interval(ts: ArrayLike, estimate: Estimate) -> tuple[float, float]:
    """Return the first and the last t between the ends that may be t*, the best one of all examples, with 95 %.

    Those that no other one beats by more than chance (`argmax_interval`); NaN when a score between the ends is.
    """
    inner = _checked(ts, estimate.point, False)[0][1:-1]
    if not np.isfinite(estimate.point[1:-1]).all():
        return float("nan"), float("nan")
    first, last = argmax_interval(estimate, slice(1, -1))
    return float(inner[first]), float(inner[last])


def _index_of(ts: NDArray[np.float64], t_star: float) -> int:
    index = int(np.argmin(np.abs(ts - t_star)))
    if abs(ts[index] - t_star) > _SAME_T:
        raise UserError(
            f"Expected t_star to be one of the {len(ts)} measured ts, got {t_star} (the nearest is "
            f"{ts[index]}); measure the test split at the ts of the eval split."
        )
    return index


def _highest(contrasts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The maximum over points of the smallest contrast at each: (..., n, j) to (...)."""
    return contrasts.min(axis=-1).max(axis=-1)


def _losses_and_chord(
    ts: ArrayLike, values: ArrayLike, higher_is_better: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curves as losses, and the line between their ends: exact at both, and constant for equal ones."""
    ts, loss = _checked(ts, values, higher_is_better)
    first, last = loss[..., :1], loss[..., -1:]
    with np.errstate(invalid="ignore"):
        rise = last - first
        chord = np.where(ts < 0.5, first + ts * rise, last - (1 - ts) * rise)
    return loss, chord


def _checked(
    ts: ArrayLike, values: ArrayLike, higher_is_better: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as float64 arrays that fit each other, the values turned into losses; or a UserError."""
    ts, values = np.asarray(ts, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if ts.ndim != 1 or len(ts) < 2:
        raise UserError(
            f"Expected ts of shape (n,) with at least 2 points, got shape {ts.shape}; measure both ends of the path."
        )
    if ts[0] != 0 or ts[-1] != 1:
        raise UserError(f"Expected ts to start at 0 and end at 1, got {ts[0]} and {ts[-1]}; measure both ends.")
    if not np.all(np.diff(ts) > 0):
        raise UserError(f"Expected ts in strictly increasing order, got {_brief(ts)}; sort by t and drop repeats.")
    if values.ndim == 0 or values.shape[-1] != len(ts):
        raise UserError(
            f"Expected values of shape (..., {len(ts)}), one per t, got {values.shape}; put the points on "
            "the last axis."
        )
    return ts, (-values if higher_is_better else values)


def _brief(ts: NDArray[np.float64]) -> str:
    shown = ", ".join(f"{t:g}" for t in ts[:6])
    return f"[{shown}{', …' if len(ts) > 6 else ''}]"
