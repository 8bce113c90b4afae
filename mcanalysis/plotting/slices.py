"""Slices around minima along random directions: how fast the loss rises about each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import close_legend, legend_size
from mcanalysis.plotting.selection import (
    MEANS,
    TASK_WORDS,
    around,
    examples_per_task,
    few_events,
    only_value,
    require_columns,
    where,
)
from mcanalysis.plotting.style import (
    GREY,
    Mark,
    add_axes,
    cross_not_finite,
    double_column,
    in_print_style,
    new_figure,
    plain_numbers,
    shortened,
    strategy_marks,
    strategy_name,
    write_head,
)

_COLUMNS = ("strategy", "learner", "seed", "kind", "start", "direction", "x", "task", "split", "loss", "measured")
_INTERVAL = ("loss_low", "loss_high")
_LEFT, _RIGHT, _BETWEEN, _HEIGHT, _HEAD, _TITLE, _AXIS, _ROW = 0.52, 0.10, 0.54, 1.75, 0.17, 0.20, 0.36, 0.14
_LOG_FROM_FACTOR = 10.0
_LOWEST = 1e-4  # of the highest loss drawn: where a logarithmic axis ends, so that 0 does not stretch it


@in_print_style
def plot_slices(landscape: pd.DataFrame) -> Figure:
    """Draw the loss (nats per target token) along slices of one direction, a colour per strategy and learner.

    Left: mean over the old tasks; right: the new task. Thick line: mean over the directions; band: its 95 % bootstrap
    interval over examples; thin lines: each direction. Crosses on the upper edge: not finite. Gaps: not measured.

    Args:
        landscape: rows of `landscape.csv` of the kind slice, of one seed; strategies, learners and directions as many
            as there are, `mean` the mean over directions.

    Raises:
        UserError: for missing columns, no row, or several seeds, splits or minima of one learner.
    """
    rows, tasks = _chosen(landscape)
    marks = strategy_marks(dict.fromkeys(zip(rows.strategy, rows.learner, strict=True)))
    dashes = _dashes(list(marks))
    handles = _handles(marks, dashes, rows)
    columns, lines = legend_size(handles, double_column(), 4)
    legend = _ROW * lines + 0.06
    figure = new_figure(double_column(), legend + _AXIS + _HEIGHT + _TITLE + _HEAD)
    width = (double_column() - _LEFT - _RIGHT - _BETWEEN) / 2
    for i, (task, title) in enumerate(tasks):
        axes = add_axes(figure, _LEFT + i * (width + _BETWEEN), legend + _AXIS, width, _HEIGHT)
        own = rows[rows.task == task]
        _scale(axes, own)
        for (strategy, learner), mark in marks.items():
            _draw(axes, where(own, strategy=strategy, learner=learner), mark, dashes[strategy, learner], task)
        axes.set_title(title, pad=3)
        axes.set_xlabel("step (1 = each filter's own length)", labelpad=1)
        axes.set_ylabel("loss (nats/token)" + ", log scale" * (axes.get_yscale() == "log"), labelpad=2)
    write_head(figure, _whose(rows), 0.04)
    close_legend(figure, handles, columns)
    return figure


def slices_caption(landscape: pd.DataFrame) -> str:
    """What the figure shows, with each minimum's loss and that at a step of half its length; same input."""
    rows, tasks = _chosen(landscape)
    directions = sorted(set(rows.direction) - {"mean"})
    lines = [
        f"{_whose(rows)}. Loss (nats per target token) along {len(directions)} random directions from each minimum; a "
        "step of 1 moves each filter of ΔW by its own length (Li et al. 2018, arXiv 1712.09913, in ΔW). Thick: mean "
        "over directions, with a 95 % interval over examples, directions held fixed; thin: each direction. "
        "Axes have different ranges, and a logarithmic one says so. "
        + " ".join(filter(None, (examples_per_task(rows), few_events(rows))))
    ]
    for (strategy, learner), own in rows[rows.direction == "mean"].groupby(["strategy", "learner"], sort=False):
        parts = []
        for task, title in tasks:
            line = own[(own.task == task)].drop_duplicates("x").sort_values("x")
            ends = " and ".join(_number(float(line.loss[line.x == x].iloc[0])) for x in (line.x.min(), line.x.max()))
            centre = line.loss[line.x == 0.0]
            at_zero = _number(float(centre.iloc[0])) if len(centre) else "–"
            parts.append(f"{title}: {at_zero}, at the ends {ends}")
        lines.append(f"{strategy_name(str(strategy))}, {learner}, {own.start.iloc[0]}: {'; '.join(parts)}.")
    return "\n\n".join(lines)


