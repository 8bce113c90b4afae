"""A first look at a path: its profile on as few examples as a tolerance allows, which is said with it.

Examples are drawn without replacement, in an order a seed fixes, and the sample doubles until every loss is known as
closely as was asked for. Judging several samples, and many points, is paid for: the error probability is divided by
the number of samples and of points (Bonferroni), so that the statement is about the whole profile, whenever it stops.

No sample can tell how large the losses are that it does not hold: one example of two hundred with twenty nats is missed
by most samples of a hundred, and moves the mean by 0.1. So a guarantee is given only where the largest possible loss is
named, or all examples are measured. Otherwise the half-widths are estimates for examples that are like those measured,
and `unseen` says how many may not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.connectivity.profile import PerExample, Profile
from mcanalysis.errors import UserError
from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import Estimate, half_width
from mcanalysis.paths import Path
from mcanalysis.store.measurements import Measurement

SampledObjective = Callable[[Mapping[str, Tensor], NDArray[np.int64]], PerExample]
"""A function of a point and of the numbers of the examples to measure there, counted from 0."""


@dataclass(frozen=True, eq=False)
class EarlyProfile:
    """`profile` on the examples numbered `examples`; `half_widths` (n,): how far each loss may lie from that on all.

    `confidence` that none lies farther: `guaranteed` where all examples were measured or the largest loss is known,
    else an estimate. A half-width is NaN where the loss is not finite, which it is on all examples then.
    `num_evaluations` of one example at one point were made, of `num_full` that all examples at all points would have
    taken; `saving` is the part not made, in [0, 1].
    """

    profile: Profile
    examples: NDArray[np.int64]
    half_widths: NDArray[np.float64]
    confidence: float
    num_evaluations: int
    num_full: int
    largest: float | None = None

    @property
    def saving(self) -> float:
        """The part of all evaluations that was not made."""
        return 1 - self.num_evaluations / self.num_full

    @property
    def is_exact(self) -> bool:
        """Whether all examples were measured."""
        return self.num_evaluations == self.num_full

    @property
    def guaranteed(self) -> bool:
        """Whether the half-widths hold whatever the examples are that were not measured."""
        return self.is_exact or self.largest is not None

    @property
    def unseen(self) -> float:
        """The largest share of examples, with `confidence`, that may be unlike all that were measured; 0 for all."""
        return 0.0 if self.is_exact else 1 - (1 - self.confidence) ** (1 / len(self.examples))

    @property
    def guarantee(self) -> str:
        """What is claimed, and on what condition, in a sentence."""
        lost = self.profile.ts[~np.isfinite(self.profile.losses)]
        named = f"; not finite, on all examples too: the loss at t = {', '.join(f'{t:g}' for t in lost)}"
        ending = named if len(lost) else ""
        if self.is_exact:
            return "all examples were measured: nothing is estimated" + ending
        if len(lost) == len(self.half_widths):
            return "nothing is claimed" + ending
        claim = (
            f"with {self.confidence:.0%} confidence no loss differs by more than {np.nanmax(self.half_widths):.2g} "
            "nats per target token from that on all examples"
        )
        if self.largest is not None:
            return (
                f"{claim}, if no example's number of targets times the largest loss of one passes {self.largest:g} "
                f"nats (empirical Bernstein){ending}"
            )
        return (
            f"an estimate, not a guarantee: {claim}, if these are like the {len(self.examples)} measured; up to "
            f"{self.unseen:.2g} of all may be unlike them, and count with what they lose{ending}"
        )


def early_profile(
    path: Path,
    objective: SampledObjective,
    ts: Sequence[float] | NDArray[np.float64],
    num_examples: int,
    tolerance: float,
    confidence: float = 0.95,
    first: int = 64,
    seed: int = 0,
    largest: float | None = None,
) -> EarlyProfile:
    """Measure a profile of losses until each is within `tolerance` of its value on all examples.

    The estimate of a loss is Σ nll / Σ targets over the sample, and the search ends at the latest, with exact values,
    when all N examples are in. With `largest` the half-widths are those of the empirical Bernstein–Serfling inequality
    (Bardenet & Maillard 2015, theorem 4.3) for the residuals nll − L·targets, which holds for every population and
    every n; it asks for many examples. Without it they are Student's t of a ratio, from the same residuals, with the
    factor √(1 − n/N) of sampling without replacement (Cochran 1977, ch. 6), wider where the residuals are skew (as in
    `mcanalysis.metrics.intervals`), and there is none, so that the search goes on, with fewer than 50 examples or where
    fewer than five make most of the variance: a sample that does not vary says nothing.

    Args:
        path: any path.
        objective: called for the examples not measured yet only; what it returns has `nll` and `targets`, and may have
            `scores`.
        ts: where to measure, (n,).
        num_examples: N.
        tolerance: nats per target token, above 0.
        confidence: that all losses are that close, in (0, 1).
        first: examples of the first sample; every further one doubles them.
        seed: of the order of the examples.
        largest: if known, the most targets of any of the N examples times the largest loss of one target at any point,
            in nats. It makes an estimate a guarantee.

    Raises:
        UserError: for a tolerance, confidence or number out of range.
    """
    check_precision(tolerance, confidence)
    if num_examples < 1 or first < 2:
        raise UserError(
            f"Expected at least 1 example and a first sample of 2 or more, got {num_examples} and {first}; raise them."
        )
    if largest is not None and not (np.isfinite(largest) and largest > 0):
        raise UserError(
            f"Expected the largest loss of an example above 0 nats, got {largest}; leave it out if it is not known."
        )
    ts = np.asarray(ts, dtype=float)
    order = np.random.default_rng(seed).permutation(num_examples)
    sizes = _sample_sizes(first, num_examples)
    risk = (1 - confidence) / (len(ts) * max(len(sizes) - 1, 1))  # the last sample needs none: it is exact
    found: list[list[PerExample]] = [[] for _ in ts]
    done = 0
    for number in sizes:
        for t, of_point in zip(ts, found, strict=True):
            of_point.append(objective(path(float(t)), order[done:number]))
        done = number
        joined = [_joined(parts) for parts in found]
        if largest is not None and (passed := max((_at_least(m) for m in joined), default=0.0)) > largest:
            raise UserError(
                f"Expected a bound of the most targets of an example times the largest loss of one, got {largest:g} "
                f"where it is at least {passed:.3g}; raise it, or leave it out."
            )
        half_widths = np.array([_half_width(m, num_examples, risk, largest) for m in joined])
        lost = np.array([not np.isfinite(m.loss) for m in joined])  # so it is on all examples: nothing to wait for
        half_widths[lost] = np.nan
        if (half_widths[~lost] <= tolerance).all():
            break
    profile = Profile.of(ts, joined, path.arc_lengths(ts).numpy())
    return EarlyProfile(profile, order[:done], half_widths, confidence, done * len(ts), num_examples * len(ts), largest)


def check_precision(tolerance: float, confidence: float) -> None:
    """Raise `UserError` for a tolerance or a confidence out of range."""
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise UserError(
            f"Expected a tolerance above 0 nats per target token, got {tolerance}; raise it, or measure all examples."
        )
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence between 0 and 1, got {confidence}; leave it out to use 0.95.")


def _sample_sizes(first: int, num_examples: int) -> list[int]:
    """Sample sizes: doubled, and all in the end."""
    sizes = [min(first, num_examples)]
    while sizes[-1] < num_examples:
        sizes.append(min(2 * sizes[-1], num_examples))
    return sizes


def _joined(parts: Sequence[PerExample]) -> Measurement:
    nll, targets, scores = (np.concatenate([getattr(p, n) for p in parts]) for n in ("nll", "targets", "scores"))
    return Measurement.of(nll, targets, scores)


def _at_least(measured: Measurement) -> float:
    """What `largest` cannot be below, by what was measured: some target has the mean loss of its example, or more."""
    nll, targets = (np.asarray(values)[np.isfinite(measured.nll)] for values in (measured.nll, measured.targets))
    if not len(nll) or not np.isfinite(measured.loss):
        return 0.0
    return float(max((nll / targets).max(), 0.0) * targets.max())


def _half_width(measured: Measurement, num_examples: int, risk: float, largest: float | None) -> float:
    """Of the two-sided interval of one loss that misses with probability `risk`; 0 where nothing is left out."""
    n = measured.num_examples
    if n == num_examples:
        return 0.0
    if largest is not None:
        return _bernstein(measured, num_examples, risk, largest)
    estimate = Estimate.of(Sample(measured.nll[None], measured.targets))
    return float(half_width(estimate, risk)[0]) * np.sqrt(1 - n / num_examples)


def _bernstein(measured: Measurement, num_examples: int, risk: float, largest: float) -> float:
    """Solved for |L̂ − L|: at the true L the residuals have mean 0 on all examples and a range of at most `largest`.

    A residual nll − L·targets lies between −L·targets and (the largest loss of one target − L)·targets.
    """
    n = measured.num_examples
    log = np.log(10 / risk)  # each side misses with probability 5δ at most
    left = 1 - (n - 1) / num_examples if n <= num_examples / 2 else (1 - n / num_examples) * (1 + 1 / n)
    factor = np.sqrt(2 * left * log / n)
    residuals = measured.nll - measured.loss * measured.targets
    slack = measured.targets.mean() - factor * measured.targets.std()  # the variance is at L̂, not at L
    kappa = 7 / 3 + 3 / np.sqrt(2)
    bound = factor * residuals.std() + kappa * largest * log / n
    return float(bound / slack) if slack > 0 else np.inf
