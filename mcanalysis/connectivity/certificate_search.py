"""Where along a path, and on how many examples, to measure next, so that a barrier is known to a tolerance soonest.

The curve is that of all examples given: L(t) is the sum of what each contributes. Both ends are measured on all, points
between on as many as it takes, always the first of one order that is drawn from what the ends tell (`drawing_order`).
What is known is a band: at measured points an interval for the sum (`finite_population`), between them a bound or an
estimate (`between_points`). The highest point of the band is lowered, or the highest of its lower ends raised, by more
examples at a point or by a new point, whichever is expected to do more per example evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mcanalysis.connectivity.between_points import PLACES, Node, interpolated
from mcanalysis.connectivity.certificate_band import MARGIN, Band, Bound, Found, Quantity, bound_on
from mcanalysis.errors import UserError
from mcanalysis.metrics.finite_population import Total, bounded_total, drawing_order, regression_total
from mcanalysis.metrics.intervals import FEWEST_EVENTS, FEWEST_EXAMPLES

Array = NDArray[np.float64]
BUDGET = 1.1 * 21
"""Evaluations of all examples at one point: a tenth more than the grid that a search replaces."""
_SMALLEST = 64  # examples of a first look; of fewer than 256 a quarter, as long as an interval is promised
_FINEST = 16  # parts of a smooth piece between which points may be measured on a sample
_VALUE_ROUNDING = 1e-6  # of values that were computed in float32: it breaks no bound


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
    _seen: Band | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        e = self.examples
        self.number = len(e.start)
        self.order = drawing_order(e.sizes, self.seed)
        first = max(FEWEST_EXAMPLES, min(_SMALLEST, self.number // 4), -(-self.number // 16))
        self.levels = [self.number]
        if self.can_sample and not self.derivatives:
            self.levels = [first * 2**i for i in range(5) if 2 * first * 2**i <= self.number] + [self.number]
        pieces = len(self.knots) - 1
        places = pieces * (_FINEST - 1) + pieces - 1 + 2 * (self.quantity == "interpolation_gain")
        self.risk = (1 - self.confidence) / (places * max(len(self.levels) - 1, 1))
        for t, values, slope in zip((0.0, 1.0), (e.start, e.end), self.start_slopes, strict=True):
            self.points[t] = _Point(values[self.order], _exact(values), slope)
        self._plan = self._start()
        self._is_tried = self.has_bound or self.was_tried
        self._check_bounds()

    @property
    def has_bound(self) -> bool:
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
        self._is_tried = self.has_bound
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
            nodes, index = self.around(look, j)
            values, error = interpolated(nodes, index)
            reference = look.reference[j] + PLACES * (look.reference[j + 1] - look.reference[j])
            middle = look.sign * values + reference
            wide = error + (1 - PLACES) * look.half[j] + PLACES * look.half[j + 1]
            parts.append(np.stack([a + PLACES * (b - a), middle, middle - wide, middle + wide]))
        return tuple(np.concatenate(parts, axis=1))  # type: ignore[return-value]

    def for_new_examples(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval of the quantity on new examples, of which these are a sample; asymptotic.

        Around each point's own interval, the spread of what each example adds: at all points together for the low end,
        since any may be the highest by chance, at each alone for the high end (Chernozhukov, Lee & Rosen 2013). NaN
        with fewer than `FEWEST_EXAMPLES`, and of losses where fewer than `FEWEST_EVENTS` make most of the spread at a
        point: what few examples do, others may not.
        """
        if self.undefined or self.number < FEWEST_EXAMPLES:
            return np.nan, np.nan
        from scipy import stats  # half a second

        look = self._look()
        tails = (1 - confidence) / 2 / len(look.ts), (1 - confidence) / 2
        together, alone = (
            np.array([self._off_new_examples(float(t), float(stats.t.isf(tail, self.number - 1))) for t in look.ts])
            for tail in tails
        )
        low, counted = (look.lows - together).max(), look.counted
        high = (look.upper[counted] + np.maximum(alone[:-1], alone[1:])[counted]).max()
        if np.isnan(low) or np.isnan(high):
            return np.nan, np.nan
        return max(float(low), look.floor), max(float(high), look.floor)

    def _off_new_examples(self, t: float, critical: float) -> float:
        """How far the height at t may be off that of new examples, at so many standard errors of drawing them anew.

        Of a score that few examples change, with the variance of one more change (Wilson 1927); else NaN there.
        """
        values, e = self.points[t].values, self.examples
        drawn = self.order[: len(values)]
        ends = {"mean_barrier": 0.5, "max_barrier": self._worse, "interpolation_gain": 1 - self._worse}
        share = ends.get(self.quantity, t)
        if share == t and t in (0.0, 1.0):
            return 0.0  # an end against itself
        apart = values - (1 - share) * e.start[drawn] - share * e.end[drawn]
        mean = float(self.points[t].total.estimate - (1 - share) * e.start.sum() - share * e.end.sum())
        apart = apart - mean * e.weights[drawn] / e.weights.sum()
        squares = apart**2 / _inclusion(e.sizes, len(values))[drawn]
        second = float(squares.sum()) * self.number / (self.number - 1)
        if second > 0 and squares.sum() ** 2 / (squares**2).sum() >= FEWEST_EVENTS:
            return critical * float(np.sqrt(second))
        if e.least is None or e.most is None:
            return float(np.nan)
        half = critical**2 * float(np.max(e.most - e.least)) / 2
        return half + float(np.sqrt(critical**2 * second + half**2))

    @property
    def _worse(self) -> float:
        """The t of the higher end."""
        return float(self.examples.end.sum() > self.examples.start.sum())

    def _start(self) -> list[float]:
        """The first points between the ends: as many as let a bend be seen, knots before others."""
        margins = [MARGIN, 1 - MARGIN] if self.quantity == "interpolation_gain" else []
        if self.has_bound:
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
        rounding = _VALUE_ROUNDING * (np.abs(point.values) + np.abs(chord[self.order[:n]]))
        apart = np.where(np.abs(apart) <= rounding, 0.0, apart)  # noise would look as if all examples varied
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

    def _look(self) -> Band:
        if self._seen is None:
            self._seen = Band(self)
        return self._seen

    def around(self, look: Band, j: int) -> tuple[list[Node], int]:
        """The measured points of the smooth piece that the j-th interval lies in, and its number among them."""
        a, b = next((a, b) for a, b in _pairs(self.knots) if a <= look.ts[j] and look.ts[j + 1] <= b)
        inside = [i for i, t in enumerate(look.ts) if a <= t <= b]
        return [look.nodes[i] for i in inside], inside.index(j)

    def _new(self, j: int, look: Band) -> Wanted | None:
        t = float((look.ts[j] + look.ts[j + 1]) / 2)
        return self._affordable(t, self._level_of_new(t, j, look))

    def _level_of_new(self, t: float, j: int, look: Band) -> int:
        if not self._may_be_sampled(t):
            return self.number
        inner = [len(self.points[s].values) for s in (look.ts[j], look.ts[j + 1]) if 0 < s < 1]
        return min(inner, default=self.levels[0])

    def _best(self, look: Band) -> Wanted | None:
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
            bound = bound_on(self.lipschitz, a, b)
            slope = abs(y - x) / (b - a)
            if bound is not None and slope > bound * (1 + 1e-6) + _VALUE_ROUNDING * scale / (b - a):
                raise UserError(
                    f"Expected values that a Lipschitz bound of {bound:g} allows, got a mean slope of {slope:g} from "
                    f"t = {a:g} to {b:g}; raise the bound, or leave it out."
                )
        for (a, x), (b, y), (c, z) in zip(exact[:-2], exact[1:-1], exact[2:], strict=True):
            bound = bound_on(self.curvature, a, c)
            if bound is None or any(a < knot < c for knot in self.knots[1:-1]):
                continue
            bent = 2 * abs((z - y) / (c - b) - (y - x) / (b - a)) / (c - a)
            if bent > bound * (1 + 1e-6) + 4 * _VALUE_ROUNDING * scale / min(b - a, c - b) ** 2:
                raise UserError(
                    f"Expected values that a curvature of at most {bound:g} allows, got {bent:g} from t = {a:g} to "
                    f"{c:g}; raise the bound, or leave it out."
                )


def _exact(values: Array) -> Total:
    total = float(np.sum(values))
    return Total(total, total, total)


def _pairs(values: Sequence) -> list[tuple]:
    return list(pairwise(values))


def _inclusion(sizes: Array, n: int) -> Array:
    """How likely each unit is to be among the first n drawn, (N,): 1 − exp(−λ·size), with Σ = n (Rosén 1997).

    >>> _inclusion(np.ones(4), 2).round(6).tolist(), _inclusion(np.array([1.0, 3.0]), 2).tolist()
    ([0.5, 0.5, 0.5, 0.5], [1.0, 1.0])
    """
    if n >= len(sizes):
        return np.ones(len(sizes))
    from scipy.optimize import brentq

    high = 1.0
    while (1 - np.exp(-high * sizes)).sum() < n:
        high *= 2
    rate = brentq(lambda rate: (1 - np.exp(-rate * sizes)).sum() - n, 0.0, high)
    return 1 - np.exp(-float(rate) * sizes)  # type: ignore[arg-type]
