"""What was measured along the paths of a run: curves for the charts, rows for the table of barriers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.selection import (
    BARRIER_KEYS,
    MEANS,
    PROFILE_KEYS,
    label_name,
    new_task,
    rows_of_test_split,
    transitions,
)
from mcanalysis.plotting.style import path_lines
from mcanalysis.runs.finished import FinishedRun

BARRIERS = ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain", "t_star")
_VALUES = ("score", "score_low", "score_high", "loss", "loss_low", "loss_high")
TASK_WORDS = {"mean_old": "old tasks (mean)", "mean": "½ (old + new)"}


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
    barriers = run.table("barriers", [*BARRIER_KEYS, *_with_interval()])
    return rows_of_test_split(profiles, PROFILE_KEYS, "profiles"), rows_of_test_split(
        barriers, BARRIER_KEYS, "barriers"
    )


def transition_curves(profiles: pd.DataFrame, barriers: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary per learner and pair of minima: its kinds of path, and of each the values of every task over t."""
    found = []
    learners = list(dict.fromkeys(profiles.learner))
    for learner in learners:
        of_learner = profiles[profiles.learner == learner]
        for start, end in transitions(of_learner):
            rows = of_learner[(of_learner.start == start) & (of_learner.end == end)]
            own = barriers[(barriers.learner == learner) & (barriers.start == start) & (barriers.end == end)]
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


def _with_interval() -> list[str]:
    return [f"{name}{end}" for name in BARRIERS for end in ("", "_low", "_high")]


def _new(rows: pd.DataFrame, end: str) -> str:
    """The new task; on a path through all minima, and where only means are there, the name of the end."""
    try:
        return new_task(rows, end)
    except UserError:
        return label_name(end)


def _kind(rows: pd.DataFrame, barriers: pd.DataFrame, kind: tuple[str, str], label: str) -> dict[str, Any]:
    own = rows[(rows.path == kind[0]) & (rows.space == kind[1])].sort_values("t")
    mean = barriers[
        (barriers.path == kind[0]) & (barriers.space == kind[1])
        & (barriers.task == "mean") & (barriers.quantity == "score")
    ]  # fmt: skip
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
