"""The score of every task after every task, as heat maps with their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mcanalysis.errors import UserError
from mcanalysis.plotting.heat_map import hatch_cell, hide_frame, readable_on
from mcanalysis.plotting.selection import require_columns
from mcanalysis.plotting.style import (
    SLANTED,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    single_column,
)

SINGLE_COLUMN_TASKS = 9  # more tasks take two columns' width

_LEFT, _RIGHT, _TOP = 0.46, 0.58, 0.08  # inches
_ROW, _TITLE, _BETWEEN = 0.25, 0.22, 0.34
_FEW_TASKS = 5
_NOTE_LINE, _LETTER = 0.125, 0.055
_LABEL_ANGLE = 55.0  # degrees
_LABEL_LENGTH = 16  # letters


def plot_accuracy_matrix(matrix: pd.DataFrame) -> Figure:
    """Draw the scores (0 to 1) as shades, dark for high, with two decimals in each cell.

    `matrix`: (rows, 1 + tasks), the column `after` (0 = base, k = after the k-th task), then one column per task in the
    order of training. Missing cells are grey and hatched. In a complete matrix a heavy line parts the tasks trained on
    (left) from those still to come.

    Raises `UserError` where `after` or every task is missing, where there is no row, or where a score is no number in
    [0, 1].
    """
    table = _checked(matrix)
    width = single_column() if len(table.tasks) <= SINGLE_COLUMN_TASKS else double_column()
    return _panels({"": table}, width, 1, _TOP)


def plot_accuracy_matrices(matrices: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw several accuracy matrices, by title, side by side on one scale; see `plot_accuracy_matrix`.

    Two panels a row, or three where all have at most five tasks. Raises the same errors, and `UserError` for none.
    """
    if not matrices:
        raise UserError("Expected one accuracy matrix or more, got none; pass accuracy_matrix.csv of runs.")
    tables = {title: _checked(matrix) for title, matrix in matrices.items()}
    per_row = min(len(tables), 3 if max(len(t.tasks) for t in tables.values()) <= _FEW_TASKS else 2)
    return _panels(tables, double_column(), per_row, _TITLE)


@in_print_style
def _panels(tables: Mapping[str, _Matrix], width: float, per_row: int, above: float) -> Figure:
    """Panels by title, `above` inches of each for its title."""
    notes = _notes(list(tables.values()))
    names = max(_room_for_names(t.tasks) for t in tables.values())
    height = _ROW * max(len(t.after) for t in tables.values())
    num_rows = -(-len(tables) // per_row)
    pitch = above + height + names
    foot = 0.08 + _NOTE_LINE * len(notes)
    figure = new_figure(width, num_rows * pitch + foot)
    across = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
    for i, (title, table) in enumerate(tables.items()):
        row, column = divmod(i, per_row)
        own = _ROW * len(table.after)
        place = foot + (num_rows - 1 - row) * pitch + names + height - own
        axes = add_axes(figure, _LEFT + column * (across + _BETWEEN), place, across, own)
        image = _draw(axes, table)
        axes.set_title(title, pad=3)
        if column == 0:
            axes.set_ylabel("after task", labelpad=3)
        if column == per_row - 1 or i == len(tables) - 1:
            left = _LEFT + column * (across + _BETWEEN) + across + 0.08
            _draw_bar(figure, image, add_axes(figure, left, place, 0.09, own))
    figure.text(0.05 / width, 0.04 / figure.get_figheight(), "\n".join(notes), ha="left", va="bottom")
    return figure


class _Matrix(NamedTuple):
    tasks: list[str]
    after: list[int]
    values: np.ndarray  # (rows, tasks)
    complete: bool


def _checked(matrix: pd.DataFrame) -> _Matrix:
    require_columns(matrix, ["after"], "accuracy_matrix")
    tasks = [str(name) for name in matrix.columns if name != "after"]
    if not tasks or matrix.empty:
        raise UserError(
            f"Expected at least one row and one task in the table accuracy_matrix, got {len(matrix)} row(s) and "
            f"{len(tasks)} task(s); pass accuracy_matrix.csv of a run that has trained."
        )
    rows = matrix.sort_values("after")
    after = [int(k) for k in rows["after"]]
    scores = rows[[name for name in matrix.columns if name != "after"]].apply(pd.to_numeric, errors="coerce")
    values = scores.to_numpy(dtype=float)
    outside = values[np.isfinite(values) & ((values < 0) | (values > 1))]
    if outside.size:
        raise UserError(
            f"Expected scores from 0 to 1 in the table accuracy_matrix, got {outside[0]:g}; divide percentages by 100."
        )
    learned = np.tri(*values.shape, -1) > 0
    complete = after == list(range(len(tasks) + 1)) and bool(np.isfinite(values[learned]).all())
    return _Matrix(tasks, after, values, complete)


def _labels(tasks: list[str]) -> list[str]:
    return [shortened(f"{k} {name}", _LABEL_LENGTH) for k, name in enumerate(tasks, start=1)]


def _room_for_names(tasks: list[str]) -> float:
    return 0.14 + _LETTER * max(map(len, _labels(tasks))) * float(np.sin(np.deg2rad(_LABEL_ANGLE)))


def _draw(axes: Axes, table: _Matrix) -> AxesImage:
    tasks, after, values, complete = table
    shades, scale = colormaps["Blues"], Normalize(0, 1)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, norm=scale, aspect="auto", gid="scores")
    for (i, k), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = readable_on(shades(scale(value)))
            axes.text(k, i, f"{value:.2f}", ha="center", va="center", color=colour, gid=f"{after[i]} {tasks[k]}")
        else:
            hatch_cell(axes, k, i, f"missing {after[i]} {tasks[k]}")
    axes.set_xticks(np.arange(len(tasks)), _labels(tasks), rotation=_LABEL_ANGLE, **SLANTED)
    axes.set_yticks(np.arange(len(after)), ["base" if k == 0 else str(k) for k in after])
    axes.tick_params(length=0)
    _grid(axes, len(tasks), len(after))
    if complete:
        _staircase(axes, len(tasks))
    return image


def _draw_bar(figure: Figure, image: AxesImage, bar: Axes) -> None:
    figure.colorbar(image, cax=bar, ticks=[0, 0.5, 1])
    bar.set_yticklabels(["0", "0.5", "1"])
    bar.set_ylabel("score (0–1)", labelpad=3)
    bar.tick_params(length=1.5)


def _notes(tables: list[_Matrix]) -> list[str]:
    notes = ["Left of the heavy line: tasks already trained on."] if any(t.complete for t in tables) else []
    return notes if all(np.isfinite(t.values).all() for t in tables) else [*notes, "Hatched: not measured."]


def _grid(axes: Axes, num_columns: int, num_rows: int) -> None:
    hide_frame(axes)
    for x in range(num_columns + 1):
        axes.axvline(x - 0.5, color="white", linewidth=0.8)
    for y in range(num_rows + 1):
        axes.axhline(y - 0.5, color="white", linewidth=0.8)


def _staircase(axes: Axes, num_tasks: int) -> None:
    xs, ys = [-0.5], [0.5]
    for k in range(num_tasks):
        xs += [k + 0.5, k + 0.5]
        ys += [k + 0.5, k + 1.5]
    axes.plot(xs, ys, color="black", linewidth=1.4, solid_joinstyle="miter", clip_on=False, gid="staircase")
