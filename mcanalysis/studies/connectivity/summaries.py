"""Short tables of what the analysis of paths found, for a person to read."""

from __future__ import annotations

import pandas as pd

from mcanalysis.connectivity.simplex_grid import best_of_simplex
from mcanalysis.plotting.selection import where
from mcanalysis.studies.connectivity.over_seeds import ALL

_PATH = ["strategy", "learner", "path", "space"]
MEASURES = ["loss", "accuracy", "target_accuracy", "ece", "brier", "mutual_information"]


def cut_prompts(profiles: pd.DataFrame) -> dict[str, int]:
    """How many prompts lost their middle, by `<task>/<split>`, where any did.

    >>> cut_prompts(pd.DataFrame({"task": ["A", "A", "mean"], "split": ["eval", "test", "test"], "num_cut": [0, 3, 3]}))
    {'A/test': 3}
    """
    if "num_cut" not in profiles:
        return {}
    cut = profiles[~profiles.task.isin(("mean_old", "mean")) & (profiles.num_cut > 0)]
    return {f"{r['task']}/{r['split']}": int(r["num_cut"]) for r in cut.to_dict("records")}


def front_summary(front: pd.DataFrame) -> pd.DataFrame:
    """Per path, over transitions and seeds, on the test split: mean `hypervolume` and `hypervolume_gain` over the ends,
    and in how many of the `transitions` the gain's interval lies above 0.

    With general tasks the same means of all three axes, and `least_general`, the lowest retention on any of the paths.
    """
    on_test = front[front["split"] == "test"]
    once = on_test.drop_duplicates([*_PATH, "seed", "start", "end"])
    names = [name for name in ("hypervolume", "hypervolume_general") if name in once]
    rows = []
    for keys, group in once.groupby(_PATH, sort=False):
        means = {f"{name}{end}": group[f"{name}{end}"].mean() for name in names for end in ("", "_gain")}
        counts = {"transitions": len(group), "above": int((group.hypervolume_gain_low > 0).sum())}
        path = dict(zip(_PATH, keys, strict=True))
        if "general" in on_test:
            counts["least_general"] = where(on_test, **path).general.min()
        rows.append(path | means | counts)
    return pd.DataFrame(rows)


def flip_summary(flips: pd.DataFrame) -> pd.DataFrame:
    """Per path, means over transitions, seeds and tasks (each pair of transition and task weighs the same).

    Each is there as `<name>_rate`, what was counted, and `<name>_corrected`: `lost_middle` and `lost_end` of old tasks
    against the start, at the point nearest t = ½ and at t = 1; `gained_middle` and `gained_end` of the new task;
    `middle_alone` of all, at that point, against both ends. Corrected shares below 0 count as they are: without them a
    mean of noise would lie above 0.
    """
    trained = flips[flips.role != "general"]
    away = (trained.t - 0.5).abs()
    middle = trained[away == away.groupby([trained[c] for c in (*_PATH, "seed", "start", "end")]).transform("min")]
    end = trained[trained.t == 1.0]
    parts = {
        "lost_middle": ("lost", where(middle, role="old", against="start")),
        "lost_end": ("lost", where(end, role="old", against="start")),
        "gained_middle": ("gained", where(middle, role="new", against="start")),
        "gained_end": ("gained", where(end, role="new", against="start")),
        "middle_alone": ("gained", where(middle, against="both")),
    }
    means = {
        f"{name}_{kind}": rows.groupby(_PATH, sort=False)[f"{column}_{kind}"].mean()
        for name, (column, rows) in parts.items()
        for kind in ("rate", "corrected")
    }
    return flips[_PATH].drop_duplicates().join(pd.DataFrame(means), on=_PATH).reset_index(drop=True)


def ensemble_summary(ensemble: pd.DataFrame) -> pd.DataFrame:
    """Per path, over transitions and seeds: what the two ends, the points and the ensemble reach.

    Three rows per path, `member` = `ends` (mean of the two), `points` (mean of all), `ensemble`; for the task `mean`
    (½ old + new) where there is one, else for the only task.
    """
    has_mean = "mean" in set(ensemble.task)
    ensemble = ensemble.reindex(columns=[*ensemble.columns, *(m for m in MEASURES if m not in ensemble)])  # of before
    chosen = ensemble[ensemble.task == "mean"] if has_mean else ensemble
    points = chosen[chosen.member == "point"]
    groups = {
        "ends": points[points.t.isin([0.0, 1.0])],
        "points": points,
        "ensemble": chosen[chosen.member == "ensemble"],
    }
    tables = [
        rows.groupby(_PATH, sort=False)[MEASURES].mean().reset_index().assign(member=name)
        for name, rows in groups.items()
    ]
    order = {kind: i for i, kind in enumerate(dict.fromkeys(zip(*(chosen[c] for c in _PATH), strict=True)))}
    joined = pd.concat(tables, ignore_index=True)
    ranks = [order[kind] for kind in zip(*(joined[c] for c in _PATH), strict=True)]
    return joined.assign(rank=ranks).sort_values("rank", kind="stable").drop(columns="rank").reset_index(drop=True)


def simplex_summary(simplex: pd.DataFrame) -> pd.DataFrame:
    """`best_of_simplex` of every run: one row per strategy, learner, seed, space and set of minima."""
    keys = ["strategy", "learner", "seed", "space", "minima"]
    rows = [dict(zip(keys, k, strict=True)) | best_of_simplex(g) for k, g in simplex.groupby(keys, sort=False)]
    return pd.DataFrame(rows)


def seeds_summary(over_seeds: pd.DataFrame) -> pd.DataFrame:
    """Of `barriers_over_seeds`: the losses of old tasks and new task, and the gain, averaged over transitions."""
    pooled = over_seeds[(over_seeds.start == ALL) & (over_seeds["split"] == "test")]
    losses = pooled[(pooled.quantity == "loss") & pooled.task.isin(["mean_old", "new"])]
    gains = pooled[(pooled.quantity == "score") & (pooled.task == "mean")]
    columns = [*_PATH, "seeds", "value", "mean", "low", "high"]
    rows = []
    for table, name in ((losses, "chord_barrier"), (gains, "interpolation_gain")):
        for _, row in table.iterrows():
            value = f"{name.replace('_', ' ')}" + (f", {row.task.replace('mean_', '')}" if table is losses else "")
            rows.append(
                [*(row[c] for c in _PATH), row.seeds, value, *(row[f"{name}{end}"] for end in ("", "_low", "_high"))]
            )
    return pd.DataFrame(rows, columns=columns)
