"""Where along a path, and on how many examples, to measure next, so that a barrier is known to a tolerance soonest.

The curve is that of all examples given: L(t) is the sum of what each contributes. Both ends are measured on all, points
between on as many as it takes, always the first of one order that is drawn from what the ends tell (`drawing_order`).
What is known is a band: at measured points an interval for the sum (`finite_population`), between them a bound or an
estimate (`between_points`). The highest point of the band is lowered, or the highest of its lower ends raised, by more
examples at a point or by a new point, whichever is expected to do more per example evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mcanalysis.connectivity.between_points import PLACES, Node, highest_proven, interpolated
from mcanalysis.errors import UserError
from mcanalysis.metrics.finite_population import Total, bounded_total, drawing_order, regression_total

Array = NDArray[np.float64]
Quantity = Literal["chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain"]
Bound = float | Callable[[float, float], float]
"""A bound on a derivative of the curve: of all the path, or a function of the ends of the interval it is wanted on."""

QUANTITIES: tuple[Quantity, ...] = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain")
BUDGET = 1.1 * 21
"""Evaluations of all examples at one point: a tenth more than the grid that a search replaces."""
MARGIN = 0.05
"""How far from the ends `interpolation_gain` looks: as far as the innermost points of that grid."""
_SMALLEST = 64  # examples of a first look
_FINEST = 16  # parts of a smooth piece between which points may be measured on a sample
_DEFINITION = {"chord_dip": -1, "interpolation_gain": -1}  # how far below the reference; the others: above
_VALUE_ROUNDING = 1e-6  # of values that were computed in float32: it breaks no bound
_SCALE_ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Examples:
    """What both ends tell of all N examples: what each adds to L(0) and L(1), `start` and `end` (N,).

    `weights` (N,): a further control variate, such as numbers of target tokens. `least` and `most` (N,): between which
    numbers what an example adds lies anywhere on the path; None where nothing is known, as of losses. `scale`: what
    values per example were divided by, so that they add up to the curve.
    """

    start: Array
    end: Array
    weights: Array
    least: Array | None = None
    most: Array | None = None
    scale: float = 1.0

    @property
    def sizes(self) -> Array:
        """How likely each is to be drawn early: half of it alike, half by how much the ends differ; mean 1."""
        change = np.abs(self.end - self.start)
        mean = float(change.mean())
        return 0.5 + 0.5 * change / mean if mean > 0 and np.isfinite(mean) else np.ones(len(change))

    def on_chord(self, t: float) -> Array:
        """What each adds to the chord at t."""
        return (1 - t) * self.start + t * self.end


@dataclass(frozen=True)
class Wanted:
    """The measurement to make next: at `t`, on the examples numbered `rows`; `slope`: whether dL/dt, too."""

    t: float
    rows: NDArray[np.int64]
    slope: bool = False


@dataclass(eq=False)
class _Point:
    values: Array  # of the examples order[:n]
    total: Total
    slope: float | None = None
    is_proven: bool = True


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


@dataclass
class CertificateSearch:
    """Which measurement to make next, for one curve whose ends are measured.

    Ask `next()` for a measurement, `tell` its values, until `next()` is None; `found()` says what is known at any time.

    Args:
        examples: what the ends tell.
        tolerance: by how much `high` may lie above `low`, in the unit of the curve.
        quantity: one of `QUANTITIES`, of values of which lower is better (turn the sign of scores).
        confidence: that all intervals of points measured on samples hold together.
        budget: evaluations of all examples at one point, ends included; 23.1 is a tenth more than 21 points.
        spent: how much of it is gone.
        knots: where the path may turn sharply, ends included.
        curvature: a bound on the size of the second derivative between knots, if one is known.
        lipschitz: one on the size of the first.
        can_sample: whether points may be measured on some of the examples.
        derivatives: whether dL/dt is measured with each point (cost 2 beside 1).
        start_slopes: dL/dt at both ends, where it was measured.
        seed: of the order of the examples.
        was_tried: whether what is given was an estimate that has been tried already.
    """

    examples: Examples
    tolerance: float
    quantity: Quantity = "chord_barrier"
    confidence: float = 0.95
    budget: float = BUDGET
    spent: float = 2.0
    knots: Sequence[float] = (0.0, 1.0)
    curvature: Bound | None = None
    lipschitz: Bound | None = None
    can_sample: bool = True
    derivatives: bool = False
    start_slopes: tuple[float | None, float | None] = (None, None)
    seed: int = 0
    was_tried: bool = False
    points: dict[float, _Point] = field(default_factory=dict, init=False)
    _seen: _Look | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        e = self.examples
        self.number = len(e.start)
        self.order = drawing_order(e.sizes, self.seed)
        first = max(_SMALLEST, -(-self.number // 16))
        self.levels = [self.number]
        if self.can_sample and not self.derivatives:
            self.levels = [first * 2**i for i in range(5) if 2 * first * 2**i <= self.number] + [self.number]
        pieces = len(self.knots) - 1
        places = pieces * (_FINEST - 1) + pieces - 1 + 2 * (self.quantity == "interpolation_gain")
        self.risk = (1 - self.confidence) / (places * max(len(self.levels) - 1, 1))
        for t, values, slope in zip((0.0, 1.0), (e.start, e.end), self.start_slopes, strict=True):
            self.points[t] = _Point(values[self.order], _exact(values), slope)
        self._plan = self._start()
        self._is_tried = self._has_bound or self.was_tried
        self._check_bounds()

    @property
    def _has_bound(self) -> bool:
        return self.curvature is not None or self.lipschitz is not None

    @property
    def undefined(self) -> tuple[float, ...]:
        """Every t at which the curve was measured and is not finite."""
        return tuple(t for t, p in sorted(self.points.items()) if not np.isfinite(p.values).all())

    def next(self) -> Wanted | None:
        """What to measure next; None when the tolerance is reached, the budget spent, or a value is not finite."""
        if self.undefined:
            return None
        while self._plan:
            t = self._plan.pop(0)
            if t not in self.points:
                return self._affordable(t, self._smallest(t))
        look = self._look()
        if look.high - look.low <= self.tolerance:
            if self._is_tried:
                return None
            self._is_tried = True  # an estimate is tried once where nothing was measured
            places = look.counted
            return self._new(max(places, key=lambda j: (look.ts[j + 1] - look.ts[j], look.upper[j])), look)
        self._is_tried = self._has_bound
        return self._best(look)

    def tell(self, t: float, values: Array, slope: float | None = None) -> None:
        """What the examples wanted add to L(t), in the order wanted; raises `UserError` where a bound is broken."""
        known = self.points[t].values if t in self.points else np.empty(0)
        self.spent += len(values) / self.number + 2 * (slope is not None)
        self._take_in(t, np.concatenate([known, np.asarray(values, dtype=np.float64)]), slope)

    def give(self, t: float, values: Array, slope: float | None = None) -> None:
        """What the first examples of the order add to L(t), known already: it costs nothing. Else as `tell`."""
        n = max((level for level in self.levels if level <= len(values)), default=0)
        if n and (n == self.number or self._may_be_sampled(t)) and t not in self.points:
            self._take_in(t, np.asarray(values[:n], dtype=np.float64), slope)

    def _take_in(self, t: float, values: Array, slope: float | None) -> None:
        self._seen = None
        if t in self.knots:
            slope = None  # it has one on each side
        self.points[t] = _Point(values, Total(np.nan, np.nan, np.nan), slope)
        for place in self.points:  # a point that is measured on all examples says more of its neighbours, too
            if place == t or (len(values) == self.number and self._is_sampled(place)):
                self._estimate(place)
        self._check_bounds()

    def found(self) -> Found:
        """What is known; NaN where the curve is not finite at a measured point."""
        if self.undefined:
            return Found(*[np.nan] * 8)
        return self._look().found

    def band(self) -> tuple[Array, Array, Array, Array]:
        """Places t between 0 and 1 with an interpolant of L there, and its low and high; NaN where nothing is known."""
        look = self._look()
        parts = []
        for j in range(len(look.ts) - 1):
            a, b = look.ts[j], look.ts[j + 1]
            nodes, index = self._around(look, j)
            values, error = interpolated(nodes, index)
            reference = look.reference[j] + PLACES * (look.reference[j + 1] - look.reference[j])
            middle = look.sign * values + reference
            wide = error + (1 - PLACES) * look.half[j] + PLACES * look.half[j + 1]
            parts.append(np.stack([a + PLACES * (b - a), middle, middle - wide, middle + wide]))
        return tuple(np.concatenate(parts, axis=1))  # type: ignore[return-value]

    def for_new_examples(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval of the quantity on new examples, of which these are a sample; asymptotic.

        Around each point's own interval, the spread of what each example adds: at all points together for the low end,
        since any may be the highest by chance, at each alone for the high end (Chernozhukov, Lee & Rosen 2013).
        """
        if self.undefined or self.number < 2:
            return np.nan, np.nan
        from scipy import stats  # half a second

        look = self._look()
        spread = np.array([self._spread(float(t)) for t in look.ts])
        alone, together = stats.norm.isf([(1 - confidence) / 2, (1 - confidence) / 2 / len(look.ts)])
        low = (look.lows - together * spread).max()
        counted = look.counted
        wide = np.maximum(spread[:-1], spread[1:])[counted]
        return max(float(low), look.floor), max(float((look.upper[counted] + alone * wide).max()), look.floor)

    def _spread(self, t: float) -> float:
        """The standard error of the height at t, were the examples drawn anew."""
        values, e = self.points[t].values, self.examples
        drawn = self.order[: len(values)]
        ends = {"mean_barrier": 0.5, "max_barrier": self._worse, "interpolation_gain": 1 - self._worse}
        share = ends.get(self.quantity, t)
        apart = values - (1 - share) * e.start[drawn] - share * e.end[drawn]
        mean = float(self.points[t].total.estimate - (1 - share) * e.start.sum() - share * e.end.sum())
        apart = apart - mean * e.weights[drawn] / e.weights.sum()
        return float(np.sqrt((apart**2 / e.sizes[drawn]).mean() * self.number))

    @property
    def _worse(self) -> float:
        """The t of the higher end."""
        return float(self.examples.end.sum() > self.examples.start.sum())

    def _start(self) -> list[float]:
        """The first points between the ends: as many as let a bend be seen, knots before others."""
        margins = [MARGIN, 1 - MARGIN] if self.quantity == "interpolation_gain" else []
        if self._has_bound:
            return [*self.knots[1:-1], *margins]
        pieces = len(self.knots) - 1
        parts = 8 if len(self.levels) > 1 else 4
        parts = 2 if pieces > 1 or self.derivatives else parts
        inner = [a + (b - a) * i / parts for a, b in _pairs(self.knots) for i in range(1, parts)]
        return [*self.knots[1:-1], *margins, *sorted(inner, key=lambda t: abs(t - 0.5))]

    def _smallest(self, t: float) -> int:
        return self.levels[0] if self._may_be_sampled(t) else self.number

    def _may_be_sampled(self, t: float) -> bool:
        """Whether t is one of the places that the error probability is shared out to."""
        if t in self.knots or (self.quantity == "interpolation_gain" and t in (MARGIN, 1 - MARGIN)):
            return True
        a, b = next((a, b) for a, b in _pairs(self.knots) if a <= t <= b)
        place = (t - a) / (b - a) * _FINEST
        return abs(place - round(place)) < 1e-9

    def _is_sampled(self, t: float) -> bool:
        return len(self.points[t].values) < self.number

    def _affordable(self, t: float, n: int) -> Wanted | None:
        """The first n examples at t, as far as they are not measured; None if the budget does not allow it."""
        had = len(self.points[t].values) if t in self.points else 0
        with_slope = self.derivatives and n == self.number
        cost = (n - had) / self.number + 2 * with_slope
        if self.spent + cost > self.budget * (1 + 1e-12):
            return None
        return Wanted(t, self.order[had:n], with_slope)

    def _estimate(self, t: float) -> None:
        """The interval of the sum at t."""
        e, point = self.examples, self.points[t]
        n, chord = len(point.values), e.on_chord(t)
        if n == self.number:
            whole = np.empty(n)
            whole[self.order] = point.values
            point.total = _exact(whole)
            return
        apart = point.values - chord[self.order[:n]]
        controls = np.stack([e.weights, e.start, e.end - e.start, *self._neighbours(t)], axis=1)
        scale = np.abs(controls).max(axis=0)
        total = regression_total(apart, controls / np.where(scale > 0, scale, 1.0), e.sizes, self.order, self.risk)
        point.is_proven = e.least is not None and e.most is not None
        if e.least is not None and e.most is not None:
            proven = bounded_total(apart, e.sizes, self.order, e.least - chord, e.most - chord, self.risk)
            total = Total(float(np.clip(total.estimate, proven.low, proven.high)), proven.low, proven.high)
        point.total = Total(*(value + float(chord.sum()) for value in total))

    def _neighbours(self, t: float) -> list[Array]:
        """How far each example lies from its chord at the nearest points measured on all, one on each side."""
        whole = [s for s in self.points if not self._is_sampled(s) and 0 < s < 1 and s != t]
        below, above = [s for s in whole if s < t], [s for s in whole if s > t]
        found = []
        for s in [*([max(below)] if below else []), *([min(above)] if above else [])]:
            values = np.empty(self.number)
            values[self.order] = self.points[s].values
            found.append(values - self.examples.on_chord(s))
        return found

    def _look(self) -> _Look:
        if self._seen is None:
            self._seen = _Look(self)
        return self._seen

    def _around(self, look: _Look, j: int) -> tuple[list[Node], int]:
        """The measured points of the smooth piece that the j-th interval lies in, and its number among them."""
        a, b = next((a, b) for a, b in _pairs(self.knots) if a <= look.ts[j] and look.ts[j + 1] <= b)
        inside = [i for i, t in enumerate(look.ts) if a <= t <= b]
        return [look.nodes[i] for i in inside], inside.index(j)

    def _new(self, j: int, look: _Look) -> Wanted | None:
        t = float((look.ts[j] + look.ts[j + 1]) / 2)
        return self._affordable(t, self._level_of_new(t, j, look))

    def _level_of_new(self, t: float, j: int, look: _Look) -> int:
        if not self._may_be_sampled(t):
            return self.number
        inner = [len(self.points[s].values) for s in (look.ts[j], look.ts[j + 1]) if 0 < s < 1]
        return min(inner, default=self.levels[0])

    def _best(self, look: _Look) -> Wanted | None:
        """Of what can be done about the highest point of the band, or for the lower end, the most per example."""
        options: list[tuple[float, Wanted]] = []

        def add(gain: float, wanted: Wanted | None) -> None:
            if wanted is not None and gain > 0:
                cost = len(wanted.rows) / self.number + 2 * wanted.slope
                options.append((gain / cost if np.isfinite(gain) else 1e300 / cost, wanted))

        def more(i: int, share: float) -> None:
            t = float(look.ts[i])
            n = len(self.points[t].values)
            if n == self.number or share <= 0:
                return
            for level in (level for level in self.levels if level > n):
                left = np.sqrt((1 / level - 1 / self.number) / (1 / n - 1 / self.number))
                add(share * look.half[i] * (1 - left), self._affordable(t, level))

        if look.worst_node is not None:
            more(look.worst_node, 1.0)
        else:
            j, u = look.worst, look.worst_place
            more(j, 1 - u)
            more(j + 1, u)
            sampled = (1 - u) * look.half[j] + u * look.half[j + 1]
            between = look.upper[j] - max(look.height[j], look.height[j + 1], look.low) - sampled
            add(0.75 * between if np.isfinite(sampled) else 0.0, self._new(j, look))
        more(look.best, 1.0)
        return max(options, key=lambda option: option[0])[1] if options else None

    def _check_bounds(self) -> None:
        """Raise `UserError` where measured values break a stated bound: nothing that follows from it would hold."""
        exact = [(t, self.points[t].total.estimate) for t in sorted(self.points) if not self._is_sampled(t)]
        scale = max(abs(value) for _, value in exact)
        if not np.isfinite(scale):
            return
        for (a, x), (b, y) in _pairs(exact):
            bound = _bound(self.lipschitz, a, b)
            slope = abs(y - x) / (b - a)
            if bound is not None and slope > bound * (1 + 1e-6) + _VALUE_ROUNDING * scale / (b - a):
                raise UserError(
                    f"Expected values that a Lipschitz bound of {bound:g} allows, got a mean slope of {slope:g} from "
                    f"t = {a:g} to {b:g}; raise the bound, or leave it out."
                )
        for (a, x), (b, y), (c, z) in zip(exact[:-2], exact[1:-1], exact[2:], strict=True):
            bound = _bound(self.curvature, a, c)
            if bound is None or any(a < knot < c for knot in self.knots[1:-1]):
                continue
            bent = 2 * abs((z - y) / (c - b) - (y - x) / (b - a)) / (c - a)
            if bent > bound * (1 + 1e-6) + 4 * _VALUE_ROUNDING * scale / min(b - a, c - b) ** 2:
                raise UserError(
                    f"Expected values that a curvature of at most {bound:g} allows, got {bent:g} from t = {a:g} to "
                    f"{c:g}; raise the bound, or leave it out."
                )


