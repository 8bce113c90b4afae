"""Points of a run as pieces: whoever is free evaluates the next point, or a share of its examples.

Only the process that runs the engine opens a run's store, which is no file that two machines may write at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.evaluation.sampled import some_of
from mcanalysis.progress import Progress
from mcanalysis.runs.run import Opening, Run
from mcanalysis.store.manifest import record_evaluation
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore
from mcanalysis.studies.engine import Piece, Steps
from mcanalysis.surroundings import is_deterministic

logger = logging.getLogger(__name__)

_TWICE = 4  # examples whose losses are computed twice, once in each process, to see whether they repeat
_SMALLEST_SHARE = 16  # examples: with fewer the cost of setting the weights shows


class Where(Hashable, Protocol):
    """Which point it is; small, since it is sent to another process, which makes the point from the run's files."""

    def point(self, run: Run) -> Mapping[str, Tensor]:
        """The point itself."""
        ...


class Share(NamedTuple):
    """Every `count`-th example, from `index` on, of the first `num_examples` of a task's split."""

    task: str
    split: str
    num_examples: int
    index: int = 0
    count: int = 1

    def of(self, run: Run) -> Objective:
        """These examples as an objective; the same object each time, as the engine keeps batches for it."""
        whole = run.task_objective(self.task, self.split, self.num_examples)
        return whole if self.count == 1 else _share(whole, self.index, self.count)


@lru_cache(maxsize=4096)
def _share(whole: Objective, index: int, count: int) -> Objective:
    rows = slice(index, None, count)
    key = f"{whole.settings_key}/{index}/{count}"
    return replace(whole, examples=whole.examples[rows], encoded=whole.encoded[rows], settings_key=key)


class Evaluated(NamedTuple):
    """What a piece gives back: measurements, and how they were made."""

    measurements: Sequence[Measurement]
    choices: dict[str, Any]


def evaluate(opening: Opening, where: Where, shares: tuple[Share, ...], progress: Progress) -> Evaluated:
    """What a piece does: measure shares of objectives at a point."""
    run = opening.run
    objectives = [share.of(run) for share in shares]
    point = where.point(run)
    measured = run.engine.measure(point, objectives, progress, f"a point of {run.directory.name}")
    choices = run.engine.choices(objectives)
    if not run.engine.repeats(point, some_of(objectives[0], tuple(range(_TWICE))[: len(objectives[0].encoded)])):
        choices["repeatable"] = False
    return Evaluated(measured, choices)


class Some(NamedTuple):
    """The examples of these numbers among the first `num_examples` of a task's split."""

    task: str
    split: str
    num_examples: int
    rows: tuple[int, ...]


def evaluate_some(opening: Opening, where: Where, chosen: tuple[Some, ...], progress: Progress) -> list[Measurement]:
    """What a piece does: the losses of some examples at a point."""
    run = opening.run
    objectives = [some_of(run.task_objective(s.task, s.split, s.num_examples), s.rows) for s in chosen]
    return run.engine.losses(where.point(run), objectives, progress, f"a point of {run.directory.name}")


