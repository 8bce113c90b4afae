"""Curve finding: train the bends of a curve so that the mean loss along it is small, the ends being fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, distance, norm, random_like, working_dtype
from mcanalysis.paths.base import Curve

CurveT = TypeVar("CurveT", bound=Curve)


def fit_curve(
    curve: CurveT,
    loss: Callable[[Point], Tensor],
    *,
    num_steps: int = 100,
    learning_rate: float = 1e-2,
    seed: int = 0,
    ts_per_step: int = 1,
    jitter: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    warmup_fraction: float = 0.05,
    max_grad_norm: float | None = None,
    progress: Callable[..., Any] | None = None,
) -> CurveT:
    """Return a curve with the same ends, its bends trained to minimise the mean of the loss over t.

    E_{t~U(0,1)}[loss(curve(t))] is the objective of Garipov et al. 2018 (arXiv 1802.10026). Each step draws
    one t uniformly in each of `ts_per_step` equal strata of [0, 1] and averages the losses there. The
    learning rate rises linearly over the first steps and then falls along a cosine to zero (Loshchilov &
    Hutter 2017, arXiv 1608.03983). There is no weight decay unless the given optimizer brings one. Bends are
    trained in float32 at least. The given curve, its tensors, the gradients of the model behind `loss` and
    the global random state are left alone, and the same seed gives the same curve.

    What is trained are all coordinates of the bends in the curve's space; see `mcanalysis.params.DeltaSpace`
    for what that means there.

    Args:
        curve: a path with bends, such as `Bezier(a, b)`; it is trained from the bends it has.
        loss: a differentiable function of a point that returns one number (a tensor). It may draw a minibatch
            per call.
        num_steps: optimizer steps, at least 1.
        learning_rate: the largest learning rate, positive, in the units of the optimizer.
        seed: of the draws of t and the jitter.
        ts_per_step: strata per step, at least 1 (1 is the classic; k cost k losses and give less
            noise than k steps do).
        jitter: length of a random shift of each bend before the first step, in units of the distance between
            the ends; a start exactly on the straight path can be a saddle. 0 to go on from bends fitted
            before.
        optimizer: called as `optimizer(list of tensors, lr=learning_rate)`.
        warmup_fraction: share of the steps over which the learning rate rises, in [0, 1).
        max_grad_norm: the gradient of all bends together is scaled down to this norm where it is longer;
            None: never.
        progress: called as `progress(total=num_steps, desc="fit curve")`, as tqdm is; needs `.update(n)` and
            `.close()`.

    Raises:
        UserError: if the curve has no bends, a number is out of range, or the loss is not one number, is not
            differentiable with respect to the point, or is not finite at some step (which the message names).

    >>> from mcanalysis.paths import Bezier
    >>> ends = [{"w": torch.tensor([-1.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
    >>> fitted = fit_curve(  # away from the origin
    ... Bezier(*ends), lambda point: (point["w"].norm() - 1.0) ** 2, num_steps=200, learning_rate=0.1
    ... )
    >>> bool(fitted(0.5)["w"].norm() > 0.8)
    True
    """
    _check_arguments(curve, num_steps, learning_rate, ts_per_step, jitter, warmup_fraction, max_grad_norm)
    generator = torch.Generator().manual_seed(seed)
    shift = jitter * distance(curve.anchors[0], curve.anchors[-1])
    bends = [_movable(_shifted(bend, shift, generator)) for bend in curve.bends]
    moving = curve.with_bends(bends)
    parameters = [tensor for bend in bends for tensor in bend.values()]
    stepper = optimizer(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        stepper, lambda step: _warmup_then_cosine(step, num_steps, warmup_fraction)
    )
    bar = progress(total=num_steps, desc="fit curve") if progress is not None else None
    try:
        for step in range(1, num_steps + 1):
            _set_gradients(parameters, moving, loss, _stratified(ts_per_step, generator), step)
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            stepper.step()
            schedule.step()
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return curve.with_bends([{name: tensor.detach() for name, tensor in bend.items()} for bend in bends])


def _set_gradients(
    parameters: list[Tensor], curve: Curve, loss: Callable[[Point], Tensor], ts: list[float], step: int
) -> None:
    """Write the gradient of the mean loss over `ts` into the parameters, and into nothing else."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    for t in ts:
        with torch.enable_grad():
            value = loss(curve(t))
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"Expected the loss to be a tensor with one number, got {got}; return its mean.")
        if not value.requires_grad:
            raise UserError(
                "Expected a loss that is differentiable with respect to the point, got one without a "
                "gradient; compute it from the given tensors, outside of torch.no_grad()."
            )
        if not math.isfinite(value.item()):
            raise UserError(
                f"Expected a finite loss, got {value.item()} at step {step} (t = {t:.4f}); "
                "lower learning_rate or set max_grad_norm."
            )
        gradients = torch.autograd.grad(value.reshape(()) / len(ts), parameters, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise UserError(
                "Expected a loss that depends on the point it is given, got one that does not use its "
                "tensors; evaluate the model at them with torch.func.functional_call."
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad += gradient


def _stratified(num: int, generator: torch.Generator) -> list[float]:
    """One uniform draw in each of `num` equal strata of [0, 1]."""
    return [(i + u) / num for i, u in enumerate(torch.rand(num, generator=generator, dtype=torch.float64).tolist())]


def _warmup_then_cosine(step: int, num_steps: int, warmup_fraction: float) -> float:
    """The factor of the learning rate at a step counted from 0, in [0, 1]."""
    num_warmup = math.floor(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def _shifted(bend: Point, length: float, generator: torch.Generator) -> Point:
    """The bend moved by the given length in a random direction, as new detached tensors."""
    direction = random_like(bend, generator)
    scale = length / norm(direction)
    return {
        name: tensor.detach().to(working_dtype([tensor]), copy=True) + scale * direction[name]
        for name, tensor in bend.items()
    }


def _movable(bend: Point) -> Point:
    return {name: tensor.requires_grad_(True) for name, tensor in bend.items()}


def _check_arguments(
    curve: Curve,
    num_steps: int,
    learning_rate: float,
    ts_per_step: int,
    jitter: float,
    warmup_fraction: float,
    max_grad_norm: float | None,
) -> None:
    if not isinstance(curve, Curve) or not curve.bends:
        raise UserError(f"Expected a curve with bends, got {type(curve).__name__}; fit a Bezier or a PolyChain.")
    ranges = [
        ("num_steps", num_steps, num_steps >= 1, "at least 1"),
        ("learning_rate", learning_rate, learning_rate > 0.0, "positive"),
        ("ts_per_step", ts_per_step, ts_per_step >= 1, "at least 1"),
        ("jitter", jitter, jitter >= 0.0, "non-negative"),
        ("warmup_fraction", warmup_fraction, 0.0 <= warmup_fraction < 1.0, "in [0, 1)"),
        ("max_grad_norm", max_grad_norm, max_grad_norm is None or max_grad_norm > 0.0, "positive or None"),
    ]
    for name, value, holds, expected in ranges:
        if not holds:
            raise UserError(f"Expected {name} to be {expected}, got {value}; see the default in fit_curve.")
