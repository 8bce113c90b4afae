"""A chain whose bends are found one after another, each half-way between those already there.

Recursive halving with a trained midpoint is how Freeman & Bruna 2017 (arXiv 1611.01540) grow a string between two
networks. Here the number of midpoints is fixed, so that the cost is known, and a midpoint moves only across the line
between its neighbours: free to slide along it, all would gather at the lowest point of a valley.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mcanalysis.connectivity.finders.base import StagedFinder
from mcanalysis.params.point import dot, interpolate, subtract


class Bisection(StagedFinder):
    """Midpoints one after another: each bend descends from half-way between its neighbours, across their line."""

    name = "bisection"

    def order(self) -> Sequence[int]:
        """The middle first, then the middles of the halves."""
        return [middle - 1 for _, middle, _ in halving(len(self.fit.bends))]

    def place(self, stage: int, bend: int) -> None:
        """Between the neighbours that are found already, at the share of the way that the bend has in t."""
        left, middle, right = halving(len(self.fit.bends))[stage]
        share = (middle - left) / (right - left)
        self._put(bend, interpolate(self.fit.anchor(left), self.fit.anchor(right), share))

    def hold(self, stage: int, bend: int) -> None:
        """Take away what has moved along the line between the neighbours."""
        left, middle, right = halving(len(self.fit.bends))[stage]
        start, end = self.fit.anchor(left), self.fit.anchor(right)
        line, at = subtract(end, start), interpolate(start, end, (middle - left) / (right - left))
        square = dot(line, line)
        if square > 0.0:
            along = dot(subtract(self.fit.anchor(middle), at), line) / square
            for name, tensor in self.fit.trained(bend).items():
                tensor.sub_(along * line[name])


def halving(num: int) -> list[tuple[int, int, int]]:
    """Return (left, middle, right) of `num` anchors between 0 and `num` + 1 in the order in which halves are halved.

    >>> halving(3)
    [(0, 2, 4), (0, 1, 2), (2, 3, 4)]
    """
    found, spans = [], deque([(0, num + 1)])
    while spans:
        left, right = spans.popleft()
        if right - left > 1:
            middle = (left + right) // 2
            found.append((left, middle, right))
            spans += [(left, middle), (middle, right)]
    return found
