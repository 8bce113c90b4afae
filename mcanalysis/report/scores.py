"""Scores and metrics as a page shows them: heat maps, what each metric says, several runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.report.paths_and_planes import plain
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.studies.strategy_tables import metrics_table, summary_cells, summary_table


class Words(NamedTuple):
    """`better`: which way is better; `undefined`: why there may be no value."""

    title: str
    says: str
    better: str
    undefined: str = "needs at least two tasks, learned one after another"


_AGAINST_REFERENCE = "needs a joint or individual run of the same seed: python analyses/compare.py has it in its table"

METRICS: Mapping[str, Words] = {
    "average_accuracy": Words("Average accuracy", "Mean score over all tasks at the end.", "higher"),
    "backward_transfer": Words(
        "Backward transfer",
        "How the scores of earlier tasks changed between learning them and the end; below 0 is forgetting.",
        "higher",
    ),
    "forgetting": Words(
        "Forgetting", "Fall from the best score each earlier task ever had to its score at the end.", "lower"
    ),
    "learning_accuracy": Words(
        "Learning accuracy", "Mean score of each task right after it was learned (plasticity).", "higher"
    ),
    "average_anytime_accuracy": Words(
        "Average anytime accuracy", "Mean score on the tasks seen so far, averaged over the sequence.", "higher"
    ),
    "forward_transfer": Words(
        "Forward transfer", "What earlier tasks did for a task before it was learned, against the base model.", "higher"
    ),
    "stability": Words(
        "Stability", "Share of what was learned that is still there at the end, as a mean of ratios.", "higher"
    ),
    "stability_skipped": Words(
        "Tasks left out of stability", "Tasks whose score right after learning was 0, so that no ratio exists.", ""
    ),
    "intransigence": Words(
        "Intransigence", "How far learning fell short of a reference model.", "lower", _AGAINST_REFERENCE
    ),
    "relative_gain": Words(
        "Relative gain", "Mean ratio of the final scores to those of a reference model.", "higher", _AGAINST_REFERENCE
    ),
}


DARK_FROM = 0.7  # a score whose shade asks for light text


def matrix_rows(run: FinishedRun, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a heat map: `label`, and `cells` with the score, its text and what the cell is.

    `kind`: "own" for the score right after a task was learned, "later" before it was, "kept" after it.
    """
    sequential = run.is_sequential
    rows = []
    for _, row in table.iterrows():
        after = int(row["after"])
        cells = []
        for k, name in enumerate(run.task_names, start=1):
            score = float(row[name])
            shade = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
            kind = "kept" if not sequential or k < after else "own" if k == after else "later"
            text = {"text": shown_number(score), "shade": f"{shade:.3f}", "dark": shade > DARK_FROM}
            cells.append(text | {"kind": kind, "missing": math.isnan(score)})
        rows.append({"number": after, "label": _row_label(run, after), "cells": cells})
    return rows


def _row_label(run: FinishedRun, after: int) -> str:
    if after == 0:
        return "base model"
    return "all tasks at once" if run.is_joint else run.task_names[after - 1]


def metric_rows(by_learner: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """One row per metric: its words, and a text per learner."""
    rows = []
    for name, words in METRICS.items():
        values = [of_learner.get(name) for of_learner in by_learner.values()]
        texts = [metric_text(name, value) for value in values]
        rows.append({"name": name, "words": words, "texts": texts, "undefined": all(v is None for v in values)})
    return rows


def metric_text(name: str, value: float | None) -> str:
    """A metric as text, with its sign where it is a difference that can be read either way.

    >>> metric_text("backward_transfer", 0.25), metric_text("stability", None)
    ('+0.25', '–')
    """
    if value is None:
        return "–"
    if name == "stability_skipped":
        return str(round(value))
    return shown_number(value, signed=name in ("backward_transfer", "forward_transfer"))


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
    settings = [run.config.get(name) for name in ("scores", "num_test", "max_new_tokens", "chat_template")]
    return json.dumps([run.task_names, contents, *settings])
