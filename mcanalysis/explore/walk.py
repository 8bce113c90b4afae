"""One path of a run, walked by hand: what is known along it, what is measured on the way, what the model writes."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.evaluation.measuring import measure
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.barriers import balanced_score
from mcanalysis.metrics.scores import get_score
from mcanalysis.metrics.task_means import MEANS
from mcanalysis.params.point import Point, content_hash
from mcanalysis.params.spaces import space_names
from mcanalysis.paths import Path
from mcanalysis.paths.path_kinds import PathKind, path_kind
from mcanalysis.plotting.selection import between_ends, where
from mcanalysis.runs.run import Minimum, Run
from mcanalysis.store.measurements import Measurement, MeasurementStore
from mcanalysis.strategies import get_strategy

NUM_EXAMPLES = 50
"""Test examples per task where nothing is measured yet; elsewhere as many as the stored profile has."""
_SAME_T = 1e-9


class Reading(NamedTuple):
    """What is known at one t: a table by task (`mean_old` and `mean` where there are old tasks) with `loss` (nats per
    target token) and `score` (in [0, 1]); `is_new` tells what was measured just now from what was stored."""

    t: float
    values: pd.DataFrame
    is_new: bool


class Written(NamedTuple):
    """An example and what the model writes for it at each t asked for, with the score of each in [0, 1]."""

    prompt: str
    answer: str
    outputs: dict[float, str]
    scores: dict[float, float]


class Walk:
    """A path of one kind between two minima of a learner, with everything that is known along it.

    `table`: one row per t and task, columns t, task, loss, score; it starts as the rows of `profiles.csv` (test split)
    and grows with every new `read`. `old`: the tasks learned before the later of the two minima, `new`: the one
    learned there. Make one with `start_walk`.
    """

    def __init__(self, run: Run, start: Minimum, end: Minimum, kind: PathKind, path: Path) -> None:
        self.run, self.start, self.end, self.kind, self.path = run, start, end, kind, path
        *self.old, self.new = run.task_names[: max(map(_number, (start, end)))]
        self.table = self._stored()
        single = self.table[self.table.task == self.new]
        self.num_examples = int(single.num_examples.iloc[0]) if len(single) else NUM_EXAMPLES
        self.table = self.table[["t", "task", "loss", "score"]]
        self._pages: dict[tuple[str, int, int], Objective] = {}
        self._written: dict[tuple[float, str, int, int], tuple[tuple[str, ...], np.ndarray]] = {}

    def __repr__(self) -> str:
        return f"Walk({self.start.label} → {self.end.label}, {self.kind}, known at {len(self.known_ts)} t)"

    @property
    def tasks(self) -> list[str]:
        """The tasks that are measured, the new one last."""
        return [*self.old, self.new]

    @property
    def known_ts(self) -> list[float]:
        """The t at which everything is known, in order."""
        return sorted(self.table.t.unique().tolist())

    def curve(self, task: str) -> pd.DataFrame:
        """What is known of a task (or `mean_old`, `mean`), by t: columns t, loss, score."""
        return self.table[self.table.task == task].sort_values("t")[["t", "loss", "score"]]

    def point(self, t: float) -> Point:
        """The point at t; at the ends the minima as they were saved."""
        ends = {0.0: self.start, 1.0: self.end}
        return ends[t].point if t in ends else self.path(t)

    def read(self, t: float) -> Reading:
        """Losses and scores at t in [0, 1]: from the tables or the store where they are there, else measured now.

        What is measured goes into the run's store under the contents of the point, and is found there the next time;
        where the store cannot be written (a run directory one may only read) it is remembered by this walk.
        """
        known = self.table[(self.table.t - t).abs() < _SAME_T]
        is_new = known.empty
        if is_new:
            found = dict(zip(self.tasks, self._measure(float(t)), strict=True))
            rows = [{"t": t, "task": name, "loss": m.loss, "score": m.score} for name, m in found.items()]
            known = pd.DataFrame(rows + _means(rows, self.old, self.new, t))
            self.table = pd.concat([self.table, known], ignore_index=True) if len(self.table) else known
        return Reading(float(t), known.set_index("task")[["loss", "score"]], is_new)

    def write(self, task: str, ts: list[float], first: int = 0, num: int = 4) -> list[Written]:
        """What the model writes at each t for `num` test examples of a task from number `first` on, generated now.

        Past the last example it goes on with the first. Raises `UnknownNameError` for a task that is not of the path.
        """
        if task not in self.tasks:
            raise UnknownNameError("task of this path", task, self.tasks)
        objective = self._page(task, first, num)
        for t in ts:
            if (t, task, first, num) not in self._written:
                evaluation = self.run.engine.evaluate(self.point(t), [objective])[0]
                self._written[t, task, first, num] = evaluation.outputs, evaluation.measurement.scores
        found = {t: self._written[t, task, first, num] for t in ts}
        return [
            Written(
                example.prompt,
                example.answer,
                {t: outputs[i] for t, (outputs, _) in found.items()},
                {t: float(scores[i]) for t, (_, scores) in found.items()},
            )
            for i, example in enumerate(objective.examples)
        ]

    def score_name(self, task: str) -> str:
        """The name of a task's score."""
        return get_score(self.run.tasks[task].task.score).name

    def _page(self, task: str, first: int, num: int) -> Objective:
        key = (task, first, num)
        if key not in self._pages:  # kept, since the engine keeps the batches of every objective it has seen
            objective = self.run.task_objective(task, "test")
            rows = [(first + i) % len(objective.examples) for i in range(min(num, len(objective.examples)))]
            self._pages[key] = replace(
                objective,
                examples=tuple(objective.examples[i] for i in rows),
                encoded=tuple(objective.encoded[i] for i in rows),
                settings_key="",  # never stored
            )
        return self._pages[key]

    def _stored(self) -> pd.DataFrame:
        columns = ["t", "task", "loss", "score", "num_examples"]
        rows = profiles(self.run)
        if self.run.base_marker:  # of a base that may have been another: what is shown is measured anew
            rows = rows.iloc[:0]
        labels = {"learner": self.start.learner, "path": self.kind.path, "space": self.kind.space}
        labels |= {"start": self.start.label, "end": self.end.label, "split": "test"}
        rows = rows[rows.task.isin([*self.tasks, *MEANS])]  # general tasks are measured by connectivity.py alone
        return between_ends(where(rows, **labels).astype({"t": float}))[columns].reset_index(drop=True)

    @cached_property
    def _objectives(self) -> list[Objective]:
        return [self.run.task_objective(task, "test", self.num_examples) for task in self.tasks]

    def _measure(self, t: float) -> list[Measurement]:
        point = self.point(t)
        key = {0.0: self.start, 1.0: self.end}[t].key if t in (0.0, 1.0) else content_hash(point)
        try:
            store = MeasurementStore(self.run.directory / "measurements.sqlite")
        except UserError:
            store = MeasurementStore(":memory:")
        with store:
            return measure(lambda: self.run.engine, store, key, lambda: point, self._objectives)


