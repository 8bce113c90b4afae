"""A Bezier curve between two minima."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mcanalysis.paths.base import CurveBetweenTwo


def bernstein(degree: int, t: float) -> Tensor:
    """Return the Bernstein polynomials C(n, i)·tⁱ·(1−t)ⁿ⁻ⁱ, i = 0 … n: shape (degree + 1,), float64.

    >>> bernstein(2, 0.5)
    tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
    """
    return torch.tensor(
        [math.comb(degree, i) * t**i * (1.0 - t) ** (degree - i) for i in range(degree + 1)],
        dtype=torch.float64,
    )


def bernstein_derivatives(degree: int, t: float) -> Tensor:
    """Return the derivatives n·(bᵢ₋₁,ₙ₋₁(t) − bᵢ,ₙ₋₁(t)): shape (degree + 1,), float64, summing to zero.

    >>> bernstein_derivatives(2, 0.5)
    tensor([-1.,  0.,  1.], dtype=torch.float64)
    """
    lower = bernstein(degree - 1, t)
    zero = lower.new_zeros(1)
    return degree * (torch.cat([zero, lower]) - torch.cat([lower, zero]))


class Bezier(CurveBetweenTwo):
    """The Bezier curve Σ C(n, i)·tⁱ·(1−t)ⁿ⁻ⁱ·θᵢ of degree n = number of bends + 1 between two minima.

    It starts as the straight path (bends at equal spacing, so that t is proportional to length) and is bent
    by `mcanalysis.connectivity.fit_curve`. One bend is what Garipov et al. 2018 (arXiv 1802.10026) use.

    Args:
        a: the minimum at t = 0, a point.
        b: the minimum at t = 1.
        num_bends: at least 1; not used if `bends` are given.
        bends: the bends in order of t, in the coordinates of the space (as `curve.anchors` shows them).
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`. In "delta" the curve
            starts on the straight ΔW line and is, once fitted, a Bezier curve in factors of rank r₁ + r₂, whose A
            bends, too: not one in ΔW (`mcanalysis.params.DeltaSpace`).
        extrapolate: whether t may lie outside [0, 1].

    Raises:
        PointMismatchError: if the space cannot join the minima, or a bend does not fit them.
        UnknownNameError: if no space has this name.
        UserError: if there is no bend.

    >>> a, bend, b = ({"w": torch.tensor([x])} for x in (0.0, 10.0, 4.0))
    >>> Bezier(a, b, bends=[bend])(0.5)
    {'w': tensor([6.])}
    """

    name = "bezier"

    def weights(self, t: float) -> Tensor:
        """Return the Bernstein polynomials at t: shape (num_bends + 2,), float64.

        Raises `UserError` for t outside [0, 1] unless extrapolating.

        >>> Bezier({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weights(0.5)
        tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
        """
        return bernstein(len(self.anchors) - 1, self._checked(t))

    def weight_derivatives(self, t: float) -> Tensor:
        """Return their derivatives at t: shape (num_bends + 2,), float64; raises as `weights` does.

        >>> Bezier({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weight_derivatives(0.5)
        tensor([-1.,  0.,  1.], dtype=torch.float64)
        """
        return bernstein_derivatives(len(self.anchors) - 1, self._checked(t))
