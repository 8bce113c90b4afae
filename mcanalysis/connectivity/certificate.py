"""A certificate of a barrier: two numbers that it lies between, and what of it is proven.

The target is the barrier on all the examples given. What is not known of it is of two kinds, and the certificate covers
both: what the examples that were not measured at a point would add (sampling), and what the path does between measured
points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.connectivity.certificate_band import QUANTITIES, Bound, Quantity
from mcanalysis.connectivity.certificate_search import BUDGET, CertificateSearch, Examples
from mcanalysis.connectivity.losses import refuse_draws
from mcanalysis.connectivity.objective_result import examples_of, has_examples, loss_of, number_of
from mcanalysis.errors import UnknownNameError, UserError

Array = NDArray[np.float64]
_ROUNDINGS = 8  # of the numbers of a point, below which a tolerance means nothing


@dataclass(frozen=True, eq=False)
class Certificate:
    """The barrier `quantity` of a curve lies in [`low`, `high`]; `estimate` is the highest measured, at `t`.

    `reached`: whether high − low is at most `tolerance`; else the budget ended before, and this is what is known so
    far. `proven`: whether [low, high] rests on no assumption: between points on a stated bound, and at each of them on
    all examples, or on intervals that hold for every population with `confidence`. `proven_low` and `proven_high` are
    what is proven, in any case; ∞ where nothing is. `t_low` and `t_high`: between which the highest point may lie. NaN
    where the curve is not finite at one of `undefined`.

    `cost`: evaluations of all examples at one point that were made, ends included; a derivative counts 2. `ts` (n,):
    where was measured, on `num_examples` (n,) of `total` examples (1 for an objective that gives one number), with
    `losses`, `losses_low` and `losses_high` (n,), intervals of the curve's value on all examples that hold together.
    `new_low` and `new_high`: a 95 % interval of the barrier on new examples, of which the given ones are a sample; NaN
    without values per example. `measured`: the values themselves, for `known` of a later call.
    """

    quantity: str
    of: str
    low: float
    high: float
    proven_low: float
    proven_high: float
    estimate: float
    t: float
    t_low: float
    t_high: float
    tolerance: float
    confidence: float
    proven: bool
    reached: bool
    sampling: str
    between: str
    cost: float
    total: int
    ts: Array
    losses: Array
    losses_low: Array
    losses_high: Array
    num_examples: NDArray[np.int64]
    new_low: float
    new_high: float
    undefined: tuple[float, ...]
    examples: Examples = field(repr=False)
    end_slopes: tuple[float | None, float | None] = field(repr=False)
    seed: int = field(repr=False)
    is_plain: bool = field(repr=False)
    band: tuple[Array, Array, Array, Array] = field(repr=False)
    measured: Mapping[float, tuple[Array, float | None]] = field(repr=False)

    @property
    def guarantee(self) -> str:
        """What is claimed, and on what it rests, in a sentence."""
        if self.undefined:
            places = ", ".join(f"{t:g}" for t in self.undefined)
            return f"nothing is claimed: the curve is not finite at t = {places}"
        start = "" if self.reached else "not within the tolerance, what is known so far: "
        kind = "proven" if self.proven else "an estimate"
        sure = "" if self.sampling in ("all examples", "one number") else f" with {self.confidence:.0%} confidence"
        return (
            f"{start}{kind}{sure}: {self.quantity} in [{self.low:.4g}, {self.high:.4g}]; at measured points: "
            f"{self.sampling}; between them: {self.between}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A table with `t`, `loss`, `loss_low`, `loss_high`, `num_examples`."""
        columns = {"t": self.ts, "loss": self.losses, "loss_low": self.losses_low, "loss_high": self.losses_high}
        return pd.DataFrame({**columns, "num_examples": self.num_examples})


