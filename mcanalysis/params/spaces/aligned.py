"""Aligned space: factors are interpolated after the freedom (BR, R⁻¹A) has been taken out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.lora import (
    balance,
    holds_lora_tensors,
    key_a,
    key_b,
    module_names,
    ranks,
    share_modules,
)
from mcanalysis.params.point import Point, working_dtype
from mcanalysis.params.spaces.base import Space


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
        filled = share_modules(points)
        rank_of = {m: max(ranks(point)[m] for point in filled) for m in module_names(filled[0])}
        balanced = [balance(_widen(point, rank_of)) for point in filled]
        dtype = working_dtype(tensor for point in filled for tensor in point.values())
        anchors: list[Point] = []
        for point in balanced:
            anchor: Point = {}
            for module in rank_of:
                A, B = point[key_a(module)], point[key_b(module)]
                A_first, B_first = balanced[0][key_a(module)], balanced[0][key_b(module)]
                if point is not balanced[0]:
                    U, _, Vh = torch.linalg.svd(B.T @ B_first + A @ A_first.T)
                    R = U @ Vh
                    A, B = R.T @ A, B @ R
                anchor[key_a(module)], anchor[key_b(module)] = A.to(dtype), B.to(dtype)
            anchors.append(anchor)
        return anchors


def _widen(point: Mapping[str, Tensor], rank_of: Mapping[str, int]) -> Point:
    """The same adapter in float64 with the given ranks, new rows of A and columns of B being zero."""
    wide: Point = {}
    for module, rank in rank_of.items():
        A, B = point[key_a(module)].double(), point[key_b(module)].double()
        extra = rank - A.shape[0]
        wide[key_a(module)] = torch.cat([A, A.new_zeros(extra, A.shape[1])])
        wide[key_b(module)] = torch.cat([B, B.new_zeros(B.shape[0], extra)], dim=1)
    return wide
