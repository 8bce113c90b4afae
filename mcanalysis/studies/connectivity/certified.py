"""Barriers of a stored path to a tolerance: which points are measured on all examples, and which on some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mcanalysis.connectivity.certificate import certificate_of, check_rounding
from mcanalysis.connectivity.certificate_band import Quantity
from mcanalysis.connectivity.certificate_search import CertificateSearch, Examples
from mcanalysis.evaluation.objective import Objective
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.engine import Steps

Some = Callable[[float, Sequence[tuple[Objective, tuple[int, ...]]]], "Steps[list[Measurement]]"]
"""Losses of some examples of objectives at a t."""
BARRIERS: tuple[Quantity, ...] = ("chord_barrier", "mean_barrier", "max_barrier")
CONFIDENCE = 0.95  # of all curves of a path together
COLUMNS = [
    *(f"{barrier}_at_{end}" for barrier in BARRIERS for end in ("least", "most")),
    "certificate", "tolerance_reached", "evaluations",
]  # fmt: skip
"""Those of `barriers.csv` that a search adds."""
_MORE = 1.1  # times the points of a grid is the most that a search may cost
_RESERVED = 1.5  # of that: the highest point on all examples, and a sample that is measured anew with the others
_EPS = float(np.finfo(np.float32).eps)  # in which losses are computed


@dataclass(frozen=True)
class Certified:
    """What a search says of the losses of a path on the test split, of the new task and of the mean over the old ones.

    `columns`: by name of the curve, what stands in its row of `barriers.csv` (loss); `rows`: those of
    `certificates.csv` without labels, of measured points (`num_examples` above 0) and of places between them;
    `remaining`: by how much a barrier may lie above the one found at a point measured on all examples.
    """

    columns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    remaining: float = float("nan")


def coarse(knots: Sequence[float]) -> list[float]:
    """The t that are measured on all examples in any case: the knots, and the middle of the path or, with knots inside,
    of each of its pieces, since scores, t* and the gain are of such points alone.

    >>> coarse([0.0, 1.0]), coarse([0.0, 0.5, 1.0])
    ([0.0, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0])
    """
    return [*(t for a, b in pairwise(knots) for t in (a, (a + b) / 2)), float(knots[-1])]


def certified(
    path: StoredPath,
    objectives: Sequence[Objective],
    at: Callable[[Sequence[float]], Steps[None]],
    some: Some,
    measured: Mapping[float, Sequence[Measurement]],
) -> Steps[Certified]:
    """Measure ends and middle on all examples, then what the searches ask for; `measured` grows as `at` is called.

    Where a barrier is highest is measured on all examples at last, so that what the tables call a barrier was attained.
    """
    knots = [float(t) for t in path.knots]
    yield from at(coarse(knots))
    t = path.transition
    tested = {name: [i for i, o in enumerate(objectives) if o.split == "test" and o.name in names]
              for name, names in (("mean_old", t.old), (t.new, (t.new,))) if names}  # fmt: skip
    columns: dict[str, dict[str, Any]] = {}
    rows: list[Mapping[str, Any]] = []
    remaining = [0.0]
    for name, chosen in tested.items():
        curve = _Curve([objectives[i] for i in chosen], chosen, measured)
        confidence = 1 - (1 - CONFIDENCE) / len(tested)
        search = None
        for barrier in BARRIERS:
            search = yield from curve.search(path, barrier, confidence, knots, at, some, search)
            found = search.found()
            columns.setdefault(name, {}).update({f"{barrier}_at_least": found.low, f"{barrier}_at_most": found.high})
            remaining.append(found.high - max(found.estimate, found.low))
        assert search is not None
        last = certificate_of(search)
        reached = all(
            columns[name][f"{b}_at_most"] - columns[name][f"{b}_at_least"] <= search.tolerance for b in BARRIERS
        )
        words = f"at measured points {last.sampling}, between them {last.between}"
        columns[name] |= {"certificate": words, "tolerance_reached": reached, "evaluations": search.spent}
        rows += [{"task": name, "num_given": curve.number, **row} for row in _rows(last)]
    return Certified(columns, rows, float(np.max(remaining)))


def _rows(last: Any) -> Iterator[dict[str, Any]]:
    """Measured points, and places between them, by t."""
    between = pd.DataFrame(dict(zip(("t", "loss", "loss_low", "loss_high"), last.band, strict=True)), dtype=float)
    both = pd.concat([last.to_frame(), between.assign(num_examples=0)]).drop_duplicates("t")
    for row in both.sort_values("t", kind="stable").to_dict("records"):
        yield {str(name): value for name, value in row.items()}


class _Curve:
    """A mean over tasks of losses per target, as the sum of what each example of them adds."""

    def __init__(
        self, objectives: Sequence[Objective], chosen: Sequence[int], measured: Mapping[float, Sequence[Measurement]]
    ) -> None:
        self._objectives, self._chosen, self._measured = objectives, chosen, measured
        self._starts = np.cumsum([0, *(len(o.encoded) for o in objectives)])
        self.number = int(self._starts[-1])
        ends = [measured[0.0][i] for i in chosen]
        self._scales = [m.num_targets * len(chosen) for m in ends]
        weights = np.concatenate([m.targets / scale for m, scale in zip(ends, self._scales, strict=True)])
        self._examples = Examples(self._whole(0.0), self._whole(1.0), weights)

    def search(
        self,
        path: StoredPath,
        barrier: Quantity,
        confidence: float,
        knots: Sequence[float],
        at: Callable[[Sequence[float]], Steps[None]],
        some: Some,
        before: CertificateSearch | None,
    ) -> Steps[CertificateSearch]:
        """Search for one barrier; what the search `before` it knows is given to it."""
        settings = path.settings
        tolerance = float(settings.tolerance or 0.0)
        ends = abs(float(self._examples.start.sum())), abs(float(self._examples.end.sum()))
        check_rounding(tolerance, max(ends), _EPS)
        spent = float(len(self._measured)) if before is None else before.spent
        most = _MORE * max(settings.num_points, len(coarse(knots)))
        search = CertificateSearch(
            self._examples, tolerance, barrier, confidence, most - _RESERVED, spent, knots,
            was_tried=before is not None,  # the same curve, whatever is sought of it
        )  # fmt: skip
        for t in self._measured:
            search.give(t, self._whole(t)[search.order])
        for t, point in () if before is None else before.points.items():
            search.give(t, point.values)
        while True:
            while (wanted := search.next()) is not None:
                yield from self._tell(search, wanted.t, len(wanted.rows), at, some)
            best = search.found().t
            lacking = self.number - len(search.points[best].values) if np.isfinite(best) else 0
            if not lacking or search.spent + 1 > most:
                return search
            yield from self._tell(search, best, lacking, at, some)  # which moves the intervals of its neighbours

    def _tell(
        self, search: CertificateSearch, t: float, more: int, at: Callable[[Sequence[float]], Steps[None]], some: Some
    ) -> Steps[None]:
        """Measure so many more examples at t: parts between sizes that may be looked at, which the store knows, or all
        objectives on all examples."""
        had = len(search.points[t].values) if t in search.points else 0
        if had + more == self.number:
            yield from at([t])
            search.tell(t, self._whole(t)[search.order[had:]])
            search.spent += had / self.number  # measured anew, with the others
            return
        for low, high in pairwise([0, *search.levels]):
            if had <= low < had + more:
                rows = np.sort(search.order[low:high])
                parts = [
                    (o, tuple((rows[(rows >= start) & (rows < end)] - start).tolist()))
                    for o, start, end in zip(self._objectives, self._starts[:-1], self._starts[1:], strict=True)
                ]
                found = yield from some(t, [part for part in parts if part[1]])
                values = np.zeros(self.number)
                scales = [scale for scale, part in zip(self._scales, parts, strict=True) if part[1]]
                values[rows] = np.concatenate([m.nll / s for m, s in zip(found, scales, strict=True)])
                search.tell(t, values[search.order[low:high]])

    def _whole(self, t: float) -> NDArray[np.float64]:
        """What each example adds at a t measured on all of them."""
        found = [self._measured[t][i] for i in self._chosen]
        return np.concatenate([m.nll / scale for m, scale in zip(found, self._scales, strict=True)])
