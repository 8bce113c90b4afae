"""Frankle et al. 2020: runs that share their first k steps, and how the barrier between them falls with k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy import stats

from mcanalysis.classics.classic import STABLE, Claim, Classic, OfSeed, as_tables
from mcanalysis.classics.digits import (
    Recipe,
    batches,
    load_digits,
    measure,
    new_network,
    objective,
    stream,
    train_networks,
)
from mcanalysis.connectivity.profile import profile
from mcanalysis.paths import Linear
from mcanalysis.plotting.classics import Panel

_NOISY = Recipe(batch_size=32, learning_rate=0.15)


@dataclass(frozen=True)
class Settings:
    """Pairs that share so many of all steps; noisy enough that k = 0 is unstable. Chosen on seeds from 100 on."""

    hidden: tuple[int, ...] = (16, 16)
    recipe: Recipe = _NOISY
    shared_steps: tuple[int, ...] = (0, 10, 30, 100, 300, 900)


FIRST = "rise of the error, no shared step, test"
LAST = "rise of the error, most shared steps, test"
FALL = "no shared step minus most, rise of the test error"
TREND = "rank correlation of shared steps and rise of the test error"
LOSS_TREND = "rank correlation of shared steps and barrier of the train loss"


@as_tables
def measure_frankle(seeds: Sequence[int], settings: Settings | None = None) -> Iterator[OfSeed]:
    """Train pairs from one start that part after k steps, for each seed and k, and measure the line between them."""
    settings = settings or Settings()
    train, test = load_digits()
    recipe, ks = settings.recipe, settings.shared_steps
    starts, orders = [], []
    for seed in seeds:
        common = batches(train, recipe, stream(seed, "common order"))
        for k in ks:
            for member in (0, 1):
                own = batches(train, recipe, stream(seed, "order", k, member))
                starts.append(new_network(settings.hidden, stream(seed, "start")))
                orders.append(torch.cat([common[:k], own[k:]]))
    networks = iter(train_networks(starts, train, orders, recipe))
    for seed in seeds:
        pairs = [(next(networks), next(networks)) for _ in ks]
        lines = [Linear(a, b) for a, b in pairs]
        errors = [profile(line, objective(test)).mean_barrier("score") for line in lines]
        losses = [profile(line, objective(train)).mean_barrier() for line in lines]
        values = {
            FIRST: errors[0],
            LAST: errors[-1],
            FALL: errors[0] - errors[-1],
            TREND: rank_correlation(ks, errors),
            LOSS_TREND: rank_correlation(ks, losses),
            "train accuracy of the worst end": min(measure(p, train).score for pair in pairs for p in pair),
            "test accuracy of the worst end": min(measure(p, test).score for pair in pairs for p in pair),
        }
        by_panel = {"error": errors, "loss": losses}
        yield OfSeed(seed, values, [(panel, "pairs of one start", ks, ys) for panel, ys in by_panel.items()])


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's rank correlation, in [−1, 1]; 0 where one of the two is constant.

    >>> rank_correlation([0, 1, 2], [5.0, 3.0, 1.0])
    -1.0
    """
    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return 0.0
    return round(float(stats.spearmanr(xs, ys).statistic), 12)  # type: ignore[attr-defined]


FRANKLE = Classic(
    name="frankle",
    source="Frankle et al. 2020, arXiv 1912.05671",
    claims=(
        Claim(
            "Runs that share only their start can be unstable: the error rises between them.",
            FIRST,
            "above",
            STABLE,
            "",
        ),
        Claim("Runs that share enough first steps are stable: the error hardly rises.", LAST, "below", STABLE, ""),
        Claim("The barrier falls as more steps are shared (test error, first to last).", FALL, "above", 0.0, ""),
        Claim("The barrier falls as more steps are shared (test error, all k).", TREND, "below", 0.0, ""),
        Claim("The same holds for the train loss.", LOSS_TREND, "below", 0.0, ""),
    ),
    measure=measure_frankle,
    panels={
        "error": Panel("test error", "shared first steps k", "rise above the mean of the ends", x_scale="symlog"),
        "loss": Panel("train loss", "shared first steps k", "rise above the ends' mean (nats)", x_scale="symlog"),
    },
)  # fmt: skip
