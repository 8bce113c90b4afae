"""How much of a barrier is the parametrisation: the same adapters in other factors, beside the line of their ΔW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell
from mcanalysis.plotting.legend import close_legend, legend_size
from mcanalysis.plotting.selection import label_name, new_task, only_value, require_columns, transitions, where
from mcanalysis.plotting.style import (
    BLACK,
    GREY,
    ROLES,
    add_axes,
    in_print_style,
    new_figure,
    shortened,
    single_column,
    whose,
    write_head,
)

_LEFT, _RIGHT, _TOP, _ROW, _TICKS, _MOST_LETTERS = 1.45, 0.12, 0.22, 0.16, 0.42, 22
_SPACES = {"factor": ("|", "factors as stored"), "delta": ("D", "ΔW line"), "aligned": ("x", "aligned factors")}
"""Marker and name of each straight path that was measured beside the draws."""


class _Line(NamedTuple):
    """One line of the figure: a transition and a task, the draws, and the barriers of other spaces."""

    words: str
    role: str
    draws: np.ndarray
    of_space: dict[str, float]


def _lines(gauges: pd.DataFrame, barriers: pd.DataFrame) -> Iterator[_Line]:
    require_columns(gauges, ["start", "end", "gauge", "task", "quantity", "chord_barrier"], "gauges")
    if gauges.empty:
        raise UserError("Expected rows in the table gauges, got none; measure with --gauges.")
    loss, straight = where(gauges, quantity="loss"), where(barriers, path="linear", quantity="loss", split="test")
    for start, end in transitions(loss):
        here = where(loss, start=start, end=end)
        for role, task in (("old", "mean_old"), ("new", new_task(here, end))):
            draws = where(here, task=task).chord_barrier.to_numpy(dtype=float)
            if not len(draws):
                continue  # the first task has no old ones
            own = where(straight, start=start, end=end, task=task).set_index("space").chord_barrier
            of_space = {space: float(own[space]) for space in _SPACES if space in own.index}
            yield _Line(f"{label_name(start)} → {label_name(end)}", role, draws, of_space)


@in_print_style
def plot_gauges(gauges: pd.DataFrame, barriers: pd.DataFrame) -> Figure:
    """Draw the chord barrier of the loss over random factors, a line of points per transition and role.

    Circles: the linear factor path to (B·R, R⁻¹·A) of each draw; bar: as stored; diamond: the straight ΔW path, which
    is the same for all of them; cross: aligned factors. The last two where they were measured.

    Args:
        gauges: `gauges.csv` of one strategy, learner and seed.
        barriers: `barriers.csv` of the same.

    Raises:
        UserError: for missing columns, an empty table, or several runs.
    """
    lines = list(_lines(gauges, barriers))
    for column in ("strategy", "learner", "seed"):
        only_value(gauges, column, "gauges")
    spaces = [space for space in _SPACES if any(space in line.of_space for line in lines)]
    handles = [
        Line2D([], [], linestyle="none", marker="o", markersize=3.5, color=mark.colour, label=f"random R, {mark.label}")
        for mark in (ROLES["old"], ROLES["new"])
    ]
    handles += [
        Line2D([], [], linestyle="none", marker=_SPACES[s][0], markersize=5, color=BLACK, label=_SPACES[s][1])
        for s in spaces
    ]
    width = single_column() * 1.4
    columns, rows = legend_size(handles, width, 3)
    under = _TICKS + 0.15 * rows
    figure = new_figure(width, _TOP + _ROW * (len(lines) + 1) + under)
    axes = add_axes(figure, _LEFT, under, width - _LEFT - _RIGHT, _ROW * (len(lines) + 1))
    for y, line in enumerate(lines):
        axes.axhline(y, color=GREY, linewidth=0.3, zorder=0.5)
        axes.scatter(
            line.draws, np.full(len(line.draws), y), s=9, color=ROLES[line.role].colour, alpha=0.55, linewidths=0,
            zorder=2, gid=f"draws {y}", clip_on=False,
        )  # fmt: skip
        for space, value in line.of_space.items():
            axes.plot(
                value, y, linestyle="none", marker=_SPACES[space][0], markersize=7 if space == "factor" else 3.5,
                color=BLACK, zorder=3, clip_on=False, gid=f"{space} {y}",
            )  # fmt: skip
    heads = [line.words for line in lines]
    names = ["" if i and heads[i - 1] == words else shortened(words, _MOST_LETTERS) for i, words in enumerate(heads)]
    axes.set_yticks(range(len(lines)), names)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(left=min(0.0, *axes.get_xlim()))
    axes.set_xlabel("chord barrier of the loss (nats per target token)", labelpad=2)
    write_head(figure, f"{whose(gauges.iloc[0])}, test split")
    close_legend(figure, handles, columns)
    return figure


def caption(gauges: pd.DataFrame, barriers: pd.DataFrame) -> str:
    """The figure in words, with the numbers of every line; arguments and errors as of `plot_gauges`."""
    paragraphs = [
        "Chord barrier of the loss on the linear factor path when the adapter at its end is written as (B·R, R⁻¹·A) "
        f"for random invertible R: {gauges.gauge.nunique()} draws, R = U·diag(exp(z/2))·Vᵀ, U and V uniform over "
        "orthogonal matrices, z standard normal. Ends and ΔW are the same for all draws, so how far the circles "
        "lie apart is the parametrisation's share; the ΔW line does not move."
    ]
    for line in _lines(gauges, barriers):
        low, middle, high = (cell(f(line.draws), 3) for f in (np.min, np.median, np.max))
        others = [f"{_SPACES[space][1]} {cell(value, 3)}" for space, value in line.of_space.items()]
        found = f"{low} to {high}, median {middle}; {', '.join(others)}"
        paragraphs.append(f"{line.words}, {ROLES[line.role].label}: {found}.")
    return "\n".join([paragraphs[0], "", *paragraphs[1:]])
