"""Factor space: the tensors themselves are interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import holds_lora_tensors
from mcanalysis.params.point import Point, check_compatible, check_point
from mcanalysis.params.spaces.base import Space


class FactorSpace(Space):
    """Every tensor is interpolated by itself: A and B separately for LoRA, the weights for a plain module.

    This is what an exponential moving average of adapters does. For LoRA the straight path bends in ΔW, away
    from the line by −t(1−t)·(B₂−B₁)(A₂−A₁), see `mcanalysis.params.factor_delta_deviation`.
    """

    name = "factor"

    def embed(self, points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return the minima as they are (the same tensors, not copies).

        Raises:
            PointMismatchError: if they differ in names or shapes, as adapters of different ranks do.

        >>> import torch
        >>> FactorSpace().embed([{"w": torch.tensor([1.0])}])
        [{'w': tensor([1.])}]
        """
        if not points:
            raise UserError("Expected at least one point to embed, got none; pass the minima to connect.")
        check_point(points[0])
        remedy = "use points of the same model"
        if any(holds_lora_tensors(point) for point in points):
            remedy = "use space='delta' for adapters of different ranks or targets"
        for other in points[1:]:
            check_compatible(points[0], other, remedy)
        return [dict(point) for point in points]
