"""What was measured along paths and on planes: curves and grids for the charts, rows for the table of barriers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.selection import (
    BARRIER_KEYS,
    MEANS,
    PROFILE_KEYS,
    TASK_WORDS,
    label_name,
    new_task,
    rows_of_test_split,
    transitions,
    where,
)
from mcanalysis.plotting.style import path_lines
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store import base_minimum

BARRIERS = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain", "t_star")
_VALUES = ("score", "score_low", "score_high", "loss", "loss_low", "loss_high")


def plain(values: Iterable[Any]) -> list[float | None]:
    """Five significant digits, None for what is not finite: small, and JSON that every browser reads.

    >>> plain([1 / 3, float("nan")])
    [0.33333, None]
    """
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in map(float, values)]


def measured(run: FinishedRun) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The rows of the test split of `profiles.csv` and `barriers.csv`, None where no path was measured."""
    if not (run.has("profiles") and run.has("barriers")):
        return None
    profiles = run.table("profiles", [*PROFILE_KEYS, *_VALUES])
    with_intervals = [f"{name}{end}" for name in BARRIERS for end in ("", "_low", "_high")]
    barriers = run.table("barriers", [*BARRIER_KEYS, *with_intervals])
    of_barriers = rows_of_test_split(barriers, BARRIER_KEYS, "barriers")
    return rows_of_test_split(profiles, PROFILE_KEYS, "profiles"), of_barriers


def transition_curves(profiles: pd.DataFrame, barriers: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary per learner and pair of minima: its kinds of path, and of each the values of every task over t."""
    found = []
    learners = list(dict.fromkeys(profiles.learner))
    for learner in learners:
        of_learner = profiles[profiles.learner == learner]
        for start, end in sorted(transitions(of_learner), key=lambda pair: pair[0] == base_minimum.LABEL):  # those last
            rows = where(of_learner, start=start, end=end)
            own = where(barriers, learner=learner, start=start, end=end)
            lines = path_lines(zip(rows.path, rows.space, strict=True))
            title = f"{start} → {end}" + (f", {learner}" if len(learners) > 1 else "")
            kinds = [_kind(rows, own, kind, line.label) for kind, line in lines.items()]
            found.append({"title": title, "start": start, "end": end, "new": _new(rows, end), "kinds": kinds})
    return found


def barrier_rows(barriers: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per path, task and quantity: `role`, and `cells` with a text, an interval and what to sort by."""
    lines = path_lines(zip(barriers.path, barriers.space, strict=True))
    order = {pair: i for i, pair in enumerate(transitions(barriers))}
    several = barriers.learner.nunique() > 1
    rows = []
    for (learner, start, end), group in barriers.groupby(["learner", "start", "end"], sort=False):
        new = _new(group, str(end))
        for _, row in group.iterrows():
            role = "mean" if row.task in MEANS else "new" if row.task == new else "task"
            name = TASK_WORDS.get(row.task, row.task)
            transition = f"{start} → {end}" + (f", {learner}" if several else "")
            rows.append(
                {
                    "transition": transition, "order": order[str(start), str(end)], "role": role, "task": name,
                    "path": lines[row.path, row.space].label, "quantity": row.quantity,
                    "cells": [_cell(row, column) for column in BARRIERS],
                }
            )  # fmt: skip
    return rows


def _new(rows: pd.DataFrame, end: str) -> str:
    """The new task; on a path through all minima, and where only means are there, the name of the end."""
    try:
        return new_task(rows, end)
    except UserError:
        return label_name(end)


def _kind(rows: pd.DataFrame, barriers: pd.DataFrame, kind: tuple[str, str], label: str) -> dict[str, Any]:
    own = where(rows, path=kind[0], space=kind[1]).sort_values("t")
    mean = where(barriers, path=kind[0], space=kind[1], task="mean", quantity="score")
    tasks = {}
    for name in dict.fromkeys(own.task):
        of_task = own[own.task == name]
        tasks[name] = {"t": plain(of_task.t), **{value: plain(of_task[value]) for value in _VALUES}}
    best = math.nan if mean.empty else float(mean.t_star.iloc[0])
    return {"label": label, "t": plain(sorted(set(own.t))), "tasks": tasks, "t_star": plain([best])[0]}


def _cell(row: pd.Series, column: str) -> dict[str, str]:
    value, low, high = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high"))
    signed = column == "interpolation_gain"
    interval = "" if math.isnan(low) else f"{shown_number(low, signed)} … {shown_number(high, signed)}"
    sort = "" if math.isnan(value) else f"{value:.6g}"
    return {"text": shown_number(value, signed), "interval": interval, "sort": sort}


_COLUMNS = ("kind", "space", "start", "end", "x", "y", "anchor", "task", "split", "loss", "score")


def planes(run: FinishedRun) -> list[dict[str, Any]]:
    """A dictionary per plane: ticks `x` and `y`, a (y, x) grid per task and quantity, the minima, the trajectories.

    Empty where none was measured. What is not measured, or not finite, is None.
    """
    if not run.has("landscape"):
        return []
    table = run.table("landscape", _COLUMNS)
    table = where(table, kind="plane", split="test")
    columns = ["learner", "space", "start", "end", "step", "x", "y"]
    walks = run.table("trajectory", columns) if run.has("trajectory") else None
    keys = ["space", "start", "end"]
    groups = table.groupby(keys, sort=False)
    return [_plane(rows, dict(zip(keys, map(str, key), strict=True)), walks) for key, rows in groups]


def _plane(rows: pd.DataFrame, key: dict[str, str], walks: pd.DataFrame | None) -> dict[str, Any]:
    grid, exact = rows[rows.anchor.isna()], rows[rows.anchor.notna()]
    x, y = np.sort(grid.x.unique()), np.sort(grid.y.unique())
    tasks, anchors = {}, []
    for name, of_task in grid.groupby("task", sort=False):
        pivots = {q: of_task.pivot_table(values=q, index="y", columns="x", dropna=False) for q in ("loss", "score")}
        tasks[name] = {q: [plain(row) for row in p.reindex(index=y, columns=x).to_numpy()] for q, p in pivots.items()}
    for name, of_anchor in exact.groupby("anchor", sort=False):
        first = of_anchor.iloc[0]
        values = {r.task: plain([r.loss, r.score]) for r in of_anchor.itertuples()}
        anchors.append({"name": name, "x": plain([first.x])[0], "y": plain([first.y])[0], "values": values})
    words = {name: TASK_WORDS.get(str(name), str(name)) for name in tasks}
    title = f"{key['start']} → {key['end']}, {'ΔW' if key['space'] == 'delta' else key['space']} space"
    shape = {"title": title, "x": plain(x), "y": plain(y), "tasks": tasks, "words": words}
    return shape | {"anchors": anchors, "walks": _walks(walks, key)}


def _walks(walks: pd.DataFrame | None, key: dict[str, str]) -> list[dict[str, Any]]:
    if walks is None:
        return []
    walks = where(walks, **key)
    return [
        {"learner": learner, "x": plain(rows.x), "y": plain(rows.y), "step": [int(s) for s in rows.step]}
        for learner, rows in walks.sort_values("step").groupby("learner", sort=False)
    ]
