"""What is to be computed of the paths of one run: curves, points on paths, ensembles, a simplex; piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from glob import escape
from itertools import pairwise
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.profile import Profile
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.evaluation.sampled import some_of
from mcanalysis.paths import Curve, Path
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Opening, Run, check_space
from mcanalysis.runs.transitions import run_transitions, transitions_from_base, whole_run
from mcanalysis.store import base_minimum
from mcanalysis.store.atomic import write_bytes_atomic
from mcanalysis.store.measurements import Measurement
from mcanalysis.store.point_files import point_bytes, points_of, read_points
from mcanalysis.store.recorded import recorded_hash
from mcanalysis.studies.connectivity.certified import Certified, certified
from mcanalysis.studies.connectivity.gauges import measure_gauges
from mcanalysis.studies.connectivity.general_tables import GeneralTasks
from mcanalysis.studies.connectivity.stored_ensemble import average_along, stored_ensemble
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.stored_simplex import StoredSimplex
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.studies.points import Points

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.study import Connectivity

logger = logging.getLogger(__name__)

CHECKPOINT_STEPS = 10  # the most steps of a curve fit that a kill loses

Profiles = Mapping[str, Mapping[str, Profile]]
"""By split, then by task."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a path gave: `profiles`, and what a search says of its barriers (nothing on a grid).

    `num_cut`: by split, then by task, how many prompts lost their middle. `templates`: by task, the name of the chat
    template of its prompts, empty where there is none. `ensemble`: rows without labels. `beyond`: what was measured
    beyond the ends of a straight path; none without `extrapolate`. `general`: what was measured, on the test split, of
    tasks that were never trained; `general_beyond`: the same beyond the ends. `tested`: by task, general ones too, what
    was measured on the test split. `gauges`: rows without labels.
    """

    path: StoredPath
    profiles: Profiles
    certified: Certified
    num_cut: Mapping[str, Mapping[str, int]]
    templates: Mapping[str, str]
    ensemble: Sequence[Mapping[str, Any]] = ()
    beyond: Profiles | None = None
    general: GeneralTasks | None = None
    general_beyond: GeneralTasks | None = None
    tested: Mapping[str, Objective] = field(default_factory=dict)
    gauges: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class PathName:
    """The `number`-th path of a kind, from 0, of a learner: between minima in a row, or from the base to each."""

    learner: str
    kind: str
    number: int
    from_base: bool = False


class RunPaths:
    """The paths between the minima of a learner of a run, and through all of them."""

    splits: tuple[str, ...] = ("eval", "test")

    def __init__(self, run: Run, learner: str, study: Connectivity) -> None:
        self.run, self.learner, self.study = run, learner, study
        self._from_base = transitions_from_base(run, learner) if study.from_base else []
        is_alone = len(self._from_base) == 1  # a single minimum has a path from the base only
        self._between = [] if is_alone else run_transitions(run, learner)
        self._through = [] if is_alone else [whole_run(run, learner)]

    def names(self, kind: str) -> list[PathName]:
        """The paths of a kind between the minima, in order; raises as `check_space` does."""
        check_space(self.run.strategy, path_kind(kind).space)
        transitions = self._through if path_kind(kind).is_of_whole_run else self._between
        return [PathName(self.learner, kind, n) for n in range(len(transitions))]

    def names_from_base(self) -> list[PathName]:
        """The paths from the base, in the order of the minima; none unless they are asked for."""
        return [PathName(self.learner, self.study.from_base_kind, n, True) for n in range(len(self._from_base))]

    def path(self, name: PathName) -> StoredPath:
        """One of them."""
        transitions = self._through if path_kind(name.kind).is_of_whole_run else self._between
        transition = (self._from_base if name.from_base else transitions)[name.number]
        return StoredPath(transition, name.kind, self.study, self.curves)

    @property
    def all_transitions(self) -> list[str]:
        """The transitions in words, those among them that a run which still trains has yet to come to."""
        labels = [f"{k}-{task}" for k, task in enumerate(self.run.config["tasks"], start=1)]
        return [f"{start} → {end}" for start, end in pairwise(labels)]

    @property
    def curves(self) -> FilePath:
        """The folder of fitted curves."""
        return self.run.directory / "curves" / self.learner

    @property
    def ensembles(self) -> FilePath:
        """The folder of ensembles."""
        return self.run.directory / "ensembles" / self.learner

    def objectives(self, path: StoredPath) -> list[Objective]:
        """What is measured along a path: its tasks, on each split."""
        number = self.study.num_examples
        return [self.run.task_objective(t, s, number) for t in path.transition.tasks for s in self.splits]

    @cached_property
    def general(self) -> list[Objective]:
        """What is measured besides: the run's general tasks, on their test split."""
        number = self.study.num_examples
        return [self.run.task_objective(name, "test", number) for name in self.run.general_tasks]

    def loss(self, path: StoredPath) -> Any:
        """What a curve is fitted on: between two minima the old tasks together and the new one; through all every task
        alike, with as many examples a step."""
        t, batch_size = path.transition, self.study.curve_batch_size
        groups = [t.old, (t.new,)]
        if path.kind.is_of_whole_run:
            groups = [(task,) for task in t.tasks]
            batch_size = max(1, 2 * batch_size // len(groups))
        return self.run.loss(groups, batch_size, seed=self.seed)

    @property
    def seed(self) -> int:
        """The seed of curve fits."""
        return self.run.seed if self.study.curve_seed is None else self.study.curve_seed

    def num_steps(self, path: StoredPath) -> int:
        """The steps of a curve's fit."""
        return self.study.curve_steps * (len(path.transition.minima) - 1)

    def fit(self, path: StoredPath, progress: Progress = silent) -> Curve:
        """Fit a curve; it goes on from its checkpoint."""
        curve = path.straight
        assert isinstance(curve, Curve)
        path.file.parent.mkdir(parents=True, exist_ok=True)
        return fit_curve(
            curve,
            self.loss(path),
            finder=self.study.finder,
            num_steps=self.num_steps(path),
            learning_rate=self.study.curve_learning_rate,
            seed=self.seed,
            max_grad_norm=1.0,
            checkpoint=path.file.with_suffix(".checkpoint"),
            checkpoint_steps=CHECKPOINT_STEPS,
            progress=progress,
        )


@lru_cache(maxsize=4)
def paths_of(run: Run, learner: str, study: Connectivity) -> RunPaths:
    """The paths of a run, the same object for all pieces of a process."""
    own = getattr(run, "paths", None)  # two adapters have theirs
    return RunPaths(run, learner, study) if own is None else own(learner, study)


def measure_path(points: Points, paths: RunPaths, name: PathName, turn: int) -> Steps[Measured]:
    """A path from its fit to its ensemble; what is kept is not computed, and a curve is fitted only where a point or an
    ensemble on it is lacking."""
    run, study, path = paths.run, paths.study, paths.path(name)
    trained, general = paths.objectives(path), paths.general
    objectives = [*trained, *general]
    measured: dict[float, list[Measurement]] = {}

    def bends() -> Steps[bytes]:
        if not path.kind.is_fitted:
            return b""
        kept = _CurveFile(path.file, points, f"{path.key[:24]}/", paths.ensembles)
        words = f"curve {name.kind} {path.transition.start} → {path.transition.end} of {run.directory.name}"
        (content,) = yield [Piece(str(path.file), fit_path, (run.opening, study, name), kept, turn, words)]
        return content

    def at(ts: Sequence[float]) -> Steps[None]:
        keys = [path.point_key(t) for t in ts]
        with points.store() as store:
            lacking = store.missing(measurement_key(key, o) for key in keys for o in objectives)
        curve = (yield from bends()) if lacking else b""
        where = [(key, OnPath(name, study, float(t), curve)) for key, t in zip(keys, ts, strict=True)]
        found = yield from points.measure(where, objectives, turn)
        measured.update(zip(map(float, ts), found, strict=True))

    def some(t: float, chosen: Sequence[tuple[Objective, tuple[int, ...]]]) -> Steps[list[Measurement]]:
        key = path.point_key(t)
        with points.store() as store:
            lacking = store.missing(measurement_key(key, some_of(o, rows)) for o, rows in chosen)
        curve = (yield from bends()) if lacking else b""
        return (yield from points.losses_of_some(key, OnPath(name, study, float(t), curve), chosen, turn))

    of_base: list[list[Measurement]] = []
    if general:
        of_base = yield from points.measure([(base_minimum.KEY, AtBase())], general, turn)
    known = Certified()
    if study.tolerance is None:
        yield from at([*path.ts.tolist(), *path.ts_beyond.tolist()])
    else:
        known = yield from certified(path, trained, at, some, measured)
        if len(path.ts_beyond):
            yield from at(path.ts_beyond.tolist())
    ensemble: list[dict[str, Any]] = []
    if study.ensemble:
        tested = [o for o in trained if o.split == "test"]
        kept = stored_ensemble(path, tested, paths.ensembles)
        curve = (yield from bends()) if kept.find() is None else b""
        words = f"ensemble along {name.kind} {path.transition.start} → {path.transition.end} of {run.directory.name}"
        arguments = (run.opening, study, name, curve)
        (found,) = yield [Piece(str(kept.file), ensemble_path, arguments, kept, turn, words)]
        ensemble = [{k: np.nan if v is None else v for k, v in row.items()} for row in found]

    tests = [i for i, o in enumerate(trained) if o.split == "test"]
    ends = [[measured[t][i] for i in tests] for t in (0.0, 1.0)]
    gauges = yield from measure_gauges(points, path, paths.learner, [trained[i] for i in tests], ends, turn)

    beyond = path.ts_beyond.tolist()
    num_cut = {s: {o.name: o.num_cut for o in objectives if o.split == s} for s in paths.splits}
    inside = sorted(set(measured) - set(beyond))

    def along(ts: Sequence[float]) -> list[Profile]:
        return [Profile.of(ts, [measured[t][i] for t in ts]) for i in range(len(objectives))]

    def profiles(ts: Sequence[float]) -> Profiles:
        of_trained = list(zip(trained, along(ts)[: len(trained)], strict=True))
        return {s: {o.name: p for o, p in of_trained if o.split == s} for s in paths.splits}

    def ability(ts: Sequence[float]) -> GeneralTasks | None:
        if not (general and ts):
            return None
        names, of_general = [o.name for o in general], along(ts)[len(trained) :]
        return GeneralTasks(dict(zip(names, of_general, strict=True)), dict(zip(names, of_base[0], strict=True)))

    templates = {o.name: o.template for o in objectives}
    outside = profiles(beyond) if beyond else None
    kept = ability(inside), ability(beyond)
    tested = {o.name: o for o in objectives if o.split == "test"}
    return Measured(path, profiles(inside), known, num_cut, templates, ensemble, outside, *kept, tested, gauges)


def measure_simplex(points: Points, learner: str, study: Connectivity, turn: int) -> Steps[list[dict[str, Any]]]:
    """Rows of `simplex.csv` without strategy, learner and seed."""
    simplex = StoredSimplex(points.run, learner, study)
    at = list(simplex.points())
    where = [(key, _OnSimplex(learner, study, weights)) for weights, key in at]
    found = yield from points.measure(where, simplex.objectives, turn)
    return simplex.rows([weights for weights, _ in at], found)


@dataclass(frozen=True)
class OnPath:
    """A point on a path; `curve` holds the bends of one that is fitted, so that they need not lie where it is made."""

    path: PathName
    study: Connectivity
    t: float
    curve: bytes = field(default=b"", repr=False)

    def point(self, run: Run) -> Mapping[str, Tensor]:
        return _known_path(run, self.path, self.study, self.curve)(self.t)


@lru_cache(maxsize=4)
def _known_path(run: Run, name: PathName, study: Connectivity, curve: bytes) -> Path:
    path = paths_of(run, name.learner, study).path(name)
    return path.bent(points_of(curve)) if path.kind.is_fitted else path.straight


@dataclass(frozen=True)
class AtBase:
    """The base itself."""

    def point(self, run: Run) -> Mapping[str, Tensor]:
        return run.model.base_point()


@dataclass(frozen=True)
class _OnSimplex:
    """A point of a simplex."""

    learner: str
    study: Connectivity
    weights: tuple[float, ...]

    def point(self, run: Run) -> Mapping[str, Tensor]:
        return _known_simplex(run, self.learner, self.study).simplex(self.weights)


@lru_cache(maxsize=1)
def _known_simplex(run: Run, learner: str, study: Connectivity) -> StoredSimplex:
    return StoredSimplex(run, learner, study)


@dataclass(frozen=True)
class _CurveFile:
    """The bends of a curve in its file.

    What was measured on the curve that lay there before does not hold for one that another machine fits to its bits.
    """

    file: FilePath
    points: Points
    point_keys: str
    ensembles: FilePath

    def find(self) -> bytes | None:
        if not self.file.exists():
            return None
        read_points(self.file)  # refuses a damaged one
        return self.file.read_bytes()

    def keep(self, result: bytes) -> bytes:
        before = recorded_hash(self.file)
        write_bytes_atomic(self.file, result)
        if before not in (None, recorded_hash(self.file)):
            with self.points.store() as store:
                number = store.drop_points(self.point_keys)
            for file in self.ensembles.glob(f"{escape(self.file.stem[:-8])}*.json"):
                file.unlink()
            logger.warning(
                "'%s' was fitted anew and is another curve: %d values measured on the former one are measured again",
                self.file, number,
            )  # fmt: skip
        return result


def fit_path(opening: Opening, study: Connectivity, name: PathName, progress: Progress) -> bytes:
    """What a piece does: fit a curve and give its bends."""
    paths = paths_of(opening.run, name.learner, study)
    return point_bytes(paths.fit(paths.path(name), progress).bends)


def ensemble_path(
    opening: Opening, study: Connectivity, name: PathName, curve: bytes, progress: Progress
) -> list[dict[str, Any]]:
    """What a piece does: average predictions along a path."""
    run = opening.run
    paths = paths_of(run, name.learner, study)
    path = paths.path(name)
    tested = [o for o in paths.objectives(path) if o.split == "test"]
    return average_along(_known_path(run, name, study, curve), path, tested, run.model)
