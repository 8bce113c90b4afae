"""The straight factor path of a transition over random factors of its end: what of a barrier is the parametrisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mcanalysis.connectivity.profile import Profile
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics import barriers
from mcanalysis.metrics.task_means import role
from mcanalysis.params.gauge import SPREAD, random_gauge
from mcanalysis.paths import Linear
from mcanalysis.runs.run import Run
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.tables import Curves
from mcanalysis.studies.engine import Steps
from mcanalysis.studies.points import Points

if TYPE_CHECKING:
    from mcanalysis.studies.connectivity.study import Connectivity

KIND = "linear-factor"
"""The kind of path whose inside the factors move."""
COLUMNS = [f"{name}_gauge_{what}" for name in barriers.BY_NAME for what in ("least", "median", "most")]
"""Those of `barriers.csv`: of each barrier over the draws."""


def gauge_points(path: StoredPath, learner: str) -> list[tuple[str, OnGauge]]:
    """The points between the ends, of every draw, by their keys in the store; none unless they are asked for."""
    study = path.settings
    if not study.gauges or str(path.kind) != KIND or path.transition.is_from_base:
        return []
    ends = (path.transition.start, path.transition.end)
    return [
        (f"{hash_json([path.key, 'gauge', SPREAD, number])[:24]}/{t!r}", OnGauge(learner, study, ends, number, t))
        for number in range(study.gauges)
        for t in path.ts[1:-1].tolist()
    ]


@dataclass(frozen=True)
class OnGauge:
    """A point on the factor path to the end with the factors of one draw."""

    learner: str
    study: Connectivity
    ends: tuple[str, str]
    number: int
    t: float

    def point(self, run: Run) -> Mapping[str, Tensor]:
        return _known_path(run, self.learner, self.study, self.ends, self.number)(self.t)


@lru_cache(maxsize=2)
def _known_path(run: Run, learner: str, study: Connectivity, ends: tuple[str, str], number: int) -> Linear:
    from mcanalysis.studies.connectivity.measuring import paths_of

    paths = paths_of(run, learner, study)
    found = [paths.path(name) for name in paths.names(KIND)]
    (path,) = [p for p in found if (p.transition.start, p.transition.end) == ends]
    first, last = path.transition.points
    return Linear(first, random_gauge(last, number))


def measure_gauges(
    points: Points,
    path: StoredPath,
    learner: str,
    objectives: Sequence[Objective],
    ends: Sequence[Sequence[Measurement]],
    turn: int,
) -> Steps[list[dict[str, Any]]]:
    """Rows of `gauges.csv` without labels: `gauge` (the number of the draw), then every barrier of every task and mean.

    `objectives` are those of the test split; `ends` is what was measured of them at t = 0 and t = 1, which all share.
    """
    wanted = gauge_points(path, learner)
    found = (yield from points.measure(wanted, objectives, turn)) if wanted else []
    inside, rows = len(path.ts) - 2, []
    t = path.transition
    for number in range(len(found) // inside if inside else 0):
        along = [ends[0], *found[number * inside : (number + 1) * inside], ends[1]]
        profiles = {o.name: Profile.of(path.ts, [m[i] for m in along]) for i, o in enumerate(objectives)}
        for quantity in ("loss", "score"):
            for name, values in Curves(profiles, t.old, t.new, quantity).point.items():
                row = {"gauge": number, "task": name, "role": role(name, t.old, t.new), "split": "test"}
                found_here = {
                    b: float(f(path.ts, values, higher_is_better=quantity == "score"))
                    for b, f in barriers.BY_NAME.items()
                }
                rows.append({**row, "quantity": quantity, **found_here})
    return rows


def gauge_columns(gauges: Iterable[Mapping[str, Any]], task: str, quantity: str) -> dict[str, float]:
    """What `barriers.csv` says of the draws, by column; NaN where there are none.

    >>> rows = [{"task": "mean", "quantity": "loss", **dict.fromkeys(barriers.BY_NAME, x)} for x in (1.0, 4.0, 2.0)]
    >>> list(gauge_columns(rows, "mean", "loss").values())[:3]
    [1.0, 2.0, 4.0]
    """
    chosen = [row for row in gauges if row["task"] == task and row["quantity"] == quantity]
    if not chosen:
        return dict.fromkeys(COLUMNS, float("nan"))
    values = [[f([row[name] for row in chosen]) for f in (np.min, np.median, np.max)] for name in barriers.BY_NAME]
    return dict(zip(COLUMNS, np.ravel(values).tolist(), strict=True))
