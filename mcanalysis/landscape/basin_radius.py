"""How far one may go from a point in random directions before the loss has risen by a given amount."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, combine, norm, random_like

__all__ = ["basin_radius"]


def basin_radius(
    loss: Callable[[Point], float],
    point: Mapping[str, Tensor],
    rise: float = 0.05,
    num_directions: int = 2,
    num_halvings: int = 4,
    seed: int = 0,
) -> float:
    """Return the geometric mean, over random directions, of the distance at which the loss has risen by `rise`.

    Directions are uniform on the sphere of all coordinates. Along each, distances double from ‖point‖/64 until the loss
    is `rise` above that at the point, and are then halved in between on the logarithmic scale, `num_halvings` times:
    the first crossing that this grid sees, to a factor of 2^(1/2^num_halvings). A direction along which nothing rises
    up to 16‖point‖ counts with that distance. In the coordinates of the point, hence for LoRA factors a number that
    changes with (BR, R⁻¹A). A NaN loss counts as risen.

    Raises:
        UserError: for a point of zeros only, or a rise or number that is not positive.

    >>> point = {"w": torch.ones(3, dtype=torch.float64)}
    >>> quadratic = lambda p: float((p["w"] - point["w"]).square().sum())  # every direction: √rise
    >>> round(basin_radius(quadratic, point, 0.25, num_halvings=12), 3)
    0.5
    """
    length = norm(point)
    if not (length > 0 and rise > 0 and num_directions > 0):
        raise UserError("Expected a point that is not 0, a positive rise and a direction; change what is 0.")
    generator = torch.Generator().manual_seed(seed)
    limit = loss(dict(point)) + rise
    logarithms = 0.0
    for _ in range(num_directions):
        direction = random_like(point, generator)
        size = norm(direction)

        def is_inside(exponent: float, direction: Point = direction, size: float = size) -> bool:
            return loss(combine([point, direction], [1.0, length * 2.0**exponent / size])) < limit

        crossed = next((exponent for exponent in range(-6, 5) if not is_inside(exponent)), None)
        if crossed is None:
            logarithms += 4
            continue
        low, high = crossed - 1.0, float(crossed)
        for _ in range(num_halvings):
            middle = (low + high) / 2
            low, high = (middle, high) if is_inside(middle) else (low, middle)
        logarithms += (low + high) / 2
    return length * 2.0 ** (logarithms / num_directions)
