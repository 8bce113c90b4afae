"""Garipov et al. 2018: independent minima, a barrier on the straight line, and a curve without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from mcanalysis.classics.classic import HIGH, STABLE, Claim, Classic, Measured, curve_rows, value_rows
from mcanalysis.classics.digits import (
    STANDARD,
    Recipe,
    batches,
    load_digits,
    loss,
    measure,
    new_network,
    objective,
    stream,
    train_networks,
)
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


def measure_garipov(seeds: Sequence[int], settings: Settings | None = None) -> Measured:
    """Join two networks of different starts and orders by the line and by a fitted Bezier curve, for each seed."""
    settings = settings or Settings()
    train, test = load_digits()
    pairs = [(seed, member) for seed in seeds for member in (0, 1)]
    starts = [new_network(settings.hidden, stream(seed, "start", member)) for seed, member in pairs]
    orders = [batches(train, settings.recipe, stream(seed, "order", member)) for seed, member in pairs]
    networks = train_networks(starts, train, orders, settings.recipe)
    values, curves = [], []
    for seed, a, b in zip(seeds, networks[::2], networks[1::2], strict=True):
        curve = fit_curve(
            Bezier(a, b),
            partial(loss, data=train),
            num_steps=settings.curve_steps,
            learning_rate=settings.curve_rate,
            seed=stream(seed, "curve"),
        )
        on_train = {name: profile(path, objective(train)) for name, path in (("line", Linear(a, b)), ("curve", curve))}
        on_test = {name: profile(path, objective(test)) for name, path in (("line", Linear(a, b)), ("curve", curve))}
        values += value_rows(
            seed,
            {
                LINE: on_train["line"].max_barrier(),
                CURVE: on_train["curve"].max_barrier(),
                LINE_ERROR: on_test["line"].mean_barrier("score"),
                CURVE_ERROR: on_test["curve"].mean_barrier("score"),
                "train accuracy of the worse end": min(measure(p, train).score for p in (a, b)),
                "test accuracy of the worse end": min(measure(p, test).score for p in (a, b)),
            },
        )
        for name, series in (("line", "straight line"), ("curve", "fitted Bezier curve")):
            curves += curve_rows(seed, "loss", series, on_train[name].ts.tolist(), on_train[name].losses.tolist())
            errors = (1.0 - on_test[name].values("score")).tolist()
            curves += curve_rows(seed, "error", series, on_test[name].ts.tolist(), errors)
    return Measured(pd.DataFrame(values), pd.DataFrame(curves))


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
