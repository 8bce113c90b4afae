"""Measuring points by jobs: whoever is free evaluates the next point, or a share of its examples; here it is stored.

Only the process that hands out the jobs opens the store, which is no file that two machines may write at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.progress import Progress
from mcanalysis.runs.run import Opening, Run
from mcanalysis.store.manifest import record_evaluation
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore
from mcanalysis.studies.job_worker import Job, opened_run
from mcanalysis.studies.jobs import num_ranks

_SMALLEST_SHARE = 16  # examples: with fewer the cost of setting the weights shows


class Place(Hashable, Protocol):
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
    """What a job gives back: measurements, and how they were made."""

    measurements: Sequence[Measurement]
    choices: dict[str, Any]


def evaluate(
    directory: Path, opening: Opening, key: str, place: Place, shares: tuple[Share, ...], progress: Progress
) -> Evaluated:
    """What a job does: measure shares of objectives at a point, whose key in the store is `key`."""
    run = opened_run(directory, opening)
    objectives = [share.of(run) for share in shares]
    evaluations = run.engine.evaluate(place.point(run), objectives)
    return Evaluated([e.measurement for e in evaluations], run.engine.choices(objectives))


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
    return Measurement(
        loss=float(nll.sum() / targets.sum()),
        score=sum(m.score * m.num_examples for m in parts.values()) / total,  # before it was rounded per example
        num_examples=total,
        num_targets=int(targets.sum()),
        nll=nll,
        targets=targets,
        scores=scores,
    )


@dataclass
class PointJobs:
    """The jobs that measure points of one run, and what has come back of them."""

    run: Run
    _open: dict[MeasurementKey, dict[Share, Measurement | None]] = field(default_factory=dict)
    _stated: dict[str, Any] = field(default_factory=dict)

    def jobs(self, points: Sequence[tuple[str, Place]], objectives: Sequence[Objective]) -> list[Job]:
        """One or more for each point (by its key in the store) of which something is neither stored nor under way.

        On the ranks of a launch the examples of the last points, which are handed out when others are done soon, are
        shared out.
        """
        made: list[Job] = []
        todo = []
        with MeasurementStore(self.run.directory / "measurements.sqlite") as store:
            for key, place in points:
                keys = {measurement_key(key, o): o for o in objectives}
                absent = [keys[k] for k in store.missing(k for k in keys if k not in self._open)]
                self._open |= {measurement_key(key, o): {} for o in absent}
                if absent:
                    todo.append((key, place, absent))
        for number, (key, place, absent) in enumerate(todo, start=1):
            count = _num_shares(absent, len(todo), len(todo) - number)
            for index in range(count):
                shares = tuple(
                    Share(o.name, o.split, len(o.encoded), index, min(count, len(o.encoded)))
                    for o in absent
                    if index < len(o.encoded)
                )
                for share, objective in zip(shares, (o for o in absent if index < len(o.encoded)), strict=True):
                    self._open[measurement_key(key, objective)][share] = None
                made.append(Job(evaluate, (self.run.directory, self.run.opening, key, place, shares)))
        return made

    def awaited(self, points: Sequence[tuple[str, Place]], objectives: Sequence[Objective]) -> set[MeasurementKey]:
        """What of these is under way."""
        return {k for key, _ in points for o in objectives if (k := measurement_key(key, o)) in self._open}

    def add(self, job: Job, result: Evaluated) -> list[MeasurementKey]:
        """Take in what a job gave; returns the keys of what is whole now, and stored."""
        _, _, point_key, _, shares = job.arguments
        whole: dict[MeasurementKey, Measurement] = {}
        for share, measurement in zip(shares, result.measurements, strict=True):
            objective = self.run.task_objective(share.task, share.split, share.num_examples)
            key = measurement_key(point_key, objective)
            parts = self._open[key]
            parts[share] = measurement
            found = {s: m for s, m in parts.items() if m is not None}
            if len(found) == len(parts):
                whole[key] = joined(found)
        if whole:
            if result.choices != self._stated:  # the same for most points
                record_evaluation(self.run.directory, result.choices)
                self._stated = result.choices
            with MeasurementStore(self.run.directory / "measurements.sqlite") as store:
                store.put_many(whole.items())
            for key in whole:
                del self._open[key]
        return list(whole)


def _num_shares(objectives: Sequence[Objective], num_points: int, num_after: int) -> int:
    """Into how many a point's examples are divided, with so many points in all and after it.

    Not more than keeps the ranks busy at the end: each share sets the weights and writes answers token by token anew.
    """
    ranks = num_ranks()
    if ranks == 1 or num_after >= ranks:
        return 1
    wanted = max(2, -(-ranks // num_points))
    return max(1, min(wanted, sum(len(o.encoded) for o in objectives) // _SMALLEST_SHARE))
