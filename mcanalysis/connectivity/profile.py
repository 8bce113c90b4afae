"""A profile: what one objective does along a path, with its barriers and their intervals."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.losses import held_names, refuse_draws
from mcanalysis.connectivity.objective_result import examples_of, has_examples, number_of, score_of
from mcanalysis.errors import UnknownNameError, UserError, shortened
from mcanalysis.metrics import barriers
from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import FEWEST_EVENTS, FEWEST_EXAMPLES, Estimate
from mcanalysis.paths import Curve, Path
from mcanalysis.paths.base import at_ends
from mcanalysis.settings import MOST_POINTS

logger = logging.getLogger(__name__)
Quantity = Literal["loss", "score"]
_ROUNDING = 1e-9  # of the number of steps to LOW and HIGH


class PerExample(Protocol):
    """What an objective may return instead of a float: per-example values, from which intervals are made."""

    @property
    def loss(self) -> float:
        """Nats per target token."""
        ...

    @property
    def nll(self) -> np.ndarray:
        """(examples,): summed over each example's targets, in nats."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """(examples,): numbers of target tokens."""
        ...

    @property
    def score(self) -> float | None:
        """In [0, 1], or None."""
        ...

    @property
    def scores(self) -> np.ndarray | None:
        """(examples,), in [0, 1], or None."""
        ...


