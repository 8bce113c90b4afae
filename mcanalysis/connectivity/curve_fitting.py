"""Curve finding: train the bends of a curve so that the loss along it is small, the ends being fixed."""

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
from mcanalysis.connectivity.finders import Fit, get_finder
from mcanalysis.connectivity.fit_checkpoint import FitCheckpoint
from mcanalysis.connectivity.losses import held_names
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
    finder: str = "mean",
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
    """Return a curve with the same ends, its bends trained to minimise the mean of the loss over t, or by a `finder`.

    E_{t~U(0,1)}[loss(curve(t))] is the objective of Garipov et al. 2018 (arXiv 1802.10026). Each step draws
    one t uniformly in each of `ts_per_step` equal strata of [0, 1] and averages the losses there. Other finders move
    the bends of a `PolyChain`, points of the path, by other rules (`mcanalysis.connectivity.finders`, a file each). The
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
    about a better curve elsewhere, or one with more bends. None where bends are found one after another.

    Args:
        curve: a path with bends, such as `Bezier(a, b)`; it is trained from the bends it has.
        loss: what `module_objective` makes, or a differentiable function of a point that returns one number (a tensor,
            or something with it as `loss`), or yields several whose sum is the loss and which are differentiated one at
            a time: the whole of a large objective in the memory of one batch. It may draw a minibatch per call;
            `mcanalysis.connectivity.losses.WeightedSum` joins several objectives.
        finder: `mean`, or for chains `bisection` (midpoints one after another), `neb` (nudged elastic band), or
            `layerwise` (a walk that moves layer after layer), or one of yours.
        num_steps: optimizer steps, at least 1: gradients of the loss, of which `mean` takes `ts_per_step` a step. `neb`
            takes one per bend in each step, and makes as many steps as these suffice for.
        learning_rate: the largest learning rate, positive, in the units of the optimizer. None: 0.03 times the root
            mean square by which the ends differ (in coordinates in which they do), 0.01 at least. Made for Adam: give
            one for another optimizer.
        seed: of the draws of t and the jitter.
        ts_per_step: strata per step of the finder `mean`, at least 1 (1 is the classic; k cost k losses and give less
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
        UnknownNameError: if there is no such finder.
        UserError: if the curve has no bends or is no chain where the finder needs one, a number is out of range, or the
            loss is not one number, is not differentiable with respect to the point, or is not finite at some step
            (which the message names); if the checkpoint is that of another fit.

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
    chosen = get_finder(finder)
    chosen.check(type(curve), len(curve.bends), num_steps)
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
    parameters = [tensor for bend in bends for tensor in bend.values() if tensor.requires_grad]
    fit = Fit(curve.with_bends(bends), curve.bends, bends, loss, num_steps, ts_per_step, warmup_fraction, generator)
    rule = chosen(fit)
    total = rule.num_steps
    convergence = Convergence(parameters, total, length)
    stepper = optimizer(parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, rule.rate)
    saved, done = None, 0
    if checkpoint is not None:
        points = [content_hash(anchor) for anchor in curve.anchors]
        kind = [type(curve).__name__, curve.space.name, getattr(optimizer, "__name__", "")]
        kind += [finder] if finder != "mean" else []  # absent for the first one: checkpoints of earlier versions go on
        saved = FitCheckpoint(checkpoint, hash_json([*kind, *points, seed, numbers]))
        done = saved.restore(parameters, stepper, schedule, generator, loss, convergence)
    bar = progress(total=total, desc="fit curve") if progress is not None else None
    try:
        if bar is not None and done:
            bar.update(done)
        for step in range(done + 1, total + 1):
            convergence.add(rule.set_gradients(step), parameters)
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            stepper.step()
            schedule.step()
            if saved is not None and step % checkpoint_steps == 0 and step < total:
                saved.save(step, parameters, stepper, schedule, generator, loss, convergence)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    if saved is not None:
        saved.remove()
    fitted = curve.with_bends([{name: tensor.detach() for name, tensor in bend.items()} for bend in bends])
    fitted.history = tuple(convergence.history)
    fitted.converged = convergence.converged() if rule.tells_rest else None
    if fitted.converged is False:
        _say_once()
    return fitted


@cache
def _say_once() -> None:
    """A study fits many curves; each says by itself whether it converged."""
    logger.warning(
        "a curve is not at rest after its last step (its `converged` is false): with more steps (num_steps, "
        "--curve-steps) it may be lower; this is said of the first such curve only"
    )


def _default_rate(start: Point, end: Point) -> float:
    """A share of how far apart the ends are in a coordinate in which they differ, at least `SMALLEST_RATE`."""
    squares, number = 0.0, 0
    for name, tensor in start.items():
        apart = end[name].double() - tensor.double()
        squares += float(apart.square().sum())
        number += int(apart.count_nonzero())
    return max(SMALLEST_RATE, RELATIVE_RATE * math.sqrt(squares / max(number, 1)))


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
