"""Bezier curves in a row through several minima."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.spaces import Space, get_space
from mcanalysis.paths.base import Curve, embed_minima, straight_bends
from mcanalysis.paths.bezier import bernstein, bernstein_derivatives
from mcanalysis.paths.polychain import locate


class SegmentedBezier(Curve):
    """Bezier curves in a row through k ≥ 2 minima: the way from the first to the last task.

    The curve is at minimum j = 0 … k − 1 at t = j / (k − 1). Dold et al. 2026 (arXiv 2605.29580) find low
    valleys of this form between independent LoRA optima where straight lines meet barriers. Each segment
    starts as the straight path.

    Args:
        *minima: two or more points, in order of t.
        num_bends: bends per segment, at least 1; not used if `bends` are given.
        bends: all bends in order of t, equally many per segment, in the coordinates of the space; without the
            minima.
        anchored: whether the inner minima stay fixed; if not, they are bends too (and part of `curve.bends`).
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`.
        extrapolate: whether t may lie outside [0, 1]; the first and last segment then go on.

    Raises:
        PointMismatchError: if the space cannot join the minima, or a bend does not fit them.
        UnknownNameError: if no space has this name.
        UserError: if there are fewer than two minima, no bend, or unequal numbers of bends per segment.

    >>> a, b, c = ({"w": torch.tensor([x])} for x in (0.0, 4.0, 6.0))
    >>> way = SegmentedBezier(a, b, c)
    >>> way(0.25), way(0.5), way(0.75), round(way.length(), 6)
    ({'w': tensor([2.])}, {'w': tensor([4.])}, {'w': tensor([5.])}, 6.0)
    """

    name = "segmented_bezier"
    through_many = True

    def __init__(
        self,
        *minima: Mapping[str, Tensor],
        num_bends: int = 1,
        bends: Sequence[Mapping[str, Tensor]] | None = None,
        anchored: bool = True,
        space: str | Space = "factor",
        extrapolate: bool = False,
    ) -> None:
        if len(minima) < 2:
            raise UserError(f"Expected two or more minima in a row, got {len(minima)}; pass the minima to connect.")
        space = get_space(space)
        fixed = embed_minima(minima, space)
        num_segments = len(fixed) - 1
        if bends is not None:
            num_bends, left_over = divmod(len(bends), num_segments)
            if left_over:
                raise UserError(
                    f"Expected equally many bends in each of {num_segments} segments, got {len(bends)}; "
                    f"pass a multiple of {num_segments}."
                )
        anchors = [fixed[0]]
        for segment in range(num_segments):
            given = None if bends is None else bends[segment * num_bends : (segment + 1) * num_bends]
            anchors += straight_bends(fixed[segment], fixed[segment + 1], num_bends, given)
            anchors.append(fixed[segment + 1])
        self._degree = num_bends + 1
        inner = range(1, len(anchors) - 1)
        super().__init__(anchors, [i for i in inner if i % self._degree or not anchored], space, extrapolate)

    @property
    def knots(self) -> tuple[float, ...]:
        """The values of t, ends included, at which the curve reaches a minimum."""
        num_segments = (len(self.anchors) - 1) // self._degree
        return tuple(i / num_segments for i in range(num_segments + 1))

    def weights(self, t: float) -> Tensor:
        """Return the Bernstein polynomials of t's segment, zero elsewhere: shape (num_anchors,), float64.

        Raises `UserError` for t outside [0, 1] unless extrapolating.

        >>> SegmentedBezier(*({"w": torch.zeros(1)} for _ in range(3))).weights(0.25)
        tensor([0.2500, 0.5000, 0.2500, 0.0000, 0.0000], dtype=torch.float64)
        """
        return self._on_segment(t, bernstein, scale=1.0)

    def weight_derivatives(self, t: float) -> Tensor:
        """Return their derivatives at t: shape (num_anchors,), float64; raises `UserError` as `weights` does.

        >>> SegmentedBezier(*({"w": torch.zeros(1)} for _ in range(3))).weight_derivatives(0.25)
        tensor([-2.,  0.,  2.,  0.,  0.], dtype=torch.float64)
        """
        return self._on_segment(t, bernstein_derivatives, scale=float(len(self.knots) - 1))

    def _on_segment(self, t: float, polynomials, scale: float) -> Tensor:
        segment, place = locate(self._checked(t), len(self.knots) - 1)
        weights = torch.zeros(len(self.anchors), dtype=torch.float64)
        start = segment * self._degree
        weights[start : start + self._degree + 1] = scale * polynomials(self._degree, place)
        return weights
