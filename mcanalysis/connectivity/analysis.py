"""Measuring the paths between the minima of a run, transition by transition, through the run's store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path as FilePath

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.connectivity.tables import transition_rows
from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.measuring import measure, measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.params.lora import factor_delta_deviation
from mcanalysis.params.point import Point
from mcanalysis.paths import Bezier, Linear, Path
from mcanalysis.progress import Progress, silent
from mcanalysis.run import Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement, MeasurementStore

Profiles = Mapping[str, Mapping[str, Profile]]  # by split, then by task
PATHS = ("linear-factor", "linear-delta", "bezier-factor")


@dataclass(frozen=True)
class ConnectivitySettings:
    """What is measured: `num_points` on each path, the first `num_examples` of the eval and test splits (None: all).

    A Bezier curve with one bend is fitted per transition in factor space: `curve_steps` Adam steps at
    `curve_learning_rate`, each on one t and `curve_batch_size` train examples of the old tasks and as many of the new.
    """

    num_points: int = 21
    num_examples: int | None = 50
    paths: tuple[str, ...] = PATHS
    curve_steps: int = 60
    curve_learning_rate: float = 1e-2
    curve_batch_size: int = 16

    def __post_init__(self) -> None:
        grid(self.num_points)
        unknown = [p for p in self.paths if p not in PATHS]
        if unknown or not self.paths:
            raise UserError(
                f"Expected paths among {', '.join(PATHS)}, got {', '.join(unknown) or 'none'}; choose some."
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"Expected at least 1 example per task, got {self.num_examples}; raise --num-examples.")


@dataclass(frozen=True)
class Transition:
    """Two minima in a row: `start` and `end` are labels, `keys` content hashes, `old` and `new` task names."""

    start: str
    end: str
    points: tuple[Point, Point]
    keys: tuple[str, str]
    old: tuple[str, ...]
    new: str
    data_key: str = ""  # what curves are fitted on, where that is not told by the run


def run_transitions(run: Run, learner: str) -> list[Transition]:
    """The transitions between successive minima; raises `RunDirectoryError` for a run with fewer than two."""
    minima = run.minima_of(learner)
    if len(minima) < 2:
        raise RunDirectoryError(
            f"Expected a run with at least two minima, got {len(minima)} in '{run.directory}'; train on more tasks."
        )
    return [
        Transition(
            a.label,
            b.label,
            (a.point, b.point),
            (a.key, b.key),
            tuple(run.task_names[:k]),
            b.task,
        )
        for k, (a, b) in enumerate(pairwise(minima), start=1)
    ]


def analyse_run(
    run: Run, settings: ConnectivitySettings, learners: Sequence[str] | None = None, progress: Progress = silent
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure every transition of a run and write `tables/profiles.csv` and `tables/barriers.csv`; returns both.

    What is in the run's store is not measured again. `learners`: by default the answering one.
    """
    profiles, barriers = [], []
    for learner in learners or [run.answering_learner]:
        labels = {"strategy": run.strategy, "learner": learner, "seed": run.seed}
        transitions = run_transitions(run, learner)
        bar = progress(
            total=len(transitions) * len(settings.paths) * settings.num_points,
            desc=f"paths {run.strategy}/{learner} (seed {run.seed})",
        )
        for transition in transitions:
            for path in settings.paths:
                profiled = measure_path(run, learner, transition, path, settings, bar.update)
                rows = path_rows(transition, path, profiled, labels, settings)
                profiles += rows[0]
                barriers += rows[1]
        bar.close()
    tables = pd.DataFrame(profiles), pd.DataFrame(barriers)
    for name, table in zip(("profiles", "barriers"), tables, strict=True):
        write_text_atomic(run.directory / "tables" / f"{name}.csv", table.to_csv(index=False))
    return tables


def measure_path(
    run: Run,
    learner: str,
    transition: Transition,
    path: str,
    settings: ConnectivitySettings,
    on_point: Callable[[], object] = lambda: None,
) -> Profiles:
    """Profiles, by split and task, along one path of one transition of a run; only what the store lacks is measured."""
    objectives = _objectives(run, transition, settings)

    def fit(curve: Bezier) -> Bezier:
        return fit_curve(
            curve,
            run.loss([transition.old, [transition.new]], settings.curve_batch_size, seed=run.seed),
            num_steps=settings.curve_steps,
            learning_rate=settings.curve_learning_rate,
            seed=run.seed,
            max_grad_norm=1.0,
        )

    with MeasurementStore(run.directory / "measurements.sqlite") as store:
        return measure_between(
            transition,
            path,
            objectives,
            settings,
            store,
            engine=lambda: run.engine,
            fit=fit,
            curves=run.directory / "curves" / learner,
            on_point=on_point,
        )


