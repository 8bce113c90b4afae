"""What a space is: a way to turn minima into anchors between which plain linear algebra draws the paths."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, check_compatible, combine
from mcanalysis.registry import Registry

_SPACES: Registry[type[Space]] = Registry("space", "mcanalysis.params.spaces")


class Space(ABC):
    """A coordinate system for paths; `get_space` finds a subclass under its class attribute `name`."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _SPACES.add(cls.name, cls)

    @abstractmethod
    def embed(self, points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return one anchor per minimum; sums Σ cᵢ·anchorᵢ with Σ cᵢ = 1 make up this space's paths.

        Raises:
            PointMismatchError: if the minima cannot be joined in this space.
        """

    def anchors(self, minima: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return the anchors that a path between the minima starts from: `embed`, where a space knows no better.

        Raises as `embed` does.
        """
        return self.embed(minima)

    def chord_lengths(self, anchors: Sequence[Mapping[str, Tensor]], weights: Tensor) -> Tensor:
        """Return the distances between successive points Σ cᵢ·anchorᵢ, Euclidean in all coordinates.

        Args:
            anchors: `k` points of the same names and shapes.
            weights: shape (n, k), float64, rows summing to one.

        Returns:
            shape (n − 1,), float64.
        """
        return _euclidean_chord_lengths(anchors, weights)

    def landmarks(self, minima: Sequence[Mapping[str, Tensor]], anchors: Sequence[Point]) -> list[Point]:
        """Return the form of the minima that others are placed and measured against: the anchors `embed` gave.

        A space may return something smaller of the same geometry.
        """
        return list(anchors)

    def place(self, point: Mapping[str, Tensor], origin: Mapping[str, Tensor]) -> Point:
        """Return a point in the coordinates in which it can be measured against `origin`, a landmark.

        Raises:
            PointMismatchError: if the two cannot be joined in this space.
        """
        check_compatible(origin, point)
        return dict(point)

    def inner_products(
        self,
        origin: Mapping[str, Tensor],
        points: Sequence[Mapping[str, Tensor]],
        others: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Return ⟨pᵢ − origin, qⱼ − origin⟩ in this space; differences are taken first, so that little cancels.

        Euclidean in all coordinates unless a space says otherwise.

        Args:
            origin: a landmark.
            points: `n` points p: other landmarks, or placed beside this one (`place`).
            others: `m` points q, the same.

        Returns:
            shape (n, m), float64, on the CPU.

        Raises:
            PointMismatchError: if the points cannot be compared in this space.
        """
        return _euclidean_inner_products(origin, points, others)

    def distance(
        self, point: Mapping[str, Tensor], anchors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> float:
        """Return ‖point − Σ weights[i]·anchors[i]‖ in this space, from the difference itself and in float64.

        Args:
            point: a landmark, or placed beside the anchors (`place`).
            anchors: `k` landmarks.
            weights: `k` numbers that sum to one.

        Raises:
            PointMismatchError: if the points cannot be compared in this space.
        """
        return _euclidean_distance(point, anchors, weights)

    def combine(self, points: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Point:
        """Return Σ weights[i]·points[i] for any weights, sums and differences included; those of weight 0 are left out.

        A single point of weight 1 comes back bit for bit. Tensors are new ones, in float32 at least.

        Args:
            points: `k` points.
            weights: `k` finite numbers of any sign.

        Raises:
            PointMismatchError: if the points do not fit each other in this space.
        """
        return combine(points, weights)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def get_space(space: str | Space) -> Space:
    """Return the space registered under a name; an object that is a space already comes back as it is.

    Raises:
        UnknownNameError: if no space has this name.
        UserError: if `space` is neither a name nor a space.

    >>> get_space("factor")
    FactorSpace()
    """
    if isinstance(space, Space):
        return space
    if not isinstance(space, str):
        raise UserError(
            f"Expected a space or its name, got {type(space).__name__}; pass one of: {', '.join(space_names())}."
        )
    return _SPACES.get(space)()


def space_names() -> list[str]:
    """Return the names of all registered spaces, sorted.

    >>> space_names()
    ['aligned', 'delta', 'factor']
    """
    return _SPACES.names()


@torch.no_grad()
def _euclidean_chord_lengths(anchors: Sequence[Mapping[str, Tensor]], weights: Tensor) -> Tensor:
    """‖Σ (c'ᵢ − cᵢ)·anchorᵢ‖ from the Gram matrix of the differences to the first anchor."""
    first = anchors[0]
    for other in anchors[1:]:
        check_compatible(first, other)
    num = len(anchors) - 1
    gram = torch.zeros(num, num, dtype=torch.float64)
    for name, origin in first.items():
        rows = torch.stack([(a[name].double() - origin.double()).reshape(-1) for a in anchors[1:]])
        gram += (rows @ rows.T).cpu()
    steps = weights.diff(dim=0)[:, 1:]
    return torch.einsum("ni,ij,nj->n", steps, gram, steps).clamp(min=0.0).sqrt()


@torch.no_grad()
def _euclidean_inner_products(
    origin: Mapping[str, Tensor], points: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """The products of all differences to the origin, one tensor of each point at a time."""
    for point in (*points, *others):
        check_compatible(origin, point)
    total = torch.zeros(len(points), len(others), dtype=torch.float64)
    if not points or not others:
        return total
    for name, centre in origin.items():
        left, right = (
            torch.stack([(point[name].double() - centre.double()).reshape(-1) for point in group])
            for group in (points, others)
        )
        total += (left @ right.T).cpu()
    return total


@torch.no_grad()
def _euclidean_distance(
    point: Mapping[str, Tensor], anchors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> float:
    for anchor in anchors:
        check_compatible(point, anchor)
    total = 0.0
    for name, tensor in point.items():
        rest = tensor.to(torch.float64, copy=True)
        for anchor, weight in zip(anchors, weights, strict=True):
            rest.add_(anchor[name].double(), alpha=-float(weight))
        total += float(rest.square().sum())
    return math.sqrt(total)
