"""The stability–plasticity front: what pairs (score on old tasks, score on the new one) a path offers.

Both coordinates are scores, higher being better; the reference point is what is dominated by everything. What is kept
of general ability (`metrics.retention`) may be a third one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError
from mcanalysis.metrics.intervals import Estimate, Interval, contrast_intervals, raised_interval

__all__ = ["hypervolume", "hypervolume_intervals", "hypervolume_of_three", "non_dominated"]


def non_dominated(stability: ArrayLike, plasticity: ArrayLike) -> NDArray[np.bool_]:
    """Return which points no other point beats in one coordinate without losing in the other.

    Equal points do not dominate each other. A point with a NaN is not on the front.

    Args:
        stability: shape (n,), higher is better.
        plasticity: shape (n,), higher is better.

    Raises:
        UserError: the shapes differ.

    >>> non_dominated([1.0, 0.5, 0.4], [0.0, 0.8, 0.8]).tolist()
    [True, True, False]
    """
    x, y = _checked(stability, plasticity)
    if x.ndim != 1:
        raise UserError(f"Expected points of shape (n,), got {x.shape}; call non_dominated once per path.")
    as_good = (x[None, :] >= x[:, None]) & (y[None, :] >= y[:, None])
    better = as_good & ((x[None, :] > x[:, None]) | (y[None, :] > y[:, None]))
    return ~better.any(axis=1) & ~np.isnan(x) & ~np.isnan(y)


def hypervolume(
    stability: ArrayLike, plasticity: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Return the area that the points dominate above the reference point, exactly (Zitzler & Thiele 1999).

    With the points in order of falling stability, Σᵢ (xᵢ − xᵢ₊₁)·max_{j≤i} yⱼ, both counted from the reference.

    Args:
        stability: shape (..., n), higher is better; points below the reference add nothing.
        plasticity: shape (..., n).
        reference: (0, 0) for scores in [0, 1], of which the area is then a share.

    Returns:
        Shape (...), in [0, 1] for scores in [0, 1]; NaN where a coordinate is.

    Raises:
        UserError: the shapes differ, or there is no point.

    >>> float(hypervolume([1.0, 0.5], [0.5, 1.0]))
    0.75
    """
    x, y = _checked(stability, plasticity)
    lost = np.isnan(x).any(axis=-1) | np.isnan(y).any(axis=-1)
    # What is below the reference in one coordinate spans no area, whatever the other is.
    x, y = np.maximum(x - reference[0], 0.0), np.maximum(y - reference[1], 0.0)
    order = np.argsort(-x, axis=-1, kind="stable")
    x, y = np.take_along_axis(x, order, -1), np.take_along_axis(y, order, -1)
    steps = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    area = (steps * np.maximum.accumulate(y, axis=-1)).sum(axis=-1)
    return np.where(lost, np.nan, area)[()]


def hypervolume_of_three(
    stability: ArrayLike,
    plasticity: ArrayLike,
    general: ArrayLike,
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float64]:
    """Return the volume that points of three coordinates dominate above the reference point, exactly.

    Cut across the third coordinate: with the points in order of falling z, Σₖ (zₖ − zₖ₊₁)·A(1…k), where A is the area
    (`hypervolume`) of the first two coordinates of the k highest points (Zitzler & Thiele 1999).

    Args:
        stability: shape (..., n), higher is better; points below the reference add nothing.
        plasticity: shape (..., n).
        general: shape (..., n), what is kept of general ability.
        reference: (0, 0, 0) for coordinates in [0, 1], of whose cube the volume is then a share.

    Returns:
        Shape (...), in [0, 1] for coordinates in [0, 1]; NaN where a coordinate is.

    Raises:
        UserError: the shapes differ, or there is no point.

    >>> float(hypervolume_of_three([1.0, 0.5], [0.5, 1.0], [1.0, 0.5]))
    0.625
    """
    x, y = _checked(stability, plasticity)
    z = np.asarray(general, dtype=np.float64)
    if z.shape != x.shape:
        raise UserError(
            f"Expected general ability of shape {x.shape}, as the other two have, got {z.shape}; pass one value per "
            "point of the path."
        )
    lost = np.isnan(x).any(axis=-1) | np.isnan(y).any(axis=-1) | np.isnan(z).any(axis=-1)
    x, y, z = (np.maximum(v - r, 0.0) for v, r in zip((x, y, z), reference, strict=True))
    by_x, by_z = np.argsort(-x, axis=-1, kind="stable"), np.argsort(-z, axis=-1, kind="stable")
    rank = np.take_along_axis(np.argsort(by_z, axis=-1, kind="stable"), by_x, -1)  # in order of falling stability
    x, y, z = np.take_along_axis(x, by_x, -1), np.take_along_axis(y, by_x, -1), np.take_along_axis(z, by_z, -1)
    steps = x - np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], axis=-1)
    heights = z - np.concatenate([z[..., 1:], np.zeros_like(z[..., :1])], axis=-1)
    volume = np.zeros(x.shape[:-1])
    for k in range(x.shape[-1]):  # one slice at a time: all at once would be n² numbers per curve
        highest = np.where(rank <= k, y, 0.0)
        volume = volume + heights[..., k] * (steps * np.maximum.accumulate(highest, axis=-1)).sum(axis=-1)
    return np.where(lost, np.nan, volume)[()]


def hypervolume_intervals(
    stability: Estimate, plasticity: Estimate, general: Estimate | None = None
) -> tuple[Interval, Interval]:
    """Return the 95 % intervals over examples of the hypervolume, and of what it has over that of the two ends alone.

    Of the tasks' scores, each in [0, 1], along one path; with `general`, retentions, that of three coordinates. Noise
    makes a front larger, never smaller, where many points are about equally good; `raised_interval` allows for that.
    Where a score rests on few right or wrong answers the first one also reaches as far as a band around all curves
    does.
    """
    coordinates = (stability, plasticity) if general is None else (stability, plasticity, general)

    def measure(
        x: NDArray[np.float64], y: NDArray[np.float64], z: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        return hypervolume(x, y) if z is None else hypervolume_of_three(x, y, z)

    def of_ends(*values: NDArray[np.float64]) -> NDArray[np.float64]:
        return measure(*(v[..., [0, -1]] for v in values))

    volume = raised_interval(measure, coordinates, least=0.0, most=1.0)
    gain = raised_interval(measure, coordinates, of_ends, least=0.0, most=1.0)
    if any(estimate.rests_on_few for estimate in coordinates):
        bands = [contrast_intervals(estimate, lambda values: values) for estimate in coordinates]
        ends = [np.clip([band[i] for band in bands], 0.0, 1.0) for i in range(2)]
        low, high = np.minimum(volume.low, measure(*ends[0])), np.maximum(volume.high, measure(*ends[1]))
        volume = Interval(np.asarray(low), np.asarray(high), volume.few_events)
    return volume, gain


def _checked(stability: ArrayLike, plasticity: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(stability, dtype=np.float64), np.asarray(plasticity, dtype=np.float64)
    if x.shape != y.shape or x.ndim == 0 or x.shape[-1] == 0:
        raise UserError(
            f"Expected stability and plasticity of one shape (..., n) with n ≥ 1, got {x.shape} and {y.shape}; "
            "pass one of each per point of the path."
        )
    return x, y
