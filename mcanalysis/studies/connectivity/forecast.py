"""What a study of paths would take, told from a few batches and steps that are timed; nothing is written.

Told is what is not stored: training by its padded tokens, as the dry run of a training counts them; points by the work
of their batches (`EvaluationBatch`); curves by their steps. Each is timed on this machine, on examples of the true
lengths, with as many threads as a worker has.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd
import torch

from mcanalysis.connectivity.losses import terms_of
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.free_memory import free_memory
from mcanalysis.params.point import Point
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store import base_minimum
from mcanalysis.store.measurements import MeasurementKey, MeasurementStore
from mcanalysis.studies.connectivity.gauges import gauge_points
from mcanalysis.studies.connectivity.measuring import PathName, RunPaths, paths_of
from mcanalysis.studies.connectivity.planned_run import PlannedPaths, PlannedRun
from mcanalysis.studies.connectivity.stored_ensemble import stored_ensemble
from mcanalysis.studies.connectivity.stored_simplex import StoredSimplex
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.executors.processes import num_cores
from mcanalysis.studies.training import Training
from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

TIMED_BATCHES = 3
TIMED_STEPS = 3  # of a curve's fit


@dataclass(frozen=True)
class Forecast:
    """What would be computed, and how long that takes.

    `rows`, one per run and kind of work: `run`, `work` (training, scoring, points, curves, ensembles), how much is
    `to_do` and how much `stored` (tasks, minima, points, curves), `examples` to answer, `seconds` of one worker.
    `seconds`: of all on `num_workers`, without starting, tables and figures. `memory`: bytes of one process at its
    peak, as seen here and, of training, as its dry run estimates it; `free`: what the machine, or its GPU, had. None
    where the system does not say.
    """

    rows: pd.DataFrame
    seconds: float
    num_workers: int
    memory: int | None
    free: int | None


class _Part(NamedTuple):
    work: str
    to_do: int
    stored: int
    examples: int
    seconds: float


def forecast(study: Connectivity, runs: Sequence[Run | Training], num_workers: int = 1) -> Forecast:
    """Time a few batches and steps, and tell what the study would take on so many workers; nothing is written.

    Of runs that are still to be trained nothing is taken to be measured, and answers to be as long as the references;
    with a tolerance all points of the grid. Raises `UserError` as the study would.
    """
    free = int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else free_memory()
    reset_peak_memory()
    with threads_of_one_of(num_workers):
        rows, memory = _rows(study, runs)
    table = pd.DataFrame(rows)
    seconds = max(table.seconds.sum() / num_workers, *_chains(table, num_workers))
    return Forecast(table, float(seconds), num_workers, max(memory, peak_memory_bytes() or 0) or None, free)


@contextmanager
def threads_of_one_of(num_workers: int) -> Iterator[None]:
    """Compute with as many threads as one of several workers has."""
    before = torch.get_num_threads()
    if num_workers > 1:
        torch.set_num_threads(max(1, num_cores() // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(study: Connectivity, runs: Sequence[Run | Training]) -> tuple[list[dict[str, Any]], int]:
    """What there is to do of each run, and the memory of the largest training."""
    rows: list[dict[str, Any]] = []
    speeds: dict[tuple[str, bool], _Speed] = {}  # by base, with curves or without
    memory = 0
    for run in runs:
        own = study.along(run.strategy, runs[0].strategy)
        found: Any = run
        if isinstance(run, Training):
            study.check(run.num_minima)
            how = run.execution
            found = load_run(run.directory, how.device, how.engine) if run.is_there else PlannedRun(run)
        is_planned = isinstance(found, PlannedRun)
        a_token = found.time_training() if is_planned else 0.0
        paths = (PlannedPaths if is_planned else paths_of)(found, found.answering_learner, own)
        kind = found.model.name, bool(_fitted(paths))
        if kind not in speeds:
            speeds[kind] = _Speed.timed(paths, is_planned)
        speed = speeds[kind]
        parts = _of_training(found, a_token, speed) if is_planned else []
        parts += _of_paths(paths, speed)
        rows += [{"run": found.directory.name, **part._asdict()} for part in parts]
        memory = max(memory, found.plan.memory.total if is_planned else 0)
        del found, paths
        gc.collect()
    return rows, memory


def _chains(table: pd.DataFrame, num_workers: int) -> list[float]:
    """How long each run takes alone: its training is one worker's."""
    alone = table.work.isin(["training", "scoring"])
    one, all_of_them = (
        table.seconds.where(which, 0.0).groupby(table.run, sort=False).sum() for which in (alone, ~alone)
    )
    return list(one + all_of_them / num_workers)


