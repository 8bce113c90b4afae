"""What a classic result is: published claims, a measurement of them over seeds, and a rule that decides each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Literal, NamedTuple, ParamSpec

import numpy as np
import pandas as pd

from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.plotting.classics import Panel

P = ParamSpec("P")

GUESSING = math.log(10)  # nats per example: the loss of a network that knows nothing of ten digits
HIGH = 0.1 * GUESSING  # our line between a high and a low barrier of loss
STABLE = 0.02  # Frankle et al. 2020 call a pair stable whose error rises by less than 2 percentage points


@dataclass(frozen=True)
class Claim:
    """A published claim in our words, and the rule that decides whether it is seen.

    It is seen when the whole 95 % interval of the mean of `measure` over the seeds lies on the `side` of `bound`.
    `unit` is that of the measure and the bound ("" for a number without one).
    """

    published: str
    measure: str
    side: Literal["above", "below"]
    bound: float
    unit: str = "nats"

    @property
    def rule(self) -> str:
        """The rule in words.

        >>> Claim("…", "barrier", "above", 0.5).rule
        'interval above 0.5 nats'
        """
        return f"interval {self.side} {self.bound:.3g} {self.unit}".strip()

    def verdict(self, low: float, high: float) -> str:
        """`seen`, `not seen`, or `undecided` where there is no interval, as of one seed.

        >>> Claim("…", "barrier", "above", 0.5).verdict(0.4, 0.9)
        'not seen'
        """
        if math.isnan(low) or math.isnan(high):
            return "undecided"
        holds = low > self.bound if self.side == "above" else high < self.bound
        return "seen" if holds else "not seen"


@dataclass(frozen=True, eq=False)
class Measured:
    """`values`: measure, seed, value. `curves`: panel, series, seed, x, y (what the figure draws)."""

    values: pd.DataFrame
    curves: pd.DataFrame


class OfSeed(NamedTuple):
    """What was found for one seed: every measure by name, and the curves as panel, series, xs, ys."""

    seed: int
    values: Mapping[str, float]
    curves: Sequence[tuple[str, str, Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]


@dataclass(frozen=True, eq=False)
class Classic:
    """One result of the literature. `measure(seeds)` trains and measures; `panels` are those of its figure by name."""

    name: str
    source: str
    claims: tuple[Claim, ...]
    measure: Callable[[Sequence[int]], Measured]
    panels: Mapping[str, Panel]


def judge(classic: Classic, values: pd.DataFrame) -> pd.DataFrame:
    """Return one row per claim: result, source, published, measure, unit, mean, low, high, num_seeds, rule, verdict."""
    rows = []
    for claim in classic.claims:
        own = values[values.measure == claim.measure].value.tolist()
        mean, low, high = student_interval(own)
        rows.append(
            {
                "result": classic.name, "source": classic.source, "published": claim.published,
                "measure": claim.measure, "unit": claim.unit, "mean": mean, "low": low, "high": high,
                "num_seeds": len(own), "rule": claim.rule, "verdict": claim.verdict(low, high),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def with_means(curves: pd.DataFrame) -> pd.DataFrame:
    """The curves with a column `mean`, the mean of y over the seeds at each x.

    >>> curves = pd.DataFrame({"panel": "a", "series": "b", "seed": [0, 1], "x": 0.5, "y": [1.0, 3.0]})
    >>> with_means(curves)["mean"].tolist()
    [2.0, 2.0]
    """
    return curves.assign(mean=curves.groupby(["panel", "series", "x"], sort=False).y.transform("mean"))


def as_tables(of_seeds: Callable[P, Iterator[OfSeed]]) -> Callable[P, Measured]:
    """A function that yields what it found for one seed after another, made to return the tables of all."""

    @wraps(of_seeds)
    def measure(*arguments: P.args, **named: P.kwargs) -> Measured:
        values, curves = [], []
        for seed, found, lines in of_seeds(*arguments, **named):
            values += [{"measure": name, "seed": seed, "value": float(value)} for name, value in found.items()]
            for panel, series, xs, ys in lines:
                of_line = {"panel": panel, "series": series, "seed": seed}
                curves += [of_line | {"x": float(x), "y": float(y)} for x, y in zip(xs, ys, strict=True)]
        return Measured(pd.DataFrame(values), pd.DataFrame(curves))

    return measure
