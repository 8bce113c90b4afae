"""The planes that `landscape.py` measured, as grids for a 3-D picture and a contour map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.report.curves import TASK_WORDS, plain
from mcanalysis.runs.finished import FinishedRun

_COLUMNS = ("kind", "space", "start", "end", "x", "y", "anchor", "task", "split", "loss", "score")


def planes(run: FinishedRun) -> list[dict[str, Any]]:
    """A dictionary per plane: ticks `x` and `y`, a (y, x) grid per task and quantity, the minima, the trajectories.

    Empty where none was measured. What is not measured, or not finite, is None.
    """
    if not run.has("landscape"):
        return []
    table = run.table("landscape", _COLUMNS)
    table = table[(table.kind == "plane") & (table.split == "test")]
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
    for name, value in key.items():
        walks = walks[walks[name] == value]
    return [
        {"learner": learner, "x": plain(rows.x), "y": plain(rows.y), "step": [int(s) for s in rows.step]}
        for learner, rows in walks.sort_values("step").groupby("learner", sort=False)
    ]
