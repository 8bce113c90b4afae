"""Early answers: a profile on as few examples as a tolerance allows, which is said with it.

Examples are drawn without replacement, in an order a seed fixes, and the sample doubles until every loss is known as
closely as was asked for. Looking several times, and at many points, is paid for: the error probability is divided by
the number of looks and of points (Bonferroni), so that the statement holds for the whole profile, whenever it stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from mcanalysis.connectivity.profile import PerExample, Profile
from mcanalysis.errors import UserError
from mcanalysis.paths import Path
from mcanalysis.store.measurements import Measurement

SampledObjective = Callable[[Mapping[str, Tensor], NDArray[np.int64]], PerExample]
"""A function of a point and of the numbers of the examples to measure there, counted from 0."""


@dataclass(frozen=True, eq=False)
class EarlyProfile:
    """`profile` on the examples numbered `examples`; `half_widths` (n,): how far each loss may lie from that on all.

    `confidence` that none lies farther. `num_evaluations` of one example at one point were made, of `num_full` that all
    examples at all points would have taken; `saving` is the part not made, in [0, 1].
    """

    profile: Profile
    examples: NDArray[np.int64]
    half_widths: NDArray[np.float64]
    confidence: float
    num_evaluations: int
    num_full: int

    @property
    def saving(self) -> float:
        """The part of all evaluations that was not made."""
        return 1 - self.num_evaluations / self.num_full

    @property
    def guarantee(self) -> str:
        """What is claimed, in a sentence."""
        if not self.half_widths.any():
            return "all examples were measured: nothing is estimated"
        return (
            f"with {self.confidence:.0%} confidence no loss differs by more than {self.half_widths.max():.2g} nats per "
            "target token from that on all examples (Student's t, Bonferroni over points and looks)"
        )


def early_profile(
    path: Path,
    objective: SampledObjective,
    ts: Sequence[float] | NDArray[np.float64],
    num_examples: int,
    tolerance: float,
    confidence: float = 0.95,
    first: int = 32,
    seed: int = 0,
) -> EarlyProfile:
    """Measure a profile of losses until each is within `tolerance` of its value on all examples.

    The estimate of a loss is Σ nll / Σ targets over the sample; its standard error is that of a ratio, from the
    residuals nll − L·targets, with the factor √(1 − n/N) of sampling without replacement (Cochran 1977, ch. 6), which
    makes the answer exact, and the search end, when all N examples are in.

    Args:
        path: any path.
        objective: called for the examples not measured yet only; what it returns has `nll` and `targets`, and may have
            `scores`.
        ts: where to measure, (n,).
        num_examples: N.
        tolerance: nats per target token, above 0.
        confidence: that all losses are that close, in (0, 1). The intervals are approximate: the mean of the first
            sample has to be nearly normal, so `first` should not be small where losses have heavy tails.
        first: examples of the first look; every further look doubles them.
        seed: of the order of the examples.

    Raises:
        UserError: for a tolerance, confidence or number out of range.
    """
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise UserError(f"Expected a tolerance above 0 nats per target token, got {tolerance}; measure all otherwise.")
    if not 0 < confidence < 1:
        raise UserError(f"Expected a confidence between 0 and 1, got {confidence}; the default is 0.95.")
    if num_examples < 1 or first < 2:
        raise UserError(
            f"Expected at least 1 example and a first look at 2 or more, got {num_examples} and {first}; give more."
        )
    ts = np.asarray(ts, dtype=float)
    order = np.random.default_rng(seed).permutation(num_examples)
    looks = _looks(first, num_examples)
    risk = (1 - confidence) / (len(ts) * max(len(looks) - 1, 1))  # the last look needs none: it is exact
    found: list[list[PerExample]] = [[] for _ in ts]
    done = 0
    for number in looks:
        for t, of_point in zip(ts, found, strict=True):
            of_point.append(objective(path(float(t)), order[done:number]))
        done = number
        joined = [_joined(parts) for parts in found]
        half_widths = np.array([_half_width(m, num_examples, risk) for m in joined])
        if (half_widths <= tolerance).all():
            break
    profile = Profile.of(ts, joined, path.arc_lengths(ts).numpy())
    return EarlyProfile(profile, order[:done], half_widths, confidence, done * len(ts), num_examples * len(ts))


def _looks(first: int, num_examples: int) -> list[int]:
    """Sample sizes: doubled, and all in the end."""
    looks = [min(first, num_examples)]
    while looks[-1] < num_examples:
        looks.append(min(2 * looks[-1], num_examples))
    return looks


def _joined(parts: Sequence[PerExample]) -> Measurement:
    nll, targets, scores = (np.concatenate([getattr(p, n) for p in parts]) for n in ("nll", "targets", "scores"))
    return Measurement.of(nll, targets, scores)


def _half_width(measured: Measurement, num_examples: int, risk: float) -> float:
    """Of the two-sided interval of one loss that misses with probability `risk`; 0 where nothing is left out."""
    n = measured.num_examples
    if n == num_examples:
        return 0.0
    residuals = measured.nll - measured.loss * measured.targets
    variance = float(residuals.var(ddof=1)) / n * (1 - n / num_examples)
    return float(student.ppf(1 - risk / 2, n - 1)) * np.sqrt(variance) / float(measured.targets.mean())
