"""Measuring through the store: every value is computed once, and only what is missing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import Objective
from mcanalysis.store.measurements import Measurement, MeasurementKey, MeasurementStore


def measurement_key(point_key: str, objective: Objective) -> MeasurementKey:
    """The store's key of one objective at one point."""
    return MeasurementKey(point_key, objective.name, objective.split, objective.settings_key)


def measure(
    engine: Callable[[], Engine],
    store: MeasurementStore,
    point_key: str,
    make_point: Callable[[], Mapping[str, Tensor]],
    objectives: Sequence[Objective],
) -> list[Measurement]:
    """Return the measurement of every objective at a point, from the store where it is there.

    `engine` and `make_point` are called only if something is missing, so that a finished analysis loads no weights.
    """
    keys = [measurement_key(point_key, o) for o in objectives]
    absent = set(store.missing(keys))
    todo = [o for o, k in zip(objectives, keys, strict=True) if k in absent]
    if todo:
        measured = engine().measure(make_point(), todo)
        store.put_many((measurement_key(point_key, o), m) for o, m in zip(todo, measured, strict=True))
    found = [store.get(k) for k in keys]
    return [m for m in found if m is not None]
