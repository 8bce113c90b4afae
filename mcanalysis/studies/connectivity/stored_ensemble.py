"""Ensembles along paths of language models, computed once and kept in a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.ensemble import ensemble_along
from mcanalysis.evaluation.answer_logits import answer_batches, answer_logits
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.results import JsonResult
from mcanalysis.studies.connectivity.stored_path import StoredPath


def stored_ensemble(path: StoredPath, objectives: Sequence[Objective], folder: Path) -> JsonResult:
    """Where the ensemble of a path is kept; the name tells points, examples and path apart."""
    keys = [path.key, path.settings.ensemble, *(o.settings_key for o in objectives)]
    t = path.transition
    return JsonResult(folder / f"{t.start}--{t.end}-{path.kind}-{hash_json(keys)[:8]}.json")


def average_along(
    curve: Callable[[float], Point], path: StoredPath, objectives: Sequence[Objective], model: LoraModel
) -> list[dict[str, Any]]:
    """Rows of `ensemble.csv` without the columns that say which path it is.

    `settings.ensemble` points at equal spacing, both ends included; per task, and `mean_old` and `mean` as in
    `profiles.csv`: means of the tasks' numbers. Answers are teacher-forced.
    """
    number = path.settings.ensemble
    ts = [i / (number - 1) for i in range(number)]
    tables = []
    for objective in objectives:
        found = ensemble_along(curve, ts, _predictor(model), answer_batches(model, objective))
        tables.append(pd.DataFrame(found.rows()).assign(task=objective.name, split=objective.split))
    return _with_means(tables, path.transition.old)


def _predictor(model: LoraModel) -> Callable[[Mapping[str, Tensor], Any], Tensor]:
    return lambda point, batch: answer_logits(model, point, batch)


def _with_means(tables: Sequence[pd.DataFrame], old: Sequence[str]) -> list[dict[str, Any]]:
    values = ["loss", "accuracy", "target_accuracy", "ece", "brier"]
    tables = list(tables)
    of_old = [t for t in tables if t.task.iloc[0] in old]
    of_new = [t for t in tables if t.task.iloc[0] not in old]
    if of_old and of_new:
        mean_old = of_old[0].assign(task="mean_old", **{v: np.mean([t[v] for t in of_old], axis=0) for v in values})
        mean = mean_old.assign(task="mean", **{v: (mean_old[v] + of_new[0][v]) / 2 for v in values})
        tables += [mean_old, mean]
    columns = ["task", "split", "member", "t", *values]
    return pd.concat(tables)[columns].to_dict("records")  # type: ignore[return-value]
