"""Principal directions of a trajectory: the plane on which a path of training is best drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import holds_lora_tensors, key_a, key_b, module_names, ranks
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.point import Point, as_double, check_distinct, working_dtype
from mcanalysis.params.spaces import Space, get_space

_BLOCK = 16  # points in memory at once
_NO_VARIANCE = 1e-12  # of the largest: rounding of the Gram matrix


@dataclass(frozen=True, eq=False)
class TrajectoryPCA:
    """The principal directions of a trajectory, and the trajectory in their coordinates.

    `origin`: the point at 0. `directions`: `k` points of length 1 in the space, orthogonal to each other, for
    `Slice(pca.origin, *pca.directions, space=pca.space)`. `coordinates`: shape (n, k), in units of distance.
    `explained_variance_ratio`: shape (k,), in [0, 1], falling.
    """

    space: Space
    origin: Point
    directions: tuple[Point, ...]
    coordinates: np.ndarray
    explained_variance_ratio: np.ndarray
    reference: Point  # what other points are placed against

    def project(self, point: Mapping[str, Tensor]) -> tuple[float, ...]:
        """Return the `k` coordinates of another point and, last, its distance from what the directions span.

        Raises `PointMismatchError` if the point does not fit those of the trajectory.
        """
        placed = self.space.place(point, self.reference)
        ends = [self.space.combine([self.origin, direction], [1.0, 1.0]) for direction in self.directions]
        foot = self.space.inner_products(self.origin, [placed], ends)[0].tolist()
        distance = self.space.distance(placed, [self.origin, *ends], [1.0 - math.fsum(foot), *foot])
        return (*foot, distance)


@torch.no_grad()
def fit_trajectory_pca(
    points: Sequence[Mapping[str, Tensor]],
    num_components: int = 2,
    *,
    center: str = "last",
    space: str | Space = "factor",
) -> TrajectoryPCA:
    """Return the directions in which a trajectory moved most, from the Gram matrix of its points.

    Li et al. 2018 (arXiv 1712.09913) take them from M = [θ₀ − θₙ; …; θₙ₋₁ − θₙ]. `center="last"` is the
    singular value decomposition of M as it stands: θₙ is the origin, and what is explained is a share of Σ‖θᵢ − θₙ‖².
    `center="mean"` is principal component analysis in the strict sense, about the mean of all points, and a share of
    their variance. A random walk in many dimensions, too, has two components that explain most of it (Antognini &
    Sohl-Dickstein 2018, arXiv 1806.08805): a high ratio by itself says little about the loss.

    Computed in float64. Points are read by index, 16 to 32 at a time, several times each, so that a sequence that loads
    them from files never holds a long trajectory in memory; directions are.

    Args:
        points: `n` ≥ 2 points in order of time, plain or of LoRA.
        num_components: `k`, at least 1 and less than n.
        center: "last" or "mean".
        space: "factor" (every tensor by itself), "delta" (ΔW; directions are adapters of a rank up to n·r, and at most
            that of a full matrix; it does not see (B·R, R⁻¹·A)), or "aligned" (all points aligned to the last).

    Raises:
        UserError: if there are too few points, they span fewer than `num_components` dimensions, one holds NaN or ∞, or
            an option is unknown.
        PointMismatchError: if the points cannot be compared in the space, or two of them are one in memory.

    >>> walk = [{"w": torch.tensor([float(4 - t), 0.1 * t % 0.2, 1.0])} for t in range(5)]
    >>> pca = fit_trajectory_pca(walk)
    >>> pca.coordinates[:4, 0].round(2).tolist(), bool(pca.explained_variance_ratio[0] > 0.99)
    ([4.0, 3.0, 2.0, 1.0], True)
    """
    if center not in ("last", "mean"):
        raise UserError(f"Expected center to be 'last' or 'mean', got '{center}'; choose one of the two.")
    if not 1 <= num_components < len(points):
        raise UserError(
            f"Expected 1 to {len(points) - 1} components of a trajectory of {len(points)} points, "
            f"got {num_components}; save more snapshots (--save-trajectory) or ask for fewer."
        )
    space = get_space(space)
    last = points[len(points) - 1]
    reference = space.landmarks([last], space.embed([last]))[0]
    gram = _gram(space, reference, points)
    if center == "mean":
        gram = gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean()
    variances, vectors = np.linalg.eigh(gram)
    variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
    num_dimensions = int((variances > _NO_VARIANCE * variances[0]).sum())
    if num_dimensions < num_components:
        raise UserError(
            f"Expected a trajectory that moves in {num_components} dimensions or more, got {num_dimensions}; "
            "ask for fewer components, or take a trajectory of more snapshots."
        )
    variances, vectors = variances[:num_components], vectors[:, :num_components]
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), range(num_components)] < 0, -1.0, 1.0)

    of_points = (vectors / np.sqrt(variances)).T  # direction = Σ weight·(point − reference)
    of_reference = -of_points.sum(1)
    if center == "mean":
        of_points = np.vstack([of_points, np.full(len(points), 1 / len(points))])
        of_reference = np.append(of_reference, 0.0)
    sums = _weighted_sums(space, reference, points, of_reference, of_points)
    origin = sums[num_components] if center == "mean" else {n: t.detach() for n, t in reference.items()}
    return TrajectoryPCA(
        space, origin, tuple(sums[:num_components]), vectors * np.sqrt(variances), variances / np.trace(gram), reference
    )


def _blocks(number: int) -> list[range]:
    return [range(start, min(start + _BLOCK, number)) for start in range(0, number, _BLOCK)]


def _load(space: Space, reference: Point, points: Sequence[Mapping[str, Tensor]], block: range) -> list[Point]:
    loaded = [points[index] for index in block]
    check_distinct(loaded)
    return [space.place(point, reference) for point in loaded]


def _gram(space: Space, reference: Point, points: Sequence[Mapping[str, Tensor]]) -> np.ndarray:
    """All inner products of differences to the reference, shape (n, n), two blocks of points in memory at a time."""
    gram = np.empty((len(points), len(points)))
    blocks = _blocks(len(points))
    for number, rows in enumerate(blocks):
        left = _load(space, reference, points, rows)
        for columns in blocks[number:]:
            right = left if columns == rows else _load(space, reference, points, columns)
            part = space.inner_products(reference, left, right).numpy()
            gram[rows.start : rows.stop, columns.start : columns.stop] = part
            gram[columns.start : columns.stop, rows.start : rows.stop] = part.T
    broken = np.flatnonzero(~np.isfinite(gram.diagonal()))
    if len(broken):
        raise UserError(
            f"Expected points of finite numbers, got NaN or ∞ at {len(broken)} of {len(points)}, first at index "
            f"{broken[0]}; leave them out."
        )
    return gram


def _weighted_sums(
    space: Space,
    reference: Point,
    points: Sequence[Mapping[str, Tensor]],
    of_reference: np.ndarray,
    of_points: np.ndarray,
) -> list[Point]:
    """One sum per row of the weights, shapes (m,) and (m, n), in float64 and then rounded as the reference is."""
    totals = [space.combine([as_double(reference)], [float(weight)]) for weight in of_reference]
    for block in _blocks(len(points)):
        placed = [as_double(point) for point in _load(space, reference, points, block)]
        for index, row in enumerate(of_points):
            total = space.combine([totals[index], *placed], [1.0, *row[block.start : block.stop].tolist()])
            totals[index] = _without_surplus_rank(total, reference)
    dtype = working_dtype(reference.values())
    return [{name: tensor.to(dtype) for name, tensor in total.items()} for total in totals]


def _without_surplus_rank(point: Point, reference: Point) -> Point:
    """The same ΔW with no more rank than a full matrix has, where sums have concatenated factors."""
    if not holds_lora_tensors(point) or ranks(point) == ranks(reference):
        return point
    full = {m: min(point[key_b(m)].shape[0], point[key_a(m)].shape[1]) for m in module_names(point)}
    if all(rank <= full[module] for module, rank in ranks(point).items()):
        return point
    return truncate(point, max(full.values()))[0]
