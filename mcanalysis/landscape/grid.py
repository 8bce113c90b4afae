"""Values of objectives on the nodes of a grid over a surface: a plane, or a slice of one or two directions.

A surface is a function of (x, y), or of x alone, that gives a point. Nodes are made, evaluated and forgotten one at a
time, so memory does not grow with the grid; nothing is smoothed or made up between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from mcanalysis.connectivity.losses import refuse_draws
from mcanalysis.connectivity.objective_result import number_of
from mcanalysis.errors import UserError
from mcanalysis.params.point import Point

Surface = Callable[..., Point]
LINE = 0.0
"""The y of every node on a surface of one direction."""


class Node(NamedTuple):
    """Where something is measured: coordinates, the store's key of the point there, the name of an exact point."""

    x: float
    y: float
    key: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Axis:
    """`num` ticks at equal spacing from `low` to `high`, both exact.

    Nodes are known by their share of the way, so that a grid of 2n − 1 ticks has all nodes of one of n.

    >>> Axis(-1.0, 1.0, 5).ticks
    (-1.0, -0.5, 0.0, 0.5, 1.0)
    """

    low: float
    high: float
    num: int

    def __post_init__(self) -> None:
        if self.num < 2:
            raise UserError(f"Expected at least 2 points on each axis of a grid, got {self.num}; raise --grid.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"Expected finite ends, the lower one first, got {self.low} and {self.high}; swap them.")

    @property
    def shares(self) -> tuple[float, ...]:
        """Each tick's share of the way from `low` to `high`, in [0, 1]."""
        return tuple(i / (self.num - 1) for i in range(self.num))

    @property
    def ticks(self) -> tuple[float, ...]:
        """The coordinates."""
        return tuple((1.0 - s) * self.low + s * self.high for s in self.shares)


def surrounding_axes(places: Any, num: tuple[int, int], margin: float = 0.3) -> tuple[Axis, Axis]:
    """The axes of a grid about some places, with a margin on all sides, equally wide in x and y.

    Ends are rounded outwards to a hundredth of the size's decimal place, so that they do not depend on the last bits of
    the places, and a grid measured before is found again.

    Args:
        places: shape (n, 2), in units of distance; those that are not finite are left out.
        num: ticks in x and in y, at least 2 each.
        margin: in units of the longer side, positive.

    Raises:
        UserError: if there are fewer than 2 ticks, the margin is not positive, or no place is finite.

    >>> surrounding_axes([(0, 0), (4, 0), (1, 2)], (5, 3), margin=0.5)
    (Axis(low=-2.0, high=6.0, num=5), Axis(low=-2.0, high=4.0, num=3))
    """
    if not (math.isfinite(margin) and margin > 0):
        raise UserError(f"Expected a positive margin, got {margin}; 0.3 is the default.")
    where = np.asarray(places, dtype=float).reshape(-1, 2)
    where = where[np.isfinite(where).all(axis=1)]
    if not len(where):
        raise UserError("Expected places to put a grid about, got none that is finite; name them.")
    low, high = where.min(axis=0), where.max(axis=0)
    side = float((high - low).max()) or 1.0
    unit = 10.0 ** (math.floor(math.log10(side)) - 2)
    axes = []
    for first, last, number in zip(low - margin * side, high + margin * side, num, strict=True):
        # The slack keeps what is a multiple but for its last bits where it is.
        ends = math.floor(first / unit + 1e-6), math.ceil(last / unit - 1e-6)
        axes.append(Axis(float(ends[0] * unit), float(ends[1] * unit), number))
    return axes[0], axes[1]


def grid_nodes(x: Axis, y: Axis | None, key: str, exact: Iterable[Node] = ()) -> list[Node]:
    """The nodes of a grid, row by row, and then the exact points with their own names and keys.

    `key`: a hash of what the surface and the axes' ends depend on. A node that falls on an exact point is that point
    and shares its key, hence its measurement. Without `y` the surface has one direction and nodes lie at y = 0.

    >>> [node.key for node in grid_nodes(Axis(-1, 1, 3), None, "k", [Node(0.0, 0.0, "minimum", "origin")])]
    ['k/0.0', 'minimum', 'k/1.0', 'minimum']
    """
    exact = list(exact)
    known = {(node.x, node.y): node.key for node in exact}
    nodes = []
    for v, at_y in zip(y.shares, y.ticks, strict=True) if y else [(None, LINE)]:
        for u, at_x in zip(x.shares, x.ticks, strict=True):
            own = f"{key}/{u!r}" if v is None else f"{key}/{u!r},{v!r}"
            nodes.append(Node(at_x, at_y, known.get((at_x, at_y), own)))
    return nodes + exact


def evaluate_grid(
    surface: Surface,
    objectives: Mapping[str, Callable[[Point], Any]] | Callable[[Point], Any],
    x: Axis,
    y: Axis | None = None,
    on_node: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Evaluate functions of a point on a grid over any surface: no language model, no store.

    A surface with `anchor_coordinates` (a `Plane`) is evaluated at its anchors, and one with an `origin` (a `Slice`) at
    its origin, as well: exactly, as extra rows with a name in the column `anchor`.

    Args:
        surface: `surface(x, y)`, or `surface(x)` where there is no `y`, gives a point.
        objectives: functions by name, or one, called `loss`; each returns a number or an object with `loss`.
        x, y: the axes.

    Returns:
        One row per node and objective: x, y, anchor, task (the name), loss, measured (True). NaN and ∞ stay what they
        are. What `plot_plane` draws.

    >>> def surface(x, y):
    ...     return {"w": torch.tensor([x, y])}
    >>> table = evaluate_grid(surface, lambda p: p["w"].square().sum(), Axis(0, 1, 2), Axis(0, 2, 3))
    >>> table.loss.tolist()
    [0.0, 1.0, 1.0, 2.0, 4.0, 5.0]
    """
    named = objectives if isinstance(objectives, Mapping) else {"loss": objectives}
    for objective in named.values():
        refuse_draws(objective)
    rows = []
    for node in grid_nodes(x, y, "", _exact_nodes(surface)):
        with torch.no_grad():
            point = surface(node.x) if y is None else surface(node.x, node.y)
            for name, objective in named.items():
                loss = number_of(objective(point))
                rows.append({"x": node.x, "y": node.y, "anchor": node.anchor, "task": name, "loss": loss})
        on_node()
    return pd.DataFrame(rows).assign(measured=True)


def _exact_nodes(surface: Surface) -> list[Node]:
    coordinates = getattr(surface, "anchor_coordinates", None)
    if coordinates is not None:
        return [Node(x, y, "", name) for name, (x, y) in zip("abc", coordinates.tolist(), strict=True)]
    return [Node(0.0, 0.0, "", "origin")] if hasattr(surface, "origin") else []