def joined(parts: Mapping[Share, Measurement]) -> Measurement:
    """The measurement of all examples from those of its shares: per-example values in their places, means of all.

    >>> parts = enumerate([np.array([1.0, 3.0]), np.array([2.0])])
    >>> halves = {Share("A", "test", 3, i, 2): Measurement.of(nll, np.ones(len(nll)), nll) for i, nll in parts}
    >>> whole = joined(halves)
    >>> whole.nll.tolist(), whole.loss, whole.num_examples
    ([1.0, 2.0, 3.0], 2.0, 3)
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    total = sum(m.num_examples for m in parts.values())
    nll, targets, scores = np.empty(total), np.empty(total, dtype=np.int64), np.empty(total)
    for share, m in parts.items():
        rows = slice(share.index, None, share.count)
        nll[rows], targets[rows], scores[rows] = m.nll, m.targets, m.scores
    score = sum(m.score * m.num_examples for m in parts.values()) / total  # before it was rounded per example
    return replace(Measurement.of(nll, targets, scores), score=score)


class Points:
    """Measures points of one run through its store; one for all studies of a run that go on side by side.

    `num_workers`: how many there are; the examples of points that are fewer are shared out among them. What is under
    way already, for another set of objectives perhaps, is waited for and not computed again.
    """

    def __init__(self, run: Run, num_workers: Callable[[], int] = lambda: 1) -> None:
        self.run = run
        self.was_complete = True
        """Whether the store had all that was asked for so far."""
        self._num_workers = num_workers
        self._under_way: dict[MeasurementKey, list[Piece]] = {}
        self._recorded: dict[str, Any] = {}

    @contextmanager
    def store(self) -> Iterator[MeasurementStore]:
        """The run's measurements."""
        with MeasurementStore(self.run.directory / "measurements.sqlite") as store:
            yield store

    def measure(
        self, points: Sequence[tuple[str, Where]], objectives: Sequence[Objective], turn: int = 0
    ) -> Steps[list[list[Measurement]]]:
        """Every objective at every point, named by its key in the store; only what the store lacks is computed."""
        yield self._pieces(points, objectives, turn)
        with self.store() as store:
            found = [[store.get(measurement_key(key, o)) for o in objectives] for key, _ in points]
        return [[m for m in of_point if m is not None] for of_point in found]

    def losses_of_some(
        self, point_key: str, where: Where, chosen: Sequence[tuple[Objective, tuple[int, ...]]], turn: int = 0
    ) -> Steps[list[Measurement]]:
        """The losses at a point of the examples of these numbers of each objective, in the order of the numbers; from
        the store where it has them, or all examples of each."""
        parts = tuple(Some(o.name, o.split, len(o.encoded), rows) for o, rows in chosen)
        keys = [measurement_key(point_key, some_of(o, rows)) for o, rows in chosen]
        name = f"some losses at a point of {self.run.directory.name}, {point_key}"
        kept = _SomeLosses(self, keys, [(measurement_key(point_key, o), rows) for o, rows in chosen])
        key = "|".join([str(self.run.directory), *map(str, keys)])
        (found,) = yield [Piece(key, evaluate_some, (self.run.opening, where, parts), kept, turn, name)]
        return found

    def _pieces(self, points: Sequence[tuple[str, Where]], objectives: Sequence[Objective], turn: int) -> list[Any]:
        wanted: dict[str, Piece] = {}
        absent: dict[str, tuple[Where, list[Objective]]] = {}
        with self.store() as store:
            for point_key, where in dict(points).items():
                by_key = {measurement_key(point_key, o): o for o in objectives}
                for key in store.missing(by_key):
                    wanted |= {piece.key: piece for piece in self._under_way.get(key, ())}
                    if key not in self._under_way:
                        absent.setdefault(point_key, (where, []))[1].append(by_key[key])
        for point_key, (where, lacking) in absent.items():
            count = _num_shares(lacking, self._num_workers(), len(absent))
            made = self._pieces_of(point_key, where, lacking, count, turn)
            self._under_way |= {measurement_key(point_key, o): made for o in lacking}
            wanted |= {piece.key: piece for piece in made}
        self.was_complete = self.was_complete and not wanted
        return list(wanted.values())

    def _pieces_of(
        self, point_key: str, where: Where, objectives: Sequence[Objective], count: int, turn: int
    ) -> list[Piece]:
        whole = _Whole(self, point_key, objectives, count)
        name = f"a point of {self.run.directory.name}, {point_key}"
        made = []
        for index in range(count):
            chosen = [o for o in objectives if index < len(o.encoded)]
            shares = tuple(Share(o.name, o.split, len(o.encoded), index, min(count, len(o.encoded))) for o in chosen)
            key = "|".join([str(self.run.directory), point_key, f"{index}/{count}", *(o.settings_key for o in chosen)])
            kept = _Part(whole, shares)
            made.append(Piece(key, evaluate, (self.run.opening, where, shares), kept, turn, name))
        return made

    def put(self, point_key: str, measured: Sequence[tuple[Objective, Measurement]], choices: dict[str, Any]) -> None:
        """Store what a point gave; `choices` go into the manifest."""
        if choices != self._recorded:  # the same for most points
            record_evaluation(self.run.directory, choices)
            if choices.get("repeatable") is False and "repeatable" not in self._recorded:
                logger.warning(
                    "a point of '%s' was evaluated twice and had other losses: on this machine numbers differ in their "
                    "last digits from call to call; --deterministic asks for operations that repeat",
                    self.run.directory,
                )
            self._recorded = choices
        values = [(measurement_key(point_key, objective), measurement) for objective, measurement in measured]
        with self.store() as store:
            store.put_many(values)
        for key, _ in values:
            self._under_way.pop(key, None)


@dataclass(frozen=True, eq=False)
class _SomeLosses:
    """Losses of some examples, under keys of their own; `wholes`: the keys of all examples, and which of them."""

    points: Points
    keys: Sequence[MeasurementKey]
    wholes: Sequence[tuple[MeasurementKey, tuple[int, ...]]]

    def find(self) -> list[Measurement] | None:
        with self.points.store() as store:
            found = [store.get(key) for key in self.keys]
            if None in found:  # all were measured there, as on a grid, perhaps
                of_all = [(store.get(key), list(rows)) for key, rows in self.wholes]
                found = [None if m is None else Measurement.of(m.nll[rows], m.targets[rows]) for m, rows in of_all]
        there = [m for m in found if m is not None]
        return there if len(there) == len(self.keys) else None

    def keep(self, result: list[Measurement]) -> list[Measurement]:
        with self.points.store() as store:
            store.put_many(zip(self.keys, result, strict=True))
        return result


@dataclass(eq=False)
class _Whole:
    """A point whose examples are shared out to `count` pieces; it is stored when the last of them is there."""

    points: Points
    point_key: str
    objectives: Sequence[Objective]
    count: int
    found: dict[Share, Measurement] = field(default_factory=dict)

    def add(self, shares: Sequence[Share], result: Evaluated) -> None:
        self.found |= zip(shares, result.measurements, strict=True)
        if len(self.found) < sum(min(self.count, len(o.encoded)) for o in self.objectives):
            return
        measured = [
            (o, joined({s: m for s, m in self.found.items() if (s.task, s.split) == (o.name, o.split)}))
            for o in self.objectives
        ]
        self.points.put(self.point_key, measured, result.choices)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one piece gives to a point."""

    whole: _Whole
    shares: tuple[Share, ...]

    def find(self) -> None:
        """It was not in the store when the piece was made."""

    def keep(self, result: Evaluated) -> bool:
        self.whole.add(self.shares, result)
        return True


def _num_shares(objectives: Sequence[Objective], workers: int, num_points: int) -> int:
    """Into how many a point's examples are divided, where they may be, with so many points to measure: as keeps all
    workers busy.

    One where points are enough, and where bits are to repeat, whoever else computes: each share sets the weights and
    writes answers token by token anew, and pads otherwise, which changes the last digits.
    """
    if is_deterministic() or not all(o.is_divisible for o in objectives):
        return 1
    return max(1, min(workers // num_points, sum(len(o.encoded) for o in objectives) // _SMALLEST_SHARE))
