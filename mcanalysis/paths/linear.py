"""The straight path between two minima."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.params.spaces import Space, get_space
from mcanalysis.paths.base import Path, embed_minima


class Linear(Path):
    """The straight path (1−t)·a + t·b between two minima, straight in the coordinates of a space.

    Args:
        a: the minimum at t = 0, a point.
        b: the minimum at t = 1.
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`.
        extrapolate: whether t may lie outside [0, 1]: the same formula, so that in "delta" ΔW goes on straight, and
            in "factor" and "aligned" A and B do.

    Raises:
        PointMismatchError: if the space cannot join the two.
        UnknownNameError: if no space has this name.

    >>> path = Linear({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])})
    >>> path(0.25), path.length()
    ({'w': tensor([1.])}, 4.0)
    """

    name = "linear"

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        space: str | Space = "factor",
        extrapolate: bool = False,
    ) -> None:
        space = get_space(space)
        super().__init__(embed_minima([a, b], space), space, extrapolate)

    def weights(self, t: float) -> Tensor:
        """Return (1−t, t): shape (2,), float64; raises `UserError` for t outside [0, 1] unless extrapolating.

        >>> Linear({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weights(0.25)
        tensor([0.7500, 0.2500], dtype=torch.float64)
        """
        t = self._checked(t)
        return torch.tensor([1.0 - t, t], dtype=torch.float64)

    def weight_derivatives(self, t: float) -> Tensor:
        """Return (−1, 1): shape (2,), float64; raises `UserError` as `weights` does.

        >>> Linear({"w": torch.zeros(1)}, {"w": torch.ones(1)}).weight_derivatives(0.25)
        tensor([-1.,  1.], dtype=torch.float64)
        """
        self._checked(t)
        return torch.tensor([-1.0, 1.0], dtype=torch.float64)
