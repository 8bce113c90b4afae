"""What paths lead between: two minima in a row, or all minima of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.lora import base_point
from mcanalysis.params.point import Point
from mcanalysis.runs.run import Minimum, Run
from mcanalysis.store import base_minimum


class HasPoint(Protocol):
    """What gives a point."""

    @property
    def point(self) -> Point: ...


@dataclass(frozen=True)
class SavedPoint:
    """A saved adapter, read whenever its point is asked for."""

    directory: Path

    @property
    def point(self) -> Point:
        return load_adapter(self.directory).point


@dataclass(frozen=True)
class SavedBase:
    """The base model in the coordinates of a saved adapter: (A, 0)."""

    directory: Path

    @property
    def point(self) -> Point:
        return base_point(load_adapter(self.directory).point)


@dataclass(frozen=True)
class Transition:
    """Minima in a row, nearly always two: `start` and `end` are labels, `keys` content hashes of the minima.

    `minima` are points, or what gives one when it is asked for `point`, so that a study of many does not hold all.
    `old` and `new` are task names: what was learned before the last minimum, and what was learned there.
    """

    start: str
    end: str
    minima: tuple[Point | HasPoint, ...]
    keys: tuple[str, ...]
    old: tuple[str, ...]
    new: str
    data_key: str = ""  # what curves are fitted on, where that is not told by the run

    @property
    def is_from_base(self) -> bool:
        """Whether it starts at the base model: all straight paths are then one line, t·ΔW."""
        return self.start == base_minimum.LABEL

    @property
    def points(self) -> tuple[Point, ...]:
        """The minima, read anew."""
        return tuple(m if isinstance(m, Mapping) else m.point for m in self.minima)

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the order they were learned."""
        return (*self.old, self.new)


def run_transitions(run: Run, learner: str) -> list[Transition]:
    """The transitions between successive minima; raises `RunDirectoryError` for a run with fewer than two."""
    minima = minima_in_a_row(run, learner)
    return [_transition(run, pair, k) for k, pair in enumerate(pairwise(minima), start=1)]


def transitions_from_base(run: Run, learner: str) -> list[Transition]:
    """From the base to each minimum of a learner, one after joint training included.

    Old tasks are those learned before the last one on the way there (none on the way to the first minimum), also where
    all were learned at once: the same roles as on the path from the minimum before.
    """
    found = []
    for minimum in run.minima_of(learner):
        *old, new = run.task_names[: int(minimum.label.partition("-")[0])]
        found.append(from_base(minimum.label, minimum.directory, minimum.key, tuple(old), new, run.base_marker))
    return found


def from_base(end: str, directory: Path, key: str, old: tuple[str, ...], new: str, data_key: str = "") -> Transition:
    """From the base to the adapter in a folder, whose contents have that key."""
    ends = SavedBase(directory), SavedPoint(directory)
    return Transition(base_minimum.LABEL, end, ends, (base_minimum.KEY, key), old, new, data_key)


def nth_transition(run: Run, learner: str, number: int) -> Transition:
    """The transition from the minimum of this number, from 1; raises `UserError` for one that the run does not have."""
    transitions = run_transitions(run, learner)
    if not 1 <= number <= len(transitions):
        raise UserError(
            f"Expected a transition from 1 to {len(transitions)} of '{run.directory}', got {number}; change "
            "--transition."
        )
    return transitions[number - 1]


def whole_run(run: Run, learner: str) -> Transition:
    """All minima of a run as one stretch, its old tasks being all but the last; raises as `run_transitions` does."""
    minima = minima_in_a_row(run, learner)
    return _transition(run, minima, len(minima) - 1)


def _transition(run: Run, minima: list[Minimum] | tuple[Minimum, ...], num_old: int) -> Transition:
    return Transition(
        minima[0].label,
        minima[-1].label,
        tuple(SavedPoint(m.directory) for m in minima),
        tuple(m.key for m in minima),
        tuple(run.task_names[:num_old]),
        minima[-1].task,
        run.base_marker,
    )


def minima_in_a_row(run: Run, learner: str) -> list[Minimum]:
    """A learner's minima in order; raises `RunDirectoryError` for a run with fewer than two."""
    minima = run.minima_of(learner)
    if len(minima) < 2:
        raise RunDirectoryError(
            f"Expected a run with at least two minima, got {len(minima)} in '{run.directory}'; train on more tasks."
        )
    return minima
