"""Strategies × seeds side by side: what the files of their runs say, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mcanalysis.metrics.continual import intransigence, relative_gain
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.training.config import steps_in_words

METRICS = ("average_accuracy", "backward_transfer", "forgetting", "learning_accuracy")
AGAINST_REFERENCE = ("intransigence", "relative_gain")
COSTS = ("train_seconds", "evaluation_seconds", "peak_memory_bytes")
COUNTED = ("cost_ratio", "forward_examples", "backward_examples", "memory_examples", "memory_bytes")
MORE_METRICS = ("average_anytime_accuracy", "forward_transfer", "general_retention")
NUMBERS = (*METRICS, *MORE_METRICS, *AGAINST_REFERENCE, *COSTS, *COUNTED)
LEFT_TO_FILES = {*MORE_METRICS[:2], "forward_examples", "backward_examples", "evaluation_seconds"}
"""What is in the CSV files alone: a table of all numbers would be too wide to be read."""
DIGITS = {"train_seconds": 1, "memory_examples": 0, "peak_memory_bytes": 0}
TITLES = {
    "train_seconds": "train s",
    "peak_memory_bytes": "peak MB",
    "cost_ratio": "cost",
    "memory_examples": "kept",
    "memory_bytes": "kept MB",
}
REFERENCES = ("joint", "individual")  # the first that was run is what intransigence and relative gain refer to


def metrics_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """One row per run and learner, `answers` marking the learner whose scores count; `order` where runs have one."""
    has_orders = any(run.order for run in runs)
    rows = []
    for run in runs:
        for learner, metrics in run.metrics["learners"].items():
            rows.append(
                {
                    "strategy": run.strategy,
                    "learner": learner,
                    "seed": run.seed,
                    **({"order": run.order or ""} if has_orders else {}),
                    "answers": learner == run.answering_learner,
                }
                | {
                    name: np.nan if metrics.get(name) is None else metrics[name]
                    for name in (*METRICS, *MORE_METRICS[:2])
                }
                # one that answers with an adapter per task leaves no single one to ask
                | {
                    "general_retention": np.nan
                    if run.metrics["average_accuracy"] is None
                    else general_retention(run, learner)
                }
            )
    return pd.DataFrame(rows)


def general_retention(run: FinishedRun, learner: str) -> float:
    """The mean over general tasks of what is left of the base's ability after the last task, in [0, 1].

    Tasks on which the base scores 0 are left out; NaN where none were measured.
    """
    if not run.has("general"):
        return np.nan
    table = run.table("general", ["after", "learner", "retention"])
    own = table[table.learner == learner]
    return float(own[own.after == own.after.max()].retention.mean())  # without training there is the base alone


def num_passes(run: FinishedRun | None) -> float:
    """What a run's training cost in examples forward, one backward counted as two; NaN where it was not counted."""
    cost = {} if run is None else run.cost
    return cost.get("forward_examples", np.nan) + 2 * cost.get("backward_examples", np.nan)  # type: ignore[operator]


def comparison_table(runs: Sequence[FinishedRun]) -> pd.DataFrame:
    """`metrics_table` with intransigence and relative gain, their `reference`, and what each run cost.

    The reference R* is `joint` where it was run, else `individual`, of the same seed and order: the score of each task
    at the end of joint training, or with an adapter of its own. Without either the columns are empty. `cost_ratio`:
    `num_passes` over that of `sequential` of the same seed and order. `peak_memory_bytes` is a GPU's alone: a process
    that trains one run after another on a CPU holds what the earlier ones needed, too.
    """
    table = metrics_table(runs)
    by_run = {(run.strategy, run.seed, run.order or ""): run for run in runs}
    reference = next((name for name in REFERENCES if name in set(table.strategy)), None)
    rows = []
    for row in table.itertuples():
        run = by_run[str(row.strategy), int(row.seed), str(getattr(row, "order", ""))]  # type: ignore[arg-type]
        best = by_run.get((reference or "", run.seed, run.order or ""))
        values: dict[str, Any] = {"reference": reference, **dict.fromkeys(AGAINST_REFERENCE, np.nan)}
        if best is not None:
            matrix, scores = whole_matrix(run, str(row.learner)), _reference_scores(best)
            values |= {"intransigence": intransigence(matrix, scores), "relative_gain": relative_gain(matrix, scores)}
        cost = dict.fromkeys((*COSTS, *COUNTED)) | run.cost
        if run.manifest.get("execution", {}).get("device", "cpu") == "cpu":
            cost["peak_memory_bytes"] = None
        cost["cost_ratio"] = num_passes(run) / num_passes(by_run.get(("sequential", run.seed, run.order or "")))
        rows.append(values | {name: np.nan if v is None else v for name, v in cost.items()})
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


def _reference_scores(run: FinishedRun) -> np.ndarray:
    matrix = whole_matrix(run, run.answering_learner)
    return matrix[-1] if run.strategy == "joint" else np.diagonal(matrix[1:])


