"""Two-dimensional slices around minima, side by side on one scale: which minimum is flatter?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mcanalysis.errors import UserError
from mcanalysis.plotting.contour_levels import Shades, contour_levels, shades
from mcanalysis.plotting.selection import around, examples_per_task, only_value, require_columns, where
from mcanalysis.plotting.slices import old_and_new
from mcanalysis.plotting.style import (
    BLACK,
    TEXT_SIZE,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    strategy_marks,
    write_head,
)

_COLUMNS = ("strategy", "learner", "seed", "kind", "start", "x", "y", "anchor", "task", "split", "loss", "measured")
_LEFT, _RIGHT, _BETWEEN, _HEAD, _TITLE, _AXIS, _BAR, _BAR_GAP = 0.72, 0.66, 0.12, 0.17, 0.20, 0.36, 0.08, 0.08
_TALLEST = 1.7
_NUMBER = 0.12  # inches that a number needs on a bar
_FEWEST_OF_ROW = 8  # levels of a scale where strategies are far apart
_FEWEST_LEVELS = 2  # of the shared scale in a panel; with fewer it gets levels of its own


@in_print_style
def plot_slice_surfaces(landscape: pd.DataFrame) -> Figure:
    """Draw the loss (nats per target token) on slices along two random directions, a column per strategy and learner.

    Rows: mean over the old tasks, and the new task; each row has one scale, so that its panels can be compared. Axes:
    steps along two directions, 1 = each filter's own length. Cells are not smoothed; white: not measured or not finite.
    Where fewer than two of the scale's levels pass through a panel, dashed lines with numbers are levels of its own.

    Args:
        landscape: rows of `landscape.csv` of the kind surface, of one seed.

    Raises:
        UserError: for missing columns, no such row, or several seeds, or several minima of one learner.
    """
    rows, tasks = surface_rows(landscape)
    whose = list(dict.fromkeys(zip(rows.strategy, rows.learner, strict=True)))
    marks = strategy_marks(whose)
    width = double_column()
    room = (width - _LEFT - _RIGHT - (len(whose) - 1) * _BETWEEN) / len(whose)
    side = min(room, _TALLEST)
    left = _LEFT + (room - side) * len(whose) / 2
    block = side + 0.12
    figure = new_figure(width, _HEAD + _TITLE + len(tasks) * block - 0.12 + _AXIS)
    for r, (task, title) in enumerate(tasks):
        own = rows[rows.task == task]
        levels = contour_levels(own.loss[own.measured.astype(bool)].to_numpy(float), fewest=_FEWEST_OF_ROW)
        scale = shades(levels)
        bottom = _AXIS + (len(tasks) - 1 - r) * block
        for c, name in enumerate(whose):
            axes = add_axes(figure, left + c * (side + _BETWEEN), bottom, side, side)
            of_panel = where(own, strategy=name[0], learner=name[1])
            _draw(axes, of_panel, scale, f"{task} {' '.join(name)}")
            axes.tick_params(labelleft=c == 0, labelbottom=r == len(tasks) - 1)
            if r == 0:
                axes.set_title(marks[name].label, pad=3)
            if r == len(tasks) - 1:
                axes.set_xlabel("step along direction 1", labelpad=1)
            if c == 0:
                axes.set_ylabel(f"{title}\nstep along direction 2", labelpad=2)
        beyond = left + len(whose) * (side + _BETWEEN) - _BETWEEN + _BAR_GAP
        bar = add_axes(figure, beyond, bottom, _BAR, side)
        scale.write_bar(bar, side / _NUMBER, "loss (nats/token)", across=False)
        bar.yaxis.set_label_coords(1 + 0.40 / _BAR, 0.5)  # alike in every row
    head = f"{around(rows)}, seed {rows.seed.iloc[0]}, test split"
    write_head(figure, head, 0.04)
    return figure


def surface_rows(landscape: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """The rows that are drawn, and task and words of each row of panels; errors as `plot_slice_surfaces`."""
    require_columns(landscape, _COLUMNS, "landscape")
    rows = where(landscape, kind="surface", split="test")
    if rows.empty:
        raise UserError(
            "Expected rows of the kind surface in the table landscape, got none; measure them with landscape.py "
            "--surface-grid 11."
        )
    only_value(rows, "seed", "landscape")
    for _, own in rows.groupby(["strategy", "learner"]):
        only_value(own, "start", "landscape")
    tasks = old_and_new(rows, 14)
    return rows[rows.task.isin([name for name, _ in tasks])], tasks


def slice_surfaces_caption(landscape: pd.DataFrame) -> str:
    """What the picture of `plot_slice_surfaces` shows, in words."""
    rows, tasks = surface_rows(landscape)
    side = rows.x[rows.anchor.isna() | (rows.anchor == "")].nunique()
    return (
        f"{around(rows)}, seed {rows.seed.iloc[0]}: loss (nats per target token, test split) on {side} × {side} nodes "
        "along two random directions of ΔW; a step of 1 moves each filter by its own length (Li et al. 2018, arXiv "
        f"1712.09913, in ΔW). Every row of panels has one scale: {'; '.join(words for _, words in tasks)}. Lines: its "
        "levels; where few of them pass through a panel, dashed ones with numbers are its own. Diamond: the minimum. "
        f"{examples_per_task(rows)}".rstrip()
    )


def _draw(axes: Axes, rows: pd.DataFrame, scale: Shades, gid: str) -> None:
    levels, colours, norm = scale
    grid = rows[rows.anchor.isna() | (rows.anchor == "")]
    table = grid.pivot(index="y", columns="x", values="loss").sort_index()
    known = grid.pivot(index="y", columns="x", values="measured").sort_index().astype(bool).to_numpy()
    xs, ys = table.columns.to_numpy(float), table.index.to_numpy(float)
    values = np.ma.masked_where(~known | ~np.isfinite(table.to_numpy(float)), table.to_numpy(float))
    mesh = axes.pcolormesh(xs, ys, values, cmap=colours, norm=norm, shading="nearest", rasterized=True, gid=gid)
    mesh.set_edgecolor("face")
    axes.contour(xs, ys, values, levels=levels, colors="#303030", linewidths=0.4)
    known_values = values.compressed()
    inside = levels[(levels > known_values.min()) & (levels < known_values.max())] if len(known_values) else levels
    if len(inside) < _FEWEST_LEVELS and len(np.unique(known_values)) > 1:  # else one flat colour would be all there is
        own = np.setdiff1d(contour_levels(known_values, num=4), inside)
        dark = np.mean(colours(norm(np.median(known_values)))[:3]) < 0.5
        lines = axes.contour(
            xs, ys, values, levels=own, colors="white" if dark else "#303030", linewidths=0.5, linestyles="dashed"
        )
        axes.clabel(
            lines, fmt=lambda value: f"{value:g}", fontsize=TEXT_SIZE, inline_spacing=2, manual=_label_places(lines)
        )
    axes.plot(0, 0, "D", color="white", markeredgecolor=BLACK, markeredgewidth=0.8, markersize=4)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(3))


def _label_places(lines: QuadContourSet) -> list[tuple[float, float]]:
    """A place on each piece of each line for its number: near the piece's middle, but not below the minimum's mark."""
    places = []
    for piece in (piece for level in lines.allsegs for piece in level if len(piece) > 2):
        extent = np.ptp(lines.axes.viewLim.get_points(), axis=0)
        far = np.hypot(*(piece / extent).T) > 0.12
        order = np.argsort(np.abs(np.arange(len(piece)) - len(piece) / 2))
        places.append(tuple(piece[next((i for i in order if far[i]), order[0])]))
    return places
