"""The first lines of a page: what came out of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.style import path_lines
from mcanalysis.report.metric_words import METRICS
from mcanalysis.report.scores import metric_text
from mcanalysis.runs.finished import FinishedRun

_CARDS = ("average_accuracy", "backward_transfer", "learning_accuracy", "forgetting")


def cards(run: FinishedRun, values: Mapping[str, float | None]) -> list[dict[str, str]]:
    """The numbers that stand at the top: four metrics of the answering learner, and what the run cost."""
    found = [
        {"title": METRICS[name].title, "value": metric_text(name, values.get(name)), "says": METRICS[name].says}
        for name in _CARDS
    ]
    seconds, memory = run.cost.get("train_seconds"), run.cost.get("peak_memory_bytes")
    if seconds is not None:
        found.append({"title": "Training", "value": _duration(seconds), "says": "Time of training alone."})
    if memory is not None:
        found.append({"title": "Peak memory", "value": f"{memory / 1e6:,.0f} MB", "says": "Of the whole process."})
    return found


def sentences(run: FinishedRun, matrix: pd.DataFrame, barriers: pd.DataFrame | None) -> list[str]:
    """What was done, which task lost most, and what lies between the minima."""
    names = run.task_names
    many = f"{len(names)} tasks" if len(names) != 1 else "one task"
    said = [f"{run.strategy} on {many}: {', '.join(names)}. The {run.answering_learner} learner answers."]
    said += _most_forgotten(matrix, names) if run.is_sequential else []
    if barriers is not None:
        said += _paths(barriers)
    return said


def _most_forgotten(matrix: pd.DataFrame, names: Sequence[str]) -> list[str]:
    by_stage = matrix.set_index("after")
    last = by_stage.index.max()
    falls: dict[str, tuple[float, float]] = {}
    for k, name in enumerate(names, start=1):
        if k in by_stage.index and k < last:
            own, end = float(by_stage.loc[k, name]), float(by_stage.loc[last, name])  # type: ignore[arg-type]
            if math.isfinite(own) and math.isfinite(end):
                falls[name] = (own, end)
    if not falls:
        return []
    name = max(falls, key=lambda n: falls[n][0] - falls[n][1])
    own, end = falls[name]
    if own <= end:
        return ["No earlier task scored lower at the end than right after it was learned."]
    return [f"{name} lost most: {shown_number(own)} right after it was learned, {shown_number(end)} at the end."]


def _paths(barriers: pd.DataFrame) -> list[str]:
    said = []
    for (path, space), line in path_lines(zip(barriers.path, barriers.space, strict=True)).items():
        rows = barriers[(barriers.path == path) & (barriers.space == space)]
        losses = rows[(rows.quantity == "loss") & (rows.task == "mean_old")].dropna(subset="chord_barrier")
        gains = rows[(rows.quantity == "score") & (rows.task == "mean")].dropna(subset="interpolation_gain")
        parts = []
        if len(losses):
            worst: Any = losses.iloc[int(losses.chord_barrier.to_numpy().argmax())]
            height = shown_number(worst.chord_barrier)
            parts.append(
                f"highest chord barrier of the old tasks' loss {height} nats per token ({worst.start} → {worst.end})"
                if worst.chord_barrier >= 0.005
                else "no chord barrier of the old tasks' loss as high as 0.005 nats per token"
            )
        if len(gains):
            above = int((gains.interpolation_gain_low > 0).sum())
            parts.append(
                f"a point between the ends is better for old and new tasks together in {above} of {len(gains)} "
                "transitions (95 % interval above 0)"
            )
        if parts:
            said.append(f"{line.label[0].upper()}{line.label[1:]}: {'; '.join(parts)}.")
    return said


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
