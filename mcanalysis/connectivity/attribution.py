"""Attribution: which layers, or which kinds of module, make what happens along a path.

One group of tensors moves along the path while all others stay at one of its ends. Where the loss is a sum over groups,
the contributions of the groups add up to the curve of the whole path; what is missing from that sum, or too much in it,
is interaction between groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from torch import Tensor

from mcanalysis.connectivity.losses import refuse_draws
from mcanalysis.connectivity.profile import PerExample, Profile, Quantity, assemble, grid
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.metrics import barriers
from mcanalysis.params.point import Point
from mcanalysis.paths import Linear
from mcanalysis.paths.base import at_ends

Hold = Literal["start", "end"]
Groups = Mapping[str, Sequence[str]]
Objective = Callable[[Mapping[str, Tensor]], "float | PerExample"]
PathLike = Callable[[float], Mapping[str, Tensor]]

WHOLE = "all"
"""The name of the group of all tensors, which moves along the whole path and is always measured."""


def move_group(path: PathLike, group: Sequence[str], hold: Hold) -> Callable[[float], Point]:
    """Return the path on which only the tensors of a group move, all others staying at the start or the end.

    It is a path of the space that `path` lives in: in the delta space a module's ΔW moves along its own straight line,
    in the aligned space along its own aligned path. At the held end it is the path's own end, bit for bit.

    Raises:
        UnknownNameError: if the group names a tensor that the points of the path do not have.
        UserError: if `hold` is neither "start" nor "end".

    >>> import torch
    >>> line = Linear({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    >>> move_group(line, ["a"], "start")(0.25)
    {'a': tensor([0.2500]), 'b': tensor([0.])}
    >>> move_group(line, ["a"], "end")(0.25)
    {'a': tensor([0.2500]), 'b': tensor([1.])}
    """
    end = path(held_t(hold))
    for name in group:
        if name not in end:
            raise UnknownNameError("tensor in a group", name, end)
    moving = set(group)

    def at(t: float) -> Point:
        point = path(t)
        return {name: point[name] if name in moving else end[name] for name in end}

    return at


def held_t(hold: Hold) -> float:
    """Return the t at which what does not move stays; raises `UserError` for a name that is no end.

    >>> held_t("end")
    1.0
    """
    if hold not in get_args(Hold):
        raise UserError(f"Expected the others to be held at 'start' or 'end', got {hold!r}; choose one of the two.")
    return 0.0 if hold == "start" else 1.0


def attribute(
    path: PathLike | tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    objective: Objective,
    groups: Groups,
    hold: Hold = "start",
    ts: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the curves of an objective when one group at a time moves along a path, all others held at an end.

    Point by point, with one point in memory at a time; the held end is evaluated once for all groups, so the cost is
    (number of groups + 1) · (number of ts − 1) + 1 evaluations.

    Args:
        path: a path, or two points that are joined by a straight line, tensor by tensor.
        objective: a function of a point that returns a number, or an object with per-example values (as for
            `mcanalysis.profile`).
        groups: tensor names by group, as `by_layer`, `by_module_kind` and `by_module` make them. They may overlap or
            leave tensors out; contributions add up only if each tensor is in one group.
        hold: the end at which the others stay.
        ts: increasing from 0 to 1; 11 equally spaced ones by default.

    Returns:
        One row per group and t, the group "all" (the whole path) first: `hold`, `group`, `t`, `loss`, `loss_change`
        (loss minus that of the held end), `loss_above_chord` (loss minus the straight line between the ends of the
        group's own curve), and the same for `score` where the objective gives one. For a loss that is a sum over groups
        the `loss_change` and `loss_above_chord` of the groups add up to those of "all" at each t.

    Raises:
        UnknownNameError: if a group names a tensor that the path does not have.
        UserError: for no group, an empty one, one called "all", a wrong `hold`, ts that do not run from 0 to 1, or an
            objective that draws minibatches.

    >>> import torch
    >>> a, b = {"x": torch.tensor(-1.0), "y": torch.tensor(0.0)}, {"x": torch.tensor(1.0), "y": torch.tensor(2.0)}
    >>> table = attribute((a, b), lambda p: float(-p["x"] ** 2 + p["y"]), {"x": ["x"], "y": ["y"]}, ts=[0, 0.5, 1])
    >>> table[table.t == 0.5].set_index("group").loss_above_chord.to_dict()
    {'all': 1.0, 'x': 1.0, 'y': 0.0}
    """
    places_t = grid(11) if ts is None else np.array([at_ends(float(t)) for t in ts])
    if isinstance(path, tuple):
        path = Linear(*path)
    _check(groups, places_t)
    refuse_draws(objective)
    moved = {name: move_group(path, tensors, hold) for name, tensors in groups.items()}
    on_path = [objective(path(float(t))) for t in places_t]
    known = {held_t(hold): on_path[0 if hold == "start" else -1]}
    curves = {WHOLE: assemble(None, places_t, on_path)}
    for name, moved_path in moved.items():
        curves[name] = assemble(
            None, places_t, [known[t] if t in known else objective(moved_path(t)) for t in map(float, places_t)]
        )
    return curve_table(curves, hold)


def curve_table(curves: Mapping[str, Profile], hold: Hold) -> pd.DataFrame:
    """Return the table of `attribute` from the profiles of the groups, the whole path's under "all".

    >>> curve_table({"all": Profile(np.array([0.0, 1.0]), np.array([1.0, 3.0]))}, "end").loss_change.tolist()
    [-2.0, 0.0]
    """
    tables = []
    for name, curve in curves.items():
        columns: dict[str, Any] = {"hold": hold, "group": name, "t": curve.ts}
        for quantity in _quantities(curve):
            values = curve.values(quantity)
            columns |= {quantity: values, f"{quantity}_change": change(values, hold)}
            columns[f"{quantity}_above_chord"] = above_chord(curve.ts, values)
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def barrier_table(curves: pd.DataFrame, quantity: Quantity = "loss") -> pd.DataFrame:
    """Return what each group makes of the barrier, one row per group, from one or more tables of `attribute`.

    Returns:
        `hold`, `group` and the columns of `barrier_values`, with `t_farthest` after them: the t at which the whole path
        is farthest from its chord, which is where `above_chord` is taken.

    >>> import torch
    >>> line = Linear({"x": torch.tensor(-1.0)}, {"x": torch.tensor(1.0)})
    >>> table = barrier_table(attribute(line, lambda p: float(1 - p["x"] ** 2), {"x": ["x"]}))
    >>> table[["group", "chord_barrier", "t_farthest", "above_chord"]].values.tolist()
    [['all', 1.0, 0.5, 1.0], ['x', 1.0, 0.5, 1.0]]
    """
    rows = []
    for hold, of_hold in curves.groupby("hold", sort=False):
        on_path = of_hold[of_hold.group == WHOLE]
        far = farthest(on_path.t.to_numpy(), on_path[quantity].to_numpy())
        for name, curve in of_hold.groupby("group", sort=False):
            ts, values = curve.t.to_numpy(), curve[quantity].to_numpy()
            found = barrier_values(ts, values, hold, far, quantity)  # type: ignore[arg-type]
            rows.append({"hold": hold, "group": name} | {n: float(v) for n, v in found.items()})
            rows[-1]["t_farthest"] = float(ts[far])
    return pd.DataFrame(rows)


def barrier_values(
    ts: np.ndarray, values: np.ndarray, hold: Hold, far: int, quantity: Quantity = "loss"
) -> dict[str, np.ndarray]:
    """Return what is reported of curves, shape (..., n), of one group: each value of shape (...).

    The group's own `chord_barrier`, `mean_barrier`, `max_barrier` and `chord_dip` (of a score: how far it falls);
    `above_chord`, the curve minus its chord at the index `far` (where the whole path is farthest from its own: for a
    sum over groups these values add up to the whole path's); `end_change`, the change when the group goes all the way
    from the held end to the other. The last two keep the sign of the quantity.

    >>> found = barrier_values(np.array([0.0, 0.5, 1.0]), np.array([1.0, 4.0, 3.0]), "start", 1)
    >>> {name: float(value) for name, value in found.items() if name in ("above_chord", "end_change")}
    {'above_chord': 2.0, 'end_change': 2.0}
    """
    found = {n: b(ts, values, higher_is_better=quantity == "score") for n, b in barriers.BY_NAME.items()}
    found["above_chord"] = above_chord(ts, values)[..., far]
    found["end_change"] = change(values, hold)[..., -1 if held_t(hold) == 0.0 else 0]
    return found


def change(values: np.ndarray, hold: Hold) -> np.ndarray:
    """Return the curves, shape (..., n), minus their values at the held end.

    >>> change(np.array([1.0, 4.0, 3.0]), "start").tolist()
    [0.0, 3.0, 2.0]
    """
    return values - values[..., [0 if held_t(hold) == 0.0 else -1]]


def above_chord(ts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the curves, shape (..., n), minus the straight lines between their ends; negative below them.

    >>> above_chord(np.array([0.0, 0.5, 1.0]), np.array([1.0, 4.0, 3.0])).tolist()
    [0.0, 2.0, 0.0]
    """
    return values - ((1.0 - ts) * values[..., [0]] + ts * values[..., [-1]])


def farthest(ts: np.ndarray, values: np.ndarray) -> int:
    """Return the index at which a curve, shape (n,), is farthest from its chord, above or below; the first of several.

    >>> farthest(np.array([0.0, 0.3, 0.6, 1.0]), np.array([0.0, -3.0, 2.0, 0.0]))
    1
    """
    return int(np.argmax(np.abs(above_chord(ts, values))))


def _quantities(curve: Profile) -> tuple[Quantity, ...]:
    return ("loss",) if curve.scores is None else ("loss", "score")


def _check(groups: Groups, ts: np.ndarray) -> None:
    barriers.chord_barrier(ts, np.zeros_like(ts))  # refuses ts that do not run from 0 to 1
    if not groups:
        raise UserError("Expected at least one group of tensors, got none; use by_layer(point) or name some.")
    if WHOLE in groups:
        raise UserError(f"Expected other names of groups than '{WHOLE}', which is that of the whole path; rename it.")
    for name, tensors in groups.items():
        if isinstance(tensors, str) or not tensors:
            got = f"the text {tensors!r}" if isinstance(tensors, str) else "none"
            raise UserError(f"Expected a list of tensor names in group '{name}', got {got}; name its tensors.")
