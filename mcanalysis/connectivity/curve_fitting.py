"""Curve finding: train the bends of a curve so that the mean loss along it is small, the ends being fixed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mcanalysis.connectivity.convergence import Convergence
from mcanalysis.connectivity.fit_checkpoint import FitCheckpoint
from mcanalysis.connectivity.losses import held_names, terms_of
from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, content_hash, norm, random_like, working_dtype
from mcanalysis.params.spaces import FactorSpace
from mcanalysis.paths.base import Curve
from mcanalysis.store.hashing import hash_json

logger = logging.getLogger(__name__)

# Chosen by us: a bend of one coordinate can then move three times the distance of the ends in 200 steps of Adam. The
# smallest is what suits LoRA, where curves go farther from the ends than these are apart.
RELATIVE_RATE = 0.03
SMALLEST_RATE = 1e-2

CurveT = TypeVar("CurveT", bound=Curve)


def fit_curve(
    curve: CurveT,
    loss: Callable[[Point], Tensor | Iterator[Tensor]],
    *,
    num_steps: int = 200,
    learning_rate: float | None = None,
    seed: int = 0,
    ts_per_step: int = 1,
    jitter: float = 1e-3,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    warmup_fraction: float = 0.05,
    max_grad_norm: float | None = None,
    progress: Callable[..., Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_steps: int = 10,
) -> CurveT:
    """Return a curve with the same ends, its bends trained to minimise the mean of the loss over t.

    E_{t~U(0,1)}[loss(curve(t))] is the objective of Garipov et al. 2018 (arXiv 1802.10026). Each step draws
    one t uniformly in each of `ts_per_step` equal strata of [0, 1] and averages the losses there. The
    learning rate rises linearly over the first steps and then falls along a cosine to zero (Loshchilov &
    Hutter 2017, arXiv 1608.03983). There is no weight decay unless the given optimizer brings one. Bends are
    trained in float32 at least. The given curve, its tensors, the gradients of the model behind `loss` and
    the global random state are left alone, and the same seed gives the same curve.

    What is trained are all coordinates of the bends in the curve's space; see `mcanalysis.params.DeltaSpace`
    for what that means there. Buffers that the loss only reads (`module_objective`: running statistics) are not
    trained: those of a bend stay where the curve had them.

    The curve that is returned has `history`, the loss of every step (each at t of its own, hence noisy), and
    `converged`: whether the mean gradient over the last quarter of the steps is so small that going on along it by 1 %
    of the distance between the ends would change the loss by at most 0.1 % of what it was over the first tenth of the
    steps. Noise of t and of minibatches is left out of it without bias. False, with a warning, where that is not so or
    there were fewer than 8 steps; such a curve may be a good one all the same, which `profile` tells. True says nothing
    about a better curve elsewhere, or one with more bends.

    Args:
        curve: a path with bends, such as `Bezier(a, b)`; it is trained from the bends it has.
        loss: what `module_objective` makes, or a differentiable function of a point that returns one number (a tensor,
            or something with it as `loss`), or yields several whose sum is the loss and which are differentiated one at
            a time: the whole of a large objective in the memory of one batch. It may draw a minibatch per call;
            `mcanalysis.connectivity.losses.WeightedSum` joins several objectives.
        num_steps: optimizer steps, at least 1.
        learning_rate: the largest learning rate, positive, in the units of the optimizer. None: 0.03 times the root
            mean square by which the ends differ (in coordinates in which they do), 0.01 at least. Made for Adam: give
            one for another optimizer.
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
        checkpoint: a file to go on from where it exists, written every `checkpoint_steps` steps and removed at
            the end. A fit that was stopped and resumed gives the same bits as one that was not; a loss that
            draws minibatches must then have `random_state()` and `set_random_state(state)`, as
            `Run.loss` and `WeightedSum` have.
        checkpoint_steps: the most steps that a kill loses, at least 1. One file holds about three times the
            bends (with Adam).

    Raises:
        UserError: if the curve has no bends, a number is out of range, or the loss is not one number, is not
            differentiable with respect to the point, or is not finite at some step (which the message names);
            if the checkpoint is that of another fit.

    >>> from mcanalysis.paths import Bezier
    >>> ends = [{"w": torch.tensor([-1.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}]
    >>> fitted = fit_curve(  # away from the origin
    ...     Bezier(*ends), lambda point: (point["w"].norm() - 1.0) ** 2
    ... )
    >>> bool(fitted(0.5)["w"].norm() > 0.8), len(fitted.history), fitted.converged
    (True, 200, True)
    """
    _check_arguments(
        curve, num_steps, learning_rate, ts_per_step, jitter, warmup_fraction, max_grad_norm, checkpoint_steps
    )
    fixed = held_names(loss)
    ends = (curve.anchors[0], curve.anchors[-1])
    start, end = ({name: tensor for name, tensor in point.items() if name not in fixed} for point in ends)
    length = FactorSpace().distance(start, [end], [1.0])
    if learning_rate is None:
        learning_rate = _default_rate(start, end)
    numbers = {
        "num_steps": num_steps,
        "learning_rate": learning_rate,
        "ts_per_step": ts_per_step,
        "jitter": jitter,
        "warmup_fraction": warmup_fraction,
        "max_grad_norm": max_grad_norm,
    }
    generator = torch.Generator().manual_seed(seed)
    bends = [_shifted(bend, fixed, jitter * length, generator) for bend in curve.bends]
    moving = curve.with_bends(bends)
    parameters = [tensor for bend in bends for tensor in bend.values() if tensor.requires_grad]
    convergence = Convergence(parameters, num_steps, length)
    stepper = optimizer(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        stepper, lambda step: _warmup_then_cosine(step, num_steps, warmup_fraction)
    )
    saved, done = None, 0
    if checkpoint is not None:
        points = [content_hash(anchor) for anchor in curve.anchors]
        kind = [type(curve).__name__, curve.space.name, getattr(optimizer, "__name__", "")]
        saved = FitCheckpoint(checkpoint, hash_json([*kind, *points, seed, numbers]))
        done = saved.restore(parameters, stepper, schedule, generator, loss, convergence)
    bar = progress(total=num_steps, desc="fit curve") if progress is not None else None
    try:
        if bar is not None and done:
            bar.update(done)
        for step in range(done + 1, num_steps + 1):
            value = _set_gradients(parameters, moving, loss, _stratified(ts_per_step, generator), step)
            convergence.add(value, parameters)
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            stepper.step()
            schedule.step()
            if saved is not None and step % checkpoint_steps == 0 and step < num_steps:
                saved.save(step, parameters, stepper, schedule, generator, loss, convergence)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    if saved is not None:
        saved.remove()
    fitted = curve.with_bends([{name: tensor.detach() for name, tensor in bend.items()} for bend in bends])
    fitted.history, fitted.converged = tuple(convergence.history), convergence.converged()
    if not fitted.converged:
        _say_once(num_steps)
    return fitted


@cache
def _say_once(num_steps: int) -> None:
    """A study fits many curves of as many steps; each says by itself whether it converged."""
    logger.warning(
        "a curve is not at rest after %d steps (its `converged` is false): with more (num_steps, --curve-steps) "
        "it may be lower; this is said of the first such curve only",
        num_steps,
    )


def _set_gradients(
    parameters: list[Tensor],
    curve: Curve,
    loss: Callable[[Point], Tensor | Iterator[Tensor]],
    ts: list[float],
    step: int,
) -> float:
    """Write the gradient of the mean loss over `ts` into the parameters, and into nothing else; return that mean."""
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


def _gradients_of_terms(
    terms: Iterator[Tensor], point: Point, parameters: list[Tensor], num: int, where: str
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


def _default_rate(start: Point, end: Point) -> float:
    """A share of how far apart the ends are in a coordinate in which they differ, at least `SMALLEST_RATE`."""
    squares, number = 0.0, 0
    for name, tensor in start.items():
        apart = end[name].double() - tensor.double()
        squares += float(apart.square().sum())
        number += int(apart.count_nonzero())
    return max(SMALLEST_RATE, RELATIVE_RATE * math.sqrt(squares / max(number, 1)))


def _check_value(value: object, where: str) -> None:
    """Raise `UserError` unless a loss is one finite number that can be differentiated."""
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
            f"Expected a finite loss, got {value.item()} at {where}; lower learning_rate or set max_grad_norm."
        )


def _stratified(num: int, generator: torch.Generator) -> list[float]:
    """One uniform draw in each of `num` equal strata of [0, 1]."""
    return [(i + u) / num for i, u in enumerate(torch.rand(num, generator=generator, dtype=torch.float64).tolist())]


def _warmup_then_cosine(step: int, num_steps: int, warmup_fraction: float) -> float:
    """The factor of the learning rate at a step counted from 0, in [0, 1]."""
    num_warmup = math.floor(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def _shifted(bend: Point, fixed: frozenset[str], length: float, generator: torch.Generator) -> Point:
    """The bend moved by the given length in a random direction, as new tensors to train; what is held stays."""
    moved = {n: t.detach().to(working_dtype([t]), copy=True) for n, t in bend.items()}
    direction = random_like({n: t for n, t in moved.items() if n not in fixed}, generator)
    scale = length / norm(direction)
    for name, step in direction.items():
        moved[name] = (moved[name] + scale * step).requires_grad_(True)
    return moved


def _check_arguments(
    curve: Curve,
    num_steps: int,
    learning_rate: float | None,
    ts_per_step: int,
    jitter: float,
    warmup_fraction: float,
    max_grad_norm: float | None,
    checkpoint_steps: int,
) -> None:
    if not isinstance(curve, Curve) or not curve.bends:
        raise UserError(f"Expected a curve with bends, got {type(curve).__name__}; fit a Bezier or a PolyChain.")
    ranges = [
        ("num_steps", num_steps, num_steps >= 1, "at least 1"),
        ("learning_rate", learning_rate, learning_rate is None or learning_rate > 0.0, "positive"),
        ("ts_per_step", ts_per_step, ts_per_step >= 1, "at least 1"),
        ("jitter", jitter, jitter >= 0.0, "non-negative"),
        ("warmup_fraction", warmup_fraction, 0.0 <= warmup_fraction < 1.0, "in [0, 1)"),
        ("max_grad_norm", max_grad_norm, max_grad_norm is None or max_grad_norm > 0.0, "positive or None"),
        ("checkpoint_steps", checkpoint_steps, checkpoint_steps >= 1, "at least 1"),
    ]
    for name, value, holds, expected in ranges:
        if not holds:
            raise UserError(f"Expected {name} to be {expected}, got {value}; leave it out to use the default.")
