"""How sharp the minima after a transition are: rows of `sharpness.csv`, found once per minimum and settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcanalysis.evaluation.differentiable import WholeLoss
from mcanalysis.evaluation.objective import Objective
from mcanalysis.landscape.sharpness import epsilon_sharpness, expected_sharpness
from mcanalysis.runs.run import Run
from mcanalysis.store.hashing import hash_json
from mcanalysis.studies.landscape.stored_surface import Corner


def sharpness_key(
    corner: Corner, num_samples: int, radius: float, epsilon: float, objectives: Sequence[Objective]
) -> str:
    """A hash of everything that the rows of one minimum depend on."""
    return hash_json([corner.key, num_samples, radius, epsilon, [o.settings_key for o in objectives]])[:16]


def known_rows(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run's `sharpness.csv` by key; none where there is no table."""
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("sharpness").to_dict("records") if run.has("sharpness") else ():
        by_key.setdefault(row["key"], []).append({str(name): value for name, value in row.items()})
    return by_key


def sharpness_rows(
    run: Run,
    corner: Corner,
    key: str,
    objectives: Sequence[Objective],
    num_samples: int,
    radius: float,
    epsilon: float,
) -> list[dict[str, Any]]:
    """Expected and ε-sharpness at a minimum, of the mean over the old tasks and of the new one (the last objective)."""
    *old, new = objectives
    point = corner.point
    labels = {"strategy": run.strategy, "learner": corner.learner, "seed": run.seed, "minimum": corner.label}
    rows = []
    for task, group in (("mean_old", old), (new.name, [new])):
        loss = WholeLoss(run.model, [o.encoded for o in group])
        expected = expected_sharpness(loss, point, radius, num_samples)
        worst = epsilon_sharpness(loss, point, epsilon)
        of_task = {**labels, "task": task, "split": new.split, "num_examples": sum(len(o.encoded) for o in group)}
        for measure, unit, value, error, size in (
            ("expected", "nats/token", expected.value, expected.standard_error, radius),
            ("epsilon", "percent of 1 + loss", worst.value, np.nan, epsilon),
        ):
            found = {"value": value, "standard_error": error, "loss": expected.loss, "unit": unit, "size": size}
            rows.append({**of_task, "measure": measure, **found, "key": key})
    return rows
