"""Whether a fit has come to rest: the losses of its steps, and the mean gradient over the last quarter of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

STEEPEST = 0.1
"""The largest relative slope of a fit that counts as converged."""


class Convergence:
    """Follows a fit of `num_steps` steps; `length` is the distance between the ends of the curve.

    Each step has a gradient of its own t and minibatch. The length of their mean over the last quarter of the steps,
    where the learning rate has all but gone to zero, is what noise is left out of: |mean|² is estimated without bias,
    (‖Σg‖² − Σ‖g‖²) / (n(n−1)). A loss that stands still proves nothing, since it does so as well where the learning
    rate is too small; a gradient of zero does.
    """

    def __init__(self, parameters: Sequence[Tensor], num_steps: int, length: float) -> None:
        self.history: list[float] = []
        self._total = [torch.zeros_like(parameter) for parameter in parameters]
        self._squares = 0.0
        self._num = 0
        self._num_steps = num_steps
        self._length = length

    def add(self, loss: float, parameters: Sequence[Tensor]) -> None:
        """Take in the loss of a step and the gradients that the parameters hold."""
        self.history.append(loss)
        if len(self.history) <= self._num_steps - self._num_steps // 4:
            return
        moved = [(total, p.grad) for total, p in zip(self._total, parameters, strict=True) if p.grad is not None]
        for total, gradient in moved:
            total.add_(gradient)
        self._squares += _squared([gradient for _, gradient in moved])
        self._num += 1

    def slope(self) -> float:
        """The relative change of the loss per distance between the ends, along the mean gradient; NaN if unknown.

        Relative to the mean loss over the first tenth of the steps, in size. Unknown after fewer than 8 steps, and
        where the ends are one point and the gradient is not 0.
        """
        if self._num < 2:
            return math.nan
        square = max((_squared(self._total) - self._squares) / (self._num * (self._num - 1)), 0.0)
        first = self.history[: max(1, len(self.history) // 10)]
        if not self._length and square:  # relative to no distance nothing is said
            return math.nan
        scale = abs(math.fsum(first)) / len(first)
        return self._length * math.sqrt(square) / scale if scale else 0.0 if square == 0.0 else math.inf

    def converged(self) -> bool:
        """Whether the slope is at most `STEEPEST`: 1 % of the distance between the ends changes the loss by 0.1 %."""
        return self.slope() <= STEEPEST

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON from which `restore` goes on."""
        tensors = {f"slope/{i}": total for i, total in enumerate(self._total)}
        return tensors, {"history": self.history, "squares": self._squares, "num": self._num}

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any] | None, step: int) -> None:
        """Go on from a state; without one (of version 0.1) the losses of the steps before are NaN."""
        if header is None:
            self.history = [math.nan] * step
            return
        self.history, self._squares, self._num = list(header["history"]), header["squares"], header["num"]
        for i, total in enumerate(self._total):
            total.copy_(tensors[f"slope/{i}"])


def _squared(tensors: Sequence[Tensor]) -> float:
    return math.fsum(float(tensor.double().square().sum()) for tensor in tensors)
