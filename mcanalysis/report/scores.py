"""The accuracy matrices and metrics of a run as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.report.metric_words import METRICS
from mcanalysis.runs.finished import FinishedRun

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
