"""Score and loss along one path through all minima of a run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcanalysis.plotting.selection import (
    MEANS,
    PROFILE_KEYS,
    only_value,
    require_columns,
    rows_of_test_split,
    trained_tasks,
)
from mcanalysis.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    whose,
    write_head,
)

_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, SKY_BLUE, PURPLE, BLACK, GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LEFT, _RIGHT, _TOP, _NAMES, _GAP = 0.55, 1.45, 0.22, 0.30, 0.14
_HEIGHT = 1.45
_LOG_FROM = 30.0  # highest over lowest loss where the axis is logarithmic


@in_print_style
def plot_whole_run(profiles: pd.DataFrame) -> Figure:
    """Draw score (upper) and loss (lower, nats per target token) of every task against t, the minima marked.

    `profiles`: rows of `profiles.csv` of one strategy, learner, seed and path through all minima, which lie at equal
    spacing of t; the test split is drawn. A line per task, thin before the task was learned, marked at the minima.

    Raises `UserError` for missing columns, no row of the test split, or rows of several paths.
    """
    require_columns(profiles, [*PROFILE_KEYS, "loss", "score"], "profiles")
    rows = rows_of_test_split(trained_tasks(profiles), PROFILE_KEYS, "profiles")
    for column in ("strategy", "learner", "seed", "path", "space"):
        only_value(rows, column, "profiles")
    tasks = [name for name in dict.fromkeys(rows.task) if name not in MEANS]
    knots = np.arange(len(tasks)) / max(1, len(tasks) - 1)
    height = 2 * _HEIGHT + _GAP + _TOP + _NAMES + 0.2
    figure = new_figure(double_column(), height)
    width = double_column() - _LEFT - _RIGHT
    loss = add_axes(figure, _LEFT, height - _TOP - 2 * _HEIGHT - _GAP, width, _HEIGHT)
    score = add_axes(figure, _LEFT, height - _TOP - _HEIGHT, width, _HEIGHT)
    for quantity, axes in (("score", score), ("loss", loss)):
        for knot in knots:
            axes.axvline(knot, color="#D8D8D8", linewidth=0.6, zorder=0.5, gid="minimum")
        for i, task in enumerate(tasks):
            _draw(axes, rows[rows.task == task].sort_values("t"), quantity, i, knots, task)
        axes.set_xlim(-0.015, 1.015)
    score.set_ylim(-0.05, 1.05)
    score.set_ylabel("score (0–1)")
    score.tick_params(labelbottom=False)
    loss.set_ylabel("loss (nats/token)")
    finite = rows.loss[np.isfinite(rows.loss) & (rows.loss > 0)]
    if len(finite) and finite.max() > _LOG_FROM * finite.min():
        loss.set_yscale("log")
    room = max(4, int(90 / len(tasks)))  # characters of a name below its minimum
    loss.set_xticks(knots, [f"{k}\n{shortened(name, room)}" for k, name in enumerate(tasks, start=1)])
    score.set_xticks(knots)
    loss.set_xlabel("minimum after each task (equal steps of t from 0 to 1)", labelpad=2)
    for axes in (score, loss):
        axes.yaxis.set_label_coords(-0.40 / width, 0.5)
    row = rows.iloc[0]
    write_head(figure, f"{whose(row)}, test split: {row.path.replace('_', ' ')}, {row.space} space")
    handles, labels = score.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left",
        bbox_to_anchor=(1 - (_RIGHT - 0.05) / double_column(), 1 - _TOP / height),
        borderaxespad=0, handlelength=2.0, title="task", alignment="left",
    )  # fmt: skip
    return figure


def _draw(axes: Axes, rows: pd.DataFrame, quantity: str, number: int, knots: np.ndarray, task: str) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    values = rows[quantity].to_numpy(dtype=float)
    t = rows.t.to_numpy(dtype=float)
    learned = t >= knots[number] - 1e-12
    before = t <= knots[number] + 1e-12
    axes.plot(t[before], values[before], color=colour, linewidth=0.5, zorder=2, gid=f"{task} before")
    at = np.abs(t[:, None] - knots[None, :]).min(axis=1) < 1e-9
    axes.plot(
        t[learned], values[learned], color=colour, linewidth=1.2, marker=marker, markersize=3.2, zorder=3,
        markevery=np.flatnonzero(at[learned]).tolist(), label=shortened(task, 16), clip_on=False, gid=task,
    )  # fmt: skip