class _Speed(NamedTuple):
    """Seconds for setting a point, for a token's worth of work at it, and for a step of a curve's fit."""

    engine: Engine
    point: float
    token: float
    step: float

    @classmethod
    def timed(cls, paths: RunPaths, is_planned: bool) -> _Speed:
        """On a few examples of the last transition, in the middle of its path and at its end; where a single minimum
        leaves none, of the path from the base."""
        engine = paths.run.engine
        last = paths.path((paths.names(paths.study.paths[0]) or paths.names_from_base())[-1])
        objectives = paths.objectives(last)
        points = [last.straight(t) for t in (0.5, 1.0)]
        many = max(1, engine.work(objectives) // (TIMED_BATCHES * engine.choices(objectives)["token_budget"]))
        few, more = ([_thinned(o, n or len(o.encoded), is_planned) for o in objectives] for n in (0, many))
        _evaluate(engine, points, few)  # what takes long only once
        began = time.perf_counter()
        _evaluate(engine, points, few)
        then = time.perf_counter()
        _evaluate(engine, points, more)
        first, second = ((b - a) / len(points) for a, b in ((began, then), (then, time.perf_counter())))
        less, work = engine.work(few), engine.work(more)
        token = (second - first) / (work - less) if second > first and work > less else second / work
        return cls(engine, max(0.0, first - token * less), token, _seconds_of_a_step(paths))

    def at_a_point(self, objectives: Sequence[Objective]) -> float:
        """Seconds for all of these at one point."""
        return self.point + self.token * self.engine.work(objectives)


def _evaluate(engine: Engine, points: Sequence[Point], objectives: Sequence[Objective]) -> None:
    for point in points:
        engine.measure(point, objectives)


def _thinned(objective: Objective, every: int, is_planned: bool) -> Objective:
    """Every so-manieth example by length, the longest among them; of a base that does not know the task answers as long
    as the references."""
    rows = sorted(range(len(objective.encoded)), key=lambda i: len(objective.encoded[i]))[::-every]
    examples, encoded = tuple(objective.examples[i] for i in rows), tuple(objective.encoded[i] for i in rows)
    task = objective.task
    if is_planned:
        task = task.with_limit(min(task.max_new_tokens, max(len(e.answer_ids) for e in encoded)))
    return replace(objective, task=task, examples=examples, encoded=encoded)


def _fitted(paths: RunPaths) -> list[PathName]:
    """The paths that are fitted."""
    return [name for kind in paths.study.paths if path_kind(kind).is_fitted for name in paths.names(kind)]


def _seconds_of_a_step(paths: RunPaths) -> float:
    fitted = _fitted(paths)
    if not fitted:
        return 0.0
    path = paths.path([name for name in fitted if name.kind == fitted[0].kind][-1])
    loss, ends = paths.loss(path), [0.0]
    for _ in range(TIMED_STEPS + 1):
        point = {name: tensor.detach().requires_grad_() for name, tensor in path.straight(0.5).items()}
        for term in terms_of(loss, point):
            torch.autograd.grad(term, list(point.values()), allow_unused=True)
        ends.append(time.perf_counter())
    return (ends[-1] - ends[1]) / TIMED_STEPS


def _of_training(run: PlannedRun, a_token: float, speed: _Speed) -> list[_Part]:
    """Training that is left, and filling the accuracy matrix."""
    stage, share = run.share_left
    scored = run.scored(stage)
    return [
        _Part(
            "training", len(run.plan.stages) - stage, stage, 0, a_token * share * float(run.plan.stages.padded.sum())
        ),
        _Part("scoring", len(scored), 0, _num_examples(scored), sum(map(speed.at_a_point, scored))),
    ]


def _of_paths(paths: RunPaths, speed: _Speed) -> list[_Part]:
    """Points, curves and ensembles that are not stored."""
    run, study, is_planned = paths.run, paths.study, isinstance(paths, PlannedPaths)
    wanted: dict[str, dict[MeasurementKey, Objective]] = {}
    curves: list[tuple[bool, int]] = []  # whether it is stored, its steps
    ensembles: list[tuple[bool, list[Objective]]] = []
    of_kinds = [name for kind in study.paths for name in paths.names(kind)]
    for path in map(paths.path, [*of_kinds, *paths.names_from_base()]):
        objectives = [*paths.objectives(path), *paths.general]
        for t in (*path.ts, *path.ts_beyond):
            key = path.point_key(t)
            wanted.setdefault(key, {}).update((measurement_key(key, o), o) for o in objectives)
        for key, _ in gauge_points(path, paths.learner):
            tested = [o for o in paths.objectives(path) if o.split == "test"]
            wanted.setdefault(key, {}).update((measurement_key(key, o), o) for o in tested)
        if path.kind.is_fitted:
            curves.append((path.file.exists(), paths.num_steps(path)))
        if study.ensemble:
            tested = [o for o in paths.objectives(path) if o.split == "test"]
            ensembles.append((stored_ensemble(path, tested, paths.ensembles).file.exists(), tested))
    if paths.general:  # of which the base's own is measured beside that of a path
        wanted.setdefault(base_minimum.KEY, {}).update((measurement_key(base_minimum.KEY, o), o) for o in paths.general)
    for key, objectives in _simplex(paths):
        wanted.setdefault(key, {}).update((measurement_key(key, o), o) for o in objectives)
    file = run.directory / "measurements.sqlite"
    with ExitStack() as stack:
        store = stack.enter_context(MeasurementStore(file)) if file.exists() and not is_planned else None
        lacking = [[of[key] for key in (store.missing(of) if store else of)] for of in wanted.values()]
    todo = [objectives for objectives in lacking if objectives]
    parts = [_Part("points", len(todo), len(wanted) - len(todo), _num_examples(todo), sum(map(speed.at_a_point, todo)))]
    if curves:
        steps = [number for is_stored, number in curves if not is_stored]
        parts.append(_Part("curves", len(steps), len(curves) - len(steps), 0, speed.step * sum(steps)))
    if ensembles:
        absent = [tested for is_stored, tested in ensembles if not is_stored]
        seconds = study.ensemble * sum(map(speed.at_a_point, absent))
        examples = study.ensemble * _num_examples(absent)
        parts.append(_Part("ensembles", len(absent), len(ensembles) - len(absent), examples, seconds))
    return parts


def _simplex(paths: RunPaths) -> list[tuple[str, list[Objective]]]:
    """The points of the simplex, by their keys in the store, and what is measured there."""
    study, run = paths.study, paths.run
    if not study.simplex:
        return []
    if isinstance(run, PlannedRun):
        names = list(run.data)[: max(study.simplex)]
        objectives = [run.task_objective(name, split, study.num_examples) for name in names for split in paths.splits]
        return [(f"simplex {number}", objectives) for number in range(study.num_points + 1)]
    simplex = StoredSimplex(run, paths.learner, study)
    return [(key, simplex.objectives) for _, key in simplex.points()]


def _num_examples(of_points: Sequence[Sequence[Objective]]) -> int:
    return sum(len(o.encoded) for objectives in of_points for o in objectives if o.task.has_score)