@dataclass(frozen=True, eq=False)
class Profile:
    """One objective at `ts` (n,) along a path.

    `losses` (n,); where the objective gave per-example values also `nll` (n, examples) with `targets` (examples,), and
    `scores` (n,) with `example_scores` (n, examples). Every barrier has a method, and one with `_interval` that
    gives its 95 % interval over examples (`mcanalysis.metrics.intervals`). For scores, where higher is better, a
    barrier is how far the score falls below the chord. `arc_lengths` (n,): the length of the path up to each t, where
    the path could tell it; NaN beyond its ends.

    Barriers and `summary` are of the path from t = 0 to 1, whatever was measured beyond these ends.
    """

    ts: np.ndarray
    losses: np.ndarray
    nll: np.ndarray | None = None
    targets: np.ndarray | None = None
    scores: np.ndarray | None = None
    example_scores: np.ndarray | None = None
    arc_lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if (values := getattr(self, field.name)) is not None:  # lists are welcome
                object.__setattr__(self, field.name, np.asarray(values))

    def __repr__(self) -> str:
        """One line: every number is in the arrays.

        >>> Profile([0.0, 0.5, 1.0], [1.0, 3.0, 2.0])
        Profile(3 points, t from 0 to 1, loss from 1 to 3, no values per example)
        """
        parts = [f"{len(self.ts)} points", *(f"{n} from {v.min():.4g} to {v.max():.4g}" for n, v in self._curves())]
        parts.append("no values per example" if self.nll is None else f"{self.nll.shape[1]} examples")
        return f"Profile({', '.join(parts)})"

    def _curves(self) -> list[tuple[str, np.ndarray]]:
        if not len(self.ts):
            return []
        curves = [("t", self.ts), ("loss", self.losses)]
        return curves if self.scores is None else [*curves, ("score", self.scores)]

    @classmethod
    def of(
        cls, ts: Sequence[float] | np.ndarray, measurements: Sequence[PerExample], arc_lengths: np.ndarray | None = None
    ) -> Profile:
        """Put the measurements at `ts` together; raises `UserError` where they are not of the same examples."""
        found = [examples_of(m) for m in measurements]
        for m in found[1:]:
            if m.nll.shape != found[0].nll.shape or not np.array_equal(m.targets, found[0].targets):
                raise UserError(
                    f"Expected the same examples at every t, got {len(found[0].nll)} and {len(m.nll)} with other "
                    "targets; measure one fixed data set."
                )
        nll = np.stack([m.nll for m in found])
        has_scores = all(m.score is not None for m in found)
        has_own = has_scores and all(m.scores is not None and m.scores.size for m in found)
        return cls(
            np.asarray(ts, dtype=float),
            np.array([m.loss for m in found]),
            nll if nll.size else None,
            found[0].targets,
            np.array([m.score for m in found]) if has_scores else None,
            np.stack([m.scores for m in found]) if has_own else None,
            arc_lengths,
        )

    def between_ends(self) -> Profile:
        """What was measured at t in [0, 1]; the profile itself where that is all of it, or 0 or 1 was not measured."""
        inside = (self.ts >= 0) & (self.ts <= 1)
        if inside.all() or not self._has_ends:
            return self
        per_point = ("ts", "losses", "nll", "scores", "example_scores", "arc_lengths")
        parts = {name: None if (values := getattr(self, name)) is None else values[inside] for name in per_point}
        return replace(self, **parts)

    @property
    def _has_ends(self) -> bool:
        return {0.0, 1.0} <= set(self.ts.tolist())

    def values(self, quantity: Quantity = "loss") -> np.ndarray:
        """The curve itself, (n,): nats per target, or score in [0, 1]; raises `UnknownNameError` for another word."""
        if quantity not in get_args(Quantity):
            raise UnknownNameError("quantity", str(quantity), get_args(Quantity))
        if quantity == "loss":
            return self.losses
        if self.scores is None:
            raise UserError("Expected a profile with scores, got losses only; use an objective that scores outputs.")
        return self.scores

    def sample(self, quantity: Quantity = "loss") -> Sample:
        """Per-example values for the bootstrap; raises `UserError` where the objective gave only a number."""
        self.values(quantity)
        values = self.nll if quantity == "loss" else self.example_scores
        if values is None:
            raise UserError(
                "Expected an objective with per-example values, got one number per point; return an object with "
                "nll and targets (and scores) to get intervals."
            )
        return Sample(values, self.targets if quantity == "loss" else None)

    def estimate(self, quantity: Quantity = "loss", seed: int = 0) -> Estimate:
        """What intervals are made from; errors as for `sample`."""
        return Estimate.of(self.sample(quantity), is_score=quantity == "score", seed=seed)

    def chord_barrier(self, quantity: Quantity = "loss") -> float:
        """max_t [L(t) − ((1−t)L(0) + tL(1))], ≥ 0 (Entezari et al. 2022)."""
        return self._value(barriers.chord_barrier, quantity)

    def mean_barrier(self, quantity: Quantity = "loss") -> float:
        """max_t L(t) − ½(L(0) + L(1)) (Frankle et al. 2020)."""
        return self._value(barriers.mean_barrier, quantity)

    def max_barrier(self, quantity: Quantity = "loss") -> float:
        """max_t L(t) − max(L(0), L(1)), ≥ 0."""
        return self._value(barriers.max_barrier, quantity)

    def chord_dip(self, quantity: Quantity = "loss") -> float:
        """max_t [chord − L(t)], ≥ 0: how far the path lies below the chord."""
        return self._value(barriers.chord_dip, quantity)

    def chord_barrier_interval(self, quantity: Quantity = "loss", seed: int = 0) -> tuple[float, float]:
        """95 % interval of `chord_barrier` over examples."""
        return self._interval("chord_barrier", quantity, seed)

    def mean_barrier_interval(self, quantity: Quantity = "loss", seed: int = 0) -> tuple[float, float]:
        """95 % interval of `mean_barrier` over examples."""
        return self._interval("mean_barrier", quantity, seed)

    def max_barrier_interval(self, quantity: Quantity = "loss", seed: int = 0) -> tuple[float, float]:
        """95 % interval of `max_barrier` over examples."""
        return self._interval("max_barrier", quantity, seed)

    def chord_dip_interval(self, quantity: Quantity = "loss", seed: int = 0) -> tuple[float, float]:
        """95 % interval of `chord_dip` over examples."""
        return self._interval("chord_dip", quantity, seed)

    def summary(self, quantity: Quantity = "loss") -> dict[str, float]:
        """Mean over t and over arc length, extremes and the t where they are first reached, between the ends.

        `mean_over_t` = ∫L dt and `mean_over_arc` = ∫L ds / length by the trapezoid rule on the measured points (NaN
        without lengths, and for a path that does not move), `max`, `arg_max`, `min`, `arg_min`, `length` (NaN without
        lengths). A NaN value makes all but the length NaN.

        >>> Profile(np.array([0.0, 0.5, 1.0]), np.array([0.0, 2.0, 1.0])).summary()["mean_over_t"]
        1.25
        """
        if (inside := self.between_ends()) is not self:
            return inside.summary(quantity)
        values, s = self.values(quantity), self.arc_lengths
        length = float("nan") if s is None else float(s[-1] - s[0])
        over_arc = float(np.trapezoid(values, s)) / length if s is not None and length > 0 else float("nan")
        lost = bool(np.isnan(values).any())
        high, low = int(np.argmax(values)), int(np.argmin(values))
        return {
            "mean_over_t": float(np.trapezoid(values, self.ts)) / float(self.ts[-1] - self.ts[0]),
            "mean_over_arc": over_arc,
            "max": float(values[high]),
            "arg_max": float("nan") if lost else float(self.ts[high]),
            "min": float(values[low]),
            "arg_min": float("nan") if lost else float(self.ts[low]),
            "length": length,
        }

    def to_frame(self) -> pd.DataFrame:
        """A table with `t`, `loss` and, where there is one, `score`.

        Look a t up with `np.isclose`: of 21 equally spaced ones the fourth is 0.15000000000000002.
        """
        return pd.DataFrame(dict(self._curves()))

    def _repr_html_(self) -> str:
        from mcanalysis.html_table import html_curve, html_table, number

        frame = self.to_frame()
        shown: list[Quantity] = ["loss"] if self.scores is None else ["loss", "score"]
        names = {"loss": "loss (nats per target token)", "score": "score (0–1)"}
        curves = "".join(html_curve(self.ts, self.values(quantity), names[quantity]) for quantity in shown)
        summary = ""
        if self._has_ends:
            barriers_ = [f"{n} {number(getattr(self, n)())}" for n in ("chord_barrier", "max_barrier", "chord_dip")]
            summary = f"<p>of the loss: {', '.join(barriers_)}</p>"
        return curves + summary + html_table(list(frame.columns), frame.astype(object).to_numpy().tolist())

    def _value(self, barrier: Callable[..., Any], quantity: Quantity) -> float:
        path = self.between_ends()
        return float(barrier(path.ts, path.values(quantity), higher_is_better=quantity == "score"))

    def _interval(self, name: str, quantity: Quantity, seed: int) -> tuple[float, float]:
        path = self.between_ends()
        found = barriers.barrier_interval(
            name, path.ts, path.estimate(quantity, seed), higher_is_better=quantity == "score"
        )
        if found.few_events:
            logger.warning(
                "The interval of %s (%s) may not hold in 95 %% of samples: under %d examples, or under %d of them make "
                "most of its variance.",
                name, quantity, FEWEST_EXAMPLES, FEWEST_EVENTS,
            )  # fmt: skip
        return float(found.low), float(found.high)


