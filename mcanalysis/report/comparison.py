"""Several runs side by side: a table of strategies, and how the mean score over the tasks seen so far went on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mcanalysis.experiments.strategies import metrics_table, summary_cells, summary_table
from mcanalysis.report.curves import plain
from mcanalysis.runs.run import Run


def comparison(runs: Sequence[Run], matrices: Sequence[pd.DataFrame]) -> dict[str, Any] | None:
    """`cells` of the table, the first row its header, and `lines` for the chart; None for a single run.

    `matrices`: the accuracy matrix of each run's answering learner. `comparable` is False, and there is nothing else,
    where the runs are not of the same tasks in the same order on the same data.
    """
    if len(runs) < 2:
        return None
    if len({_benchmark(run) for run in runs}) > 1:
        return {"comparable": False}
    lines = []
    for run, matrix in zip(runs, matrices, strict=True):
        names = [name for name in matrix.columns if name != "after"]
        rows = matrix[matrix.after > 0]
        seen = [float(row[names[: int(row.after)]].astype(float).mean(skipna=False)) for _, row in rows.iterrows()]
        name = f"{run.strategy}, seed {run.seed}"
        lines.append({"name": name, "strategy": run.strategy, "x": [int(k) for k in rows.after], "y": plain(seen)})
    head, *rows = summary_cells(summary_table(metrics_table(runs)))
    cells = [head, *([*row[:2], *(cell.replace("-", "−") for cell in row[2:])] for row in rows)]
    return {"comparable": True, "cells": cells, "lines": lines, "tasks": runs[0].task_names}


def _benchmark(run: Run) -> str:
    """What must agree for scores to be comparable."""
    contents = [run.base_id, run.manifest["hashes"]["data"]]
    settings = [run.config.get(name) for name in ("scores", "num_test", "max_new_tokens")]
    return json.dumps([run.task_names, contents, *settings])
