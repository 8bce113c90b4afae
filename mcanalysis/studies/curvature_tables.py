"""Rows of the curvature tables, and how well predicted forgetting agrees with measured forgetting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from mcanalysis.landscape.spectral_density import SpectralDensity

PREDICTORS = ("predicted", "first_order", "second_order", "distance")


def eigenvalue_rows(found: Mapping[str, Any], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row of curvature.csv: `top_1` is the largest eigenvalue, `bottom_1` the smallest; NaN where none was found.

    >>> eigenvalue_rows({"loss": 0.5, "top": [3.0, 1.0], "bottom": [-2.0, None]}, {"task": "FOMC"})
    [{'task': 'FOMC', 'loss': 0.5, 'top_1': 3.0, 'top_2': 1.0, 'bottom_1': -2.0, 'bottom_2': nan}]
    """
    named = {
        f"{end}_{i}": math.nan if value is None else value
        for end in ("top", "bottom")
        for i, value in enumerate(found[end], start=1)
    }
    return [{**labels, **{k: v for k, v in found.items() if k not in ("top", "bottom")}, **named}]


def density_rows(found: Mapping[str, Any], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of spectrum.csv: the smoothed density on a grid, with the width of the smoothing."""
    arrays = {name: np.array(found[name]) for name in ("nodes", "weights")}
    density = SpectralDensity(**{**found, **arrays})
    constants = {**labels, "num_coordinates": density.num_coordinates, "width": density.width()}
    at = density.grid()
    return [
        {**constants, "eigenvalue": place, "density": value}
        for place, value in zip(at, density.density(at), strict=True)
    ]


def with_means(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of each transition, then their mean over the old tasks as `mean_old`."""
    table = pd.DataFrame(rows)
    numbers = ["first_order", "second_order", "predicted", "measured", "distance", "curvature"]
    parts = []
    for _, group in table.groupby(["start", "end"], sort=False):
        mean = group.iloc[[0]].assign(task="mean_old", num_examples=group.num_examples.sum())
        parts += [group, mean.assign(**group[numbers].mean())]
    return pd.concat(parts, ignore_index=True)


def forgetting_correlations(forgetting: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of each predictor with measured forgetting, per run and over all runs (strategy `all`).

    `over`: "tasks", each (transition, old task) counting once, or "transitions", of the means over old tasks. `n` is
    how many were correlated; they are not independent (tasks share a transition, transitions a run), so no p-value is
    given. `predictor`: g·Δ + ½ΔᵀHΔ, its two terms, and ‖Δ‖ alone, as a baseline that knows no curvature. NaN where n is
    below 3 or a side is constant.

    >>> rows = pd.DataFrame({
    ...     "strategy": "er", "learner": "fast", "seed": 0, "task": ["A", "B", "C"], "measured": [0.0, 1.0, 2.0],
    ...     "predicted": [0.0, 1.0, 5.0], "first_order": [1.0, 0.0, -1.0], "second_order": 1.0, "distance": 1.0,
    ... })
    >>> table = forgetting_correlations(rows).query("over == 'tasks' and strategy == 'er'")
    >>> table[["predictor", "rho", "n"]].values.tolist()[:2]
    [['predicted', 1.0, 3], ['first_order', -1.0, 3]]
    """
    keys = ["strategy", "learner", "seed"]
    groups = [(dict(zip(keys, values, strict=True)), g) for values, g in forgetting.groupby(keys, sort=False)]
    if len(groups) > 1:
        groups.append(({"strategy": "all", "learner": "all", "seed": -1}, forgetting))
    rows = []
    for labels, group in groups:
        mean = group.task == "mean_old"
        for over, chosen in (("tasks", group[~mean]), ("transitions", group[mean])):
            for name in PREDICTORS:
                x, y = chosen[name].to_numpy(float), chosen["measured"].to_numpy(float)
                defined = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
                rho = float(spearmanr(x, y)[0]) if defined else math.nan  # type: ignore
                rows.append({**labels, "over": over, "predictor": name, "rho": rho, "n": len(x)})
    return pd.DataFrame(rows)
