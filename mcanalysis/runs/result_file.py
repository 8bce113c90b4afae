"""The result file of a finished run: its scores, costs and what it was, small enough to be committed; no weights."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError, RunDirectoryError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store.atomic import plain_json
from mcanalysis.store.sealed import read_sealed, write_sealed
from mcanalysis.store.small_files import read_json

_REMEDY = "restore it, or remove it to train the run again"


class FiledRun(FinishedRun):
    """A finished run as its result file tells it: settings, scores and costs; minima, losses and outputs it lacks.

    `directory` is the file. Raises `DataError` for one that is damaged, was changed since, or has another format, and
    `RunDirectoryError` as `FinishedRun` does.
    """

    def _read_manifest(self) -> dict[str, Any]:
        values = read_sealed(self.directory, "a result file", _REMEDY)
        self._values: dict[str, Any] = values
        return values["manifest"]

    @property
    def name(self) -> str:
        """The name of its run directory."""
        return self.directory.stem

    @property
    def minima_labels(self) -> list[str]:
        """Raises `RunDirectoryError`: there are none."""
        raise RunDirectoryError(f"Expected a run directory, got '{self.directory}' without minima; train the run here.")

    @property
    def metrics(self) -> dict[str, Any]:
        """As those of a run."""
        return self._values["metrics"]

    @property
    def cost(self) -> dict[str, float | None]:
        """As that of a run."""
        return self._values["cost"]

    def has(self, table: str) -> bool:
        """Whether the file has it: accuracy matrices, and `general` where it was measured."""
        return table in self._values["tables"]

    def _read_table(self, table: str) -> pd.DataFrame:
        if not self.has(table):
            raise DataError(f"Expected tables/{table}.csv of a run, got the result file '{self.directory}' without it.")
        columns = self._values["tables"][table].items()
        return pd.DataFrame({name: [math.nan if v is None else v for v in values] for name, values in columns})


def write_result(run: FinishedRun, file: str | os.PathLike[str]) -> None:
    """Write a run's result file, whole or not at all; one of the same scores that is there is left as it is.

    Raises `RunDirectoryError` for one that is there with other scores, which nothing is to choose between by itself.
    """
    matrices = _matrices(run)
    if Path(file).exists():
        there = FiledRun(file, run.scored_split)
        if plain_json([run.metrics, matrices]) != plain_json([there.metrics, _matrices(there)]):
            raise RunDirectoryError(
                f"Expected the scores of '{run.directory}' in its result file '{file}', got others, of the same "
                "settings and data trained again; remove one of the two."
            )
        return
    report = run.directory / "tables" / "strategy.json"
    write_sealed(
        file,
        {
            "manifest": run.manifest,
            "answering_learner": run.answering_learner,
            "metrics": run.metrics,
            "tables": {**matrices, **({"general": run.table("general").to_dict("list")} if run.has("general") else {})},
            "report": read_json(report) if report.exists() else {},
            "cost": run.cost,
        },
    )


def _matrices(run: FinishedRun) -> dict[str, Any]:
    """The accuracy matrix of each learner, by the name of its table, as values by column."""
    first = run.answering_learner
    names = {learner: f"accuracy_matrix_{learner}" for learner in run.metrics["learners"]} | {first: "accuracy_matrix"}
    return {name: run.accuracy_matrix_of(learner).to_dict("list") for learner, name in names.items()}
