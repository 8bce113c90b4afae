"""How sharp a minimum is: the mean rise of the loss around it, and the largest one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcanalysis.connectivity.losses import check_tensor, held_names, refuse_draws, terms_of
from mcanalysis.connectivity.objective_result import number_of
from mcanalysis.errors import UserError
from mcanalysis.landscape.slices import Slice, filter_direction
from mcanalysis.params.lora import holds_lora_tensors
from mcanalysis.params.low_rank import balance
from mcanalysis.params.point import Point, check_point, working_dtype


@dataclass(frozen=True)
class ExpectedSharpness:
    """The mean rise of the loss, `value`, and its `standard_error`, in units of the loss.

    `samples`: shape (num_samples,), the rise along each direction, whose mean the value is. `loss`: L(θ).
    """

    value: float
    standard_error: float
    loss: float
    samples: np.ndarray


@dataclass(frozen=True)
class EpsilonSharpness:
    """The largest rise found in the box, `value`, in percent of 1 + L(θ); `loss`: L(θ); `max_loss`: L there."""

    value: float
    loss: float
    max_loss: float


def expected_sharpness(
    loss: Callable[[Point], Any], point: Mapping[str, Tensor], radius: float = 0.1, num_samples: int = 20, seed: int = 0
) -> ExpectedSharpness:
    """Return E[L(θ + δ)] − L(θ) for random δ of size `radius` relative to each filter, with its standard error.

    The expected sharpness of Neyshabur et al. 2017 (arXiv 1706.08947), with perturbations scaled to the weights by the
    filter normalisation of Li et al. 2018 (arXiv 1712.09913): δ = radius·d, d a Gaussian direction whose rows are as
    long as those of θ. (Neyshabur's Gaussian is as long in the mean; up to second order in the radius both give
    ½·tr(HΣ), Σ diagonal, radius²·‖row‖²/(entries of the row).) So the value is the mean height of `random_slice` at
    ±radius. Each direction is taken both ways, which cancels the slope at θ exactly.

    For LoRA δ is a perturbation of ΔW of the adapter's rank (`random_delta_direction`): the value is the same for
    (B·R, R⁻¹·A). Biases and other tensors of one dimension are not moved, nor are the buffers of what
    `module_objective` makes.

    Args:
        loss: a function of a point that gives a number, a tensor with one number, an object with `loss`, or an iterator
            of numbers whose sum it is; the same each time it is asked at the same point.
        point: θ, plain or a LoRA point.
        radius: length of the perturbation of a filter in units of its own, positive.
        num_samples: directions, at least 2, each of which costs two losses.
        seed: of the directions; on every device the same ones.

    Returns:
        The value in units of the loss; NaN or ∞ where the loss is.

    Raises:
        UserError: if a number is out of range, the loss draws minibatches, or there is nothing to move (θ = 0; ΔW = 0
            as in a fresh adapter).

    >>> half_square = lambda p: 0.5 * p["w"].square().sum()
    >>> result = expected_sharpness(half_square, {"w": torch.tensor([[3.0, 4.0]])}, radius=0.2)
    >>> round(result.value, 4)  # ½·0.2²·5²
    0.5
    """
    _check_ranges(
        ("radius", radius, 0.0 < radius < math.inf, "positive"),
        ("num_samples", num_samples, num_samples >= 2, "at least 2"),
    )
    refuse_draws(loss)
    generator = torch.Generator().manual_seed(seed)
    samples = np.empty(num_samples)
    with torch.no_grad():
        for index in range(num_samples):
            line = Slice(point, filter_direction(point, generator, held_names(loss)))
            samples[index] = 0.5 * (_number(loss(line(radius))) + _number(loss(line(-radius))))
        centre = _number(loss(_copied(point)))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, and may be
        samples -= centre
        error = float(samples.std(ddof=1)) / math.sqrt(num_samples)
    return ExpectedSharpness(float(samples.mean()), error, centre, samples)


def epsilon_sharpness(
    loss: Callable[[Point], Tensor | Iterator[Tensor]],
    point: Mapping[str, Tensor],
    epsilon: float = 1e-3,
    num_steps: int = 10,
    num_starts: int = 3,
    seed: int = 0,
) -> EpsilonSharpness:
    """Return the ε-sharpness of Keskar et al. 2017 (arXiv 1609.04836), 100·(max L(θ + δ) − L(θ)) / (1 + L(θ)).

    The maximum is over the box |δᵢ| ≤ ε·(|θᵢ| + 1) of all coordinates. It is looked for by projected ascent along the
    sign of the gradient (Madry et al. 2018, arXiv 1706.06083) in units of the box, with steps falling linearly from
    half its width; the first start is θ itself, as in the paper (which uses L-BFGS-B, 10 iterations), the others are
    uniform in the box. What is found is a lower bound of the maximum. ε = 1e-3 is the larger of the paper's two.

    For a LoRA point the coordinates are its balanced factors (`balance`): without that the box, which sees
    coordinates, would give (B·R, R⁻¹·A) another sharpness. They are unique, and so is the value, unless singular values
    of ΔW are equal. It says how sharp the loss is in the factors, and is not to be compared with values of full
    weights.

    Args:
        loss: what `module_objective` makes (buffers then stay put), or a differentiable function of a point that
            gives one number, the same one each time it is asked at the same point (a whole set of examples, not a new
            minibatch per call), or an iterator of terms whose sum it is (`Run.whole_loss`): one term's activations are
            then held at a time.
        point: θ, plain or a LoRA point.
        epsilon: positive.
        num_steps: of ascent from each start, at least 1; each costs a loss and a gradient.
        num_starts: at least 1.
        seed: of the starts; on every device the same ones.

    Returns:
        The value in percent, non-negative (δ = 0 is in the box) where 1 + L(θ) > 0; NaN or ∞ if the loss is so
        somewhere on the way.

    Raises:
        UserError: if a number is out of range, or the loss draws minibatches, is not one number or not differentiable.

    >>> slope = lambda p: p["w"].sum()
    >>> result = epsilon_sharpness(slope, {"w": torch.tensor([1.0, -3.0]).double()}, epsilon=0.1)
    >>> round(result.max_loss - result.loss, 6)  # the corner (0.2, 0.4)
    0.6
    """
    return worst_in_box(loss, point, epsilon, num_steps, num_starts, seed)[0]


def worst_in_box(
    loss: Callable[[Point], Tensor | Iterator[Tensor]],
    point: Mapping[str, Tensor],
    epsilon: float = 1e-3,
    num_steps: int = 10,
    num_starts: int = 3,
    seed: int = 0,
) -> tuple[EpsilonSharpness, Point]:
    """Return what `epsilon_sharpness` returns, and the point of the box where the largest loss was found.

    Of a LoRA point it is in balanced factors, ΔW and all. Takes and raises what `epsilon_sharpness` does.

    >>> slope = lambda p: p["w"].sum()
    >>> worst_in_box(slope, {"w": torch.tensor([1.0, -3.0]).double()}, epsilon=0.1)[1]["w"].tolist()
    [1.2, -2.6]
    """
    _check_ranges(
        ("epsilon", epsilon, 0.0 < epsilon < math.inf, "positive"),
        ("num_steps", num_steps, num_steps >= 1, "at least 1"),
        ("num_starts", num_starts, num_starts >= 1, "at least 1"),
    )
    refuse_draws(loss)
    theta = balance(point) if holds_lora_tensors(point) else _copied(point)
    fixed = held_names(loss)
    width = {n: torch.zeros_like(t) if n in fixed else epsilon * (t.abs() + 1.0) for n, t in theta.items()}
    generator = torch.Generator().manual_seed(seed)
    centre = highest = math.nan
    worst = theta
    for start in range(num_starts):
        place = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
        if start:
            place = _uniform(theta, generator)
        for step in range(num_steps + 1):
            value, gradient = _value_and_gradient(loss, theta, width, place, last=step == num_steps)
            if start == step == 0:
                centre = highest = value
            if not math.isfinite(value) or value > highest:
                highest, worst = value, {name: t + width[name] * place[name] for name, t in theta.items()}
            if not math.isfinite(value):
                return EpsilonSharpness(100.0 * (value - centre) / (1.0 + centre), centre, value), worst
            for name, slope in gradient.items():
                place[name].add_(slope.sign(), alpha=1.0 - step / num_steps).clamp_(-1.0, 1.0)
    return EpsilonSharpness(100.0 * (highest - centre) / (1.0 + centre), centre, highest), worst


def _value_and_gradient(
    loss: Callable[[Point], Tensor | Iterator[Tensor]], theta: Point, width: Point, place: Point, last: bool
) -> tuple[float, Point]:
    """L at θ + width·place and, unless it is the last step, dL/dplace up to positive factors per coordinate."""
    total, gradient = 0.0, {name: torch.zeros_like(t) for name, t in theta.items()}
    with torch.set_grad_enabled(not last):
        moved = {name: t + width[name] * place[name] for name, t in theta.items()}
        here = {name: t.requires_grad_(bool(width[name].any())) for name, t in moved.items()}
        for term in terms_of(loss, here):
            check_tensor(term)
            total += term.item()
            if last:
                continue
            if not term.requires_grad:
                raise UserError(
                    "Expected a loss that is differentiable with respect to the point, got one without a gradient; "
                    "compute it from the given tensors, outside of torch.no_grad()."
                )
            free = {name: t for name, t in here.items() if t.requires_grad}
            slopes = torch.autograd.grad(term.reshape(()), list(free.values()), allow_unused=True)
            for name, slope in zip(free, slopes, strict=True):
                if slope is not None:
                    gradient[name] += slope
    return total, gradient


def _uniform(point: Mapping[str, Tensor], generator: torch.Generator) -> Point:
    """A place in [−1, 1] for every coordinate, drawn on the CPU in sorted order."""
    drawn = {
        name: torch.rand(point[name].shape, generator=generator, dtype=point[name].dtype).mul_(2).sub_(1)
        for name in sorted(point)
    }
    return {name: drawn[name].to(tensor.device) for name, tensor in point.items()}


def _copied(point: Mapping[str, Tensor]) -> Point:
    check_point(point)
    return {name: t.detach().to(working_dtype([t]), copy=True) for name, t in point.items()}


def _number(result: Any) -> float:
    if isinstance(result, Iterator):
        return math.fsum(map(_number, result))
    return number_of(result)


def _check_ranges(*ranges: tuple[str, float, bool, str]) -> None:
    for name, value, holds, expected in ranges:
        if not holds:
            raise UserError(f"Expected {name} to be {expected}, got {value}; leave it out to use the default.")