def whole_matrix(run: FinishedRun, learner: str) -> np.ndarray:
    """A learner's accuracy matrix of shape (tasks + 1, tasks), NaN where its table has no row or cell."""
    table = run.accuracy_matrix_of(learner)
    matrix = np.full((len(run.task_names) + 1, len(run.task_names)), np.nan)
    matrix[table["after"]] = table[run.task_names]
    return matrix


def summary_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds, per strategy and learner, in the order they appear.

    Where runs have several orders of the tasks, a row per order, and one whose `order` is "mean": the mean over the
    orders of their means, and the standard deviation of these.
    """
    names = [n for n in NUMBERS if n in metrics and not metrics[n].isna().all()]
    rows = []
    for (strategy, learner), group in metrics.groupby(["strategy", "learner"], sort=False):
        answers = bool(group.answers.iloc[0])
        whose: dict[str, object] = {"strategy": strategy, "learner": learner, "answers": answers}
        if "order" not in group:
            rows.append(whose | {"seeds": len(group)} | _mean_and_sd(group[names]))
            continue
        of_orders = {str(order): own for order, own in group.groupby("order", sort=False)}
        for order, own in of_orders.items():
            rows.append(whose | {"order": order, "seeds": len(own)} | _mean_and_sd(own[names]))
        if len(of_orders) > 1:
            means = pd.DataFrame([own[names].mean() for own in of_orders.values()])
            rows.append(whose | {"order": "mean", "seeds": group.seed.nunique()} | _mean_and_sd(means))
    return pd.DataFrame(rows)


def _mean_and_sd(values: pd.DataFrame) -> dict[str, object]:
    """Of each column; the standard deviation of a single row is NaN."""
    found: dict[str, object] = {}
    for name in map(str, values):
        found |= {name: values[name].mean(), f"{name}_sd": values[name].std(ddof=1)}
    return found


def summary_cells(summary: pd.DataFrame) -> list[list[str]]:
    """A summary as text, the first row its header.

    A dash where a value is undefined, memory in MB; of several learners one `answers`.
    """
    shown = [n for n in NUMBERS if n in summary and n not in LEFT_TO_FILES]
    orders = ["order"] if "order" in summary else []
    rows = [["strategy", "learner", *orders, "seeds", *(TITLES.get(n, n.replace("_", " ")) for n in shown)]]
    learners = summary.groupby("strategy").learner.transform("nunique")
    several = learners > 1
    for (_, row), one_of_several in zip(summary.iterrows(), several, strict=True):
        answers = ", answers" if one_of_several and row.answers else ""
        cells = [str(row.strategy), f"{row.learner}{answers}", *(str(row[name]) for name in orders), str(row.seeds)]
        for name in shown:
            scale, digits = 1e-6 if name.endswith("_bytes") else 1.0, DIGITS.get(name, 2)
            value, spread = float(row[name]) * scale, float(row[f"{name}_sd"]) * scale
            text = "–" if np.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # no −0.00
            cells.append(text if np.isnan(spread) else f"{text} ± {spread:.{digits}f}")
        rows.append(cells)
    return rows


def comparison_notes(runs: Sequence[FinishedRun], table: pd.DataFrame, columns: Sequence[str] | None = None) -> str:
    """What the numbers of a comparison are, in one line; `columns`: the titles of a table that has some of them, and a
    row per strategy."""
    config = runs[0].config
    seeds = f"seeds {', '.join(map(str, dict.fromkeys(table.seed)))}"
    orders = table.groupby("strategy")["order"].nunique() if "order" in table else pd.Series(dtype=int)
    spread = f"Mean ± standard deviation over {seeds}"
    if orders.max() > 1 and columns is not None:
        spread = f"Mean ± standard deviation over {orders.max()} orders of the tasks, of each the mean over {seeds}"
        single = list(orders.index[orders == 1])
        spread += f" (over seeds where there is one order: {', '.join(single)})" if single else ""
    notes = [f"{spread}; {len(config['tasks'])} tasks of '{config['benchmark']}', {steps_in_words(config['training'])}"]
    reference = table.reference[0]
    possible = {
        "train s": "seconds are those of whole runs, which may have shared the machine",
        "peak MB": "peak memory is the GPU's",
        "cost": "cost: examples forward and, twice, backward in training, as a multiple of `sequential`'s, without "
        "what prompt vectors add to a row and what else a method computes",
        "kept": "kept: examples remembered at the end, or written by the model itself, and the size of all that is "
        "kept for later tasks",
        "intransigence": f"intransigence and relative gain refer to `{reference}` of the same seed",
    }
    there = {TITLES.get(n, n): table[n].notna().any() for n in NUMBERS if n in table} | {"learner": True}
    notes += [
        note for title, note in possible.items()
        if note and there.get(title, False) and (columns is None or title in columns)
    ]  # fmt: skip
    if orders.max() > 1 and columns is None:
        notes.append("the row `mean` is the mean ± standard deviation over the orders of their means")
    return "; ".join(notes) + "."
