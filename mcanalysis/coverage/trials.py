"""One trial of every interval of the package: a sample, its intervals, and what the truth is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mcanalysis.connectivity.attribution import above_chord, change, farthest
from mcanalysis.coverage.populations import LENGTHS, OTHERS, TS, Population, losses, of_size, others, scores
from mcanalysis.metrics import barriers
from mcanalysis.metrics.bootstrap import Sample, percentile_interval
from mcanalysis.metrics.front import hypervolume, hypervolume_intervals
from mcanalysis.metrics.intervals import Estimate, Interval, contrast_intervals, mean_interval, weighted
from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.metrics.representation_similarity import CKA

Array = NDArray[np.float64]
_ENDS = [0, -1]


class Outcome(NamedTuple):
    """An interval and the truth; `old_low` and `old_high` are the ends of the percentile bootstrap, NaN if none."""

    interval: str
    truth: float
    low: float
    high: float
    few_events: bool = False
    old_low: float = np.nan
    old_high: float = np.nan


Trial = Callable[[int, np.random.Generator], Iterator[Outcome]]
"""From the number of examples and a generator to what all intervals of one sample say."""


def of_barriers(population: Callable[[int], Population]) -> Trial:
    """The barriers and the dip of one task, its mean at t = ½, and what attribution tells."""
    name = "score" if population(100).is_score else "loss"
    ts = population(100).ts

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        made = population(n)
        estimate = Estimate.of(made.draw(n, rng), is_score=made.is_score)
        for barrier, measure in barriers.BY_NAME.items():
            truth = float(measure(ts, made.truth, higher_is_better=made.is_score))
            found = barriers.barrier_interval(barrier, ts, estimate, higher_is_better=made.is_score)
            old = percentile_interval(measure(ts, estimate.resampled, higher_is_better=made.is_score))
            yield _outcome(f"{barrier}, {name}", truth, found, old)
        middle = len(ts) // 2
        old = percentile_interval(estimate.resampled[:, middle])
        yield _outcome(f"mean {name}", made.truth[middle], mean_interval(estimate).at(middle), old)
        far = farthest(ts, estimate.point)
        above = contrast_intervals(estimate, lambda values: above_chord(ts, values)).at(far)
        old = percentile_interval(above_chord(ts, estimate.resampled)[:, far])
        yield _outcome(f"above_chord, {name}", above_chord(ts, made.truth)[far], above, old)
        ends = contrast_intervals(estimate, lambda values: change(values, "start")[..., [-1]]).at(0)
        old = percentile_interval(change(estimate.resampled, "start")[:, -1])
        yield _outcome(f"end_change, {name}", change(made.truth, "start")[-1], ends, old)

    return trial


def of_tasks(kind: str, depth: float) -> Trial:
    """Two old tasks and a new one, whose scores have valleys (humps, if negative): gain, t*, front, barrier of S̄."""
    old, new = [scores(kind, depth), scores(kind, depth / 2)], scores(kind, depth)
    x, y = (old[0].truth + old[1].truth) / 2, new.truth[::-1]
    both = (x + y) / 2
    middle = len(TS) // 2
    best = TS[1:-1][both[1:-1] >= both[1:-1].max() - 1e-9]
    volume = float(hypervolume(x, y))
    truths = (volume, volume - float(hypervolume(x[_ENDS], y[_ENDS])))

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        samples = [Estimate.of(p.draw(n, rng), is_score=True, seed=i) for i, p in enumerate(old)]
        mirrored = np.asarray(new.draw(n, rng).values)[::-1]
        stability, plasticity = (
            weighted([(0.5, s) for s in samples]),
            Estimate.of(Sample(mirrored), is_score=True, seed=2),
        )
        mean = weighted([(0.5, stability), (0.5, plasticity)])
        truth = both[middle] - max(both[0], both[-1])
        percentiles = percentile_interval(barriers.interpolation_gain(TS, mean.resampled, TS[middle]))
        yield _outcome("interpolation_gain", truth, barriers.gain_interval(TS, mean, TS[middle]), percentiles)
        xs, ys = stability.resampled, plasticity.resampled
        volumes = hypervolume(xs, ys)
        olds = (volumes, volumes - hypervolume(xs[:, _ENDS], ys[:, _ENDS]))
        names = ("hypervolume", "hypervolume_gain")
        for name, truth, found, draws in zip(
            names, truths, hypervolume_intervals(stability, plasticity), olds, strict=True
        ):
            yield _outcome(name, truth, found, percentile_interval(draws))
        truth = float(barriers.chord_barrier(TS, both, higher_is_better=True))
        found = barriers.barrier_interval("chord_barrier", TS, mean, higher_is_better=True)
        percentiles = percentile_interval(barriers.chord_barrier(TS, mean.resampled, higher_is_better=True))
        yield _outcome("chord_barrier, mean of tasks", truth, found, percentiles)
        if rng.random() < 0.25:  # it takes as long as all others
            low, high = barriers.t_star_interval(TS, mean)
            inside = best[(best >= low) & (best <= high)]
            yield Outcome("t_star", float(inside[0] if len(inside) else best[0]), low, high)

    return trial


def of_divergence(skewness: float) -> Trial:
    """Divergences per token between two minima: log-normal, of answers of unequal length."""

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        lengths = rng.choice(LENGTHS, n)
        values = lengths * np.exp(rng.normal(0, skewness, n) - skewness**2 / 2)
        estimate = Estimate.of(Sample(values, lengths))
        yield _outcome("kl", 1.0, mean_interval(estimate).at(0), percentile_interval(estimate.resampled[:, 0]))

    return trial


def of_churn(share: float) -> Trial:
    """The share of answers that change."""

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        estimate = Estimate.of(Sample((rng.random(n) < share).astype(float)), is_score=True)
        yield _outcome("churn", share, mean_interval(estimate).at(0), percentile_interval(estimate.resampled[:, 0]))

    return trial


def of_cka(correlation: float, width: int = 8) -> Trial:
    """CKA of Gaussian features that are correlated one by one: the square of the correlation."""

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        x, noise = rng.normal(size=(2, n, width))
        cka = CKA()
        cka.update(x, correlation * x + np.sqrt(1 - correlation**2) * noise)
        low, high = cka.interval()
        yield Outcome("cka", correlation**2, low, high)

    return trial


def of_seeds(num_seeds: int, skewness: float) -> Trial:
    """Student's t over seeds, of normal values or of skew ones."""

    def trial(n: int, rng: np.random.Generator) -> Iterator[Outcome]:
        values = rng.normal(size=num_seeds) if skewness == 0 else rng.lognormal(-(skewness**2) / 2, skewness, num_seeds)
        _, low, high = student_interval(values)
        yield Outcome(f"{num_seeds} seeds", 0.0 if skewness == 0 else 1.0, low, high)

    return trial


