"""How sharp the minima after a transition are: rows of `sharpness.csv`, found once per minimum and settings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.evaluation.differentiable import WholeLoss
from mcanalysis.landscape.sharpness import epsilon_sharpness, expected_sharpness
from mcanalysis.progress import Progress
from mcanalysis.runs.run import Opening, Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.small_files import table_text
from mcanalysis.studies.engine import Piece
from mcanalysis.studies.landscape.stored_surface import Corner

if TYPE_CHECKING:
    from mcanalysis.studies.landscape.study import Landscape

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptRows:
    """The rows of one minimum and settings in a run's `sharpness.csv`, each with the `key` of what it depends on."""

    run: Run
    key: str

    def find(self) -> list[dict[str, Any]] | None:
        """The rows; None where there are none."""
        return self._by_key().get(self.key)

    def keep(self, result: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add rows to the table at once, so that a stop does not lose them."""
        rows = [row for own in (self._by_key() | {self.key: result}).values() for row in own]
        file = self.run.directory / "tables" / "sharpness.csv"
        write_text_atomic(file, table_text(pd.DataFrame(rows)))
        return result

    def _by_key(self) -> dict[str, list[dict[str, Any]]]:
        by_key: dict[str, list[dict[str, Any]]] = {}
        try:
            rows = self.run.table("sharpness").to_dict("records") if self.run.has("sharpness") else []
        except DataError as error:
            logger.warning("Rows of sharpness are found again. %s", error)
            rows = []
        for row in rows:
            by_key.setdefault(row["key"], []).append({str(name): value for name, value in row.items()})
        return by_key


def sharpness_piece(study: Landscape, run: Run, corner: Corner) -> Piece:
    """What finds how sharp a minimum is, once for the same settings and data."""
    key = hash_json([corner.key, *study.sharpness, [o.settings_key for o in study.objectives(run)]])[:16]
    name = f"sharpness of {run.directory.name} at {corner.name}"
    arguments = (run.opening, study, corner, key)
    return Piece(f"{run.directory}|sharpness|{key}", measure_sharpness, arguments, KeptRows(run, key), name=name)


def measure_sharpness(
    opening: Opening, study: Landscape, corner: Corner, key: str, progress: Progress
) -> list[dict[str, Any]]:
    """Expected and ε-sharpness at a minimum, of the mean over the old tasks and of the new one, as rows."""
    run = opening.run
    num_samples, radius, epsilon = study.sharpness
    *old, new = study.objectives(run)
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
