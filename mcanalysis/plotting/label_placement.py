"""Putting text where it covers nothing: the first of several places that is free, or else the least crowded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_OTHER_TEXT = 1000.0  # as bad as covering this many points
_LEADER_FROM = 9.0  # points; a text farther off is joined to its place by a thin line
_FLAT = ((2, 1), (2, -1), (-2, -1), (-2, 1))  # directions across and up, between the others


class Place(NamedTuple):
    """A place for a text: `x`, `y` in data units, a shift in points, alignment, and rotation in degrees."""

    x: float
    y: float
    shift: tuple[float, float] = (0.0, 0.0)
    ha: str = "center"
    va: str = "center"
    rotation: float = 0.0


def places_around(x: float, y: float, distances: Sequence[float] = (4.0, 8.0, 14.0)) -> list[Place]:
    """Places beside, above and below a point, the near ones first; `distances` in points.

    >>> len(places_around(0.5, 0.5))
    36
    """
    places = []
    for distance in distances:
        for across, up in ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 0), (-1, 0), (0, 1), (0, -1), *_FLAT):
            length = distance / float(np.hypot(across, up))
            ha = {1: "left", 0: "center", -1: "right"}[int(np.sign(across))]
            va = {1: "bottom", 0: "center", -1: "top"}[up]
            places.append(Place(x, y, (across * length, up * length), ha, va))
    return places


class LabelPlacer:
    """Adds texts to axes one after another, away from given points and from each other.

    `obstacles`: (n, 2), data units. The limits of the axes have to be final.
    """

    def __init__(self, axes: Axes, obstacles: np.ndarray, padding: float = 1.0) -> None:
        self.axes = axes
        canvas = axes.figure.canvas
        if not isinstance(canvas, FigureCanvasAgg):
            raise TypeError(f"Expected a figure that Agg draws, got {type(canvas).__name__}; make it with new_figure.")
        self._renderer = canvas.get_renderer()
        self._obstacles = axes.transData.transform(np.asarray(obstacles, dtype=float).reshape(-1, 2))
        self._points = axes.figure.dpi / 72  # pixels per point
        self._padding = padding * self._points
        self._texts: list[Bbox] = []

    def add(self, words: str, places: Sequence[Place], **style) -> Text:
        """Add `words` at the best of `places`; `style` goes to the text."""
        text = self.axes.annotate(words, (0, 0), xytext=(0, 0), textcoords="offset points", **style)
        costs = []
        for place in places:
            self._move(text, place)
            cost = self._cost(self._box(text))
            costs.append(cost)
            if cost == 0:
                break
        best = places[int(np.argmin(costs))]
        self._move(text, best)
        self._texts.append(self._box(text))
        if np.hypot(*best.shift) > _LEADER_FROM:
            leader = {"arrowstyle": "-", "linewidth": 0.5, "color": "#808080", "shrinkA": 0, "shrinkB": 2}
            self.axes.annotate("", text.xy, best.shift, textcoords="offset points", arrowprops=leader, zorder=1.5)
        return text

    def _move(self, text, place: Place) -> None:
        text.xy = (place.x, place.y)
        text.set_position(place.shift)
        text.set(ha=place.ha, va=place.va, rotation=place.rotation)

    def _box(self, text: Text) -> Bbox:
        box = text.get_window_extent(self._renderer)
        return box.padded(self._padding)

    def _cost(self, box: Bbox) -> float:
        inside = (self._obstacles > box.p0).all(axis=1) & (self._obstacles < box.p1).all(axis=1)
        cost = float(inside.sum()) + _OTHER_TEXT * sum(bool(box.overlaps(other)) for other in self._texts)
        frame = self.axes.bbox
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        return cost + 2 * _OTHER_TEXT * outside
