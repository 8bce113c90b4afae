"""What is left to compute of the paths of one run: the jobs, and those that follow from their results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from mcanalysis.errors import RunDirectoryError
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.progress import Bar, Progress
from mcanalysis.runs.run import Opening, Run
from mcanalysis.store.measurements import MeasurementKey, MeasurementStore
from mcanalysis.studies.connectivity.analysis import SIMPLEX, has_ensemble, measure_ensemble, path_objectives, run_path
from mcanalysis.studies.connectivity.measuring import wanted_ts
from mcanalysis.studies.connectivity.settings import ConnectivitySettings
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.stored_simplex import StoredSimplex
from mcanalysis.studies.connectivity.transitions import num_stretches
from mcanalysis.studies.job_worker import Job, opened_run
from mcanalysis.studies.point_jobs import Place, PointJobs, evaluate

_SHOWING_SECONDS = 60.0  # a shared file system may keep for so long that a file is not there


@dataclass(frozen=True)
class PathName:
    """The `number`-th path of a kind (from 0) between the minima of a learner; see `run_path`."""

    learner: str
    kind: str
    number: int


@dataclass(frozen=True)
class OnPath:
    """A point on a path."""

    path: PathName
    settings: ConnectivitySettings
    t: float

    def point(self, run: Run) -> Mapping[str, Tensor]:
        path = _known_path(run, self.path, self.settings)
        curve = path.if_there()
        end = time.monotonic() + _SHOWING_SECONDS
        while curve is None and time.monotonic() < end:
            time.sleep(0.5)
            list(path.file.parent.glob("*"))  # makes a network file system look again
            curve = path.if_there()
        if curve is None:
            raise RunDirectoryError(
                f"Expected the curve {path.file}, which another process has fitted, got no such file here; put the "
                "run directory where all processes see the same files."
            )
        return curve(self.t)


@lru_cache(maxsize=4)
def _known_path(run: Run, path: PathName, settings: ConnectivitySettings) -> StoredPath:
    return run_path(run, path.learner, path.kind, path.number, settings)


@dataclass(frozen=True)
class _OnSimplex:
    """A point of a simplex."""

    learner: str
    settings: ConnectivitySettings
    weights: tuple[float, ...]

    def point(self, run: Run) -> Mapping[str, Tensor]:
        return _known_simplex(run, self.learner, self.settings).simplex(self.weights)


@lru_cache(maxsize=1)
def _known_simplex(run: Run, learner: str, settings: ConnectivitySettings) -> StoredSimplex:
    return StoredSimplex(run, learner, settings)


def fit_path(
    directory: Path, opening: Opening, path: PathName, settings: ConnectivitySettings, progress: Progress
) -> None:
    """What a job does: fit a curve, which it writes to the run's `curves/`."""
    run = opened_run(directory, opening)
    bar = progress(total=1, desc=f"{run.strategy} fit {path.kind} {path.number + 1}")
    _ = run_path(run, path.learner, path.kind, path.number, settings).path
    bar.update(1)
    bar.close()


def ensemble_path(
    directory: Path, opening: Opening, path: PathName, settings: ConnectivitySettings, progress: Progress
) -> None:
    """What a job does: average predictions along a path, into a file of the run's `ensembles/`."""
    run = opened_run(directory, opening)
    bar = progress(total=1, desc=f"{run.strategy} ensemble {path.kind} {path.number + 1}")
    measure_ensemble(run, path.learner, run_path(run, path.learner, path.kind, path.number, settings))
    bar.update(1)
    bar.close()


@dataclass
class PathJobs:
    """The paths of a run's answering learner, and the simplex if one is asked for."""

    run: Run
    settings: ConnectivitySettings
    progress: Progress
    _awaited: dict[PathName, set[MeasurementKey]] = field(default_factory=dict)
    _bars: dict[PathName, Bar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._points = PointJobs(self.run)
        self._learner = self.run.answering_learner

    def start(self) -> list[Job]:
        """The first jobs, path by path; none where everything is there."""
        names = [
            PathName(self._learner, kind, number)
            for kind in self.settings.paths
            for number in range(num_stretches(self.run, self._learner, path_kind(kind)))
        ]
        if self.settings.simplex:
            names.append(PathName(self._learner, SIMPLEX, 0))
        return [job for name in names for job in self._next(name)]

    def follow(self, job: Job, result: object) -> list[Job]:
        """Store what a job gave; the jobs that can start now."""
        if job.function is not evaluate:
            return self._next(job.arguments[2])
        made: list[Job] = []
        stored = self._points.add(job, result)  # type: ignore[arg-type]
        for name, awaited in list(self._awaited.items()):
            before = {key.point_key for key in awaited}
            awaited.difference_update(stored)
            for _ in before - {key.point_key for key in awaited}:
                self._bar(name).update(1)
            if before and not awaited:
                made += self._next(name)
        return made

    def is_open(self, kind: str) -> bool:
        """Whether something of a kind of path is still to come."""
        return any(name.kind == kind for name in self._awaited)

    @property
    def num_open(self) -> int:
        """How many paths, with the simplex, are still to come."""
        return len(self._awaited)

    def _next(self, name: PathName) -> list[Job]:
        points, objectives, is_there = self._wanted(name)
        which = (self.run.directory, self.run.opening, name, self.settings)
        if points:
            if not is_there:
                self._awaited[name] = set()  # nothing to wait for but the fit
                return [Job(fit_path, which)]
            jobs = self._points.jobs(points, objectives)
            self._awaited[name] = self._points.awaited(points, objectives)
            return jobs
        if name.kind != SIMPLEX:
            path = run_path(self.run, self._learner, name.kind, name.number, self.settings)
            if not has_ensemble(self.run, self._learner, path):
                self._awaited[name] = set()
                return [Job(ensemble_path, which)]
        self._awaited.pop(name, None)
        if name in self._bars:
            self._bars[name].close()
        return []

    def _wanted(self, name: PathName) -> tuple[Sequence[tuple[str, Place]], list[Objective], bool]:
        """The points to measure next with their keys, on what, and whether the path has been fitted, if it has to."""
        with MeasurementStore(self.run.directory / "measurements.sqlite") as store:
            if name.kind == SIMPLEX:
                simplex = _known_simplex(self.run, self._learner, self.settings)
                points = [(key, _OnSimplex(self._learner, self.settings, w)) for w, key in simplex.points()]
                absent = {k.point_key for k in store.missing(_keys([k for k, _ in points], simplex.objectives))}
                return [(k, p) for k, p in points if k in absent], simplex.objectives, True
            path = run_path(self.run, self._learner, name.kind, name.number, self.settings)
            objectives = path_objectives(self.run, path)
            ts = wanted_ts(path, objectives, store)
            points = [(path.point_key(t), OnPath(name, self.settings, float(t))) for t in ts]
            return points, objectives, not ts or path.if_there() is not None

    def _bar(self, name: PathName) -> Bar:
        if name not in self._bars:
            awaited = len({key.point_key for key in self._awaited.get(name, ())})
            total = awaited if self.settings.adaptive is None else self.settings.num_points
            self._bars[name] = self.progress(total=total, desc=f"{self.run.strategy} {name.kind} {name.number + 1}")
        return self._bars[name]


def _keys(points: Iterable[str], objectives: Sequence[Objective]) -> Iterator[MeasurementKey]:
    return (measurement_key(point, o) for point in points for o in objectives)
