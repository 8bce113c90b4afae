"""Slices: what lies around one point, along one or two directions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.directions import random_delta_direction, random_direction
from mcanalysis.params.lora import holds_lora_tensors
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import Space, get_space


class Slice:
    """All points θ + α·d₁ (+ β·d₂) around one point; α and β are in units of the directions.

    Args:
        origin: θ, the point at (0, 0).
        *directions: one or two points that are added to it. They need not be orthogonal.
        space: how they are added to a LoRA point. "delta": ΔW is moved by the directions' ΔW, at rank
            r + r_d₁ + r_d₂, ranks and targets may differ. "factor": A and B are each moved by the direction's. Plain
            points are added entry by entry in both.

    Raises:
        UserError: if there is not one or two directions, or one is 0 everywhere, or lacks tensors of a plain origin.
        PointMismatchError: if a direction does not fit the origin.
        UnknownNameError: if no space has this name.

    >>> origin, d = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 4.0])}
    >>> line = Slice(origin, d)
    >>> line(0.25), line(0.0)
    ({'w': tensor([1., 3.])}, {'w': tensor([1., 2.])})
    """

    name = "slice"

    def __init__(
        self, origin: Mapping[str, Tensor], *directions: Mapping[str, Tensor], space: str | Space = "delta"
    ) -> None:
        if len(directions) not in (1, 2):
            raise UserError(
                f"Expected one or two directions, got {len(directions)}; pass one for a line, two for a plane."
            )
        self.space = get_space(space)
        self.origin: Point = _detached(origin)
        self.directions: tuple[Point, ...] = tuple(_detached(direction) for direction in directions)
        _check_complete(self.origin, self.directions)
        self.space.combine(
            [self.origin, *self.directions], [1.0, *(1.0 for _ in directions)]
        )  # raises where they do not fit
        self.lengths = tuple(self.space.distance(direction, [], []) for direction in self.directions)
        """How far a step of 1 along each direction leads, in units of distance of the space (for axes)."""
        if 0.0 in self.lengths:
            raise UserError(
                "Expected directions that lead away from the point, got direction "
                f"{self.lengths.index(0.0) + 1} of length 0 (space '{self.space.name}'); "
                "draw it with random_slice, or take the difference of two points."
            )

    @property
    def num_directions(self) -> int:
        """1 for a line, 2 for a plane."""
        return len(self.directions)

    def __call__(self, *steps: float) -> Point:
        """Return θ + α·d₁ (+ β·d₂); at 0 the origin's values bit for bit (in float32 at least), as new tensors.

        Args:
            *steps: α, and β where there are two directions; any finite numbers.

        Raises:
            UserError: if there is another number of steps than of directions, or one is not finite.
        """
        if len(steps) != len(self.directions):
            raise UserError(
                f"Expected {len(self.directions)} steps, got {len(steps)}; give one number per direction of the slice."
            )
        amounts = [float(step) for step in steps]
        if not all(map(math.isfinite, amounts)):
            raise UserError(f"Expected finite steps, got {amounts}; give them in units of the directions.")
        return self.space.combine([self.origin, *self.directions], [1.0, *amounts])

    def __repr__(self) -> str:
        return f"Slice(num_directions={len(self.directions)}, space='{self.space.name}')"


def random_slice(
    point: Mapping[str, Tensor], num_directions: int = 2, seed: int = 0, held: Collection[str] = ()
) -> Slice:
    """Return a slice around a point along filter-normalised random directions (Li et al. 2018, arXiv 1712.09913).

    A step of 1 moves each filter by its own length. For a LoRA point directions are of its rank, normalised in ΔW
    (`random_delta_direction`; (B·R, R⁻¹·A) has the same slice) and added in ΔW; for plain weights see
    `random_direction`. A second direction leaves the first one of the same seed as it is.

    Args:
        point: θ, plain or a LoRA point.
        num_directions: 1 or 2.
        seed: of the directions; on every device the same ones.
        held: names of tensors that stay where they are, such as the `held_names` of a `module_objective`: without them
            buffers of two dimensions or more, a mask say, are moved as weights are.

    Raises:
        UserError: if directions are degenerate (θ = 0, or ΔW = 0 as in a fresh adapter), or it is not one or two.

    >>> line = random_slice({"weight": torch.tensor([[3.0, 4.0]])}, num_directions=1)
    >>> (line(1.0)["weight"] - line(0.0)["weight"]).norm().round(decimals=4)
    tensor(5.)
    """
    if num_directions not in (1, 2):
        raise UserError(f"Expected one or two directions, got {num_directions}; pass one for a line, two for a plane.")
    generator = torch.Generator().manual_seed(seed)
    return Slice(point, *(filter_direction(point, generator, held) for _ in range(num_directions)))


def filter_direction(point: Mapping[str, Tensor], generator: torch.Generator, held: Collection[str] = ()) -> Point:
    """Return a filter-normalised random direction: of ΔW for a LoRA point, of the weights for a plain one; 0 for
    what is held.

    Raises as `random_delta_direction` and `random_direction` do.

    >>> filter_direction({"weight": torch.zeros(2, 1) + 3}, torch.Generator().manual_seed(0))["weight"].abs()
    tensor([[3.],
            [3.]])
    """
    if holds_lora_tensors(point):
        return random_delta_direction(point, generator)
    still = {name: torch.zeros_like(tensor) for name, tensor in point.items() if name in held}
    return random_direction({name: t for name, t in point.items() if name not in held}, generator) | still


def _check_complete(origin: Point, directions: Sequence[Point]) -> None:
    """Refuse a plain direction without some of the point's tensors, as an eigenvector is one without buffers."""
    for direction in directions:
        missing = sorted(origin.keys() - direction.keys())
        is_plain = not holds_lora_tensors(origin) and not holds_lora_tensors(direction)
        if is_plain and missing and direction.keys() <= origin.keys():
            raise UserError(
                f"Expected directions with all tensors of the point, got one without '{missing[0]}' ({len(missing)} in "
                "all); add zeros for what is to stay: {n: direction.get(n, 0 * t) for n, t in point.items()}."
            )


def _detached(point: Mapping[str, Tensor]) -> Point:
    return {name: tensor.detach() for name, tensor in point.items()}
