"""Which layers and which kinds of module make what happens between two minima of a run: measure, tabulate, draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from mcanalysis.connectivity.attribution import (
    WHOLE,
    Hold,
    above_chord,
    barrier_values,
    change,
    farthest,
    held_t,
    move_group,
)
from mcanalysis.connectivity.profile import Profile, Quantity, grid
from mcanalysis.errors import UserError
from mcanalysis.evaluation.measuring import measure
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics import barriers
from mcanalysis.metrics.intervals import Estimate, Interval, contrast_intervals
from mcanalysis.params.groups import by_layer, by_module, by_module_kind, places
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import get_space
from mcanalysis.paths import Linear
from mcanalysis.plotting.attribution import Role, attribution_caption, plot_attribution
from mcanalysis.plotting.style import save_figure
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import Run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.lock import lock_measurements
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.studies.connectivity.tables import Curves
from mcanalysis.studies.connectivity.transitions import Transition, nth_transition
from mcanalysis.studies.jobs import Job, run_jobs
from mcanalysis.studies.point_jobs import PointJobs

HOLDS: tuple[Hold, ...] = get_args(Hold)
GROUPINGS: Mapping[str, Callable[..., dict[str, tuple[str, ...]]]] = {
    "layer": by_layer,
    "kind": by_module_kind,
    "module": by_module,
}


@dataclass(frozen=True)
class AttributionSettings:
    """What is measured: the straight path of one transition, `num_points` per group, the test split.

    `transition` is the number (from 1) of the minimum it starts from. The first one is the default: it has one old
    task and one new one, so it is the cheapest. `num_examples`: the first ones per task (None: all).
    """

    transition: int = 1
    space: str = "factor"
    num_points: int = 11
    num_examples: int | None = 50

    def __post_init__(self) -> None:
        grid(self.num_points)
        get_space(self.space)
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"Expected at least 1 example per task, got {self.num_examples}; raise --num-examples.")


@dataclass(frozen=True)
class AttributionResult:
    """The tables of all runs together: `curves`, `barriers`; `figures` are the files drawn."""

    curves: pd.DataFrame
    barriers: pd.DataFrame
    figures: list[Path]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is taken apart: one transition of a run, its straight path, and the test examples of its tasks."""

    run: Run
    settings: AttributionSettings
    transition: Transition
    path: Linear
    objectives: tuple[Objective, ...]

    @classmethod
    def of(cls, run: Run, settings: AttributionSettings) -> Subject:
        """Raises `UserError` for a transition that the run does not have."""
        transition = nth_transition(run, run.answering_learner, settings.transition)
        tasks = (*transition.old, transition.new)
        objectives = tuple(run.task_objective(task, "test", settings.num_examples) for task in tasks)
        return cls(run, settings, transition, Linear(*transition.points, space=settings.space), objectives)

    @property
    def groups(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """(grouping, group, tensor names), the whole path first."""
        start = self.path.anchors[0]
        made = [(grouping, *item) for grouping, make in GROUPINGS.items() for item in make(start).items()]
        return [(WHOLE, WHOLE, tuple(start)), *made]

    def point_keys(self, hold: Hold, names: Sequence[str]) -> list[str]:
        """The store's key of every point on a group's path.

        The held end is the minimum itself; the whole path shares its points with `connectivity.py`.
        """
        start, end = self.transition.keys
        at_ends = {0.0: start, 1.0: end}
        if set(names) == set(self.path.anchors[0]):
            between = hash_json([f"linear-{self.settings.space}", start, end])
        else:
            between = hash_json(["attribution", self.settings.space, start, end, hold, sorted(names)])
            at_ends = {held_t(hold): at_ends[held_t(hold)]}
        return [at_ends.get(t, f"{between[:24]}/{t!r}") for t in map(float, grid(self.settings.num_points))]

    @property
    def places(self) -> list[tuple[str, _OnGroup]]:
        """The points of all groups by their keys in the store; the same points only once."""
        ts = [float(t) for t in grid(self.settings.num_points)]
        found: dict[str, _OnGroup] = {}
        for hold in HOLDS:
            for _, _, names in self.groups:
                for t, key in zip(ts, self.point_keys(hold, names), strict=True):
                    found.setdefault(key, _OnGroup(self.settings, hold, names, t))
        return list(found.items())

    def measure(self, hold: Hold, names: Sequence[str]) -> dict[str, Profile]:
        """Profiles by task of one group's path, through the store."""
        ts = grid(self.settings.num_points)
        way = move_group(self.path, names, hold)
        measured = []
        with MeasurementStore(self.run.directory / "measurements.sqlite") as store:
            for t, key in zip(map(float, ts), self.point_keys(hold, names), strict=True):
                measured.append(measure(lambda: self.run.engine, store, key, lambda t=t: way(t), self.objectives))
        return {o.name: Profile.of(ts, [m[i] for m in measured]) for i, o in enumerate(self.objectives)}


def study_attribution(
    runs: Sequence[Run],
    settings: AttributionSettings,
    *,
    workers: int = 1,
    progress: Progress = silent,
    on_figure: Callable[[Path], None] = lambda _: None,
    initializer: Callable[[], None] | None = None,
) -> AttributionResult:
    """Measure each group of each run where its store lacks it, then write `tables/attribution*.csv` and the figures.

    Per run of the answering learner: every layer, every kind of module and every module alone, the others held at the
    start and at the end. A stopped study goes on where it was.

    Raises:
        UserError: for a transition that a run does not have, before anything is measured.
    """
    subjects = [Subject.of(run, settings) for run in runs]
    points = {s.run.directory: PointJobs(s.run) for s in subjects}
    jobs = [job for s in subjects for job in points[s.run.directory].jobs(s.places, s.objectives)]

    def follow(job: Job, result: Any) -> list[Job]:
        points[job.arguments[0]].add(job, result)
        return []

    if jobs:
        with lock_measurements(*points):
            run_jobs(jobs, follow, workers, progress, initializer, len(jobs))
    curves, barriers, figures = [], [], []
    for subject in subjects:
        run, tables = subject.run, attribution_tables(subject)
        for table, file in zip(tables, ("attribution", "attribution_barriers"), strict=True):
            write_text_atomic(run.directory / "tables" / f"{file}.csv", table.to_csv(index=False))
        for role in get_args(Role):
            stem = run.directory / "figures" / f"attribution_{role}_{run.answering_learner}"
            figures += save_figure(plot_attribution(tables[1], role), stem)
            write_text_atomic(stem.with_suffix(".txt"), attribution_caption(tables[1], role) + "\n")
            on_figure(figures[-1])
        curves.append(tables[0])
        barriers.append(tables[1])
    return AttributionResult(pd.concat(curves, ignore_index=True), pd.concat(barriers, ignore_index=True), figures)


def attribution_tables(subject: Subject) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves and the barriers of all groups of one run, read from its store; what is missing is measured.

    Both tables say whose they are (`strategy`, `learner`, `seed`, `space`, `start`, `end`), which group moves (`hold`,
    `grouping`: all, layer, kind or module; `group`, `layer`, `kind`) and of which `task` (`mean_old` and `mean` as in
    `barriers.csv`). Barriers have 95 % intervals over examples for `chord_barrier`, `above_chord` and `end_change`,
    and `few_events` where these cannot promise it (`mcanalysis.metrics.intervals`).
    """
    run, transition = subject.run, subject.transition
    labels = {
        "strategy": run.strategy, "learner": run.answering_learner, "seed": run.seed,
        "space": subject.settings.space, "start": transition.start, "end": transition.end,
    }  # fmt: skip
    where = places(subject.path.anchors[0])
    curve_rows, barrier_rows = [], []
    for hold in HOLDS:
        whole: dict[Quantity, Curves] = {}
        for grouping, group, names in subject.groups:
            profiles = subject.measure(hold, names)
            layer, kind = where[names[0]]
            row = labels | {"hold": hold, "grouping": grouping, "group": group}
            row |= {"layer": layer if grouping in ("layer", "module") else WHOLE}
            row |= {"kind": kind if grouping in ("kind", "module") else WHOLE}
            curves: dict[Quantity, Curves] = {
                q: Curves(profiles, transition.old, transition.new, q) for q in get_args(Quantity)
            }
            whole = whole or curves  # the first group is the whole path
            curve_rows += _curve_rows(curves, row, hold)
            barrier_rows += _barrier_rows(curves, whole, row, hold)
    return pd.DataFrame(curve_rows), pd.DataFrame(barrier_rows)


def _curve_rows(curves: Mapping[Quantity, Curves], labels: Mapping[str, Any], hold: Hold) -> Iterator[dict[str, Any]]:
    ts = curves["loss"].ts
    for task in curves["loss"].point:
        columns: dict[str, np.ndarray] = {}
        for quantity, of_quantity in curves.items():
            values = of_quantity.point[task]
            columns |= {quantity: values, f"{quantity}_change": change(values, hold)}
            columns[f"{quantity}_above_chord"] = above_chord(ts, values)
        for i, t in enumerate(ts):
            yield {**labels, "task": task, "split": "test", "t": float(t)} | {
                name: float(values[i]) for name, values in columns.items()
            }


def _barrier_rows(
    curves: Mapping[Quantity, Curves], whole: Mapping[Quantity, Curves], labels: Mapping[str, Any], hold: Hold
) -> Iterator[dict[str, Any]]:
    for task in curves["loss"].point:
        for quantity, of_quantity in curves.items():
            ts = of_quantity.ts
            far = farthest(ts, whole[quantity].point[task])
            row = {**labels, "task": task, "split": "test", "quantity": quantity, "t_farthest": float(ts[far])}
            found = barrier_values(ts, of_quantity.point[task], hold, far, quantity)
            row |= {name: float(value) for name, value in found.items()}
            few_events = False
            for name, interval in _intervals(ts, of_quantity.estimates[task], hold, far, quantity).items():
                row |= interval.columns(name)
                few_events |= bool(interval.few_events)
            yield row | {"few_events": few_events}


def _intervals(ts: np.ndarray, estimate: Estimate, hold: Hold, far: int, quantity: Quantity) -> dict[str, Interval]:
    """95 % intervals by column; that of `above_chord` holds at all t at once, since `far` was chosen by the values."""
    end = -1 if held_t(hold) == 0.0 else 0
    above = contrast_intervals(estimate, lambda values: above_chord(ts, values))
    change_ = contrast_intervals(estimate, lambda values: change(values, hold)[..., [end]])
    barrier = barriers.barrier_interval("chord_barrier", ts, estimate, higher_is_better=quantity == "score")
    return {"chord_barrier": barrier, "above_chord": above.at(far), "end_change": change_.at(0)}


@dataclass(frozen=True)
class _OnGroup:
    """A point on a group's path."""

    settings: AttributionSettings
    hold: Hold
    names: tuple[str, ...]
    t: float

    def point(self, run: Run) -> Point:
        return move_group(_subject(run, self.settings).path, self.names, self.hold)(self.t)


@lru_cache(maxsize=1)
def _subject(run: Run, settings: AttributionSettings) -> Subject:
    return Subject.of(run, settings)