def barrier_certificate(
    path: Callable[[float], Mapping[str, Tensor]],
    objective: Callable[..., Any],
    tolerance: float,
    *,
    barrier: Quantity = "chord_barrier",
    of: str = "loss",
    confidence: float = 0.95,
    budget: float = BUDGET,
    curvature: Bound | None = None,
    lipschitz: Bound | None = None,
    derivatives: bool = False,
    knots: Sequence[float] | None = None,
    known: Certificate | None = None,
    seed: int = 0,
) -> Certificate:
    """Measure a path where it tells most, until a barrier is known to a tolerance; returns what it lies between.

    Both ends are measured on all examples, points between on as many as it takes: an objective that has `num_examples`
    is called as `objective(point, rows)` with the numbers of the examples to measure, from 0. Any other one is called
    as in `profile`, and each point is then measured on all its examples.

    **Sampling.** What an example adds beyond the chord between its own values at the ends is estimated for all from
    those measured, by regression on the ends and on the nearest points that were measured on all. Examples whose ends
    differ most are drawn first. Scores lie in [0, 1], so that their intervals are betting confidence intervals for
    sampling without replacement, which hold for every population (Waudby-Smith & Ramdas 2020, 2024; Shekhar et al.
    2023). Nothing bounds a loss: its intervals are Student's t, and asymptotic. Either way the error probability is
    divided by the number of places and of sample sizes that may be looked at (Bonferroni; for five looks it is sharper
    than an asymptotic confidence sequence).

    **Between points.** With `curvature` or `lipschitz`, bounds on |d²L/dt²| between knots and on |dL/dt|, nothing is
    estimated, and the certificate is `proven` unless the objective returns a plain float: give a tensor. Without them a
    polynomial through the nearest points is trusted as far as it agrees with those through one point fewer, and one
    more point tries it before the search ends: a bump that lies wholly between two measured points is not seen, and
    the certificate is not `proven`.

    Args:
        path: a map from t in [0, 1] to points.
        objective: a function of a point, or of a point and numbers of examples.
        tolerance: by how much `high` may lie above `low`: nats per target, or of a score.
        barrier: `chord_barrier`, `mean_barrier`, `max_barrier`, `chord_dip`, or `interpolation_gain`: the best value
            for 0.05 ≤ t ≤ 0.95 beside the better end, whose `t` is t* on these examples.
        of: "loss", or "score", where higher is better and a barrier is how far it falls.
        confidence: that nothing that rests on a sample is wrong, in (0, 1).
        budget: the most evaluations of all examples at one point, at least 2 for the ends (6 with derivatives); by
            default a tenth more than the 21 points of a grid.
        curvature: a bound, or a function of a and b that gives one on [a, b].
        lipschitz: a bound, or such a function.
        derivatives: whether dL/dt is measured with every point, by one backward pass, which costs 2 beside 1.
        knots: where the path may turn sharply; by default `path.knots`, if it has any.
        known: an earlier certificate of the same path and objective, whose measurements are taken as they are.
        seed: of the order of the examples; with `known`, its own.

    Raises:
        UserError: for a tolerance that is not positive, or below the rounding of the values; for a budget that does not
            pay for the ends; for an objective that draws minibatches; for measured values that a stated bound does not
            allow; for `derivatives` of a loss that cannot be differentiated; for an unknown name.

    >>> from mcanalysis.paths import Linear
    >>> line = Linear({"w": torch.tensor([-1.0])}, {"w": torch.tensor([1.0])})
    >>> found = barrier_certificate(line, lambda p: 1 - p["w"] ** 2, tolerance=0.01, curvature=8.0)
    >>> found.proven, found.reached, found.low <= 1.0 <= found.high
    (True, True, True)
    """
    if barrier not in QUANTITIES:
        raise UnknownNameError("barrier", barrier, QUANTITIES)
    if of not in ("loss", "score"):
        raise UnknownNameError("quantity", of, ("loss", "score"))
    check_tolerance(tolerance)
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence between 0 and 1, got {confidence}; leave it out to use 0.95.")
    if known is not None and known.of != of:
        raise UserError(f"Expected an earlier certificate of the {of}, got one of the {known.of}; leave known out.")
    refuse_draws(objective)
    measure = _Measure(path, objective, of, derivatives)
    if not budget >= 2 * measure.cost:
        raise UserError(
            f"Expected a budget of at least {2 * measure.cost}, both ends of the path, got {budget:g}; raise it."
        )
    if known is None or (derivatives and None in known.end_slopes):
        (first, first_slope), (last, last_slope) = measure.end(0.0), measure.end(1.0)
        examples = Examples(first, last, measure.weights, *measure.limits, measure.scale)
        slopes, spent = (first_slope, last_slope), 2.0 * measure.cost
    else:
        examples, slopes, spent = known.examples, known.end_slopes, 0.0
        measure.of_examples(examples)
        measure.is_plain = known.is_plain
    check_rounding(tolerance, max(abs(float(v.sum())) for v in (examples.start, examples.end)), _eps(path(0.0)))
    where = getattr(path, "knots", (0.0, 1.0)) if knots is None else knots
    search = CertificateSearch(
        examples, tolerance, barrier, confidence, budget, spent, where, curvature, lipschitz, measure.can_sample,
        derivatives, slopes, seed if known is None else known.seed, known is not None and known.reached,
    )  # fmt: skip
    for t, (values, slope) in (known.measured if known else {}).items():
        search.give(t, values, slope)
    while (wanted := search.next()) is not None:
        values, slope = measure(wanted.t, wanted.rows, wanted.slope)
        search.tell(wanted.t, values, slope)
    return certificate_of(search, -1 if of == "score" else 1, measure.has_examples, measure.is_plain)


