"""What is measured of a run of the study: studies of the toolkit by name, and what of their tables is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mcanalysis.strategies import get_strategy
from mcanalysis.studies.basin import Basin
from mcanalysis.studies.claims.protocol import Protocol
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.predictors import Predictors
from mcanalysis.studies.study import Tables

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("new", "mean", "general")
"""Roles of rows that are kept: the new task, the old tasks' mean, the balanced one of both, general text."""

NUMBER = r"^\d+-"
"""What a minimum's label has before its task."""

CURVE = ("space", "path", "start", "end", "split", "task")
"""What tells one curve of `profiles` from others: they are kept as a row each, with lists of t, loss and score."""

KEPT: Mapping[str, Sequence[str]] = {
    "barriers": (
        "space", "path", "start", "end", "task", "quantity", "chord_barrier", "chord_barrier_low",
        "chord_barrier_high", "mean_barrier", "max_barrier", "interpolation_gain", "interpolation_gain_low",
        "interpolation_gain_high", "t_star", "few_events", "chord_barrier_gauge_least", "chord_barrier_gauge_median",
        "chord_barrier_gauge_most",
    ),
    "profiles": (*CURVE, "t", "loss", "score"),
    "signals": (),
    "basin_volume": ("num_minima", "volume", "volume_low", "volume_high", "highest", "best_corner", "chosen_on"),
}  # fmt: skip
"""Tables that are kept, with their columns; () for all."""


def measures(protocol: Protocol, strategy: str) -> dict[str, Connectivity | Predictors | Basin]:
    """Every measure of a run of a strategy, by name; without spaces of factors where it has none."""
    straight = ["linear-factor", "linear-delta", "linear-aligned", "bezier-factor"]
    if not get_strategy(strategy).has_factors:
        straight = ["linear-delta"]
    line = Connectivity(paths=("linear-delta",), num_points=protocol.num_points, num_examples=protocol.num_examples)
    along = replace(
        line,
        paths=tuple(straight),
        gauges=protocol.num_gauges if "linear-factor" in straight else 0,
        curve_steps=protocol.curve_steps,
    )
    space = "factor" if "linear-factor" in straight else "delta"
    return {
        "paths": along,
        "line": line,
        "rewinding": replace(line, from_base=True),
        "signals": Predictors(
            space=space, num_points=protocol.num_points, num_path_examples=protocol.num_examples,
            num_examples=protocol.num_examples,
        ),
        "region": Basin(
            num_forks=0, num_directions=0, num_samples=protocol.num_samples, num_examples=protocol.num_examples,
            space=space,
        ),
    }  # fmt: skip


def kept(tables: Tables) -> dict[str, pd.DataFrame]:
    """Of a study's tables what the questions need, numbers to five digits.

    Of barriers and profiles rows of `ROLES`, of barriers those of the test split, and of the task of the start, too.
    """
    found = {}
    for name, columns in KEPT.items():
        if name not in tables:
            continue
        table = tables[name]
        if "role" in table:
            chosen = table.role.isin(ROLES)
            if name == "barriers":  # a barrier between two tasks' minima is of both of them
                chosen |= table.task == table.start.str.replace(NUMBER, "", regex=True)
            table = table[chosen]
        if name == "barriers":
            table = table[table.split == "test"]
        table = table[[c for c in columns if c in table]] if columns else table
        table = table.map(_rounded).reset_index(drop=True)
        found[name] = table.groupby(list(CURVE), sort=False).agg(list).reset_index() if name == "profiles" else table
    return found


def _rounded(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) else value
