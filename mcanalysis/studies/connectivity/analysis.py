"""Measuring the paths between the minima of a run, through the run's store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath

import pandas as pd

from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.evaluation.objective import Objective
from mcanalysis.paths import Curve
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.studies.connectivity.measuring import Measured, measure_path_values
from mcanalysis.studies.connectivity.result_tables import ResultTables, write_tables
from mcanalysis.studies.connectivity.settings import PATHS, ConnectivitySettings
from mcanalysis.studies.connectivity.stored_ensemble import ensemble_file, ensemble_rows
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.stored_simplex import StoredSimplex
from mcanalysis.studies.connectivity.transitions import Transition, num_stretches, run_transitions, stretch, whole_run

SIMPLEX = "simplex"  # stands where the name of a path does
CHECKPOINT_STEPS = 10  # the most steps of a curve fit that a kill loses


def analyse_run(
    run: Run, settings: ConnectivitySettings, learners: Sequence[str] | None = None, progress: Progress = silent
) -> dict[str, pd.DataFrame]:
    """Measure every path of a run; returns the tables that it writes to `tables/`, by name (see `ResultTables`).

    What is in the run's store is not measured again. `learners`: by default the answering one.
    """
    tables = ResultTables()
    for learner in learners or [run.answering_learner]:
        labels = {"strategy": run.strategy, "learner": learner, "seed": run.seed}
        simplex = StoredSimplex(run, learner, settings) if settings.simplex else None  # refused before all else
        kinds = {name: path_kind(name) for name in settings.paths}
        jobs = [(name, n) for name, kind in kinds.items() for n in range(num_stretches(run, learner, kind))]
        jobs.sort(key=lambda job: (kinds[job[0]].is_of_whole_run, job[1]))  # by transition, and the whole run last
        total = len(jobs) * settings.num_points
        bar = progress(total=total, desc=f"paths {run.strategy}/{learner} (seed {run.seed})")
        for name, number in jobs:
            path = run_path(run, learner, name, number, settings)
            measured = measure_path(run, path, bar.update)
            tables.add(path, measured, labels, measure_ensemble(run, learner, path))
        if simplex is not None:
            tables.simplex += [{**labels, **row} for row in simplex.rows()]
        bar.close()
    frames = tables.frames()
    write_tables(frames, run.directory / "tables")
    return frames


def run_path(run: Run, learner: str, name: str, number: int, settings: ConnectivitySettings) -> StoredPath:
    """The path of a kind between the `number`-th two minima in a row (from 0), or through all of them (0).

    A curve between two minima is fitted on the old tasks together and the new one; one through all minima on every
    task alike, with as many examples a step.
    """
    transition = stretch(run, learner, path_kind(name), number)
    num_steps = settings.curve_steps * (len(transition.points) - 1)
    groups, batch_size = [transition.old, (transition.new,)], settings.curve_batch_size
    if path_kind(name).is_of_whole_run:
        groups = [(task,) for task in transition.tasks]
        batch_size = max(1, 2 * batch_size // len(groups))

    def fit(curve: Curve, checkpoint: FilePath) -> Curve:
        return fit_curve(
            curve,
            run.loss(groups, batch_size, seed=run.seed),
            num_steps=num_steps,
            learning_rate=settings.curve_learning_rate,
            seed=run.seed,
            max_grad_norm=1.0,
            checkpoint=checkpoint,
            checkpoint_steps=CHECKPOINT_STEPS,
        )

    return StoredPath(transition, name, settings, run.directory / "curves" / learner, fit)


def measure_path(run: Run, path: StoredPath, on_point: Callable[[], object] = lambda: None) -> Measured:
    """Profiles, by split and task, along one path of a run; only what the store lacks is measured."""
    with MeasurementStore(run.directory / "measurements.sqlite") as store:
        return measure_path_values(path, path_objectives(run, path), store, lambda: run.engine, on_point)


def measure_ensemble(run: Run, learner: str, path: StoredPath) -> list[dict]:
    """Rows of the ensemble along a path of a run, none if the settings ask for none."""
    if not path.settings.ensemble:
        return []
    return ensemble_rows(path, _tested(run, path), lambda: run.model, run.directory / "ensembles" / learner)


def has_ensemble(run: Run, learner: str, path: StoredPath) -> bool:
    """Whether the ensemble that the settings ask for, if any, is computed."""
    folder = run.directory / "ensembles" / learner
    return not path.settings.ensemble or ensemble_file(path, _tested(run, path), folder).exists()


def path_objectives(run: Run, path: StoredPath) -> list[Objective]:
    """What is measured along a path: its tasks, on the eval and the test split."""
    return [
        run.task_objective(task, split, path.settings.num_examples)
        for task in path.transition.tasks
        for split in ("eval", "test")
    ]


def _tested(run: Run, path: StoredPath) -> list[Objective]:
    return [o for o in path_objectives(run, path) if o.split == "test"]


__all__ = [
    "PATHS",
    "SIMPLEX",
    "ConnectivitySettings",
    "Transition",
    "analyse_run",
    "has_ensemble",
    "measure_ensemble",
    "measure_path",
    "path_objectives",
    "run_path",
    "run_transitions",
    "whole_run",
]
