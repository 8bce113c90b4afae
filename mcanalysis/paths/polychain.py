"""A chain of straight pieces between two minima."""

from __future__ import annotations

import torch
from torch import Tensor

from mcanalysis.paths.base import CurveBetweenTwo


def locate(t: float, num_pieces: int) -> tuple[int, float]:
    """Return the piece of [0, 1] cut into equal pieces that holds t, and the place in it, from 0 to 1.

    A t within rounding of a knot is taken as the knot, and a knot as the start of its right piece, t = 1 as
    the end of the last one. Beyond the ends the first and the last piece go on.

    >>> locate(0.75, 2), locate(1.0, 2)
    ((1, 0.5), (1, 1.0))
    """
    position = t * num_pieces
    if abs(position - round(position)) < 2.0**-51 * num_pieces:
        position = float(round(position))
    piece = min(max(int(position // 1), 0), num_pieces - 1)
    return piece, position - piece


class PolyChain(CurveBetweenTwo):
    """The chain of straight pieces a → bend → … → b, each of the same share of t, between two minima.

    It starts as the straight path (bends at equal spacing) and is bent by
    `mcanalysis.connectivity.fit_curve`; from Garipov et al. 2018 (arXiv 1802.10026).

    Args:
        a: the minimum at t = 0, a point.
        b: the minimum at t = 1.
        num_bends: at least 1; not used if `bends` are given.
        bends: the bends in order of t, in the coordinates of the space (as `curve.anchors` shows them).
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`.
        extrapolate: whether t may lie outside [0, 1]; the first and last piece then go on straight.

    Raises:
        PointMismatchError: if the space cannot join the minima, or a bend does not fit them.
        UnknownNameError: if no space has this name.
        UserError: if there is no bend.

    >>> a, bend, b = ({"w": torch.tensor([x])} for x in (0.0, 10.0, 4.0))
    >>> chain = PolyChain(a, b, bends=[bend])
    >>> chain(0.75), round(chain.length(), 6)
    ({'w': tensor([7.])}, 16.0)
    """

    name = "polychain"

    @property
    def knots(self) -> tuple[float, ...]:
        """The values of t, ends included, at which the chain reaches an anchor."""
        num_pieces = len(self.anchors) - 1
        return tuple(i / num_pieces for i in range(num_pieces + 1))

    def weights(self, t: float) -> Tensor:
        """Return the hat functions at t: shape (num_bends + 2,), float64; raises `UserError` outside [0, 1].

        >>> PolyChain({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weights(0.75)
        tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
        """
        piece, place = locate(self._checked(t), len(self.anchors) - 1)
        weights = torch.zeros(len(self.anchors), dtype=torch.float64)
        weights[piece], weights[piece + 1] = 1.0 - place, place
        return weights

    def weight_derivatives(self, t: float) -> Tensor:
        """Return their derivatives at t: shape (num_bends + 2,), float64; raises as `weights` does.

        >>> PolyChain({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weight_derivatives(0.75)
        tensor([ 0., -2.,  2.], dtype=torch.float64)
        """
        num_pieces = len(self.anchors) - 1
        piece, _ = locate(self._checked(t), num_pieces)
        derivatives = torch.zeros(len(self.anchors), dtype=torch.float64)
        derivatives[piece], derivatives[piece + 1] = -float(num_pieces), float(num_pieces)
        return derivatives
