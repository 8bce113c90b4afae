"""Everything a page shows of one run, read from its files."""

from __future__ import annotations

from typing import Any

from mcanalysis.report import settings
from mcanalysis.report.curves import BARRIERS, barrier_rows, measured, transition_curves
from mcanalysis.report.generations import samples
from mcanalysis.report.scores import matrix_rows, metric_rows
from mcanalysis.report.summary import cards, sentences
from mcanalysis.report.surfaces import planes
from mcanalysis.runs.finished import FinishedRun

_BARRIER_TITLES = {"interpolation_gain": "gain", "t_star": "t*"}


def run_contents(run: FinishedRun, number: int, num_samples: int) -> dict[str, Any]:
    """What the template needs of a run; `data` is what the charts draw, plain JSON.

    `number` tells the runs of a page apart. Raises `DataError` for a file of the run that is missing or damaged.
    """
    values = run.metrics_by_learner
    by_learner = {learner: run.accuracy_matrix_of(learner) for learner in values}
    paths = measured(run)
    curves = [] if paths is None else transition_curves(*paths)
    surfaces = planes(run)
    examples, note = samples(run, num_samples)
    matrix = by_learner[run.answering_learner]
    general = run.table("general", ["task"]) if run.has("general") else None
    return {
        "id": f"run-{number}",
        "name": run.directory.resolve().name,
        "strategy": run.strategy,
        "seed": run.seed,
        "learner": run.answering_learner,
        "cards": cards(run, values[run.answering_learner]),
        "sentences": sentences(run, matrix, None if paths is None else paths[1]),
        "tasks": run.task_names,
        "matrices": [{"learner": name, "rows": matrix_rows(run, table)} for name, table in by_learner.items()],
        "learners": list(values),
        "metrics": metric_rows(values),
        "general": None if general is None else [list(general.columns), *general.round(3).astype(str).values.tolist()],
        "barrier_names": [_BARRIER_TITLES.get(name, name.replace("_", " ")) for name in BARRIERS],
        "barriers": [] if paths is None else barrier_rows(paths[1]),
        "samples": examples,
        "samples_note": note,
        "settings": settings.settings(run),
        "versions": settings.versions(run),
        "has_transitions": settings.has_transitions(run),
        "analyses": settings.analyses(run),
        "connectivity_command": settings.command(run, "connectivity"),
        "landscape_command": settings.command(run, "landscape"),
        "data": {"id": f"run-{number}", "paths": curves, "planes": surfaces},
    }