def measure_between(
    transition: Transition,
    path: str,
    objectives: Sequence[Objective],
    settings: ConnectivitySettings,
    store: MeasurementStore,
    *,
    engine: Callable[[], Engine],
    fit: Callable[[Bezier], Bezier],
    curves: FilePath,
    on_point: Callable[[], object] = lambda: None,
) -> Profiles:
    """The same for any two adapters: `fit` trains a curve where `curves` holds none for these settings."""
    ts = grid(settings.num_points)
    measured: dict[tuple[str, str], list[Measurement]] = {(o.split, o.name): [] for o in objectives}

    @cache
    def way() -> Path:  # found or read only if a point of it has to be measured
        return _path(transition, path, settings, fit, curves)

    for t, point_key in zip(ts, point_keys(transition, path, settings), strict=True):
        values = measure(engine, store, point_key, lambda t=t: way()(float(t)), objectives)
        for objective, value in zip(objectives, values, strict=True):
            measured[objective.split, objective.name].append(value)
        on_point()
    return {
        split: {o.name: Profile.of(ts, measured[split, o.name]) for o in objectives if o.split == split}
        for split in dict.fromkeys(o.split for o in objectives)
    }


def path_rows(
    transition: Transition,
    path: str,
    profiles: Profiles,
    labels: Mapping[str, object],
    settings: ConnectivitySettings,
) -> tuple[list[dict], list[dict]]:
    """Rows of profiles.csv and barriers.csv for one path of one transition."""
    path_name, space = path.split("-")
    ends = {"space": space, "path": path_name, "start": transition.start, "end": transition.end}
    ts = grid(settings.num_points)
    if [t.shape for t in transition.points[0].values()] == [t.shape for t in transition.points[1].values()]:
        deviation = np.asarray(factor_delta_deviation(*transition.points, ts))
    else:
        deviation = np.full(len(ts), np.nan)  # adapters of different ranks have no factor path to deviate from
    return transition_rows(profiles, transition.old, transition.new, {**labels, **ends}, deviation)


def unmeasured(run: Run, learner: str, settings: ConnectivitySettings) -> list[tuple[str, int]]:
    """The (path, number of the transition) of a run for which something is not in its store yet, path by path."""
    found = []
    transitions = run_transitions(run, learner)
    with MeasurementStore(run.directory / "measurements.sqlite") as store:
        for path in settings.paths:
            for number, transition in enumerate(transitions):
                objectives = _objectives(run, transition, settings)
                points = point_keys(transition, path, settings)
                if store.missing(measurement_key(p, o) for p in points for o in objectives):
                    found.append((path, number))
    return found


def point_keys(transition: Transition, path: str, settings: ConnectivitySettings) -> list[str]:
    """The store's key of every point on a path; the ends of all paths are the minima themselves, measured once."""
    between = _path_key(transition, path, settings)[:24]
    start, end = transition.keys
    return [start if t == 0 else end if t == 1 else f"{between}/{t!r}" for t in map(float, grid(settings.num_points))]


def _path_key(transition: Transition, path: str, settings: ConnectivitySettings) -> str:
    """A hash of everything that the points of a path depend on."""
    fitted = [
        transition.old,
        transition.new,
        transition.data_key,
        settings.curve_steps,
        settings.curve_learning_rate,
        settings.curve_batch_size,
    ]
    return hash_json([path, *transition.keys, *([] if path.startswith("linear") else fitted)])


def _objectives(run: Run, transition: Transition, settings: ConnectivitySettings) -> list[Objective]:
    return [
        run.task_objective(task, split, settings.num_examples)
        for task in (*transition.old, transition.new)
        for split in ("eval", "test")
    ]


def _path(
    transition: Transition,
    path: str,
    settings: ConnectivitySettings,
    fit: Callable[[Bezier], Bezier],
    curves: FilePath,
) -> Path:
    """A straight path, or a fitted curve: from its file where it was fitted before, with the same settings."""
    path_name, space = path.split("-")
    if path_name == "linear":
        return Linear(*transition.points, space=space)
    key = _path_key(transition, path, settings)
    file = curves / f"{transition.start}--{transition.end}-{path}-{key[:8]}.safetensors"
    straight = Bezier(*transition.points, num_bends=1, space=space)
    if file.exists():
        return straight.with_bends([load_file(file)])
    curve = fit(straight)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file({n: t.contiguous() for n, t in curve.bends[0].items()}, partial)
    partial.rename(file)
    return curve
