"""The accuracy matrices and metrics of a run as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.plotting.transition_rows import shown_number
from mcanalysis.report.metric_words import METRICS
from mcanalysis.report.tables import read_json, read_table
from mcanalysis.runs.run import Run
from mcanalysis.strategies import get_strategy

DARK_FROM = 0.7  # a score whose shade asks for light text


def matrices(run: Run) -> dict[str, pd.DataFrame]:
    """The accuracy matrix of each learner, the answering one first; raises `DataError` where that is missing."""
    names = dict.fromkeys([run.answering_learner, *metrics(run)])
    found = {}
    for learner in names:
        suffix = "" if learner == run.answering_learner else f"_{learner}"
        table = read_table(run, f"accuracy_matrix{suffix}", ["after"])
        if table is not None:
            found[learner] = table
    if run.answering_learner not in found:
        raise DataError(
            f"Expected tables/accuracy_matrix.csv in '{run.directory}', got none; restore it or train again."
        )
    return found


def metrics(run: Run) -> dict[str, Mapping[str, float | None]]:
    """The metrics of each learner, the answering one first; raises `DataError` where there are none."""
    values = read_json(run, "tables", "metrics.json")
    learners = values.get("learners") if isinstance(values, dict) else None
    if not isinstance(learners, dict) or run.answering_learner not in learners:
        raise DataError(f"Expected metrics in '{run.directory}/tables', got none; restore them or train again.")
    first = run.answering_learner
    return {first: learners[first], **{k: v for k, v in learners.items() if k != first}}


def matrix_rows(run: Run, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a heat map: `label`, and `cells` with the score, its text and what the cell is.

    `kind`: "own" for the score right after a task was learned, "later" before it was, "kept" after it.
    """
    names = [name for name in table.columns if name != "after"]
    one_by_one = learned_one_by_one(run)
    rows = []
    for _, row in table.iterrows():
        after = int(row["after"])
        cells = []
        for k, name in enumerate(names, start=1):
            score = float(pd.to_numeric(row[name], errors="coerce"))
            shade = min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
            kind = "kept" if not one_by_one else "own" if k == after else "later" if k > after else "kept"
            text = {"text": shown_number(score), "shade": f"{shade:.3f}", "dark": shade > DARK_FROM}
            cells.append(text | {"kind": kind, "missing": math.isnan(score)})
        rows.append({"number": after, "label": _row_label(run, after, names), "cells": cells})
    return rows


def learned_one_by_one(run: Run) -> bool:
    """Whether there is a time right after a task was learned: not of all tasks at once, nor of a base alone."""
    return get_strategy(run.strategy).schedule not in ("joint", "none")


def _row_label(run: Run, after: int, names: list[str]) -> str:
    if after == 0:
        return "base model"
    return "all tasks at once" if get_strategy(run.strategy).schedule == "joint" else names[after - 1]


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
