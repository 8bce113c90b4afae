"""Ensembles along paths of language models, computed once and kept in a file each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.ensemble import ensemble_along
from mcanalysis.evaluation.answer_logits import answer_batches, answer_logits
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.task_means import with_means
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
    values = ["loss", "accuracy", "target_accuracy", "ece", "brier", "mutual_information"]
    by_task = {t.task.iloc[0]: t for t in tables}
    new = next(name for name in by_task if name not in old)
    found = with_means({name: table[values] for name, table in by_task.items()}, old, new)
    numbers = {name: dict(zip(values, of_task.T, strict=True)) for name, of_task in found.items()}
    tables = [by_task.get(name, tables[0]).assign(task=name, **columns) for name, columns in numbers.items()]
    columns = ["task", "split", "member", "t", *values]
    return pd.concat(tables)[columns].to_dict("records")  # type: ignore[return-value]
