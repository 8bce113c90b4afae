"""Aligned space: factors are interpolated after the freedom (BR, R⁻¹A) has been taken out of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.lora import (
    holds_lora_tensors,
    key_a,
    key_b,
    module_names,
    ranks,
    share_modules,
)
from mcanalysis.params.low_rank import balance
from mcanalysis.params.point import Point, first_not_finite, working_dtype
from mcanalysis.params.spaces.base import Space

logger = logging.getLogger(__name__)
_told: set[str] = set()  # of which modules this process has warned


class AlignedSpace(Space):
    """Factors are interpolated after each adapter was balanced by SVD and rotated onto the first one.

    (BR, R⁻¹A) is the same adapter for every invertible R, yet moves the inside of the factor path. Balancing
    (B = U√S, A = √S·Vᵀ) leaves an orthogonal R, chosen as the minimiser of ‖B₂R − B₁‖² + ‖RᵀA₂ − A₁‖²
    (orthogonal Procrustes, Schönemann 1966): R = UVᵀ from the SVD of B₂ᵀB₁ + A₂A₁ᵀ. Everything is computed in
    float64 and rounded to the working precision at the end. Ranks and targets may differ; smaller factors are
    filled up with zeros.
    """

    name = "aligned"

    @torch.no_grad()
    def embed(self, points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return one adapter per minimum with its ΔW, its factors as close as can be to the first's.

        Raises:
            PointMismatchError: if a point is not a LoRA point, or a module has other dimensions in two of
                them.
            UserError: if a point holds NaN or ∞.

        >>> a = {"q.lora_A.weight": torch.tensor([[4.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
        >>> b = {"q.lora_A.weight": torch.tensor([[-1.0]]), "q.lora_B.weight": torch.tensor([[-4.0]])}
        >>> AlignedSpace().embed([a, b])[1]
        {'q.lora_A.weight': tensor([[2.]]), 'q.lora_B.weight': tensor([[2.]])}
        """
        if not points:
            raise UserError("Expected at least one point to embed, got none; pass the minima to connect.")
        if not any(holds_lora_tensors(point) for point in points):
            raise PointMismatchError(
                "Expected LoRA points in the aligned space, got plain weights, which have no factors "
                "to align; use space='factor'."
            )
        for number, point in enumerate(points, start=1):
            _check_finite(point, f"point {number}")
        filled = share_modules(points)
        rank_of = _largest_ranks(filled)
        balanced = [balance(_widen(point, rank_of)) for point in filled]
        dtype = working_dtype(tensor for point in filled for tensor in point.values())
        anchors = [balanced[0], *(_turned(point, balanced[0]) for point in balanced[1:])]
        return [{name: tensor.to(dtype) for name, tensor in anchor.items()} for anchor in anchors]

    def anchors(self, minima: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return the anchors of a path: what `embed` gives, but where one of two does nothing it has the other's A.

        Balanced, a module with ΔW = 0 has A = 0 as well, and the straight path from it would be t²·ΔW; with the other's
        A it is t·ΔW, as in the other spaces (the base: `mcanalysis.params.lora.base_point`). With three minima or more
        there is no one other: that ΔW grows as t² there is warned of.
        """
        anchors = self.embed(minima)
        idle = [[m for m in module_names(anchor) if not bool(anchor[key_b(m)].any())] for anchor in anchors]
        if len(anchors) == 2:
            for number, modules in enumerate(idle):
                other = anchors[1 - number]
                anchors[number] = anchors[number] | {key_a(module): other[key_a(module)].clone() for module in modules}
        else:
            moved = [m for modules in idle for m in modules if not all(m in others for others in idle)]
            if moved:
                logger.warning(
                    "One of the points does nothing in %s (%d modules in all): in aligned space ΔW grows as t² from "
                    "it, in delta space as t.",
                    moved[0],
                    len(set(moved)),
                )
        return anchors

    @torch.no_grad()
    def place(self, point: Mapping[str, Tensor], origin: Mapping[str, Tensor]) -> Point:
        """Return the adapter with balanced factors, turned as close as can be to those of `origin`, in float64.

        Its ΔW stays; its rank is the larger one of the two. `origin` is taken as it is: the first anchor of `embed`.

        Raises:
            PointMismatchError: if a point is not a LoRA point, or a module has other dimensions in the two.
        """
        _check_finite(point, "the point")
        filled = share_modules([origin, point])
        rank_of = _largest_ranks(filled)
        first, other = (_widen(p, rank_of) for p in filled)
        return _turned(balance(other), first)

    def inner_products(
        self,
        origin: Mapping[str, Tensor],
        points: Sequence[Mapping[str, Tensor]],
        others: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Return the Euclidean products of differences of factors, smaller ones filled up with zeros.

        The points must have been aligned (`embed`, `place`). Arguments, shape and errors as in `Space`.
        """
        first, *rest = _of_one_rank([origin, *points, *others])
        return super().inner_products(first, rest[: len(points)], rest[len(points) :])

    def distance(
        self, point: Mapping[str, Tensor], anchors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> float:
        """Return the Euclidean distance of factors, smaller ones filled up with zeros; see `Space`."""
        first, *rest = _of_one_rank([point, *anchors])
        return super().distance(first, rest, weights)


def _check_finite(point: Mapping[str, Tensor], which: str) -> None:
    name = first_not_finite(point)
    if name is not None:
        raise UserError(
            f"Expected finite numbers to align, got NaN or ∞ in '{name}' of {which}; take a minimum of a run that "
            "did not diverge, or space='factor'."
        )


def _turned(point: Point, first: Point) -> Point:
    """The adapter as (B·R, Rᵀ·A) with the orthogonal R that brings its factors closest to those of the first."""
    result: Point = {}
    for module in module_names(point):
        A, B = point[key_a(module)], point[key_b(module)]
        U, S, Vh = torch.linalg.svd(B.T @ first[key_b(module)] + A @ first[key_a(module)].T)
        R = U @ Vh
        free = float(A.norm() ** 2 + B.norm() ** 2 + first[key_a(module)].norm() ** 2) * 1e-12 >= S
        if bool(free.any()) and _has(B @ U[:, free], B) and _has(first[key_b(module)] @ Vh[free].T, B):
            _warn_of_free_turns(module)
        result[key_a(module)], result[key_b(module)] = R.T @ A, B @ R
    return result


def _has(part: Tensor, of: Tensor) -> bool:
    return float(part.norm()) > 1e-6 * float(of.norm())


def _warn_of_free_turns(module: str) -> None:
    if module not in _told:
        _told.add(module)
        logger.warning(
            "In %s directions of two adapters have nothing to do with each other: how they are aligned is not "
            "determined there, and a path in aligned space depends on how the factors are written. Measure in delta "
            "space.",
            module,
        )


def _largest_ranks(points: Sequence[Mapping[str, Tensor]]) -> dict[str, int]:
    """The largest rank of each module; the points list the same modules."""
    each = [ranks(point) for point in points]
    return {module: max(of[module] for of in each) for module in each[0]}


def _of_one_rank(points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
    filled = share_modules(points)
    rank_of = _largest_ranks(filled)
    return [_widen(point, rank_of) for point in filled]


def _widen(point: Mapping[str, Tensor], rank_of: Mapping[str, int]) -> Point:
    """The same adapter in float64 with the given ranks, new rows of A and columns of B being zero."""
    wide: Point = {}
    for module, rank in rank_of.items():
        A, B = point[key_a(module)].double(), point[key_b(module)].double()
        extra = rank - A.shape[0]
        wide[key_a(module)] = torch.cat([A, A.new_zeros(extra, A.shape[1])])
        wide[key_b(module)] = torch.cat([B, B.new_zeros(B.shape[0], extra)], dim=1)
    return wide
