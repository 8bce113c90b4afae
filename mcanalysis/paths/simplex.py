"""The simplex spanned by several minima, in barycentric coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, combine
from mcanalysis.params.spaces import Space, get_space
from mcanalysis.paths.base import at_ends, embed_minima


class Simplex:
    """All points Σ wᵢ·θᵢ with wᵢ ≥ 0 and Σ wᵢ = 1: is one region between k minima good for all tasks?

    Args:
        *minima: two or more points.
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`.
        extrapolate: whether weights may be negative (they sum to one all the same).

    Raises:
        PointMismatchError: if the space cannot join the minima.
        UnknownNameError: if no space has this name.
        UserError: if there are fewer than two minima.

    >>> a, b, c = ({"w": torch.tensor([x])} for x in (0.0, 4.0, 8.0))
    >>> Simplex(a, b, c)([0.5, 0.25, 0.25])
    {'w': tensor([3.])}
    """

    name = "simplex"

    def __init__(self, *minima: Mapping[str, Tensor], space: str | Space = "factor", extrapolate: bool = False) -> None:
        if len(minima) == 1 and isinstance(minima[0], list | tuple):
            raise UserError(
                f"Expected minima one by one, got a {type(minima[0]).__name__} of them; write Simplex(*points)."
            )
        if len(minima) < 2:
            raise UserError(f"Expected two or more minima to span a simplex, got {len(minima)}; pass more minima.")
        self.space = get_space(space)
        self.extrapolate = extrapolate
        self._anchors = tuple(embed_minima(minima, self.space))

    @property
    def anchors(self) -> tuple[Point, ...]:
        """The corners, in the order of the weights."""
        return self._anchors

    def __call__(self, weights: Sequence[float] | Tensor) -> Point:
        """Return the point at barycentric coordinates `weights`, bit for bit a corner where one of them is 1.

        Args:
            weights: shape (num_minima,), non-negative unless extrapolating, summing to one within 1e-6.

        Raises:
            UserError: if there is another number of weights, one is negative, or they do not sum to one.
        """
        numbers = [at_ends(float(weight)) for weight in weights]
        if len(numbers) != len(self._anchors):
            raise UserError(f"Expected {len(self._anchors)} weights, got {len(numbers)}; pass one weight per minimum.")
        if not abs(math.fsum(numbers) - 1.0) <= 1e-6:
            raise UserError(f"Expected weights that sum to one, got {numbers}; divide them by their sum.")
        if not self.extrapolate and min(numbers) < 0.0:
            raise UserError(
                f"Expected non-negative weights, got {numbers}; build the simplex with extrapolate=True to leave it."
            )
        return combine(self._anchors, numbers)

    def grid(self, num: int) -> Tensor:
        """Return the barycentric coordinates of a regular grid with `num` points on each edge, corners exact.

        Returns:
            shape (C(num + k − 2, k − 1), k) for k minima, float64, rows non-negative and summing to one.

        Raises:
            UserError: if `num` is below 2.

        >>> Simplex({"w": torch.zeros(1)}, {"w": torch.ones(1)}).grid(3)
        tensor([[1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000]], dtype=torch.float64)
        """
        if num < 2:
            raise UserError(f"Expected at least 2 points on an edge, got num={num}; use 11 for steps of 0.1.")
        total, num_minima = num - 1, len(self._anchors)
        rows = []
        for bars in itertools.combinations(range(total + num_minima - 1), num_minima - 1):
            edges = (-1, *bars, total + num_minima - 1)
            rows.append([right - left - 1 for left, right in itertools.pairwise(edges)])
        return torch.tensor(rows[::-1], dtype=torch.float64) / total

    def __repr__(self) -> str:
        return f"Simplex(num_minima={len(self._anchors)}, space='{self.space.name}')"
