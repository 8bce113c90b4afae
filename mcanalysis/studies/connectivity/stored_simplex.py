"""The simplex between some minima of a run, measured through its store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mcanalysis.connectivity.simplex_grid import coordinates, simplex_weights
from mcanalysis.evaluation.objective import Objective
from mcanalysis.paths import Simplex
from mcanalysis.paths.path_kinds import path_kind
from mcanalysis.runs.run import Minimum, Run
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.study import Connectivity


class StoredSimplex:
    """The minima numbered in `settings.simplex`, in the space of the first path of the settings.

    With the base (0) among them it is the delta space: (A, 0) is the base for every A, and what lies between it and two
    minima differs with A in the other spaces. Measured are all tasks up to the last of these minima, at a barycentric
    grid of at most `num_points` points and the centroid.
    """

    def __init__(self, run: Run, learner: str, settings: Connectivity) -> None:
        self.run = run
        self.minima: list[Minimum] = [run.minimum(number, learner) for number in settings.simplex]
        self.space = "delta" if 0 in settings.simplex else path_kind(settings.paths[0]).space
        self.settings = settings

    @cached_property
    def simplex(self) -> Simplex:
        """The simplex itself."""
        return Simplex(*(m.point for m in self.minima), space=self.space)

    @cached_property
    def weights(self) -> list[tuple[float, ...]]:
        """The barycentric coordinates that are measured."""
        return simplex_weights(self.simplex, self.settings.num_points)

    @cached_property
    def objectives(self) -> list[Objective]:
        """All tasks up to the last of the minima, on the eval and the test split."""
        return [
            self.run.task_objective(task, split, self.settings.num_examples)
            for task in self.run.task_names[: max(self.settings.simplex)]
            for split in ("eval", "test")
        ]

    def rows(
        self, weights: Sequence[tuple[float, ...]], measured: Sequence[Sequence[Measurement]]
    ) -> list[dict[str, Any]]:
        """Rows of `simplex.csv` without strategy, learner and seed, from what each point gave."""
        rows = []
        for at, values in zip(weights, measured, strict=True):
            place = {"space": self.space, "minima": " ".join(m.label for m in self.minima), **coordinates(at)}
            for o, m in zip(self.objectives, values, strict=True):
                numbers = {"loss": m.loss, "score": m.score, "num_examples": m.num_examples}
                rows.append({**place, "task": o.name, "split": o.split, **numbers})
        return rows

    def points(self) -> Iterator[tuple[tuple[float, ...], str]]:
        """Coordinates and the store's key of every point; the corners are the minima themselves."""
        key = hash_json(["simplex", self.space, *(m.key for m in self.minima)])[:24]
        for weights in self.weights:
            corner = next((m.key for m, w in zip(self.minima, weights, strict=True) if w == 1.0), None)
            yield weights, corner or f"{key}/{'/'.join(map(repr, weights))}"
