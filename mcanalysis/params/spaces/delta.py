"""Delta space: the weight changes ΔW = B·A are interpolated, exactly and in factored form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_weights, holds_lora_tensors, key_a, key_b, module_names, share_modules
from mcanalysis.params.low_rank import compress, concatenate
from mcanalysis.params.one_thread import one_thread
from mcanalysis.params.point import Point
from mcanalysis.params.spaces.base import Space
from mcanalysis.params.spaces.factor import FactorSpace

_TOGETHER = 64  # points of a path whose ΔW are compared at once


class DeltaSpace(Space):
    """ΔW is interpolated, so that straight paths are straight in weight space; exact at rank r₁ + r₂ + ….

    All anchors share A = [A₁; A₂; …] and anchor i has B = [0, …, Bᵢ, …, 0]; combinations with weights that
    sum to one then have B = [c₁B₁, c₂B₂, …], the same A, and ΔW = Σ cᵢ·ΔWᵢ. Ranks and targets of the adapters
    may differ. For plain points this is the same as the factor space.

    A bend of a curve in this space is a full adapter of rank r₁ + r₂ + …, whose A and B are both free. It
    starts on the straight ΔW line; once its A has been trained away from the shared one, the curve is a
    Bezier curve or chain in the *factors* of rank r₁ + r₂ + …, between endpoints that are still the two
    minima and whose chord is the straight ΔW line.
    """

    name = "delta"

    def embed(self, points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return one adapter of rank Σ r per minimum; for plain points, the minima as they are.

        Raises:
            PointMismatchError: if a point is neither plain nor a LoRA point, or a module has other dimensions
                in two.

        >>> a = {"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
        >>> b = {"q.lora_A.weight": torch.tensor([[4.0, 5.0]]), "q.lora_B.weight": torch.tensor([[6.0]])}
        >>> [anchor["q.lora_B.weight"] for anchor in DeltaSpace().embed([a, b])]
        [tensor([[3., 0.]]), tensor([[0., 6.]])]
        """
        if not points:
            raise UserError("Expected at least one point to embed, got none; pass the minima to connect.")
        if not any(holds_lora_tensors(point) for point in points):
            return FactorSpace().embed(points)
        joint = concatenate(points, [1.0] * len(points))
        filled = share_modules(points)
        anchors: list[Point] = [dict(joint) for _ in points]
        for module in module_names(joint):
            start = 0
            for anchor, point in zip(anchors, filled, strict=True):
                stop = start + point[key_b(module)].shape[1]
                B = torch.zeros_like(joint[key_b(module)])
                B[:, start:stop] = joint[key_b(module)][:, start:stop]
                anchor[key_b(module)] = B
                start = stop
        return anchors

    @one_thread()
    @torch.no_grad()
    def chord_lengths(self, anchors: Sequence[Mapping[str, Tensor]], weights: Tensor) -> Tensor:
        """Return the distances between successive points Σ cᵢ·anchorᵢ, as norms of differences of ΔW.

        For plain points the Euclidean distances. Arguments and shape as in `Space`.
        """
        if not any(holds_lora_tensors(anchor) for anchor in anchors):
            return super().chord_lengths(anchors, weights)
        small = compress(anchors)
        squares = torch.zeros(max(len(weights) - 1, 0), dtype=torch.float64)
        for module in module_names(small[0]):
            A, B = (torch.stack([anchor[key(module)] for anchor in small]) for key in (key_a, key_b))
            for start in range(0, len(squares), _TOGETHER):
                rows = weights[start : start + _TOGETHER + 1].to(A)
                here = torch.tensordot(rows, B, 1) @ torch.tensordot(rows, A, 1)
                squares[start : start + _TOGETHER] += here.diff(dim=0).square().sum((1, 2)).cpu()
        return squares.sqrt()

    def landmarks(self, minima: Sequence[Mapping[str, Tensor]], anchors: Sequence[Point]) -> list[Point]:
        """Return the minima as they are: their ΔW is that of the anchors, at a smaller rank."""
        return [dict(minimum) for minimum in minima]

    def place(self, point: Mapping[str, Tensor], origin: Mapping[str, Tensor]) -> Point:
        """Return the point as it is: adapters of any rank and targets can be measured against each other.

        Raises `PointMismatchError` if one of the two is no LoRA point while the other is, or a module has other
        dimensions in the two.
        """
        if not (holds_lora_tensors(point) or holds_lora_tensors(origin)):
            return super().place(point, origin)
        share_modules([origin, point])
        return dict(point)

    @torch.no_grad()
    def inner_products(
        self,
        origin: Mapping[str, Tensor],
        points: Sequence[Mapping[str, Tensor]],
        others: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Return ⟨ΔW(pᵢ) − ΔW(origin), ΔW(qⱼ) − ΔW(origin)⟩, without building a matrix of shape (out, in).

        Ranks and targets may differ; (B·R, R⁻¹·A) gives the same numbers for every R. Computed in orthonormal bases
        of what the factors span (`compress`). For plain points the Euclidean products. Arguments, shape and errors as
        in `Space`.

        >>> o = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
        >>> p = {"q.lora_A.weight": torch.tensor([[6.0, 8.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
        >>> DeltaSpace().inner_products(o, [p], [p]).round(decimals=6)  # ‖(3, 4)‖²
        tensor([[25.]], dtype=torch.float64)
        """
        if not any(holds_lora_tensors(point) for point in (origin, *points, *others)):
            return super().inner_products(origin, points, others)
        centre, *deltas = (delta_weights(small) for small in compress([origin, *points, *others]))
        return super().inner_products(centre, deltas[: len(points)], deltas[len(points) :])

    @torch.no_grad()
    def distance(
        self, point: Mapping[str, Tensor], anchors: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
    ) -> float:
        """Return ‖ΔW(point) − Σ weights[i]·ΔW(anchors[i])‖; ranks and targets may differ.

        For plain points the Euclidean distance. Raises as `inner_products` does.
        """
        if not any(holds_lora_tensors(p) for p in (point, *anchors)):
            return super().distance(point, anchors, weights)
        here, *deltas = (delta_weights(small) for small in compress([point, *anchors]))
        return super().distance(here, deltas, weights)

    def combine(self, points: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Point:
        """Return the adapter with ΔW = Σ weights[i]·ΔW(points[i]), of concatenated rank, those of weight 0 left out.

        Plain points are added. Arguments and errors as in `Space`.
        """
        if not any(holds_lora_tensors(point) for point in points):
            return super().combine(points, weights)
        kept = [(point, weight) for point, weight in zip(points, weights, strict=True) if weight != 0.0]
        kept = kept or [(points[0], 0.0)]
        return concatenate([point for point, _ in kept], [weight for _, weight in kept])
