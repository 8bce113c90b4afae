"""Garipov et al. 2018: independent minima, a barrier on the straight line, and a curve without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from mcanalysis.classics.classic import HIGH, STABLE, Claim, Classic, OfSeed, as_tables
from mcanalysis.classics.digits import STANDARD, Recipe, load_digits, loss, measure, objective, stream, train_pairs
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.profile import profile
from mcanalysis.paths import Bezier, Linear
from mcanalysis.plotting.classics import Panel


@dataclass(frozen=True)
class Settings:
    """Two narrow networks per seed; the curve is fitted on the whole train split. Chosen on seeds from 100 on."""

    hidden: tuple[int, ...] = (16, 16)
    recipe: Recipe = STANDARD
    curve_steps: int = 1000
    curve_rate: float = 0.02


LINE = "barrier of the line, train loss"
CURVE = "barrier of the curve, train loss"
LINE_ERROR = "rise of the error on the line, test"
CURVE_ERROR = "rise of the error on the curve, test"


@as_tables
def measure_garipov(seeds: Sequence[int], settings: Settings | None = None) -> Iterator[OfSeed]:
    """Join two networks of different starts and orders by the line and by a fitted Bezier curve, for each seed."""
    settings = settings or Settings()
    train, test = load_digits()
    for seed, (a, b) in zip(seeds, train_pairs(settings.hidden, seeds, train, settings.recipe), strict=True):
        curve = fit_curve(
            Bezier(a, b),
            partial(loss, data=train),
            num_steps=settings.curve_steps,
            learning_rate=settings.curve_rate,
            seed=stream(seed, "curve"),
        )
        paths = {"straight line": Linear(a, b), "fitted Bezier curve": curve}
        on_train, on_test = ([profile(p, objective(data)) for p in paths.values()] for data in (train, test))
        values = {
            LINE: on_train[0].max_barrier(),
            CURVE: on_train[1].max_barrier(),
            LINE_ERROR: on_test[0].mean_barrier("score"),
            CURVE_ERROR: on_test[1].mean_barrier("score"),
            "train accuracy of the worse end": min(measure(p, train).score for p in (a, b)),
            "test accuracy of the worse end": min(measure(p, test).score for p in (a, b)),
        }
        curves = []
        for series, losses, scores in zip(paths, on_train, on_test, strict=True):
            curves.append(("loss", series, losses.ts, losses.losses))
            curves.append(("error", series, scores.ts, 1.0 - scores.values("score")))
        yield OfSeed(seed, values, curves)


GARIPOV = Classic(
    name="garipov",
    source="Garipov et al. 2018, arXiv 1802.10026",
    claims=(
        Claim("The straight line between independently trained networks crosses a high loss.", LINE, "above", HIGH),
        Claim("A simple curve, trained for it, joins them at a nearly constant, low loss.", CURVE, "below", HIGH),
        Claim("On the straight line the test error rises far above that of the ends.", LINE_ERROR, "above", STABLE, ""),
        Claim("Along the curve the test error stays near that of the ends.", CURVE_ERROR, "below", STABLE, ""),
    ),
    measure=measure_garipov,
    panels={
        "loss": Panel("train loss along the path", "position t on the path", "cross entropy (nats)"),
        "error": Panel("test error along the path", "position t on the path", "share of digits misread"),
    },
)
