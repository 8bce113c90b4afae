"""The simplex of three minima as triangles: losses of their tasks and the mean score at every mixture."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from mcanalysis.errors import UserError
from mcanalysis.plotting.contour_levels import contour_levels, shades
from mcanalysis.plotting.selection import label_name, only_value, require_columns
from mcanalysis.plotting.style import (
    BLACK,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    whose,
    write_head,
)

_COLUMNS = ("strategy", "learner", "seed", "space", "minima", "w1", "w2", "w3", "task", "split", "loss", "score")
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
_MARGIN, _BETWEEN, _HEAD, _TITLE, _NAMES, _BAR, _BAR_TEXT = 0.10, 0.20, 0.20, 0.42, 0.20, 0.07, 0.36
_LETTER = 0.062  # inches


@in_print_style
def plot_ternary(simplex: pd.DataFrame) -> Figure:
    """Draw the loss of each minimum's own task and the mean score of all tasks on the triangle of three minima.

    A point of the triangle is the mixture w₁θ₁ + w₂θ₂ + w₃θ₃; at a corner it is that minimum. Dots: what was measured;
    colours and lines interpolate linearly between them. Light is good. Star: the highest mean score measured.

    Args:
        simplex: `simplex.csv` of one strategy, learner, seed and space, of three minima; the test split is drawn.

    Raises:
        UserError: for missing columns, rows of several simplexes, or of another number of minima than three.
    """
    rows, names = ternary_rows(simplex)
    tasks = list(dict.fromkeys(rows.task))
    shown = [label_name(n) for n in names if label_name(n) in tasks]
    panels = [(task, "loss", f"loss of {shortened(task, 14)}", "nats/token") for task in shown]
    panels.append(("mean", "score", f"mean score of {len(tasks)} tasks", "score, 0–1"))
    side = (double_column() - 2 * _MARGIN - (len(panels) - 1) * _BETWEEN) / len(panels)
    height = side * math.sqrt(3) / 2
    figure = new_figure(double_column(), _HEAD + _TITLE + height + _NAMES + _BAR + _BAR_TEXT)
    for i, (task, quantity, title, unit) in enumerate(panels):
        left, bottom = _MARGIN + i * (side + _BETWEEN), _BAR_TEXT + _BAR + _NAMES
        axes = add_axes(figure, left, bottom, side, height)
        bar = add_axes(figure, left + 0.1 * side, _BAR_TEXT, 0.8 * side, _BAR)
        _draw(axes, bar, _values(rows, task, quantity), quantity == "score", f"{quantity} {task}", unit)
        axes.set_title(title, pad=19, fontweight="bold")
        room = int(side / 2 / _LETTER) - 3
        for name, (x, y), where in zip(names, _CORNERS, ("left", "right", "center"), strict=True):
            number = name.partition("-")[0]  # of the minimum: the base is 0
            words = f"{number} {shortened(label_name(name), room if y == 0 else 2 * room)}"
            place = (x, y + 0.03) if y else (x, -0.03)
            axes.text(*place, words, ha=where, va="bottom" if y else "top", gid=f"corner {number}")
    row = rows.iloc[0]
    write_head(figure, f"{whose(row)}, test split, {row.space} space")
    return figure


def ternary_rows(simplex: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the test split that are drawn, and the labels of the three minima; errors as `plot_ternary`."""
    if isinstance(simplex, pd.DataFrame) and "w3" not in simplex.columns:
        raise UserError(
            "Expected a simplex of three minima, got fewer; measure it with connectivity.py --simplex 1,2,3."
        )
    require_columns(simplex, _COLUMNS, "simplex")
    for column in ("strategy", "learner", "seed", "space", "minima"):
        only_value(simplex, column, "simplex")
    names = str(simplex.minima.iloc[0]).split(" ")
    if len(names) != 3:
        raise UserError(
            f"Expected a simplex of three minima, got {len(names)}; measure it with connectivity.py --simplex 1,2,3."
        )
    rows = simplex[simplex.split == "test"]
    if rows.empty or rows.duplicated(["w1", "w2", "w3", "task"]).any():
        raise UserError(
            "Expected one row per point and task of the split test in the table simplex, got none or several; "
            "pass simplex.csv of a run."
        )
    return rows, names


def ternary_caption(simplex: pd.DataFrame) -> str:
    """What the picture of `plot_ternary` shows, with the best mixture, in words."""
    rows, names = ternary_rows(simplex)
    mean = _values(rows, "mean", "score")
    best = mean.iloc[int(mean.value.to_numpy().argmax())]
    corner = mean[mean[["w1", "w2", "w3"]].max(axis=1) == 1].value.max()
    tasks = ", ".join(dict.fromkeys(rows.task))
    return (
        f"Mixtures w₁θ₁ + w₂θ₂ + w₃θ₃ of the minima {', '.join(names)} of {rows.strategy.iloc[0]} "
        f"({rows.learner.iloc[0]} adapter, seed {rows.seed.iloc[0]}) in {rows.space.iloc[0]} space: loss of each one's "
        f"own task (nats per target token) and mean score of {tasks}, test split, "
        f"{rows.num_examples.iloc[0] if 'num_examples' in rows else 'some'} examples per task. Dots: the {len(mean)} "
        "measured mixtures, between which colours interpolate linearly. Star: the highest mean score, "
        f"{best.value:.2f} at w = ({best.w1:.2f}, {best.w2:.2f}, {best.w3:.2f}), chosen on the split that is shown and "
        f"thus too high by selection; the best corner has {corner:.2f}."
    )


def _values(rows: pd.DataFrame, task: str, quantity: str) -> pd.DataFrame:
    """w1, w2, w3 and value of one task, or the mean over all."""
    own = rows if task == "mean" else rows[rows.task == task]
    return own.groupby(["w1", "w2", "w3"], sort=True)[quantity].mean().rename("value").reset_index()


def _draw(axes: Axes, bar: Axes, table: pd.DataFrame, higher_is_better: bool, gid: str, unit: str) -> None:
    weights, values = table[["w1", "w2", "w3"]].to_numpy(float), table.value.to_numpy(float)
    x, y = (weights @ _CORNERS).T
    known = np.isfinite(values)
    scale = shades(contour_levels(values, num=7, may_be_log=not higher_is_better), higher_is_better)
    levels, colours, norm = scale
    if known.sum() > 2:
        triangles = Triangulation(x[known], y[known])
        filled = axes.tricontourf(triangles, values[known], levels=levels, cmap=colours, norm=norm, extend="both")
        filled.set_edgecolor("face")
        axes.tricontour(triangles, values[known], levels=levels, colors="#303030", linewidths=0.4)
    axes.plot(*np.vstack([_CORNERS, _CORNERS[:1]]).T, color=BLACK, linewidth=0.7, clip_on=False)
    axes.scatter(x, y, s=5, c="white", edgecolors=BLACK, linewidths=0.4, zorder=3, clip_on=False, gid=gid)
    if higher_is_better and known.any():
        best = int(np.nanargmax(values))
        axes.plot(
            x[best], y[best], "*", color="white", markeredgecolor=BLACK, markeredgewidth=0.6, markersize=8, zorder=4,
            clip_on=False, gid="best",
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, math.sqrt(3) / 2), aspect="equal")
    axes.axis("off")
    scale.write_bar(bar, 4, unit, ends=0.05)
