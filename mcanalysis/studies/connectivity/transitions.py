"""What paths lead between: two minima in a row, or all minima of a run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.params.point import Point
from mcanalysis.paths.path_kinds import PathKind
from mcanalysis.runs.run import Minimum, Run


@dataclass(frozen=True)
class Transition:
    """Minima in a row, nearly always two: `start` and `end` are labels, `keys` content hashes of `points`.

    `old` and `new` are task names: what was learned before the last minimum, and what was learned there.
    """

    start: str
    end: str
    points: tuple[Point, ...]
    keys: tuple[str, ...]
    old: tuple[str, ...]
    new: str
    data_key: str = ""  # what curves are fitted on, where that is not told by the run

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks, in the order they were learned."""
        return (*self.old, self.new)


def run_transitions(run: Run, learner: str) -> list[Transition]:
    """The transitions between successive minima; raises `RunDirectoryError` for a run with fewer than two."""
    minima = minima_in_a_row(run, learner)
    return [_transition(run, pair, k) for k, pair in enumerate(pairwise(minima), start=1)]


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


def num_stretches(run: Run, learner: str, kind: PathKind) -> int:
    """How many paths of this kind a run has: one per pair of successive minima, or one; raises as `whole_run` does."""
    return 1 if kind.is_of_whole_run else len(minima_in_a_row(run, learner)) - 1


def stretch(run: Run, learner: str, kind: PathKind, number: int) -> Transition:
    """What the `number`-th path of a kind leads through, from 0; no other minima are read."""
    if kind.is_of_whole_run:
        return whole_run(run, learner)
    return _transition(run, minima_in_a_row(run, learner)[number : number + 2], number + 1)


def _transition(run: Run, minima: list[Minimum] | tuple[Minimum, ...], num_old: int) -> Transition:
    return Transition(
        minima[0].label,
        minima[-1].label,
        tuple(m.point for m in minima),
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