def check_tolerance(tolerance: float) -> None:
    """Raise `UserError` unless a tolerance is a positive number."""
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise UserError(f"Expected a positive tolerance, got {tolerance}; give it in the unit of the values.")


def check_rounding(tolerance: float, scale: float, eps: float) -> None:
    """Raise `UserError` for a tolerance below the rounding of values of size `scale` that are computed with `eps`."""
    rounding = _ROUNDINGS * eps * scale
    if np.isfinite(rounding) and tolerance < rounding:
        raise UserError(
            f"Expected a tolerance above the rounding of the values, {rounding:.1g} for values of {scale:.3g}, got "
            f"{tolerance:g}; raise it."
        )


def certificate_of(
    search: CertificateSearch, sign: int = 1, has_examples: bool = True, is_plain: bool = False
) -> Certificate:
    """Put into words and numbers what a search knows; `sign` −1: of scores, which it was given with the sign turned.

    `is_plain`: the values were plain numbers, of which nobody can check a bound that is stated: nothing is proven.
    """
    found = search.found()
    if is_plain:
        found = replace(found, proven_low=-np.inf, proven_high=np.inf)
    ts = np.array(sorted(search.points))
    points = [search.points[float(t)] for t in ts]
    totals = np.array([p.total for p in points])
    if sign == -1:
        totals = -totals[:, [0, 2, 1]]
    counts = np.array([len(p.values) for p in points])
    has_bound = search.curvature is not None or search.lipschitz is not None
    is_whole = bool((counts == search.number).all())
    proven = not is_plain and has_bound and all(p.is_proven for p in points) and not search.undefined
    if not has_examples:
        sampling = "one number"
    elif is_whole:
        sampling = "all examples"
    elif all(p.is_proven for p in points):
        sampling = "confidence intervals for every population"
    else:
        sampling = "asymptotic intervals"
    named = [n for n, b in (("curvature", search.curvature), ("Lipschitz", search.lipschitz)) if b is not None]
    between = f"a stated {' and '.join(named)} bound" if named else "estimated by interpolation"
    none = np.empty(0)
    band = (none, none, none, none) if search.undefined else search.band()
    if sign == -1:
        band = (band[0], -band[1], -band[3], -band[2])
    new_low, new_high = search.for_new_examples() if has_examples else (np.nan, np.nan)
    return Certificate(
        quantity=search.quantity, of="score" if sign == -1 else "loss", **vars(found),
        tolerance=search.tolerance, confidence=search.confidence, proven=proven,
        reached=bool(found.high - found.low <= search.tolerance), sampling=sampling, between=between,
        cost=search.spent, total=search.number, ts=ts, losses=totals[:, 0], losses_low=totals[:, 1],
        losses_high=totals[:, 2], num_examples=counts, new_low=new_low, new_high=new_high,
        undefined=search.undefined, examples=search.examples, end_slopes=search.start_slopes, seed=search.seed,
        is_plain=is_plain, band=band,
        measured={float(t): (p.values, p.slope) for t, p in zip(ts, points, strict=True) if 0 < t < 1},
    )  # fmt: skip


