"""How high a curve may lie between two measured points: what a stated bound proves, and what an interpolant suggests.

Proven, for L on [a, b] with |L'| ≤ M or |L''| ≤ K there, from values at a and b (and slopes, where they were measured):

    L(t) ≤ L(a) + M(t−a), and the same from b          (Lipschitz)
    L(t) ≤ chord of L(a), L(b) + ½K(t−a)(b−t)          (linear interpolation, Davis 1975, theorem 3.1.1)
    L(t) ≤ L(a) + L'(a)(t−a) + ½K(t−a)², and from b    (Taylor)

The least of these is bounded piece by piece, each on its own exactly. Estimated, where no bound is known: the
polynomial through the nearest measured points, and as its error the distance from those through one point fewer, and
what a corner adds. It says nothing of a bump that lies wholly between two measured points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_PIECES = 32  # of an interval between two points
_MOST_POINTS = 4  # that a polynomial goes through
PLACES = np.linspace(0.0, 1.0, 17)
"""Where between two points, 0 to 1, an interpolant is looked at."""


@dataclass(frozen=True)
class Node:
    """A measured point: t, the `value` and, where it was measured, the `slope` dL/dt there."""

    t: float
    value: float
    slope: float | None = None


def highest_proven(
    a: Node, b: Node, reference: tuple[float, float], curvature: float | None = None, lipschitz: float | None = None
) -> float:
    """Return a number that L(t) − r(t) does not pass on [a, b], r the straight line through `reference` at a and b.

    ∞ without a bound. Rounding aside, nothing is estimated.

    >>> round(highest_proven(Node(0.0, 0.0), Node(1.0, 0.0), (0.0, 0.0), curvature=8.0), 12)
    1.0
    >>> highest_proven(Node(0.0, 0.0), Node(1.0, 0.0), (0.0, 0.0), lipschitz=2.0)
    1.0
    """
    w = b.t - a.t
    edges = np.linspace(0.0, 1.0, _PIECES + 1)
    left, right = a.value - reference[0], b.value - reference[1]
    tilt = reference[1] - reference[0]
    found = np.full(_PIECES, np.inf)

    def largest(heights: Array) -> Array:
        """On each piece, of a height that is nowhere above the line through its values at the edges."""
        return np.maximum(heights[:-1], heights[1:])

    if lipschitz is not None:
        found = np.minimum(found, largest(left + edges * (lipschitz * w - tilt)))
        found = np.minimum(found, largest(right + (1 - edges) * (lipschitz * w + tilt)))
    if curvature is not None:
        bent = curvature * w * w
        top = np.full(_PIECES, 0.5 + (right - left) / bent if bent > 0 else 0.0)
        u = np.clip(top, edges[:-1], edges[1:])
        inside = left + u * (right - left) + 0.5 * bent * u * (1 - u)
        ends = left + edges * (right - left) + 0.5 * bent * edges * (1 - edges)
        found = np.minimum(found, np.maximum(inside, largest(ends)))
        if a.slope is not None:
            found = np.minimum(found, largest(left + edges * (a.slope * w - tilt) + 0.5 * bent * edges**2))
        if b.slope is not None:
            back = 1 - edges
            found = np.minimum(found, largest(right + back * (tilt - b.slope * w) + 0.5 * bent * back**2))
    return float(found.max())


def interpolated(nodes: Sequence[Node], index: int) -> tuple[Array, Array]:
    """Return an interpolant between `nodes[index]` and the next at `PLACES`, and an estimate of its error there.

    Through the two nodes, their slopes where there are some, and the nearest others, at most two a side; the error is
    the largest distance from the interpolants through all but the outermost on one side, or on both, and at least as
    far as a corner may rise between them. ∞ for two nodes without slopes: nothing tells how the curve bends.

    >>> line = [Node(t, 2 * t) for t in (0.0, 0.5, 1.0)]
    >>> values, error = interpolated(line, 0)
    >>> float(values[-1]), float(error.max())
    (1.0, 0.0)
    """
    a, b = nodes[index], nodes[index + 1]
    near = [n for n in (index - 1, index + 2) if 0 <= n < len(nodes)]
    if len(near) == 1:  # at an end of the piece: two on the other side
        more = index + 3 if near[0] > index else index - 2
        near += [more] if 0 <= more < len(nodes) else []
    others = [nodes[n] for n in near][: _MOST_POINTS - 2]
    with_slopes = [node for node in (a, b) if node.slope is not None]
    if not others and not with_slopes:
        return a.value + PLACES * (b.value - a.value), np.full(len(PLACES), np.inf)
    values = _polynomial(a, b, others, with_slopes)
    parts = [(others[:i] + others[i + 1 :], with_slopes) for i in range(len(others))]
    parts += [(others, [node for node in with_slopes if node is not left_out]) for left_out in with_slopes]
    errors = [np.abs(values - _polynomial(a, b, *part)) for part in parts]
    return values, np.max(errors, axis=0) + np.maximum(_corner(nodes, index) - values, 0.0)


def _corner(nodes: Sequence[Node], index: int) -> Array:
    """At `PLACES`, how high the curve may rise if it goes on straight from both sides and has a corner between."""
    a, b = nodes[index], nodes[index + 1]
    slopes = [a.slope, b.slope]
    if slopes[0] is None and index > 0:
        slopes[0] = (a.value - nodes[index - 1].value) / (a.t - nodes[index - 1].t)
    if slopes[1] is None and index + 2 < len(nodes):
        slopes[1] = (nodes[index + 2].value - b.value) / (nodes[index + 2].t - b.t)
    w = b.t - a.t
    lines = [a.value + s * w * PLACES for s in slopes[:1] if s is not None]
    lines += [b.value - s * w * (1 - PLACES) for s in slopes[1:] if s is not None]
    return np.min(lines, axis=0) if len(lines) == 2 else np.full(len(PLACES), -np.inf)


def _polynomial(a: Node, b: Node, others: Sequence[Node], with_slopes: Sequence[Node]) -> Array:
    """At `PLACES`, of the lowest degree that all conditions fix."""
    w = b.t - a.t
    at = np.array([(node.t - a.t) / w for node in (a, b, *others)])
    powers = np.arange(float(len(at) + len(with_slopes)))
    rows = [at[:, None] ** powers]
    right = [node.value for node in (a, b, *others)]
    for node in with_slopes:
        u = (node.t - a.t) / w
        rows.append((powers * u ** np.maximum(powers - 1, 0))[None])
        right.append((node.slope or 0.0) * w)
    coefficients = np.linalg.solve(np.concatenate(rows), np.array(right))
    return (PLACES[:, None] ** powers) @ coefficients
