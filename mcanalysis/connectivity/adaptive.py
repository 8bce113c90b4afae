"""Finding barriers with few evaluations: a path is measured where a bound says that the maximum may still be higher.

On an interval of width w between two measured points, a function whose second derivative is at most K in size lies at
most K·w²/8 above the straight line through them (the error bound of linear interpolation, e.g. Davis 1975, theorem
3.1.1). The interval that may hold the highest value is halved until no interval may hold one that is more than the
tolerance above the highest measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.connectivity.objective_result import number_of
from mcanalysis.connectivity.profile import PerExample, Profile, assemble
from mcanalysis.errors import UserError

logger = logging.getLogger(__name__)
Barrier = Literal["chord_barrier", "mean_barrier", "max_barrier", "chord_dip"]
_ALL: tuple[Barrier, ...] = ("chord_barrier", "mean_barrier", "max_barrier")
SAFETY = 2.0


@dataclass
class Refinement:
    """Which t to measure next, for any number of curves at once.

    `tolerance` is in the unit of the values. `curvature` is a bound on |d²L/dt²| of every curve between knots. Without
    it the bound is `SAFETY` times the largest second divided difference of that curve seen so far, and what is said of
    the barriers is then no more than likely: a bump that lies wholly between two measured points is not seen.

    Call `next()` for a t, `tell(t, values)` for what was measured there, until `next()` is None.
    """

    tolerance: float
    max_points: int = 41
    barriers: Sequence[Barrier] = _ALL
    curvature: float | None = None
    knots: Sequence[float] = (0.0, 1.0)
    measured: dict[float, NDArray[np.float64]] = field(default_factory=dict)
    remaining: float = np.inf
    """By how much the highest barrier may still lie above the one found, by the bound; NaN if a curve is not finite."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.tolerance) and self.tolerance > 0):
            raise UserError(f"Expected a positive tolerance, got {self.tolerance}; give it in the unit of the values.")
        if self.max_points < 2:
            raise UserError(
                f"Expected max_points of at least 2 (both ends), got {self.max_points}; leave it out to use 41."
            )
        pieces = 4 if len(self.knots) == 2 else 2  # so that every smooth piece has a second difference
        inner = [
            float(a + (b - a) * i / pieces)
            for a, b in zip(self.knots[:-1], self.knots[1:], strict=True)
            for i in range(1, pieces)
        ]
        # Knots first, ends before all; then as many of the others as may be measured.
        first = [0.0, 1.0, *(float(k) for k in self.knots[1:-1]), *sorted(inner, key=lambda t: abs(t - 0.5))]
        self._start = first[: self.max_points]

    @property
    def converged(self) -> bool:
        """Whether no barrier may be more than the tolerance above the one found, by the bound.

        Proven if `curvature` is a true bound. False where a curve is not finite somewhere (`undefined`): no bound holds
        for it.
        """
        return self.remaining <= self.tolerance

    @property
    def undefined(self) -> tuple[float, ...]:
        """Every t at which a curve was measured and is not finite."""
        return tuple(t for t in sorted(self.measured) if not np.isfinite(self.measured[t]).all())

    def next(self) -> float | None:
        """The t to measure next; None when the tolerance is reached, or `max_points` are measured."""
        for t in self._start:
            if t not in self.measured:
                return t
        excess, t = self._worst()
        self.remaining = np.nan if self.undefined else excess
        return None if excess <= self.tolerance or len(self.measured) >= self.max_points else t

    def tell(self, t: float, values: Any) -> None:
        """What every curve is at t: shape (curves,), or one number."""
        self.measured[float(t)] = np.atleast_1d(np.asarray(values, dtype=np.float64))

    def _worst(self) -> tuple[float, float]:
        """The largest possible excess of a maximum over the highest measured value, and the middle of its interval."""
        ts = np.array(sorted(self.measured))
        values = np.stack([self.measured[t] for t in ts])  # (points, curves)
        values = values[:, np.isfinite(values).all(axis=0)]  # no bound holds for the others; these are searched on
        if values.shape[1] == 0:
            return 0.0, np.nan
        chord = (1 - ts[:, None]) * values[0] + ts[:, None] * values[-1]
        targets = {"chord_barrier": values - chord, "chord_dip": chord - values}
        bent = self._curvatures(ts, values)
        widths = np.diff(ts)
        best = (0.0, np.nan)
        for name in self.barriers:
            height = targets.get(name, values)
            highest = _highest_possible(height[:-1], height[1:], bent * widths[:, None] ** 2)
            excess = (highest - height.max(axis=0)).max(axis=1)
            i = int(np.argmax(excess))
            if excess[i] > best[0]:
                best = (float(excess[i]), float((ts[i] + ts[i + 1]) / 2))
        return best

    def _curvatures(self, ts: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """A bound on the size of the second derivative of each curve: shape (curves,)."""
        if self.curvature is not None:
            return np.full(values.shape[1], float(self.curvature))
        slopes = np.diff(values, axis=0) / np.diff(ts)[:, None]
        second = 2 * np.abs(np.diff(slopes, axis=0)) / (ts[2:] - ts[:-2])[:, None]
        smooth = ~np.isin(ts[1:-1], np.asarray(self.knots[1:-1], dtype=float))  # a curve may turn sharply at a knot
        return SAFETY * second[smooth].max(axis=0) if smooth.any() else np.full(values.shape[1], np.inf)


def _highest_possible(
    left: NDArray[np.float64], right: NDArray[np.float64], bent: NDArray[np.float64]
) -> NDArray[np.float64]:
    """max over 0 ≤ u ≤ 1 of (1−u)·left + u·right + ½·bent·u(1−u), where bent = K·w²; elementwise."""
    rise = right - left
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.clip(0.5 + rise / bent, 0.0, 1.0)
        inside = left + u * rise + 0.5 * bent * u * (1 - u)
    return np.where(bent > 0, np.where(np.isinf(bent), np.inf, inside), np.maximum(left, right))


def adaptive_profile(
    path: Callable[[float], Mapping[str, Tensor]],
    objective: Callable[[Mapping[str, Tensor]], float | PerExample],
    tolerance: float,
    max_points: int = 41,
    *,
    barriers: Sequence[Barrier] = _ALL,
    curvature: float | None = None,
    knots: Sequence[float] | None = None,
) -> tuple[Profile, Refinement]:
    """Measure a path until its loss barriers are known to a tolerance; returns the profile and how far that came.

    Every barrier found is a lower bound, since it is attained. Given `curvature`, a true bound on |d²L/dt²| between
    knots, the barrier of the path is at most `refinement.remaining` above the one found, which is at most `tolerance`
    where `refinement.converged`. Without it the bound is estimated from the measured points (twice the largest second
    divided difference), so that this holds only for curves that the first points do not miss: five on a smooth path,
    three on each piece of one with knots. Losses are smooth along a path; scores of single examples jump, so that no
    such bound exists for them. A loss that is not finite ends the search, not converged, and a warning names its t.

    Args:
        path: a map from t in [0, 1] to points.
        objective: as in `profile`; its loss is what is bounded.
        tolerance: positive, in the unit of the loss.
        max_points: the most evaluations, at least 2.
        barriers: which ones must be known to the tolerance.
        curvature: a bound on the second derivative of the loss by t, if one is known.
        knots: where the path may turn sharply; by default `path.knots`, if it has any.

    Raises:
        UserError: for a tolerance that is not positive, or fewer than two points.

    >>> import torch
    >>> from mcanalysis.paths import Linear
    >>> line = Linear({"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])})
    >>> found, refinement = adaptive_profile(line, lambda p: float(1 - p["w"] ** 2), tolerance=0.01)
    >>> found.chord_barrier(), len(found.ts), refinement.converged
    (1.0, 7, True)
    """
    where = getattr(path, "knots", (0.0, 1.0)) if knots is None else knots
    refinement = Refinement(tolerance, max_points, barriers, curvature, where)
    results: dict[float, Any] = {}
    while (t := refinement.next()) is not None:
        results[t] = objective(path(t))
        refinement.tell(t, number_of(results[t]))
    if refinement.undefined:
        places = ", ".join(f"{t:g}" for t in refinement.undefined)
        logger.warning("The loss is not finite at t = %s: its barriers are not known to any tolerance.", places)
    ts = sorted(results)
    return assemble(path, np.array(ts), [results[t] for t in ts]), refinement
