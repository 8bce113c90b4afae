"""How far a score holds around a minimum: the radius of its basin along one direction, for any network.

A basin by its score, as in Chen et al. 2025 (arXiv 2505.17646): wide along most directions, narrow along the worst one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mcanalysis.connectivity.losses import held_names, refuse_draws
from mcanalysis.connectivity.objective_result import examples_of, has_examples, loss_of, number_of, score_of
from mcanalysis.errors import UserError
from mcanalysis.landscape.sharpness import worst_in_box
from mcanalysis.landscape.slices import Slice
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import get_space

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Relative steps that are tried where none are given; at 1 the step is as long as the minimum itself."""


class Radius(NamedTuple):
    """A radius between two steps: the score still held at `last_held`, no longer at `first_lost` (∞: at all steps).

    `value`: where the straight line between the two scores crosses the level; ∞ where the score held everywhere.
    """

    value: float
    last_held: float
    first_lost: float


@dataclass(frozen=True)
class Ray:
    """The points θ + α·‖θ‖/‖d‖·d: a step of 1 is as long as θ, in ΔW for a LoRA point.

    Tensors that `held` names move, but do not count in the two lengths.

    Raises as `Slice` does, and `UserError` where θ has no length.

    >>> import torch
    >>> ray = Ray({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 1.0])})
    >>> ray(0.2)["w"].tolist()
    [3.0, 5.0]
    """

    origin: Mapping[str, Tensor]
    direction: Mapping[str, Tensor]
    held: Collection[str] = ()

    def __post_init__(self) -> None:
        line = Slice(self.origin, self.direction)
        length, step = (
            line.space.distance({name: t for name, t in point.items() if name not in self.held}, [], [])
            for point in (line.origin, *line.directions)
        )
        if not (length > 0 and step > 0):
            raise UserError(
                f"Expected a {'direction' if length > 0 else 'point'} with a length to measure steps by, got 0 "
                "everywhere; take a trained one."
            )
        object.__setattr__(self, "_line", line)
        object.__setattr__(self, "_unit", length / step)

    def __call__(self, step: float) -> Point:
        """Return the point after a relative step."""
        return self._line(step * self._unit)  # type: ignore[attr-defined]


def towards(point: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Point:
    """Return the direction from a point to another one, in ΔW for LoRA points, whose ranks may differ.

    >>> import torch
    >>> towards({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
    {'w': tensor([2.])}
    """
    return get_space("delta").combine([other, point], [1.0, -1.0])


def worst_direction(
    loss: Callable[[Point], Tensor | Iterator[Tensor]],
    point: Mapping[str, Tensor],
    epsilon: float = 0.01,
    **ascent: Any,
) -> Point:
    """Return the direction in which the loss was found to rise most within a small box (`worst_in_box`, which see).

    What is found by ascent is a lower bound of the worst, so the radius along it is an upper bound of the smallest one.

    Raises as `epsilon_sharpness` does, and `UserError` where no rise was found.
    """
    found, worst = worst_in_box(loss, point, epsilon, **ascent)
    if not found.max_loss > found.loss:
        raise UserError(f"Expected a loss that rises within epsilon {epsilon:g}, got none that does; raise epsilon.")
    return towards(point, worst)


def radius_of(steps: Sequence[float], scores: Sequence[float], at_zero: float, keep: float = 0.9) -> Radius:
    """Return how far a score stays at `keep` times its value or above, from its values at increasing steps.

    "Stays": a score that comes back beyond the first step where it is lower does not count. NaN counts as lower.

    Args:
        steps: positive, increasing; relative or not, the radius is in their unit.
        scores: at each step; those after the first that is too low may be left out.
        at_zero: the score at the minimum itself, positive.
        keep: τ, in (0, 1].

    Raises:
        UserError: for numbers out of these ranges, or scores that end before they are too low.

    >>> radius_of([0.5, 1.0, 2.0], [0.75, 0.25], at_zero=1.0, keep=0.5)
    Radius(value=0.75, last_held=0.5, first_lost=1.0)
    """
    if not steps or any(not a < b for a, b in zip((0.0, *steps), steps, strict=False)):
        raise UserError(f"Expected positive steps that increase, got {list(steps)}; sort them.")
    if not at_zero > 0 or not 0 < keep <= 1:
        raise UserError(f"Expected a positive score and a share in (0, 1], got {at_zero} and {keep}; change them.")
    level, before, score_before = keep * at_zero, 0.0, at_zero
    for step, score in zip(steps, scores, strict=False):
        if not score >= level_kept(at_zero, keep):
            fall = score_before - score
            share = max((score_before - level) / fall, 0.0) if math.isfinite(fall) else 0.0
            return Radius(before + share * (step - before), before, step)
        before, score_before = step, score
    if len(scores) < len(steps):
        raise UserError(f"Expected a score at each of {len(steps)} steps, got {len(scores)}; measure the others.")
    return Radius(math.inf, before, math.inf)


def level_kept(score: float, keep: float) -> float:
    """What a score must not fall below to have kept so much of its value; less by what floating point adds to a tie.

    >>> 0.9 * 0.8 > 0.72, level_kept(0.8, 0.9) <= 0.72
    (True, True)
    """
    return keep * score * (1 - 1e-9)


def basin_radius(
    objective: Callable[[Point], Any],
    point: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    steps: Sequence[float] = RADII,
    keep: float = 0.9,
) -> Radius:
    """Return the largest relative step along a direction at which a score stays at `keep` of its value or above.

    Steps are tried in turn until the score is too low. Directions: `filter_direction` (random), `worst_direction`,
    `towards` (the next minimum, along which a task is forgotten).

    Args:
        objective: a function of a point that gives the score, a number, or an object with `score`. What it holds, as a
            `module_objective` holds buffers, does not count in lengths.
        point: the minimum, plain or a LoRA point.
        direction: of any length but 0, as `Slice` takes it.
        steps: in units of the point's own length, positive and increasing.
        keep: τ, in (0, 1].

    Raises:
        UserError: as `Ray` and `radius_of` do, and for an objective that draws minibatches or gives a loss alone.

    >>> import torch
    >>> cone = lambda p: 1.0 - float((p["w"] - 1.0).norm())  # 0.9 of its top at a distance of 0.1
    >>> minimum = {"w": torch.ones(4)}
    >>> round(basin_radius(cone, minimum, {"w": torch.tensor([0.0, 7.0, 0.0, 0.0])}).value, 6)
    0.05
    """
    refuse_draws(objective)
    ray = Ray(point, direction, held_names(objective))
    at_zero = _score(objective(ray(0.0)))
    scores: list[float] = []
    for step in steps:
        scores.append(_score(objective(ray(step))))
        if not scores[-1] >= level_kept(at_zero, keep):
            break
    return radius_of(steps, scores, at_zero, keep)


def _score(result: Any) -> float:
    score = examples_of(result).score if has_examples(result) else score_of(result)
    if score is not None:
        return score
    if loss_of(result) is not result:
        raise UserError("Expected an objective with a score, got losses alone; give it a score, or return a number.")
    return number_of(result)
