"""From what was measured to the rows of `landscape.csv`, and from snapshots to those of `trajectory.csv`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcanalysis.evaluation.objective import Objective
from mcanalysis.landscape.grid import Node
from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import Estimate, mean_interval, weighted
from mcanalysis.paths.plane import Plane
from mcanalysis.runs.snapshots import read_snapshot, snapshot_files
from mcanalysis.store.measurements import Measurement

Measured = Mapping[str, Sequence[Measurement | None]]
"""What was measured at a node, by its key: a value per objective, None where there is none."""
_NOT_MEASURED: Mapping[str, Any] = {"loss": np.nan, "score": np.nan, "num_examples": 0, "num_targets": 0}


def node_rows(
    measured: Measured, nodes: Sequence[Node], objectives: Sequence[Objective], labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """A row per node and task, and per mean: `mean_old`, and `mean` = ½(mean over the old tasks + new task).

    The last objective is the new task's. `measured` is False, and the values NaN, where there is nothing; a mean is
    measured where all of its parts are. NaN or ∞ that a model gave stay what they are.
    """
    rows = []
    for node in nodes:
        place = {**labels, "x": node.x, "y": node.y, "anchor": node.anchor}
        values = [_row(m) for m in measured[node.key]]
        for objective, value in zip(objectives, values, strict=True):
            rows.append({**place, "task": objective.name, "split": objective.split, **value})
        if len(objectives) > 1:
            old = _mean(values[:-1])
            split = objectives[-1].split
            rows.append({**place, "task": "mean_old", "split": split, **old})
            rows.append({**place, "task": "mean", "split": split, **_mean([old, values[-1]])})
    return rows


def _row(m: Measurement | None) -> dict[str, Any]:
    if m is None:
        return {**_NOT_MEASURED, "measured": False}
    sizes = {"num_examples": m.num_examples, "num_targets": m.num_targets}
    return {"loss": m.loss, "score": m.score, **sizes, "measured": True}


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not all(part["measured"] for part in parts):
        return {**_NOT_MEASURED, "measured": False}
    means = {q: float(np.mean([part[q] for part in parts])) for q in ("loss", "score")}
    return means | {q: sum(part[q] for part in parts) for q in ("num_examples", "num_targets")} | {"measured": True}


def mean_slice_rows(
    measured: Mapping[str, Sequence[Measurement]],
    directions: Sequence[Sequence[Node]],
    objectives: Sequence[Objective],
    labels: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The mean over directions at each α, with a 95 % interval over examples, per task and for the means.

    `directions`: the nodes of each, at the same α in the same order. The interval is that of the data, the directions
    held fixed; `<quantity>_few_events` says where it cannot promise its 95 % (`mcanalysis.metrics.intervals`).
    """
    rows = []
    points: dict[str, dict[str, np.ndarray]] = {"loss": {}, "score": {}}  # (n,) by task
    estimates: dict[str, dict[str, Estimate]] = {"loss": {}, "score": {}}
    sizes: dict[str, dict[str, int]] = {}
    for number, objective in enumerate(objectives):
        found = [[measured[node.key][number] for node in nodes] for nodes in directions]
        first = found[0][0]
        sizes[objective.name] = {"num_examples": first.num_examples, "num_targets": first.num_targets}
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, and may be
            nll = np.mean([[m.nll for m in of_direction] for of_direction in found], axis=0)
            scores = np.mean([[m.scores for m in of_direction] for of_direction in found], axis=0)
            for quantity, values, weights in (("loss", nll, first.targets), ("score", scores, None)):
                own = np.mean([[getattr(m, quantity) for m in d] for d in found], axis=0)
                points[quantity][objective.name] = own
                estimates[quantity][objective.name] = Estimate.of(Sample(values, weights), is_score=weights is None)
    names = [o.name for o in objectives]
    if len(names) > 1:
        for quantity in ("loss", "score"):
            table, own = points[quantity], estimates[quantity]
            table["mean_old"] = np.mean([table[name] for name in names[:-1]], axis=0)
            table["mean"] = (table["mean_old"] + table[names[-1]]) / 2
            own["mean_old"] = weighted([(1 / len(names[:-1]), own[name]) for name in names[:-1]])
            own["mean"] = weighted([(0.5, own["mean_old"]), (0.5, own[names[-1]])])
        for mean, parts in (("mean_old", names[:-1]), ("mean", names)):
            sizes[mean] = {q: sum(sizes[n][q] for n in parts) for q in ("num_examples", "num_targets")}
    for name in points["loss"]:
        intervals = {q: mean_interval(estimates[q][name], least=0.0) for q in estimates}
        for i, node in enumerate(directions[0]):
            row = {**labels, "x": node.x, "y": node.y, "anchor": node.anchor, "task": name}
            row |= {"split": objectives[-1].split, **sizes[name], "measured": True}
            for quantity, interval in intervals.items():
                row[quantity] = float(points[quantity][name][i])
                row |= interval.at(i).columns(quantity) | {f"{quantity}_few_events": bool(interval.few_events[i])}
            rows.append(row)
    return rows


def trajectory_rows(
    plane: Plane, run_directory: Any, label: str, learners: Sequence[str], labels: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Where each snapshot of the task `label` (`<k>-<TASK>`) falls on the plane, and how far from it it is.

    In units of distance in the plane's space. Snapshots are read one by one. Without snapshots, no rows.
    """
    rows = []
    for learner in learners:
        files = snapshot_files(run_directory, label, learner)
        places = plane.project_many(read_snapshot(file) for file in files.values())
        for step, (x, y, distance) in zip(files, places, strict=True):
            rows.append(
                {**labels, "learner": learner, "task": label, "step": step, "x": x, "y": y, "distance": distance}
            )
    return rows
