"""Measuring a path through a store: on its grid, or where an adaptive search wants to know more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from mcanalysis.connectivity.adaptive import Refinement
from mcanalysis.connectivity.profile import Profile
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.measuring import measure, measurement_key
from mcanalysis.evaluation.objective import Objective
from mcanalysis.store.measurements import Measurement, MeasurementStore
from mcanalysis.studies.connectivity.stored_path import StoredPath

Profiles = Mapping[str, Mapping[str, Profile]]
"""By split, then by task."""


class Measured(NamedTuple):
    """What a path gave: `profiles`, and by how much its barriers may still lie above those found (NaN on a grid).

    `num_cut`: by split, then by task, how many prompts lost their middle.
    """

    profiles: Profiles
    remaining: float
    num_cut: Mapping[str, Mapping[str, int]]


def measure_path_values(
    path: StoredPath,
    objectives: Sequence[Objective],
    store: MeasurementStore,
    engine: Callable[[], Engine],
    on_point: Callable[[], object] = lambda: None,
) -> Measured:
    """Every objective at every point; only what the store lacks is computed."""
    measured: dict[float, list[Measurement]] = {}

    def at(t: float) -> Sequence[Measurement]:
        measured[t] = measure(engine, store, path.point_key(t), lambda: path.path(t), objectives)
        on_point()
        return measured[t]

    remaining = _walk(path, objectives, at)
    ts = sorted(measured)
    columns = {(o.split, o.name): [measured[t][i] for t in ts] for i, o in enumerate(objectives)}
    splits = dict.fromkeys(o.split for o in objectives)
    profiles = {s: {o.name: Profile.of(ts, columns[s, o.name]) for o in objectives if o.split == s} for s in splits}
    num_cut = {s: {o.name: o.num_cut for o in objectives if o.split == s} for s in splits}
    return Measured(profiles, remaining, num_cut)


def wanted_ts(path: StoredPath, objectives: Sequence[Objective], store: MeasurementStore) -> list[float]:
    """The t to measure next: all that a grid lacks, or the one at which an adaptive search stands; none: it is done."""
    wanted: list[float] = []

    def at(t: float) -> Sequence[Measurement]:
        found = [store.get(measurement_key(path.point_key(t), o)) for o in objectives]
        there = [m for m in found if m is not None]
        if len(there) < len(found):
            wanted.append(t)
            if path.settings.adaptive is not None:
                raise LookupError(t)
        return there

    with suppress(LookupError):
        _walk(path, objectives, at)
    return wanted


def _walk(path: StoredPath, objectives: Sequence[Objective], at: Callable[[float], Sequence[Measurement]]) -> float:
    """Ask for points until there are enough of them.

    Adaptively: until the loss barriers, on the test split, of the new task and of the mean over the old ones are known.
    """
    settings = path.settings
    if settings.adaptive is None:
        for t in path.ts:
            at(float(t))
        return float("nan")
    knots = sorted(path.minima) if path.kind.is_of_whole_run else path.straight.knots
    search = Refinement(settings.adaptive, settings.num_points, knots=knots)
    old = [i for i, o in enumerate(objectives) if o.split == "test" and o.name in path.transition.old]
    new = [i for i, o in enumerate(objectives) if o.split == "test" and o.name == path.transition.new]
    while (t := search.next()) is not None:
        losses = [m.loss for m in at(t)]
        search.tell(t, [np.mean([losses[i] for i in chosen]) for chosen in (old, new) if chosen])
    return search.remaining
