"""What figures of similarity share: rows of one learner, the marks of its minima, panels in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import legend_columns
from mcanalysis.plotting.selection import label_name, only_value, require_columns, transitions
from mcanalysis.plotting.style import add_axes, shortened, strategy_name

LINK = ("comparison", "start", "start_learner", "end", "end_learner")
COMPARISONS = {"successive": "minimum before → after", "base": "base → minimum", "learners": "fast ↔ slow adapter"}
_MARKERS = "osD^vP*X<>hp"


def learners(table: pd.DataFrame) -> list[str]:
    """The learners whose own minima a table compares, in its order.

    >>> learners(pd.DataFrame({"start_learner": ["base", "slow"], "end_learner": ["slow", "slow"]}))
    ['slow']
    """
    require_columns(table, ["start_learner", "end_learner"], "of similarities")
    return list(dict.fromkeys(table[table.start_learner == table.end_learner].end_learner))


def rows_of_learner(table: pd.DataFrame, columns: Sequence[str], name: str, learner: str) -> pd.DataFrame:
    """The rows of a learner's minima, of one run; raises `UserError` where there are none or of several runs."""
    require_columns(table, columns, name)
    for column in ("strategy", "seed"):
        only_value(table, column, name)
    rows = table[(table.end_learner == learner) | ((table.comparison == "learners") & (table.start_learner == learner))]
    if rows.empty:
        raise UserError(f"Expected rows of the learner {learner} in the table {name}, got none; pass that of the run.")
    return rows


def minima_of(rows: pd.DataFrame) -> list[str]:
    """Labels of all minima of the rows, in order, the base left out."""
    pairs = transitions(rows)
    labels = dict.fromkeys(label for pair in pairs for label in pair)
    ends = {end for _, end in pairs}
    return sorted((n for n in labels if n in ends or not n.startswith("0-")), key=lambda n: int(n.partition("-")[0]))


def minimum_marks(rows: pd.DataFrame) -> dict[str, tuple[Any, str]]:
    """Colour and marker of each minimum reached, dark to light in the order of training."""
    ends = [n for n in minima_of(rows) if n in set(rows.end)]
    shades = colormaps["viridis"](np.linspace(0.0, 0.84, len(ends)))
    return {end: (tuple(shades[i]), _MARKERS[i % len(_MARKERS)]) for i, end in enumerate(ends)}


def error_bars(rows: pd.DataFrame, name: str) -> np.ndarray:
    """Lengths of error bars, below and above."""
    below, above = rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]
    return np.clip(np.array([below, above], dtype=float), 0, None)


def row_of_axes(figure: Figure, number: int, bottom: float, height: float, between: float = 0.14) -> list[Axes]:
    """Panels side by side over the width of the figure; lengths in inches."""
    left, right = 0.52, 0.08
    width = (figure.get_figwidth() - left - right - (number - 1) * between) / number
    return [add_axes(figure, left + i * (width + between), bottom, width, height) for i in range(number)]


def name_minima(axes: Axes, names: Sequence[str], which: str) -> None:
    """Write `<k> <TASK>` at the ticks 0, 1, … of the x or y axis."""
    words = [f"{n.partition('-')[0]} {shortened(label_name(n), 14)}" for n in names]
    if which == "y":
        axes.set_yticks(range(len(names)), words)
        return
    axes.set_xticks(range(len(names)), words)
    for label in axes.get_xticklabels():
        label.set(rotation=50, ha="right", rotation_mode="anchor", va="center")


def write_head(figure: Figure, rows: pd.DataFrame, learner: str, what: str) -> None:
    """Say above the panels whose rows these are."""
    row = rows.iloc[0]
    words = f"{strategy_name(row.strategy)}, {learner} adapter, seed {row.seed}{what}"
    figure.text(
        0.05 / figure.get_figwidth(), 1 - 0.05 / figure.get_figheight(), words, ha="left", va="top", color="#404040"
    )


def minimum_labels(marks: Mapping) -> list[str]:
    """The words of the minima in a legend."""
    return [f"after {end.partition('-')[0]} {shortened(label_name(end), 16)}" for end in marks]


def finish(figure: Figure, rows: pd.DataFrame, learner: str, what: str, marks: Mapping, most: int) -> None:
    """Write the line on top, and the legend of the minima below, in `most` columns at most."""
    write_head(figure, rows, learner, what)
    labels = minimum_labels(marks)
    columns = legend_columns(labels, figure.get_figwidth(), most)
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=3.2, linewidth=0.9, label=label)
        for label, (colour, marker) in zip(labels, marks.values(), strict=True)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="lower center", ncols=columns, borderaxespad=0.3, columnspacing=1.2)
