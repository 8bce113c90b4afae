"""Several runs side by side: a table of strategies, and how the mean score over the tasks seen so far went on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mcanalysis.report.curves import plain
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.strategy_tables import metrics_table, summary_cells, summary_table


def comparison(runs: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """`cells` of the table, the first row its header, and `lines` for the chart; None for a single run.

    `comparable` is False, and there is nothing else, where the runs are not of the same tasks in the same order on the
    same data. Scores are those of each run's answering learner.
    """
    if len(runs) < 2:
        return None
    if len({_benchmark(run) for run in runs}) > 1:
        return {"comparable": False}
    lines = []
    for run in runs:
        matrix = run.accuracy_matrix
        rows = matrix[matrix.after > 0]
        seen = [float(row[run.task_names[: int(row.after)]].mean(skipna=False)) for _, row in rows.iterrows()]
        name = f"{run.strategy}, seed {run.seed}"
        lines.append({"name": name, "strategy": run.strategy, "x": [int(k) for k in rows.after], "y": plain(seen)})
    head, *rows = summary_cells(summary_table(metrics_table(runs)))
    cells = [head, *([*row[:2], *(cell.replace("-", "−") for cell in row[2:])] for row in rows)]
    return {"comparable": True, "cells": cells, "lines": lines, "tasks": runs[0].task_names}


def _benchmark(run: FinishedRun) -> str:
    """What must agree for scores to be comparable."""
    contents = [run.base_id, run.manifest["hashes"]["data"]]
    settings = [run.config.get(name) for name in ("scores", "num_test", "max_new_tokens")]
    return json.dumps([run.task_names, contents, *settings])