class _Measure:
    """What the examples add to the curve at a point of the path."""

    def __init__(self, path: Callable[[float], Mapping[str, Tensor]], objective: Any, of: str, slopes: bool) -> None:
        self.path, self.objective, self.of, self.slopes = path, objective, of, slopes
        self.can_sample = getattr(objective, "num_examples", None) is not None
        self.cost = 3 if slopes else 1
        self.has_examples = self.is_plain = False
        self.weights: Array = np.ones(1)
        self.scale = 1.0

    def of_examples(self, examples: Examples) -> None:
        """Take from an earlier search what the ends tell."""
        self.weights, self.scale = examples.weights, examples.scale
        self.has_examples = len(self.weights) > 1 or self.can_sample

    @property
    def limits(self) -> tuple[Array | None, Array | None]:
        """Between which numbers what an example adds lies; for scores in [0, 1] only."""
        if self.of != "score" or not self.has_examples:
            return None, None
        return -self.weights, np.zeros(len(self.weights))

    def end(self, t: float) -> tuple[Array, float | None]:
        """An end, on all examples; it tells how many there are, and what each weighs."""
        rows = np.arange(self.objective.num_examples) if self.can_sample else None
        result, slope = self._result(t, rows, self.slopes)
        self.has_examples = has_examples(result)
        if self.has_examples:
            found = examples_of(result)
            weights = np.ones(len(found.nll)) if self.of == "score" else found.targets
            weights = np.asarray(weights, dtype=np.float64) / float(np.sum(weights))
            if t == 1.0 and not np.array_equal(weights, self.weights):
                raise UserError("Expected the same examples at both ends, got others; measure one fixed data set.")
            self.scale = -float(len(found.nll)) if self.of == "score" else float(found.targets.sum())
            self.weights = weights
        elif self.can_sample or self.of == "score":
            raise UserError(
                "Expected an objective with values per example, got one number; return an object with nll and targets "
                "(and scores)."
            )
        return self._values(result, rows), slope

    def __call__(self, t: float, rows: NDArray[np.int64], slope: bool) -> tuple[Array, float | None]:
        """Inside: on the examples numbered `rows`."""
        result, found = self._result(t, rows if self.can_sample else None, slope)
        return self._values(result, rows), found

    def _result(self, t: float, rows: NDArray[np.int64] | None, slope: bool) -> tuple[Any, float | None]:
        more = () if rows is None else (rows,)
        point = self.path(t)
        if not slope:
            result = self.objective(point, *more)
            self.is_plain = not has_examples(result) and not isinstance(loss_of(result), Tensor)
            return result, None
        if not hasattr(self.path, "derivative"):
            raise UserError("Expected a path with a derivative, got one without; leave derivatives=True out.")
        leaves = {n: x.detach().requires_grad_(x.is_floating_point()) for n, x in point.items()}
        result = self.objective(leaves, *more)
        loss = loss_of(result)
        if self.of == "score" or not (isinstance(loss, Tensor) and loss.requires_grad):
            raise UserError(
                "Expected a loss that can be differentiated by the point, a tensor, got a number; return the tensor, "
                "or leave derivatives=True out."
            )
        trained = {n: x for n, x in leaves.items() if x.requires_grad}
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        along = self.path.derivative(t)  # type: ignore[attr-defined]
        parts = [
            float((g.double() * along[n].double()).sum())
            for n, g in zip(trained, gradients, strict=True)
            if g is not None
        ]
        return result, float(np.sum(parts))

    def _values(self, result: Any, rows: NDArray[np.int64] | None) -> Array:
        if not self.has_examples:
            return np.array([number_of(result)])
        found = examples_of(result)
        wanted = len(self.weights) if rows is None else len(rows)
        if self.can_sample and len(found.nll) != wanted:
            raise UserError(
                f"Expected values of the {wanted} examples asked for, got {len(found.nll)}; return one of each."
            )
        if self.of == "loss":
            values = found.nll / self.scale
        elif found.scores is None or not len(found.scores):
            raise UserError("Expected scores per example, got none; return an object with scores.")
        elif ((found.scores < 0) | (found.scores > 1)).any():
            raise UserError("Expected scores between 0 and 1, got others; scale them.")
        else:
            values = found.scores / self.scale
        return values if self.can_sample or rows is None else values[rows]


def _eps(point: Mapping[str, Tensor]) -> float:
    """The coarsest rounding of a point's numbers; of float32 where a coarser type is stored."""
    types = [x.dtype for x in point.values() if x.is_floating_point()]
    return max((min(torch.finfo(d).eps, torch.finfo(torch.float32).eps) for d in types), default=0.0)