def slices_rows(landscape: pd.DataFrame) -> pd.DataFrame:
    """The rows that `plot_slices` draws; same errors."""
    rows, tasks = _chosen(landscape)
    return rows[rows.task.isin([name for name, _ in tasks])]


def _chosen(landscape: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    require_columns(landscape, [*_COLUMNS, *_INTERVAL], "landscape")
    rows = landscape[(landscape.kind == "slice")].assign(direction=lambda t: t.direction.astype(str))
    if rows.empty:
        raise UserError("Expected rows of the kind slice in the table landscape, got none; measure with directions.")
    for column in ("seed", "split"):
        only_value(rows, column, "landscape")
    for _, own in rows.groupby(["strategy", "learner"]):
        only_value(own, "start", "landscape")
    return rows, old_and_new(rows, 20)


def old_and_new(rows: pd.DataFrame, length: int) -> list[tuple[str, str]]:
    """The mean over the old tasks, where there are any, and the new task, each with its title; names are shortened."""
    new = [n for n in dict.fromkeys(rows.task) if n not in MEANS][-1]
    old = [("mean_old", TASK_WORDS["mean_old"])] if "mean_old" in set(rows.task) else []
    return [*old, (new, f"new task, {shortened(new, length)}")]


def _scale(axes: Axes, rows: pd.DataFrame) -> None:
    """Logarithmic where losses differ by much; a loss of 0 then lies on the lower edge."""
    values = rows[["loss", *_INTERVAL]].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    axes.set_xlim(float(rows.x.min()), float(rows.x.max()))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if not len(finite):
        return
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high > _LOG_FROM_FACTOR * max(low, 0.0) and high > 0:
        axes.set_yscale("log")
        axes.set_ylim(max(low, high * _LOWEST) / 1.3, high * 1.3)
        if high < 100 * low:  # few powers of ten, and so few numbers, lie on it
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        plain_numbers(axes.yaxis)
    else:
        margin = 0.06 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)


def _dashes(names: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """Learners of one strategy may coincide: the first has a full line, and the others dashes that let it be seen."""
    strategies = [strategy for strategy, _ in names]
    return {name: "-" if strategies.index(name[0]) == i else (0, (3, 1.6)) for i, name in enumerate(names)}


def _draw(axes: Axes, rows: pd.DataFrame, mark: Mark, dashes: Any, task: str) -> None:
    low = axes.get_ylim()[0] if axes.get_yscale() == "log" else -math.inf
    for direction, own in rows.groupby("direction", sort=True):
        line = own.drop_duplicates("x").sort_values("x")
        values = line.loss.where(line.measured.astype(bool)).clip(lower=low)
        is_mean = direction == "mean"
        name = f"{task} {mark.label} {direction}"
        axes.plot(
            line.x, values.where(np.isfinite(values)), color=mark.colour, linestyle=dashes if is_mean else "-",
            linewidth=1.3 if is_mean else 0.5, alpha=1.0 if is_mean else 0.6, zorder=3 if is_mean else 2, gid=name,
        )  # fmt: skip
        if not is_mean:
            continue
        axes.fill_between(
            line.x, line.loss_low.clip(lower=low), line.loss_high.clip(lower=low), color=mark.colour, alpha=0.2,
            linewidth=0, zorder=1.5, gid=f"{name} interval",
        )  # fmt: skip
        centre = line[line.x == 0.0]
        axes.plot(
            centre.x, centre.loss.clip(lower=low), linestyle="none", marker=mark.marker, markersize=4,
            color=mark.colour, markeredgecolor="black", markeredgewidth=0.5, zorder=4, clip_on=False,
        )  # fmt: skip
        lost = line[line.measured.astype(bool) & ~np.isfinite(line.loss)]
        if len(lost):
            cross_not_finite(axes, lost.x, mark.colour, f"{name} not finite")


def _handles(
    marks: dict[tuple[str, str], Mark], dashes: dict[tuple[str, str], Any], rows: pd.DataFrame
) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        m.handle(linestyle=dashes[name], linewidth=1.3, markersize=4, markeredgecolor="black", markeredgewidth=0.5)
        for name, m in marks.items()
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=0.5, label="one direction each"))
    handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label="95 % interval of the mean"))
    if not np.isfinite(rows.loss[rows.measured.astype(bool)].to_numpy(dtype=float)).all():
        handles.append(Line2D([], [], color=GREY, linestyle="none", marker="x", markersize=3.6, label="not finite"))
    return handles


def _whose(rows: pd.DataFrame) -> str:
    return f"{around(rows)}, seed {rows.seed.iloc[0]}, {rows.split.iloc[0]} split"


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.3g}"
