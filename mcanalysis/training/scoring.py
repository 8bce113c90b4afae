"""The accuracy matrix of a run, a row after each task, and what is computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mcanalysis.evaluation.engine import Engine, Evaluation
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.continual import continual_metrics, with_task_identity
from mcanalysis.metrics.retention import loss_retention, score_retention
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.params.point import Point, content_hash
from mcanalysis.progress import Progress, silent
from mcanalysis.store import base_minimum
from mcanalysis.store.atomic import write_json_atomic, write_text_atomic
from mcanalysis.store.manifest import record_evaluation
from mcanalysis.store.measurements import Measurement, MeasurementStore
from mcanalysis.store.small_files import read_json, table_text
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.processes import Processes
from mcanalysis.training.stopping import StopRequest


class Scoring:
    """Fills the accuracy matrix of every learner from the saved minima, measures general tasks, and writes the tables.

    Every value is computed once and kept in the run's store, which only the main process has. `general`: objectives of
    tasks that are never trained. `progress` shows how far each evaluation is.
    """

    def __init__(
        self,
        directory: Path,
        model: AdaptedModel,
        strategy: Strategy,
        objectives: Sequence[Objective],
        general: Sequence[Objective],
        processes: Processes,
        engine: EngineSettings = AUTO,
        progress: Progress = silent,
    ) -> None:
        self.directory = directory
        self.model = model
        self.strategy = strategy
        self.processes = processes
        self.progress = progress
        self.stop = StopRequest()
        self._objectives = list(objectives)
        self._general = list(general)
        self._engine = Engine(model, engine)
        self._engine.check_room([*objectives, *general])
        number = len(self._objectives)
        self._matrices = {learner: np.full((number + 1, number), np.nan) for learner in strategy.learners}
        self._of_general: dict[tuple[str, int], list[Measurement]] = {}  # by learner and row

    def fill_row(self, store: MeasurementStore | None, row: int, label: str) -> None:
        """Score the tasks after `row` of them; row 0 is the base model, and without training every row is.

        General tasks are measured as well.
        """
        number = len(self._objectives)
        chosen = list(range(number)) if row == 0 else self.strategy.scored_tasks(row - 1, number)
        for learner, matrix in self._matrices.items():
            name = "0-base" if row == 0 else f"{label}-{learner}"
            found = self._measured(store, row, label, learner, [self._objectives[i] for i in chosen], name)
            rows = slice(None) if row == 0 and self.strategy.schedule == "none" else row
            matrix[rows, chosen] = [m.score for m in found]
            if self._general:
                of_general = self._measured(store, row, label, learner, self._general, f"{name}-general")
                self._of_general[learner, row] = of_general

    def _measured(
        self,
        store: MeasurementStore | None,
        row: int,
        label: str,
        learner: str,
        objectives: list[Objective],
        generations: str,
    ) -> list[Measurement]:
        """What is found at a minimum (or the base), measured where the store lacks it, by all processes together."""
        if row == 0:
            point, key = self.model.base_point(), base_minimum.KEY
        else:
            point = self.model.read(self.directory / "minima" / label / learner)
            key = content_hash(point)

        def missing() -> list[int]:
            assert store is not None
            absent = set(store.missing([measurement_key(key, o) for o in objectives]))
            return [i for i, o in enumerate(objectives) if measurement_key(key, o) in absent]

        todo = [objectives[i] for i in self.processes.on_main(missing)]
        what = "the base" if row == 0 else f"{label}/{learner}"
        evaluations = self._evaluate(point, todo, f"{self.strategy.name}: scoring {what}") if todo else []

        def keep() -> list[Measurement]:
            assert store is not None
            if todo:
                # Raw outputs first: what is in the store is not evaluated again.
                both = zip(todo, evaluations, strict=True)
                written = {o.name: list(e.outputs) for o, e in both if o.task.has_score}
                if written:
                    self._keep_outputs(generations, [o.name for o in objectives], written)
                record_evaluation(self.directory, self._engine.choices(todo))
            store.put_many((measurement_key(key, o), e.measurement) for o, e in zip(todo, evaluations, strict=True))
            found = [store.get(measurement_key(key, o)) for o in objectives]
            return [m for m in found if m is not None]

        return self.processes.on_main(keep)

    def _keep_outputs(self, name: str, tasks: Sequence[str], written: dict[str, list[str]]) -> None:
        """Write raw outputs of a minimum beside those of its other tasks, which were kept when these were measured."""
        file = self.directory / "generations" / f"{name}.json"
        known = read_json(file, "remove it") if file.exists() else {}
        both = {**known, **written}
        write_json_atomic(file, {task: both[task] for task in tasks if task in both})

    def _evaluate(self, point: Point, objectives: list[Objective], what: str) -> list[Evaluation]:
        with self.stop.at_once():
            if self.processes.count == 1:
                return self._engine.evaluate(point, objectives, self.progress, what)
            return self.processes.map(
                lambda o: self._engine.evaluate(point, [o], self.progress, f"{what}, {o.name}")[0], objectives
            )

    @property
    def table_names(self) -> list[str]:
        """What `write_tables` writes."""
        return [*(self._matrix_name(learner) for learner in self._tabled()), "metrics.json"]

    def _tabled(self) -> dict[str, np.ndarray]:
        """The matrices by learner, and the one with task identity where the strategy has it."""
        own, answering = self.strategy.own_task_learner, self._matrices[self.strategy.answering_learner]
        return {**self._matrices, own: with_task_identity(answering)} if own else self._matrices

    def _matrix_name(self, learner: str) -> str:
        return f"accuracy_matrix{'' if learner == self.strategy.answering_learner else f'_{learner}'}.csv"

    def write_tables(self) -> None:
        """Write matrices, metrics and the table of general tasks as they stand; for the main process."""
        answering = self.strategy.answering_learner
        names = [o.name for o in self._objectives]
        metrics: dict = {}
        for learner, matrix in self._tabled().items():
            table = pd.DataFrame(matrix, columns=names)
            table.insert(0, "after", range(len(matrix)))
            if self.strategy.schedule == "joint":
                table = table.iloc[[0, -1]]
            write_text_atomic(self.directory / "tables" / self._matrix_name(learner), table_text(table))
            metrics[learner] = continual_metrics(matrix)
        write_json_atomic(self.directory / "tables" / "metrics.json", {**metrics[answering], "learners": metrics})
        if self._of_general:
            write_text_atomic(self.directory / "tables" / "general.csv", table_text(self._general_table()))

    def _general_table(self) -> pd.DataFrame:
        """`general.csv`: loss, score and retention of every general task after each task (0: the base), by learner."""
        rows = []
        for (learner, row), found in sorted(self._of_general.items(), key=lambda item: item[0][0]):
            base = self._of_general[learner, 0]
            for objective, m, of_base in zip(self._general, found, base, strict=True):
                is_scored = objective.task.has_score
                kept = score_retention(m.score, of_base.score) if is_scored else loss_retention(m.loss, of_base.loss)
                values = {"loss": m.loss, "score": m.score, "retention": float(kept)}
                rows.append({"after": row, "learner": learner, "task": objective.name, **values})
        return pd.DataFrame(rows)