def cases() -> Iterator[tuple[str, str, Trial]]:
    """(kind, true value, trial) of everything that is tried."""
    for make in (losses, scores):
        for kind in ("smooth", "rough", "tied", "rare"):
            for errors, value in ((0.0, "0"), (3.0, "3 s.e."), (10.0, "10 s.e.")):
                yield kind, value, of_barriers(lambda n, m=make, k=kind, e=errors: of_size(m, k, e, n))
    for kind in ("smooth", "rough", "tied", "rare"):
        for depth, value in ((0.0, "0"), (-0.05, "small"), (0.15, "large")):
            yield kind, value, of_tasks(kind, depth)
    for skewness, kind in ((0.75, "long tail"), (1.0, "longer tail")):
        yield kind, "", of_divergence(skewness)
    for share, kind in ((0.3, "often"), (0.1, "seldom"), (0.02, "rare")):
        yield kind, "", of_churn(share)
    for correlation, value in ((0.0, "0"), (0.5, "small"), (0.95, "large")):
        yield "Gaussian", value, of_cka(correlation)
    for number in (3, 5):
        yield "normal", "", of_seeds(number, 0.0)
        yield "log-normal", "", of_seeds(number, 0.5)
    for kind in OTHERS:  # last, so that the seeds of all above stay what they are
        for errors, value in ((0.0, "0"), (3.0, "3 s.e.")):
            yield kind, value, of_barriers(lambda n, k=kind, e=errors: of_size(others, k, e, n))


def _outcome(name: str, truth: float, found: Interval, old: tuple[Array, Array]) -> Outcome:
    low, high = float(found.low), float(found.high)
    return Outcome(name, float(truth), low, high, bool(found.few_events), float(old[0]), float(old[1]))
