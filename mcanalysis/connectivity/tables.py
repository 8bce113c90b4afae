"""From the profiles of a transition to the rows of `profiles.csv` and `barriers.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcanalysis.connectivity.profile import Profile, Quantity
from mcanalysis.metrics import barriers
from mcanalysis.metrics.bootstrap import percentile_interval, resampled_means

NUM_RESAMPLES = 1000


class Curves:
    """One quantity of all tasks of a transition: the measured curves and their resamples.

    `point[name]` has shape (n,), `resampled[name]` shape (resamples, n); names are the tasks and, where there are old
    tasks, `mean_old` and `mean`, S̄ = ½(mean over the old tasks + new task). Tasks are resampled independently, the
    points of one task together.
    """

    def __init__(
        self,
        profiles: Mapping[str, Profile],
        old: Sequence[str],
        new: str,
        quantity: Quantity,
        num_resamples: int = NUM_RESAMPLES,
    ) -> None:
        self.ts = profiles[new].ts
        self.point: dict[str, np.ndarray] = {}
        self.resampled: dict[str, np.ndarray] = {}
        for seed, name in enumerate([*old, new]):
            sample = profiles[name].sample(quantity)
            self.point[name] = profiles[name].values(quantity)
            self.resampled[name] = resampled_means(*sample, num_resamples=num_resamples, rng=seed)
        for table in (self.point, self.resampled) if old else ():
            stacked = np.stack([table[name] for name in old])
            table["mean_old"] = stacked.mean(axis=0)
            table["mean"] = barriers.balanced_score(stacked, table[new])


def transition_rows(
    profiles: Mapping[str, Mapping[str, Profile]],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
    deviation: np.ndarray,
    num_cut: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of profiles.csv (every split) and of barriers.csv (test split) for one path of one transition.

    `profiles[split][task]`. `interpolation_gain`: t* is chosen on eval, the gain is taken on test with t* held fixed;
    it stands in the row of task `mean`, quantity `score`, and is NaN without an eval split or an old task. `labels` are
    the columns that say which path this is. `num_cut[split][task]`: prompts that lost their middle (None: not known,
    and no column).
    """
    profile_rows: list[dict[str, Any]] = []
    barrier_rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Curves]] = {}
    for split, of_split in profiles.items():
        curves[split] = {q: Curves(of_split, old, new, q) for q in ("loss", "score")}
        cut = None if num_cut is None else num_cut[split]
        profile_rows += _profile_rows(of_split, old, curves[split], {**labels, "split": split}, deviation, cut)
    for name in curves["test"]["loss"].point:
        for quantity in ("loss", "score"):
            row = {**labels, "task": name, "split": "test", "quantity": quantity}
            row |= _barrier_columns(curves["test"][quantity], name, quantity == "score")
            if name == "mean" and quantity == "score" and "eval" in curves:
                row |= _gain_columns(curves["eval"]["score"], curves["test"]["score"])
            else:
                row |= _NO_GAIN
            barrier_rows.append(row)
    return profile_rows, barrier_rows


def _profile_rows(
    profiles: Mapping[str, Profile],
    old: Sequence[str],
    curves: Mapping[str, Curves],
    labels: Mapping[str, Any],
    deviation: np.ndarray,
    num_cut: Mapping[str, int] | None,
) -> list[dict[str, Any]]:
    rows = []
    for name in curves["loss"].point:
        behind = {"mean_old": old, "mean": list(profiles)}.get(name, [name])
        chosen = [profiles[task] for task in behind]
        sizes = {
            "num_examples": sum(0 if p.targets is None else len(p.targets) for p in chosen),
            "num_targets": sum(0 if p.targets is None else int(p.targets.sum()) for p in chosen),
        }
        if num_cut is not None:
            sizes["num_cut"] = sum(num_cut[task] for task in behind)
        intervals = {q: percentile_interval(curves[q].resampled[name]) for q in curves}
        for i, t in enumerate(curves["loss"].ts):
            row = {**labels, "t": float(t), "task": name}
            row |= {q: float(curves[q].point[name][i]) for q in curves} | sizes
            for q, (low, high) in intervals.items():
                row |= {f"{q}_low": float(low[i]), f"{q}_high": float(high[i])}
            row["factor_delta_deviation"] = float(deviation[i])
            rows.append(row)
    return rows


def _barrier_columns(curves: Curves, name: str, higher_is_better: bool) -> dict[str, float]:
    columns: dict[str, float] = {}
    for quantity, barrier in barriers.BY_NAME.items():
        columns[quantity] = float(barrier(curves.ts, curves.point[name], higher_is_better=higher_is_better))
        resampled = barrier(curves.ts, curves.resampled[name], higher_is_better=higher_is_better)
        columns |= interval_columns(quantity, resampled)
    return columns


def _gain_columns(eval_scores: Curves, test_scores: Curves) -> dict[str, float]:
    ts = eval_scores.ts
    if len(ts) < 3:
        return _NO_GAIN  # there is no point strictly between the ends
    best = barriers.t_star(ts, eval_scores.point["mean"])
    gain = barriers.interpolation_gain(ts, test_scores.point["mean"], best)
    gains = barriers.interpolation_gain(ts, test_scores.resampled["mean"], best)
    bests = np.array([barriers.t_star(ts, row) for row in eval_scores.resampled["mean"]])
    return {
        "interpolation_gain": float(gain),
        **interval_columns("interpolation_gain", gains),
        "t_star": best,
        **interval_columns("t_star", bests),
    }


def interval_columns(name: str, resampled: np.ndarray) -> dict[str, float]:
    """`<name>_low` and `<name>_high`: the 95 % interval of resampled values, shape (resamples,)."""
    low, high = percentile_interval(resampled)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


_NO_GAIN: dict[str, float] = {
    f"{name}{end}": float("nan") for name in ("interpolation_gain", "t_star") for end in ("", "_low", "_high")
}