def grid(num_points: int = 21) -> np.ndarray:
    """Equally spaced t from 0 to 1, both included; raises `UserError` for fewer than two points.

    >>> grid(3).tolist()
    [0.0, 0.5, 1.0]
    """
    if num_points < 2:
        raise UserError(f"Expected --num-points of at least 2 (both ends), got {num_points}; leave it out to use 21.")
    return np.linspace(0.0, 1.0, num_points)


def grid_beyond(num_points: int, low: float, high: float) -> np.ndarray:
    """The t in [low, 0) and in (1, high] at the spacing of `grid(num_points)`, in increasing order: shape (n,).

    Raises `UserError` unless low ≤ 0 and high ≥ 1 are finite and some such t lies between them.

    >>> grid_beyond(5, -0.5, 1.3).tolist()
    [-0.5, -0.25, 1.25]
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= 0 and high >= 1):
        raise UserError(
            f"Expected a range of t around [0, 1], got {low:g},{high:g}; give --extrapolate LOW,HIGH with LOW of at "
            "most 0 and HIGH of at least 1, such as -0.5,1.5."
        )
    steps = num_points - 1
    if (high - low) * steps > MOST_POINTS:
        raise UserError(
            f"Expected at most {MOST_POINTS:,} points on a path, got more at {steps} steps of each length from {low:g} "
            f"to {high:g}; narrow --extrapolate or lower --num-points."
        )
    first, last = math.ceil(low * steps - _ROUNDING), math.floor(high * steps + _ROUNDING)
    numbers = [*range(first, 0), *range(steps + 1, last + 1)]
    if not numbers:
        raise UserError(
            f"Expected a range of t that reaches a step of {1 / steps:g} beyond [0, 1], got {low:g},{high:g}; widen "
            "--extrapolate or raise --num-points."
        )
    return np.array(numbers) / steps


def profile(
    path: Callable[[float], Mapping[str, Tensor]],
    objective: Callable[[Mapping[str, Tensor]], float | PerExample],
    ts: Sequence[float] | None = None,
) -> Profile:
    """Evaluate an objective along a path, one point in memory at a time.

    `objective(point)` returns a number (also as a tensor or array with one), or an object with `loss`, such as what a
    transformers model returns, and perhaps `score`. With `nll` and `targets` per example, and `scores` where there are
    some, intervals are possible: `mcanalysis.module_objective` makes such an objective of any network. Works on any
    dict of tensors: no language model, no LoRA needed. `ts` defaults to 21 equally spaced points, in increasing order;
    barriers need 0 and 1 among them, and a t within 1e-12 of them is taken as them. A path of this package also tells
    its lengths (without buffers, where the objective holds them), which `Profile.summary` uses. A straight path that
    was built with `extrapolate=True` may be measured beyond its ends, too; losses and scores that are not finite there
    are warned of.

    Raises `UserError` for fewer than two values of t, for values that do not increase, for an objective that draws
    minibatches, for a result that is no loss, and for a t outside [0, 1], by a straight path unless it extrapolates,
    and for a curve always: its bends were made for what lies between its ends.

    >>> import torch
    >>> from mcanalysis.paths import Linear
    >>> line = Linear({"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])})
    >>> profile(line, lambda p: float(1 - p["w"] ** 2), ts=[0, 0.5, 1]).chord_barrier()
    1.0
    """
    for what, given, example in (("a path", path, "mc.Linear(a, b)"), ("an objective", objective, "a loss of points")):
        if not callable(given):
            raise UserError(
                f"Expected {what} that can be called, got {type(given).__name__}; pass one such as {example}."
            )
    if isinstance(objective, Path):
        raise UserError(
            f"Expected an objective behind the path, got the path {type(objective).__name__}; swap the two."
        )
    refuse_draws(objective)
    if ts is not None and np.ndim(ts) == 0:
        raise UserError(
            f"Expected values of t such as [0, 0.5, 1], got {shortened(ts)}; leave ts out for 21 of them, or pass "
            "np.linspace(0, 1, n) for n."
        )
    places = grid() if ts is None else np.array([at_ends(float(t)) for t in np.ravel(ts)])
    if len(places) < 2:
        raise UserError(f"Expected at least two values of t, got {len(places)}; pass 0 and 1 at least.")
    if not (np.diff(places) > 0).all():
        raise UserError(f"Expected values of t in increasing order, got {places.tolist()}; sort them and drop repeats.")
    outside = places[(places < 0) | (places > 1)]
    if len(outside) and isinstance(path, Curve):
        raise UserError(
            f"Expected t in [0, 1] on a curve, got {outside[0]:g}: its bends say nothing of what lies beyond its ends; "
            "leave such values out, or take a straight path (mc.Linear)."
        )
    found = assemble(path, places, [objective(path(float(t))) for t in places], held_names(objective))
    if len(outside):
        _warn_of_not_finite(found)
    return found


def _warn_of_not_finite(found: Profile) -> None:
    """Say in one line at which t beyond the ends a loss or score is not finite."""
    finite = np.isfinite(found.losses) & (True if found.scores is None else np.isfinite(found.scores))
    lost = found.ts[((found.ts < 0) | (found.ts > 1)) & ~finite]
    if len(lost):
        places = ", ".join(f"{t:g}" for t in lost)
        logger.warning("Beyond the ends of the path the loss or the score is not finite at t = %s.", places)


def assemble(path: object, ts: np.ndarray, results: Sequence[Any], held: Collection[str] = ()) -> Profile:
    """Put what an objective returned at `ts` together, with the lengths of a path that can tell them, without what is
    `held`.

    >>> assemble(None, np.array([0.0, 1.0]), [0.5, 2.0]).max_barrier()
    0.0
    """
    inside = (ts >= 0) & (ts <= 1)
    lengths = None
    if isinstance(path, Path) and inside.any():
        lengths = np.full(len(ts), np.nan)
        along = path.arc_lengths(ts[inside], held=held) if held else path.arc_lengths(ts[inside])
        lengths[inside] = along.numpy()
    if all(map(has_examples, results)):
        return Profile.of(ts, results, lengths)
    scores = [score_of(result) for result in results]
    return Profile(
        ts,
        np.array([number_of(result) for result in results]),
        scores=None if None in scores else np.array(scores),
        arc_lengths=lengths,
    )
