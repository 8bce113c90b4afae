"""Populations of examples whose curves are known: what samples for the coverage of intervals are drawn from.

A language model's losses are modelled by answers of unequal length, per-token losses with a heavy tail that is longer
for shorter answers, and curves that differ between examples in smooth or rough ways; scores by thresholds of Gaussian
curves. True curves are closed forms.

The intervals were made with `losses` and `scores` in view. `others` are populations that they were not made with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from mcanalysis.metrics.bootstrap import Sample

Array = NDArray[np.float64]
TS = np.linspace(0.0, 1.0, 21)
HUMP = 4 * TS * (1 - TS)
LENGTHS = np.arange(1, 9)
_TAIL = 0.75  # of the log-normal losses: skewness 3.3
_RARE = 0.02
OTHERS = {f"{kind}, {number} points": (kind, number) for kind in ("gamma", "Pareto", "mixture") for number in (5, 41)}
"""Kind and number of points, by the names that `others` takes."""


@dataclass(frozen=True)
class Population:
    """Examples of one task: `draw(n, rng)` gives a sample, `truth` (points,) the means of all."""

    draw: Callable[[int, np.random.Generator], Sample]
    truth: Array
    is_score: bool

    @property
    def ts(self) -> Array:
        """Where the curve is measured: evenly from 0 to 1."""
        return np.linspace(0.0, 1.0, len(self.truth))


def losses(kind: str, height: float) -> Population:
    """Losses with a hump of `height` nats per token at t = ½ above (below, if negative) the chord.

    `smooth`: each example has a smooth curve of its own; `rough`: independent noise at each t; `tied`: equal ends, and
    seven examples of ten do not change at all; `rare`: one of fifty changes, all others stay as they are.
    """
    slope = 0.0 if kind in ("tied", "rare") else 0.6
    share = {"tied": 0.3, "rare": _RARE}.get(kind, 1.0)
    spread = 0.3 / np.sqrt(share)
    truth = 1 + slope * TS + height * HUMP

    def draw(n: int, rng: np.random.Generator) -> Sample:
        lengths = rng.choice(LENGTHS, n)
        tail = np.exp(rng.normal(0, _TAIL, n) - _TAIL**2 / 2) * lengths**-0.3
        tail *= LENGTHS.sum() / (LENGTHS**0.7).sum()  # mean per token 1, longer answers lower
        moves = rng.random(n) < share
        if kind == "rough":
            own = rng.standard_t(5, (len(TS), n)) / np.sqrt(5 / 3)
        else:
            first, second = rng.normal(size=(2, n))
            own = first * np.sin(np.pi * TS)[:, None] + 0.5 * second * np.sin(2 * np.pi * TS)[:, None]
        rise = height / share * HUMP[:, None] * rng.gamma(10, 0.1, n)
        per_token = tail * (1 + slope * TS[:, None]) + moves * (rise + spread * own * np.sqrt(tail))
        return Sample(per_token * lengths, lengths)

    return Population(draw, truth, False)


def scores(kind: str, depth: float) -> Population:
    """Right or wrong answers whose share has a valley of `depth` at t = ½; `kind` as in `losses`.

    `tied`: equal ends, and few answers change; `rare`: one answer of fifty is wrong at the ends.
    """
    first, last = {"tied": (0.6, 0.6), "rare": (1 - _RARE, 1 - _RARE)}.get(kind, (0.8, 0.5))
    common = {"tied": 0.9, "rough": 0.8}.get(kind, 0.6)
    truth = np.clip(first + (last - first) * TS - depth * HUMP, 0.01, 0.999)
    cuts = norm.ppf(truth)[:, None]

    def draw(n: int, rng: np.random.Generator) -> Sample:
        if kind == "rough":
            own = rng.normal(size=(len(TS), n))
        else:
            a, b = rng.normal(size=(2, n))
            own = a * np.cos(2 * TS)[:, None] + b * np.sin(2 * TS)[:, None]
        latent = np.sqrt(common) * rng.normal(size=n) + np.sqrt(1 - common) * own
        return Sample((latent < cuts).astype(float))

    return Population(draw, truth, True)


def others(name: str, height: float) -> Population:
    """Losses with a hump of `height` at t = ½ that share nothing with those of `losses`; `name` is one of `OTHERS`.

    `gamma`: tails of gamma distributions, and each example has a height of its own; `Pareto`: losses of index 3, whose
    skewness is infinite, and numbers of tokens with a heavy tail, up to 60; `mixture`: three of ten examples rise, and
    noise is correlated along t.
    """
    kind, number = OTHERS[name]
    hump = np.sin(np.pi * np.linspace(0.0, 1.0, number))[:, None]
    least = {"gamma": 1.6, "Pareto": 0.5, "mixture": 1.0}[kind]

    def draw(n: int, rng: np.random.Generator) -> Sample:
        if kind == "gamma":
            own = rng.gamma(0.7, 2.0, n) + rng.gamma(0.5, 0.4, (number, n))
            return Sample(own + height * hump * rng.exponential(1.0, n))
        if kind == "Pareto":
            lengths = np.minimum(1 + np.floor(3 * rng.pareto(2.5, n)), 60)
            own = rng.pareto(3.0, n) + 0.1 * rng.normal(size=(number, n))
            return Sample((own + height * hump * rng.gamma(4.0, 0.25, n)) * lengths, lengths)
        own = rng.normal(size=(number, n))
        for i in range(1, number):
            own[i] = 0.9 * own[i - 1] + np.sqrt(1 - 0.9**2) * own[i]
        return Sample(1 + 0.5 * own + height / 0.3 * hump * (rng.random(n) < 0.3))

    return Population(draw, least + height * hump[:, 0], False)


@lru_cache(maxsize=256)
def of_size(make: Callable[[str, float], Population], kind: str, errors: float, n: int) -> Population:
    """A population whose hump or valley is `errors` standard errors high, its own in a sample of n.

    Where there is none (the larger, the more it varies) it is three times as high as that of the flat one.
    """
    flat = errors * _deviation(make(kind, 0.0)) / np.sqrt(n)
    height = flat
    for _ in range(12 if errors else 0):
        height = min(errors * _deviation(make(kind, height)) / np.sqrt(n), 3 * flat)
    return make(kind, height)


def _deviation(population: Population) -> float:
    """The standard deviation of one example's influence on the height above the chord at t = ½."""
    sample = population.draw(20_000, np.random.default_rng(7))
    values = np.asarray(sample.values)
    sizes = np.ones(values.shape[1]) if sample.denominators is None else np.asarray(sample.denominators, dtype=float)
    influence = (values - sample.mean()[:, None] * sizes) / sizes.mean()
    return float((influence[len(influence) // 2] - (influence[0] + influence[-1]) / 2).std())
