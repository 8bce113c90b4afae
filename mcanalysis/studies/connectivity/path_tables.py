"""Rows of `paths.csv` (a path in one line per task) and `front.csv` (the pairs of old and new score it offers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcanalysis.connectivity.profile import Profile, Quantity
from mcanalysis.metrics import barriers
from mcanalysis.metrics.front import hypervolume, hypervolume_intervals, hypervolume_of_three, non_dominated
from mcanalysis.metrics.intervals import Estimate, mean_interval
from mcanalysis.metrics.retention import retention_interval
from mcanalysis.studies.connectivity.stored_path import Lengths
from mcanalysis.studies.connectivity.tables import Curves

_QUANTITIES: tuple[Quantity, ...] = ("loss", "score")


def summary_rows(
    profiles: Mapping[str, Mapping[str, Profile]],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
    lengths: Lengths | None,
    deviation: np.ndarray,
    remaining: float,
) -> list[dict[str, Any]]:
    """One row per split, task and quantity: means, extremes and where they are, and the lengths of the path.

    `mean_over_t` and `mean_over_arc` by the trapezoid rule; `length` in the coordinates of the path's space,
    `length_delta` and `distance_delta` in ΔW; `factor_delta_deviation` the largest on the path (relative), and
    `factor_delta_deviation_norm` the same in units of ΔW; `barrier_remaining` how much higher the loss barriers may
    still be (with a tolerance only).
    """
    of_path = {
        "length": np.nan if lengths is None else lengths.length,
        "length_delta": np.nan if lengths is None else lengths.length_delta,
        "distance_delta": np.nan if lengths is None else lengths.distance_delta,
        "factor_delta_deviation": float(np.max(deviation)),
        "factor_delta_deviation_norm": np.nan if lengths is None else float(np.max(deviation)) * lengths.distance_delta,
        "barrier_remaining": remaining,
    }
    rows = []
    for split, of_split in profiles.items():
        for quantity in _QUANTITIES:
            curves = Curves(of_split, old, new, quantity)
            for name, values in curves.point.items():
                along = Profile(curves.ts, values, arc_lengths=None if lengths is None else lengths.arc).summary()
                rows.append({**labels, "task": name, "split": split, "quantity": quantity, **along, **of_path})
    return rows


def front_rows(
    profiles: Mapping[str, Mapping[str, Profile]],
    old: Sequence[str],
    new: str,
    labels: Mapping[str, Any],
    general: Estimate | None = None,
) -> list[dict[str, Any]]:
    """One row per split and t: stability, plasticity, whether the point is on the front; none without old tasks.

    `hypervolume` is that of the whole path, `hypervolume_gain` what it has over the two ends alone (≥ 0: more points
    dominate more, so that a positive one says little by itself); both with 95 % intervals over examples and repeated in
    every row. `few_events`: an interval of the row cannot promise its 95 %. `is_t_star` marks t*, chosen on the eval
    split. With `general`, mean retention over the general tasks at the points of the test split, its rows have it as a
    third coordinate `general`, and `hypervolume_general` and `hypervolume_general_gain` of all three.
    """
    if not old:
        return []
    t_star = float("nan")
    rows = []
    for split in sorted(profiles, key=lambda s: s != "eval"):  # t* first
        curves = Curves(profiles[split], old, new, "score")
        x, y = curves.point["mean_old"], curves.point[new]
        if split == "eval" and len(curves.ts) > 2:
            t_star = barriers.t_star(curves.ts, curves.point["mean"])
        estimates = {"stability": curves.estimates["mean_old"], "plasticity": curves.estimates[new]}
        whole, more = hypervolume_intervals(*estimates.values())
        volume, ends = hypervolume(x, y), [0, -1]
        gain = volume - hypervolume(x[ends], y[ends])
        of_path = {"hypervolume": float(volume), **whole.columns("hypervolume")}
        of_path |= {"hypervolume_gain": float(gain), **more.columns("hypervolume_gain")}
        intervals = {name: mean_interval(estimate, least=0.0) for name, estimate in estimates.items()}
        third: dict[str, Any] = {}
        few_on_path = bool(whole.few_events)
        if general is not None and split == "test":
            intervals["general"] = retention_interval(general)
            third = _with_general(x, y, estimates, general)
            few_on_path |= third.pop("few_events")
        on_front = non_dominated(x, y)
        for i, t in enumerate(curves.ts):
            row = {**labels, "split": split, "t": float(t), "stability": float(x[i]), "plasticity": float(y[i])}
            few_events = few_on_path
            for name, interval in intervals.items():
                row |= interval.at(i).columns(name)
                few_events |= bool(interval.few_events[i])
            row |= {"on_front": bool(on_front[i]), "is_t_star": bool(t == t_star), **of_path, "few_events": few_events}
            if general is not None and third:
                row |= {"general": float(general.point[i]), **third}
            rows.append(row)
    return rows


def _with_general(x: np.ndarray, y: np.ndarray, estimates: Mapping[str, Estimate], general: Estimate) -> dict[str, Any]:
    """The hypervolume of three coordinates and what it has over the two ends, with intervals and `few_events`."""
    z, ends = general.point, [0, -1]
    volume = hypervolume_of_three(x, y, z)
    gain = volume - hypervolume_of_three(x[ends], y[ends], z[ends])
    whole, more = hypervolume_intervals(estimates["stability"], estimates["plasticity"], general)
    return {
        "hypervolume_general": float(volume),
        **whole.columns("hypervolume_general"),
        "hypervolume_general_gain": float(gain),
        **more.columns("hypervolume_general_gain"),
        "few_events": bool(whole.few_events),
    }
