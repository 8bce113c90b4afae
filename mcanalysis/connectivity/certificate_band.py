"""What a search knows of a curve, as a band: at measured points intervals, between them a bound or an estimate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcanalysis.connectivity.between_points import PLACES, Node, highest_proven, interpolated

if TYPE_CHECKING:
    from mcanalysis.connectivity.certificate_search import CertificateSearch

Array = NDArray[np.float64]
Quantity = Literal["chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain"]
Bound = float | Callable[[float, float], float]
"""A bound on a derivative of the curve: of all the path, or a function of the ends of the interval it is wanted on."""

QUANTITIES: tuple[Quantity, ...] = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain")
MARGIN = 0.05
"""How far from the ends `interpolation_gain` looks: as far as the innermost points of a grid of 21."""
_DEFINITION = {"chord_dip": -1, "interpolation_gain": -1}  # how far below the reference; the others: above
_SCALE_ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Found:
    """What is known so far of the quantity searched for: it lies in [low, high].

    `proven_low` and `proven_high`: what no assumption is behind. `estimate`: the highest measured, `t`: where.
    `t_low` and `t_high`: between which the highest may lie.
    """

    low: float
    high: float
    proven_low: float
    proven_high: float
    estimate: float
    t: float
    t_low: float
    t_high: float


class Band:
    """The band as it is: heights above (below) the reference at measured points, and the highest between them."""

    def __init__(self, search: CertificateSearch) -> None:
        points = search.points
        self.ts = np.array(sorted(points))
        totals = np.array([points[float(t)].total for t in self.ts])
        self.sign = _DEFINITION.get(search.quantity, 1)
        first, last = totals[0, 0], totals[-1, 0]
        self.reference = _reference(search.quantity, self.ts, float(first), float(last))
        heights = self.sign * (totals - self.reference[:, None])
        self.height = heights[:, 0]
        low, high = heights[:, 1:].min(axis=1), heights[:, 1:].max(axis=1)
        self.half = high - self.height
        self.scale = float(np.abs(totals[:, 0]).max())
        rise = float(self.reference[-1] - self.reference[0])
        slopes = [points[float(t)].slope for t in self.ts]
        self.nodes = [
            Node(float(t), float(h), None if s is None else self.sign * (s - rise))
            for t, h, s in zip(self.ts, self.height, slopes, strict=True)
        ]
        inner = search.quantity == "interpolation_gain"
        intervals = range(len(self.ts) - 1)
        self.counted = [j for j in intervals if not inner or _is_inner(self.ts[j], self.ts[j + 1])]
        is_counted = np.array([not inner or MARGIN <= t <= 1 - MARGIN for t in self.ts])
        self.lows = lows = np.where(is_counted, low, -np.inf)
        self.upper = np.full(len(self.ts) - 1, -np.inf)
        places = np.zeros(len(self.upper))
        for j in self.counted:
            self.upper[j], places[j] = self._highest(search, j, high)
        rounding = _SCALE_ROUNDING * self.scale
        self.low = float(lows.max()) - rounding
        self.floor = floor = 0.0 if search.quantity in ("chord_barrier", "max_barrier", "chord_dip") else -np.inf
        self.low = max(self.low, floor)
        self.worst = int(np.argmax(self.upper))
        self.worst_place = float(places[self.worst])
        highs = np.where(is_counted, high, -np.inf)
        top = int(np.argmax(highs))
        self.worst_node = top if highs[top] >= self.upper[self.worst] else None
        self.high = max(float(highs[top]), float(self.upper[self.worst]), self.low) + rounding
        best = np.where(is_counted, self.height, -np.inf)
        self.best = int(np.argmax(best))
        may = [float(t) for t, h in zip(self.ts, highs, strict=True) if h >= self.low]
        may += [float(t) for j in self.counted if self.upper[j] >= self.low for t in self.ts[j : j + 2]]
        self.found = Found(
            self.low, self.high, *self._proven(search, lows, high, floor),
            *((float(self.height[self.best]), float(self.ts[self.best])) if is_counted.any() else (np.nan, np.nan)),
            min(may, default=np.nan), max(may, default=np.nan),
        )  # fmt: skip

    def _highest(self, search: CertificateSearch, j: int, high: Array) -> tuple[float, float]:
        """The highest that the band reaches in the j-th interval, and where, from 0 to 1."""
        if search.has_bound:
            highest = self._bounded(search, j, j + 1, high)
            w = self.ts[j + 1] - self.ts[j]
            bent = (bound_on(search.curvature, *self.ts[j : j + 2]) or 0.0) * w * w
            rise = high[j + 1] - high[j]
            return highest, float(np.clip(0.5 + rise / bent, 0.0, 1.0)) if bent > 0 else 0.5
        values, error = interpolated(*search.around(self, j))
        if np.isinf(error).any():
            return np.inf, 0.5
        with np.errstate(invalid="ignore"):
            band = values + error + (1 - PLACES) * self.half[j] + PLACES * self.half[j + 1]
        band = np.where(np.isnan(band), np.inf, band)
        place = int(np.argmax(band))
        return float(band[place]), float(PLACES[place])

    def _bounded(self, search: CertificateSearch, i: int, k: int, high: Array) -> float:
        a, b = float(self.ts[i]), float(self.ts[k])
        slopes = [search.points[t].slope for t in (a, b)]
        nodes = [
            Node(t, float(high[n] + self.sign * self.reference[n]), None if s is None else self.sign * s)
            for t, n, s in zip((a, b), (i, k), slopes, strict=True)
        ]
        references = self.sign * float(self.reference[i]), self.sign * float(self.reference[k])
        curvature, lipschitz = bound_on(search.curvature, a, b), bound_on(search.lipschitz, a, b)
        if any(a < knot < b for knot in search.knots):
            curvature = None  # the curve may turn sharply there
        return highest_proven(nodes[0], nodes[1], references, curvature, lipschitz)

    def _proven(self, search: CertificateSearch, lows: Array, high: Array, floor: float) -> tuple[float, float]:
        """What no assumption is behind: of points measured on all examples, or bounded, and between them of a bound."""
        kept = [i for i, t in enumerate(self.ts) if search.points[float(t)].is_proven]
        rounding = _SCALE_ROUNDING * self.scale
        low = max(float(lows[kept].max()) - rounding, floor)
        e, extreme = search.examples, np.inf
        if e.least is not None and e.most is not None:
            total = float((e.most if self.sign == 1 else e.least).sum())
            extreme = float((self.sign * (total - self.reference[[0, -1]])).max())
        if not search.has_bound:
            return low, extreme
        between = max(
            self._bounded(search, i, k, high)
            for i, k in pairwise(kept)
            if search.quantity != "interpolation_gain" or _is_inner(self.ts[i], self.ts[k])
        )
        return low, min(max(between + rounding, low), max(extreme, low))


def _reference(quantity: Quantity, ts: Array, first: float, last: float) -> Array:
    """What a height is measured from at each t, (points,)."""
    level = {
        "mean_barrier": (first + last) / 2,
        "max_barrier": max(first, last),
        "interpolation_gain": min(first, last),
    }.get(quantity)
    if level is not None:
        return np.full(len(ts), level)
    return np.where(ts < 0.5, first + ts * (last - first), last - (1 - ts) * (last - first))


def _is_inner(a: Any, b: Any) -> bool:
    """Whether a part of [a, b] lies where `interpolation_gain` looks."""
    return bool(b > MARGIN and a < 1 - MARGIN)


def bound_on(bound: Bound | None, a: float, b: float) -> float | None:
    return float(bound(float(a), float(b))) if callable(bound) else bound