class _Look:
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
            float(self.height[self.best]), float(self.ts[self.best]), min(may), max(may),
        )  # fmt: skip

    def _highest(self, search: CertificateSearch, j: int, high: Array) -> tuple[float, float]:
        """The highest that the band reaches in the j-th interval, and where, from 0 to 1."""
        if search._has_bound:
            highest = self._bounded(search, j, j + 1, high)
            w = self.ts[j + 1] - self.ts[j]
            bent = (_bound(search.curvature, *self.ts[j : j + 2]) or 0.0) * w * w
            rise = high[j + 1] - high[j]
            return highest, float(np.clip(0.5 + rise / bent, 0.0, 1.0)) if bent > 0 else 0.5
        values, error = interpolated(*search._around(self, j))
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
        curvature, lipschitz = _bound(search.curvature, a, b), _bound(search.lipschitz, a, b)
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
        if not search._has_bound:
            return low, extreme
        between = max(
            self._bounded(search, i, k, high)
            for i, k in _pairs(kept)
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


def _bound(bound: Bound | None, a: float, b: float) -> float | None:
    return float(bound(float(a), float(b))) if callable(bound) else bound


def _exact(values: Array) -> Total:
    total = float(np.sum(values))
    return Total(total, total, total)


def _pairs(values: Sequence) -> list[tuple]:
    return list(pairwise(values))
