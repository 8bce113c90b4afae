"""Barriers and gains over seeds: what the randomness of training does to them."""

from __future__ import annotations

import pandas as pd

from mcanalysis.metrics.over_seeds import student_interval
from mcanalysis.store import base_minimum

_PATH = ["strategy", "learner", "space", "path"]
_WHAT = ["task", "split", "quantity"]
_VALUES = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain")
ALL = "all"
_MEANS = ("mean_old", "mean")


def barriers_over_seeds(barriers: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every barrier with Student's t interval (95 %): `<name>`, `<name>_low`, `<name>_high`.

    One row per path, transition, task and quantity, and one per path with `start` and `end` = `all`, for the means over
    tasks and `new` for the new task: there the mean over transitions is taken in each seed first, so that the interval
    is over seeds. Paths from the base are pooled by themselves, their `start` stays `0-BASE`. The ends are NaN with
    fewer than two seeds, and all is NaN where a value of one seed is.

    Args:
        barriers: rows of `barriers.csv` of one or more seeds.

    >>> rows = [{"strategy": "er", "learner": "fast", "seed": s, "space": "factor", "path": "linear", "start": "1-A",
    ...   "end": "2-B", "task": "mean_old", "split": "test", "quantity": "loss", "chord_barrier": float(s),
    ...   "mean_barrier": 0.0, "max_barrier": 0.0, "chord_dip": 0.0, "interpolation_gain": 0.0} for s in (1, 2, 3)]
    >>> found = barriers_over_seeds(pd.DataFrame(rows))
    >>> found[["start", "chord_barrier", "seeds"]].to_numpy().tolist()
    [['1-A', 2.0, 3], ['all', 2.0, 3]]
    """
    columns = [*_PATH, "start", "end", *_WHAT]
    values = list(_VALUES)
    role = barriers.task.where(barriers.task.isin(_MEANS), None)
    role = role.where(role.notna() | (barriers.task != barriers.end.str.partition("-")[2]), "new")
    start = barriers.start.where(barriers.start == base_minimum.LABEL, ALL)
    pooled = barriers.assign(task=role, start=start, end=ALL).dropna(subset="task")
    pooled = pooled.groupby([*columns, "seed"], sort=False)[values].agg(_mean).reset_index()
    single = barriers[[*columns, "seed", *values]]
    rows = []
    for keys, group in pd.concat([single, pooled]).groupby(columns, sort=False):
        row = dict(zip(columns, keys, strict=True)) | {"seeds": group.seed.nunique()}
        for name in values:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), student_interval(group[name]), strict=True))
        rows.append(row)
    return pd.DataFrame(rows, columns=[*columns, "seeds", *(f"{v}{e}" for v in values for e in ("", "_low", "_high"))])


def _mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))
