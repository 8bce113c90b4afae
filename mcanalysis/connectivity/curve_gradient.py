"""The gradient of a loss at points of a curve with respect to its bends, one term of the loss in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mcanalysis.connectivity.losses import check_tensor, terms_of
from mcanalysis.errors import UserError
from mcanalysis.params.point import Point
from mcanalysis.paths.base import Curve

Loss = Callable[[Point], Tensor | Iterator[Tensor]]


def set_gradients(parameters: Sequence[Tensor], curve: Curve, loss: Loss, ts: Sequence[float], step: int) -> float:
    """Write the gradient of the mean loss over `ts` into the parameters, and into nothing else; return that mean.

    Raises `UserError` for a loss that is no finite number, or does not depend on the point (`step` is named).

    >>> from mcanalysis.paths import PolyChain
    >>> bend = torch.tensor([2.0], requires_grad=True)
    >>> chain = PolyChain({"w": torch.zeros(1)}, {"w": torch.ones(1)}, bends=[{"w": bend}])
    >>> set_gradients([bend], chain, lambda point: point["w"].square().sum(), [0.5], 1), bend.grad
    (4.0, tensor([4.]))
    """
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    total = 0.0
    for t in ts:
        with torch.enable_grad():
            point = curve(t)
            terms = terms_of(loss, point)
        gradients, value = _gradients_of_terms(terms, point, parameters, len(ts), f"step {step} (t = {t:.4f})")
        total += value / len(ts)
        if all(gradient is None for gradient in gradients):
            raise UserError(
                "Expected a loss that depends on the point it is given, got one that does not use its "
                "tensors; evaluate the model at them with torch.func.functional_call."
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient
    return total


@torch.no_grad()
def value_of(loss: Loss, point: Point) -> float:
    """Return a loss at a point as a number, without gradients.

    >>> value_of(lambda point: iter([point["w"].sum(), point["w"].prod()]), {"w": torch.tensor([2.0, 3.0])})
    11.0
    """
    return math.fsum(float(term) for term in terms_of(loss, point))


def _gradients_of_terms(
    terms: Iterator[Tensor], point: Point, parameters: Sequence[Tensor], num: int, where: str
) -> tuple[tuple[Tensor | None, ...], float]:
    """The gradient of a sum whose terms are differentiated as they come, each graph being freed before the next, and
    the sum."""
    value = 0.0
    outputs = [tensor for tensor in point.values() if tensor.requires_grad]
    totals: list[Tensor | None] = [None] * len(outputs)
    with torch.enable_grad():
        for term in terms:
            _check_value(term, where)
            value += term.item()
            # The graph from the bends to the point is shared by all terms, so only the part above it is freed.
            for i, gradient in enumerate(torch.autograd.grad(term.reshape(()) / num, outputs, allow_unused=True)):
                before = totals[i]
                if gradient is not None:
                    totals[i] = gradient if before is None else before + gradient
    used = [(tensor, total) for tensor, total in zip(outputs, totals, strict=True) if total is not None]
    if not used:
        return (None,) * len(parameters), value
    tensors, weights = zip(*used, strict=True)
    return torch.autograd.grad(tensors, parameters, grad_outputs=weights, allow_unused=True), value


def _check_value(value: Any, where: str) -> None:
    """Raise `UserError` unless a loss is one finite number that can be differentiated."""
    check_tensor(value)
    if not value.requires_grad:
        raise UserError(
            "Expected a loss that is differentiable with respect to the point, got one without a "
            "gradient; compute it from the given tensors, outside of torch.no_grad()."
        )
    if not math.isfinite(value.item()):
        raise UserError(
            f"Expected a finite loss, got {value.item()} at {where}; lower learning_rate or set max_grad_norm."
        )