def start_walk(
    run: Run,
    start: int | str | None = None,
    end: int | str | None = None,
    space: str = "factor",
    path: str = "linear",
    learner: str | None = None,
) -> Walk:
    """The walk from one minimum to another, by default from the first to the next.

    Of two ends of which one is given the other is its neighbour; "base" (or 0) is the base model. `path`, `space`:
    registered names; a curve must have been fitted by `connectivity.py`. Raises what `Run.minimum`, `Run.path` and
    `Run.curve` raise, and `UserError` for a path through more than two minima.
    """
    learner = learner or run.answering_learner
    minima = run.minima_of(learner)
    if start is None:
        start = 1 if end is None else max(1, _number(run.minimum(end, learner)) - 1)
    first = run.minimum(start, learner)
    if end is None:
        end = _number(first) + 1
        if end > len(minima):
            raise UserError(
                f"Expected a minimum after {first.label}, got the last one of '{run.directory}'; "
                f"choose a start below {len(minima)}, or name the end."
            )
    first, last = run.ends(start, end, learner)
    if first == last:
        raise UserError(f"Expected two different minima, got {first.label} twice; name another start or end.")
    kind = path_kind(f"{path}-{space}")
    if kind.is_of_whole_run:
        raise UserError(
            f"Expected a path between two minima, got {path}, which leads through all of them; its picture is in "
            f"'{run.directory / 'figures'}'."
        )
    ends = first.label, last.label
    way = run.curve(*ends, path, space, learner) if kind.is_fitted else run.path(*ends, space, learner)
    return Walk(run, first, last, kind, way)


def profiles(run: Run) -> pd.DataFrame:
    """The rows of `profiles.csv`; none where it has not been written yet."""
    columns = ["learner", "space", "path", "start", "end", "t", "task", "split", "loss", "score", "num_examples"]
    return run.table("profiles", columns)[columns] if run.has("profiles") else pd.DataFrame(columns=columns)


def walkable_kinds(run: Run, start: Minimum, end: Minimum) -> list[str]:
    """`<path>-<space>` of every path between two minima that can be walked at once: straight ones, fitted curves."""
    straight = [f"linear-{space}" for space in ("factor", *(s for s in space_names() if s != "factor"))]
    if not get_strategy(run.strategy).has_factors:
        straight = ["linear-delta"]
    elif any(start.point[n].shape != tensor.shape for n, tensor in end.point.items() if n in start.point):
        straight.remove("linear-factor")  # adapters of different ranks have no path in the factors
    stems = (run.directory / "curves" / start.learner).glob("*.safetensors")
    prefix = f"{start.label}--{end.label}-"
    fitted = [f.stem.removeprefix(prefix).rpartition("-")[0] for f in stems if f.stem.startswith(prefix)]
    return [*straight, *sorted(name for name in set(fitted) if fitted.count(name) == 1)]


def _means(rows: list[dict], old: list[str], new: str, t: float) -> list[dict]:
    """`mean_old`, and `mean` = ½(old + new), as the tables of paths have them."""
    if not old:
        return []
    values = {row["task"]: row for row in rows}
    means: dict[str, dict] = {name: {"t": t, "task": name} for name in MEANS}
    for quantity in ("loss", "score"):
        of_old = np.array([[values[name][quantity]] for name in old])
        means["mean_old"][quantity] = float(of_old.mean())
        means["mean"][quantity] = float(balanced_score(of_old, np.array([values[new][quantity]]))[0])
    return list(means.values())


def _number(minimum: Minimum) -> int:
    return int(minimum.label.partition("-")[0])
