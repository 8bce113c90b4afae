"""The tables of attribution, from what was measured on each group's path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from mcanalysis.connectivity.attribution import WHOLE, Hold, above_chord, barrier_values, change, farthest, held_t
from mcanalysis.connectivity.profile import Profile, Quantity
from mcanalysis.metrics import barriers
from mcanalysis.metrics.intervals import Estimate, Interval, contrast_intervals
from mcanalysis.params.groups import places
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.attribution import Subject
from mcanalysis.studies.connectivity.tables import Curves


def attribution_tables(subject: Subject, measured: Mapping[str, Sequence[Measurement]]) -> dict[str, pd.DataFrame]:
    """The curves and the barriers of all groups of one run; `measured` by the points' keys, one for each objective."""
    run, transition = subject.run, subject.transition
    labels = {
        "strategy": run.strategy, "learner": run.answering_learner, "seed": run.seed,
        "space": subject.study.space, "start": transition.start, "end": transition.end,
    }  # fmt: skip
    where = places(subject.path.anchors[0])
    ts = np.array(subject.ts)
    curve_rows, barrier_rows = [], []
    for hold in get_args(Hold):
        whole: dict[Quantity, Curves] = {}
        for grouping, group, names in subject.groups:
            at_points = [measured[key] for key in subject.point_keys(hold, names)]
            profiles = {o.name: Profile.of(ts, [m[i] for m in at_points]) for i, o in enumerate(subject.objectives)}
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
    return {"attribution": pd.DataFrame(curve_rows), "attribution_barriers": pd.DataFrame(barrier_rows)}


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
