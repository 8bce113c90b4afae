"""How far apart two points are in weight space: distance, relative distance and cosine, whole and per module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mcanalysis.params.lora import (
    delta_distance,
    delta_dot,
    delta_norm,
    holds_lora_tensors,
    key_a,
    key_b,
    module_names,
    share_modules,
)
from mcanalysis.params.point import Point, check_distinct, dot, norm
from mcanalysis.params.spaces import DeltaSpace, Space, get_space

__all__ = ["WeightDistance", "module_distances", "weight_distance"]


class WeightDistance(NamedTuple):
    """`distance` ‖b − a‖ ≥ 0; `relative` ‖b − a‖/‖a‖ ≥ 0; `cosine` ⟨a, b⟩/(‖a‖·‖b‖) in [−1, 1]; both norms.

    What would divide by a norm of zero is NaN: an adapter of ΔW = 0 has no direction.
    """

    distance: float
    relative: float
    cosine: float
    norm_a: float
    norm_b: float


@torch.no_grad()
def weight_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], space: str | Space = "delta") -> WeightDistance:
    """Return how far apart two points are in a space, over all their coordinates, in float64.

    `factor`: the tensors as they stand, A and B for LoRA, hence a number that changes with (BR, R⁻¹A). `aligned`: the
    factors after that freedom is taken out. `delta`: ΔW = B·A, computed from the factors; ranks and targets may differ.
    Only `delta` is the distance between what the two adapters do to the weights. For plain points `factor` and `delta`
    are the same.

    Raises:
        PointMismatchError: the two differ in names or shapes where the space needs them equal (the first difference and
            their number), or are not LoRA points where the space needs these.
        UnknownNameError: no space has this name.

    >>> a = {"w": torch.tensor([3.0, 4.0])}
    >>> weight_distance(a, {"w": torch.tensor([0.0, 8.0])}, "factor")
    WeightDistance(distance=5.0, relative=1.0, cosine=0.8, norm_a=5.0, norm_b=8.0)
    """
    space = get_space(space)
    check_distinct([a, b])
    if isinstance(space, DeltaSpace) and any(holds_lora_tensors(point) for point in (a, b)):
        filled = share_modules([a, b])
        return _distance(delta_distance(*filled), delta_dot(*filled), *map(delta_norm, filled))
    first, second = space.embed([a, b])
    return _distance(space.distance(first, [second], [1.0]), dot(first, second), norm(first), norm(second))


@torch.no_grad()
def module_distances(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], space: str | Space = "delta"
) -> dict[str, WeightDistance]:
    """Return `weight_distance` per adapted module of LoRA points, or per tensor of plain points.

    Squared distances add up to that of the whole. A module that one adapter lacks counts with ΔW = 0. Raises as
    `weight_distance` does.

    >>> a, b = {"w": torch.zeros(2), "v": torch.ones(4)}, {"w": torch.zeros(2), "v": torch.zeros(4)}
    >>> {name: d.distance for name, d in module_distances(a, b, "factor").items()}
    {'w': 0.0, 'v': 2.0}
    """
    space = get_space(space)
    check_distinct([a, b])
    if not any(holds_lora_tensors(point) for point in (a, b)):
        first, second = space.embed([a, b])
        return {name: weight_distance({name: first[name]}, {name: second[name]}, space) for name in first}
    if isinstance(space, DeltaSpace):
        a, b = share_modules([a, b])
    else:
        space.embed([a, b])  # refuses what the space cannot compare, and counts all differences
        a, b = (a, b) if set(a) == set(b) else share_modules([a, b])
    return {module: weight_distance(_part(a, module), _part(b, module), space) for module in module_names(a)}


def _part(point: Mapping[str, Tensor], module: str) -> Point:
    return {key: point[key] for key in (key_a(module), key_b(module))}


def _distance(apart: float, product: float, norm_a: float, norm_b: float) -> WeightDistance:
    relative = apart / norm_a if norm_a else math.nan
    cosine = product / norm_a / norm_b if norm_a and norm_b else math.nan
    if not math.isnan(cosine):
        cosine = max(-1.0, min(1.0, cosine))  # rounding can give 1 + 1e-16
    return WeightDistance(apart, relative, cosine, norm_a, norm_b)
