"""From the profiles of a transition to the rows of `profiles.csv` and `barriers.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcanalysis.connectivity.profile import Profile, Quantity
from mcanalysis.metrics import barriers
from mcanalysis.metrics.intervals import Estimate, mean_interval
from mcanalysis.metrics.task_means import role, tasks_behind, with_means


class Curves:
    """One quantity of all tasks of a transition: the measured curves and what their intervals are made from.

    `point[name]` has shape (n,), `estimates[name]` is of the same; names are the tasks and, where there are old tasks,
    `mean_old` and `mean`, S̄ = ½(mean over the old tasks + new task). Tasks are independent samples, the points of one
    task belong together.
    """

    def __init__(self, profiles: Mapping[str, Profile], old: Sequence[str], new: str, quantity: Quantity) -> None:
        self.ts = profiles[new].ts
        tasks = [*old, new]
        self.point = with_means({name: profiles[name].values(quantity) for name in tasks}, old, new)
        self.estimates = with_means(
            {name: profiles[name].estimate(quantity, seed) for seed, name in enumerate(tasks)}, old, new
        )


def transition_rows(
    profiles: Mapping[str, Mapping[str, Profile]],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
    deviation: np.ndarray,
    num_cut: Mapping[str, Mapping[str, int]] | None = None,
    judged: str = "mean",
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of profiles.csv (every split) and of barriers.csv (test split) for one path of one transition.

    `profiles[split][task]`. `interpolation_gain`: t* is chosen on eval, the gain is taken on test with t* held fixed;
    it stands in the row of task `judged`, quantity `score`, and is NaN without an eval split. `labels` are
    the columns that say which path this is; `role` says what a row's task is on it: old, new or mean. `few_events` (of
    `profiles.csv`: one per quantity) says where an interval cannot promise its 95 % (`mcanalysis.metrics.intervals`).
    `num_cut[split][task]`: prompts that lost their middle (None: not known, and no column).
    """
    profile_rows: list[dict[str, Any]] = []
    barrier_rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Curves]] = {}
    for split, of_split in profiles.items():
        curves[split] = {q: Curves(of_split, old, new, q) for q in ("loss", "score")}
        cut = None if num_cut is None else num_cut[split]
        profile_rows += _profile_rows(of_split, old, new, curves[split], {**labels, "split": split}, deviation, cut)
    for name in curves["test"]["loss"].point:
        for quantity in ("loss", "score"):
            row = {**labels, "task": name, "role": role(name, old, new), "split": "test", "quantity": quantity}
            of_quantity = curves["test"][quantity]
            row |= barrier_columns(
                of_quantity.ts, of_quantity.point[name], of_quantity.estimates[name], quantity == "score"
            )
            few_events = row.pop("few_events")
            if name == judged and quantity == "score" and "eval" in curves:
                row |= _gain_columns(curves["eval"]["score"], curves["test"]["score"], name)
            else:
                row |= NO_GAIN
            barrier_rows.append(row | {"few_events": few_events or bool(row.pop("few_events", False))})
    return profile_rows, barrier_rows


def rows_beyond(
    profiles: Mapping[str, Mapping[str, Profile]],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
    deviation: np.ndarray,
    num_cut: Mapping[str, Mapping[str, int]],
) -> list[dict[str, Any]]:
    """Rows of profiles.csv beyond the ends of a path; arguments as for `transition_rows`.

    Made apart from those of [0, 1], whose numbers and intervals are thus the same with and without them.
    """
    rows = []
    for split, of_split in profiles.items():
        curves: dict[str, Curves] = {q: Curves(of_split, old, new, q) for q in ("loss", "score")}
        rows += _profile_rows(of_split, old, new, curves, {**labels, "split": split}, deviation, num_cut[split])
    return rows


def _profile_rows(
    profiles: Mapping[str, Profile],
    old: Sequence[str],
    new: str,
    curves: Mapping[str, Curves],
    labels: Mapping[str, Any],
    deviation: np.ndarray,
    num_cut: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    rows = []
    for name in curves["loss"].point:
        behind = tasks_behind(name, old, new)
        chosen = [profiles[task] for task in behind]
        sizes = {
            "num_examples": sum(0 if p.targets is None else len(p.targets) for p in chosen),
            "num_targets": sum(0 if p.targets is None else int(p.targets.sum()) for p in chosen),
        }
        if num_cut is not None:
            sizes["num_cut"] = sum(num_cut[task] for task in behind)
        intervals = {q: mean_interval(curves[q].estimates[name], least=0.0) for q in curves}
        for i, t in enumerate(curves["loss"].ts):
            row = {**labels, "t": float(t), "task": name, "role": role(name, old, new)}
            row |= {q: float(curves[q].point[name][i]) for q in curves} | sizes
            for q, interval in intervals.items():
                row |= {f"{q}_low": float(interval.low[i]), f"{q}_high": float(interval.high[i])}
            row["factor_delta_deviation"] = float(deviation[i])
            row |= {f"{q}_few_events": bool(interval.few_events[i]) for q, interval in intervals.items()}
            rows.append(row)
    return rows


def barrier_columns(ts: np.ndarray, point: np.ndarray, estimate: Estimate, higher_is_better: bool) -> dict[str, Any]:
    """Every barrier of one curve with its interval, and `few_events`."""
    columns: dict[str, Any] = {}
    few_events = False
    for quantity, barrier in barriers.BY_NAME.items():
        columns[quantity] = float(barrier(ts, point, higher_is_better=higher_is_better))
        interval = barriers.barrier_interval(quantity, ts, estimate, higher_is_better=higher_is_better)
        columns |= interval.columns(quantity)
        few_events |= bool(interval.few_events)
    return columns | {"few_events": few_events}


def without_barriers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `barriers.csv` of a path whose ends are not the minima: t* stays, barriers and gain are of nothing."""
    none = (*barriers.BY_NAME, "interpolation_gain")
    return {c: float("nan") if c.startswith(none) else v for c, v in row.items()} | {"few_events": False}


def _gain_columns(eval_scores: Curves, test_scores: Curves, name: str) -> dict[str, Any]:
    ts = eval_scores.ts
    if len(ts) < 3:
        return NO_GAIN  # there is no point strictly between the ends
    best = barriers.t_star(ts, eval_scores.point[name])
    gain = barriers.interpolation_gain(ts, test_scores.point[name], best)
    interval = barriers.gain_interval(ts, test_scores.estimates[name], best)
    first, last = barriers.t_star_interval(ts, eval_scores.estimates[name])
    return {
        "interpolation_gain": float(gain),
        **interval.columns("interpolation_gain"),
        "t_star": best,
        "t_star_low": first,
        "t_star_high": last,
        "few_events": bool(interval.few_events),
    }


NO_GAIN: dict[str, float] = {
    f"{name}{end}": float("nan") for name in ("interpolation_gain", "t_star") for end in ("", "_low", "_high")
}
