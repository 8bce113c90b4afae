"""A plane (or a slice along two directions) in the space of weights: losses and score on its grid, minima, training."""

from __future__ import annotations

import math
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from mcanalysis.errors import UserError
from mcanalysis.plotting.contour_levels import contour_levels, shades
from mcanalysis.plotting.label_placement import LabelPlacer, Place, places_around
from mcanalysis.plotting.legend import close_legend, legend_size
from mcanalysis.plotting.selection import MEANS, TASK_WORDS, examples_per_task, label_name, require_columns
from mcanalysis.plotting.style import (
    BLACK,
    VERMILLION,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    single_column,
    strategy_name,
    write_head,
)

_LINES: tuple[tuple[str, Any], ...] = (
    (BLACK, "-"),
    (VERMILLION, (0, (3, 1))),
    ("#7A3E9D", (0, (1, 1))),
    ("#8C510A", (0, (5, 1, 1, 1))),
)

# The layout, in inches.
_LEFT, _RIGHT, _BETWEEN, _HEAD, _TITLE = 0.50, 0.10, 0.14, 0.17, 0.20
_AXIS, _BAR, _BAR_TEXT, _ROW, _FOOT = 0.36, 0.07, 0.32, 0.14, 0.06
_TALLEST = 3.2


class _Panel(NamedTuple):
    title: str
    unit: str
    values: np.ndarray  # (ny, nx)
    higher_is_better: bool
    gid: str


class _Sheet(NamedTuple):
    xs: np.ndarray
    ys: np.ndarray
    measured: np.ndarray  # (ny, nx)
    panels: list[_Panel]
    anchors: pd.DataFrame  # name, x, y, in order


@in_print_style
def plot_plane(landscape: pd.DataFrame, trajectory: pd.DataFrame | None = None) -> Figure:
    """Draw a grid over a plane: each node's value as the colour of its cell, contour lines, minima and trajectories.

    Panels: mean loss of the old tasks, loss of the new task (nats per target token), balanced score (0–1); of a table
    without these means, the loss of each task. Cells are not smoothed, lines interpolate between neighbouring nodes.
    Colours change at the contour levels, which are log-spaced where losses differ by much; a value of 0 lies below the
    lowest. Hatched: not measured; crossed: NaN; dotted on black: ∞. Both axes have the same unit, distance.

    Args:
        landscape: rows of `landscape.csv` of one plane, or a table of `evaluate_grid`: columns x, y, anchor, task,
            loss, measured, and score where there are means.
        trajectory: rows of `trajectory.csv` on the same plane; learner, step, x, y, distance.

    Raises:
        UserError: for missing columns, several planes, repeated nodes, or fewer than 2 nodes per axis.
    """
    sheet = _sheet(landscape)
    walks = _walks(trajectory)
    width = single_column() if len(sheet.panels) == 1 else double_column()
    per_row = min(3, len(sheet.panels))
    num_rows = math.ceil(len(sheet.panels) / per_row)
    (x0, x1), (y0, y1) = _limits(sheet.xs), _limits(sheet.ys)
    room = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
    height = min(room * (y1 - y0) / (x1 - x0), _TALLEST)
    across = min(room, height * (x1 - x0) / (y1 - y0))
    handles = _handles(sheet, walks)
    columns, lines = legend_size(handles, width, 3)
    legend = _ROW * lines + _FOOT
    block = _TITLE + height + _AXIS + _BAR + _BAR_TEXT
    figure = new_figure(width, _HEAD + num_rows * block + legend)
    for i, panel in enumerate(sheet.panels):
        row, column = divmod(i, per_row)
        left = _LEFT + column * (room + _BETWEEN) + (room - across) / 2
        top = figure.get_figheight() - _HEAD - row * block - _TITLE
        axes = add_axes(figure, left, top - height, across, height)
        axes.set(xlim=(x0, x1), ylim=(y0, y1), aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.set_title(panel.title, pad=3)
        axes.set_xlabel(_axis_label(landscape), labelpad=1)
        if column == 0:
            axes.set_ylabel(_axis_label(landscape), labelpad=2)
        axes.tick_params(labelleft=column == 0)
        bar = add_axes(figure, left, top - height - _AXIS - _BAR, across, _BAR)
        _draw(axes, bar, sheet, panel)
        _draw_walks(axes, walks)
        _draw_anchors(axes, sheet, walks)
    write_head(figure, _whose(landscape), 0.04)
    close_legend(figure, handles, columns)
    return figure


def plane_caption(landscape: pd.DataFrame, trajectory: pd.DataFrame | None = None) -> str:
    """What the figure shows, with the minima's values and how far the trajectories are from the plane; same input."""
    sheet = _sheet(landscape)
    nx, ny = len(sheet.xs), len(sheet.ys)
    missing = int((~sheet.measured).sum())
    parts = [
        f"{_whose(landscape)}. {', '.join(p.title + ' (' + p.unit + ')' for p in sheet.panels)} on a grid of {nx} × "
        f"{ny} nodes{f', {missing} of them not measured' if missing else ''}; each cell has the value of its node, "
        f"unsmoothed; thin lines: levels of the bar below. The plane runs through the points named below. Coordinates: "
        f"{_axis_label(landscape)}, across from the first point along the way to the second, and up at right angles. "
        f"{examples_per_task(_rows(landscape))}".rstrip()
    ]
    measured = []
    for letter, (_, anchor) in zip("abcdefgh", sheet.anchors.iterrows(), strict=False):
        rows = _rows(landscape)
        own = rows[rows.anchor == anchor.anchor]
        values = []
        for panel in sheet.panels:
            quantity, task = panel.gid.split(" ", 1)
            values.append(f"{panel.title} {_number(float(own.loc[own.task == task, quantity].iloc[0]))}")
        measured.append(
            f"{letter} = {anchor.anchor} at ({_number(anchor.x)}, {_number(anchor.y)}): {', '.join(values)}"
        )
    if measured:
        parts.append("Measured exactly: " + "; ".join(measured) + ".")
    for learner, walk in _walks(trajectory).items():
        parts.append(
            f"Training of {learner}: {len(walk)} snapshots, steps {walk.step.min()} to {walk.step.max()}, projected, "
            "so that colours below them are not their own losses; their distance from the plane is "
            f"{_distance(float(walk.distance.median()), walk)} in the median and "
            f"{_distance(float(walk.distance.max()), walk)} at most."
        )
    return "\n\n".join(parts)


def plane_rows(landscape: pd.DataFrame) -> pd.DataFrame:
    """The rows of the tasks and means that `plot_plane` draws; same errors."""
    shown = [panel.gid.partition(" ")[2] for panel in _sheet(landscape).panels]
    return landscape[landscape.task.isin(shown)]


def _rows(landscape: pd.DataFrame) -> pd.DataFrame:
    require_columns(landscape, ["x", "y", "anchor", "task", "loss", "measured"], "landscape")
    rows = landscape.assign(anchor=landscape["anchor"].fillna(""))
    for column in ("strategy", "learner", "seed", "space", "kind", "start", "end", "direction", "split"):
        if column in rows and rows[column].nunique(dropna=False) > 1:
            shown = ", ".join(map(str, rows[column].unique()))
            raise UserError(f"Expected one {column} in the table landscape, got {shown}; select the rows of one plane.")
    return rows


def _sheet(landscape: pd.DataFrame) -> _Sheet:
    rows = _rows(landscape)
    grid = rows[rows.anchor == ""]
    twice = grid.duplicated(["x", "y", "task"])
    if twice.any():
        first = grid[twice].iloc[0]
        raise UserError(
            f"Expected one row per node and task in the table landscape, got {int(twice.sum())} repeated, the first at "
            f"({first.x:g}, {first.y:g}); drop the repeated rows."
        )
    xs, ys = (np.sort(grid[c].unique()).astype(float) for c in ("x", "y"))
    if len(xs) < 2 or len(ys) < 2:
        raise UserError(
            f"Expected a grid of at least 2 × 2 nodes, got {len(xs)} × {len(ys)}; draw a line with plot_slices."
        )
    tasks = list(dict.fromkeys(grid.task))
    if {"mean_old", "mean"} <= set(tasks):
        new = [t for t in tasks if t not in MEANS][-1]
        chosen = [("mean_old", "loss", TASK_WORDS["mean_old"]), (new, "loss", f"new task, {shortened(new, 14)}")]
        if "score" in grid:
            chosen.append(("mean", "score", TASK_WORDS["mean"]))
    else:
        chosen = [(t, "loss", shortened(str(t), 24)) for t in tasks]
    panels, measured = [], np.ones((len(ys), len(xs)), dtype=bool)
    for task, quantity, title in chosen:
        own = grid[grid.task == task]
        table = own.pivot(index="y", columns="x", values=quantity).reindex(index=ys, columns=xs)
        there = own.assign(m=own.measured.astype(float)).pivot(index="y", columns="x", values="m")
        measured &= there.reindex(index=ys, columns=xs).fillna(0.0).to_numpy() > 0
        unit = "score, 0–1" if quantity == "score" else "loss, nats/token" if "score" in grid else "loss"
        panels.append(_Panel(title, unit, table.to_numpy(dtype=float), quantity == "score", f"{quantity} {task}"))
    anchors = rows[rows.anchor != ""].drop_duplicates("anchor")[["anchor", "x", "y"]]
    return _Sheet(xs, ys, measured, panels, anchors)


def _walks(trajectory: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if trajectory is None or not len(trajectory):
        return {}
    require_columns(trajectory, ["learner", "step", "x", "y", "distance"], "trajectory")
    return {str(name): rows.sort_values("step") for name, rows in trajectory.groupby("learner", sort=True)}


def _edges(ticks: np.ndarray) -> np.ndarray:
    """Borders half-way between nodes, the outer ones as far beyond the last nodes."""
    middle = (ticks[1:] + ticks[:-1]) / 2
    return np.concatenate([[2 * ticks[0] - middle[0]], middle, [2 * ticks[-1] - middle[-1]]])


def _limits(ticks: np.ndarray) -> tuple[float, float]:
    edges = _edges(ticks)
    return float(edges[0]), float(edges[-1])


def _draw(axes: Axes, bar: Axes, sheet: _Sheet, panel: _Panel) -> None:
    known = sheet.measured & np.isfinite(panel.values)
    values = np.ma.masked_where(~known, panel.values)
    levels = contour_levels(values.compressed(), may_be_log=not panel.higher_is_better)  # a score ends at 1
    scale = shades(levels, panel.higher_is_better)
    mesh = axes.pcolormesh(
        _edges(sheet.xs),
        _edges(sheet.ys),
        values,
        cmap=scale.colours,
        norm=scale.norm,
        rasterized=True,
        zorder=0.5,
        gid=panel.gid,
    )
    mesh.set_edgecolor("face")
    if known.any() and values.min() < values.max():
        axes.contour(sheet.xs, sheet.ys, values, levels=levels, colors="#303030", linewidths=0.4, zorder=1)
    for where, style, gid in _odd_cells(sheet, panel.values):
        left, low = _edges(sheet.xs), _edges(sheet.ys)
        for j, i in zip(*np.nonzero(where), strict=True):
            corner = float(left[i]), float(low[j])
            across, up = float(left[i + 1] - left[i]), float(low[j + 1] - low[j])
            axes.add_patch(Rectangle(corner, across, up, linewidth=0, zorder=1.2, gid=f"{gid} cell", **style))
    scale.write_bar(bar, 7, panel.unit)


_ODD: dict[str, dict] = {
    "not measured": {"facecolor": "white", "edgecolor": "#808080", "hatch": "/////"},
    "NaN": {"facecolor": "#D8D8D8", "edgecolor": "black", "hatch": "xxxxx"},
    "∞": {"facecolor": "black", "edgecolor": "white", "hatch": "....."},
}


def _odd_cells(sheet: _Sheet, values: np.ndarray) -> list[tuple[np.ndarray, dict, str]]:
    masks = (~sheet.measured, sheet.measured & np.isnan(values), sheet.measured & np.isinf(values))
    return [(mask, style, name) for mask, (name, style) in zip(masks, _ODD.items(), strict=True)]


def _draw_walks(axes: Axes, walks: dict[str, pd.DataFrame]) -> None:
    for (learner, walk), (colour, dashes) in zip(walks.items(), cycle(_LINES), strict=False):
        axes.plot(
            walk.x, walk.y, color=colour, linestyle=dashes, linewidth=1.0, marker="o", markersize=1.5, zorder=3,
            path_effects=[Stroke(linewidth=2.0, foreground="white", alpha=0.8), Normal()], gid=f"trajectory {learner}",
        )  # fmt: skip


def _draw_anchors(axes: Axes, sheet: _Sheet, walks: dict[str, pd.DataFrame]) -> None:
    places = [sheet.anchors[["x", "y"]].to_numpy(dtype=float)] + [w[["x", "y"]].to_numpy(float) for w in walks.values()]
    placer = LabelPlacer(axes, np.concatenate(places))
    anchors = sheet.anchors[["x", "y"]].to_numpy(dtype=float)
    for i, (letter, (_, anchor)) in enumerate(zip("abcdefgh", sheet.anchors.iterrows(), strict=False)):
        axes.plot(
            anchor.x, anchor.y, marker="D", markersize=4, color="white", markeredgecolor=BLACK, markeredgewidth=0.8,
            zorder=4, gid=f"anchor {anchor.anchor}",
        )  # fmt: skip
        placer.add(
            letter, _away_from_others(anchors, i, places_around(anchor.x, anchor.y, (4, 7, 11))), zorder=5,
            fontweight="bold",
            path_effects=[Stroke(linewidth=1.8, foreground="white"), Normal()],
        )  # fmt: skip


def _away_from_others(anchors: np.ndarray, i: int, places: list[Place]) -> list[Place]:
    """Of equally far places first those on the side away from the nearest other minimum, whose letter it would seem."""
    away = anchors[i] - np.delete(anchors, i, axis=0)
    if not len(away):
        return places
    direction = away[np.argmin(np.hypot(*away.T))]

    def key(place: Place) -> tuple[bool, float]:
        towards = float(np.dot(place.shift, direction))
        return towards < 0, round(float(np.hypot(*place.shift)), 3)

    return sorted(places, key=key)


def _handles(sheet: _Sheet, walks: dict[str, pd.DataFrame]) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D(
            [], [], linestyle="none", marker="D", markersize=4, color="white", markeredgecolor=BLACK,
            markeredgewidth=0.8, label=f"{letter}: {shortened(name, 30)}",
        )
        for letter, name in zip("abcdefgh", sheet.anchors.anchor, strict=False)
    ]  # fmt: skip
    for (learner, walk), (colour, dashes) in zip(walks.items(), cycle(_LINES), strict=False):
        label = f"training, {learner} (≤ {_number(walk.distance.max())} off the plane)"
        handles.append(Line2D([], [], color=colour, linestyle=dashes, marker="o", markersize=1.5, label=label))
    present = [any(_odd_cells(sheet, p.values)[i][0].any() for p in sheet.panels) for i in range(len(_ODD))]
    for is_there, (name, style) in zip(present, _ODD.items(), strict=True):
        if is_there:
            handles.append(Patch(linewidth=0.5, label=name, **style))
    return handles


def _axis_label(landscape: pd.DataFrame) -> str:
    kind = str(landscape["kind"].iloc[0]) if "kind" in landscape else ""
    if kind == "slice":
        return "step, in units of the filters' lengths"
    space = str(landscape["space"].iloc[0]) if "space" in landscape else ""
    return f"distance in {'ΔW' if space == 'delta' else space} space" if space else "distance"


def _whose(landscape: pd.DataFrame) -> str:
    if "strategy" not in landscape:
        return "Plane through three points" if "kind" not in landscape else "Slice"
    row = landscape.iloc[0]
    where = label_name(row.start) if row.start == row.end else f"{label_name(row.start)} → {label_name(row.end)}"
    return f"{strategy_name(row.strategy)}, seed {row.seed}, {row.split} split: {where}"


def _distance(value: float, walk: pd.DataFrame) -> str:
    """A distance, 0 where it is what sums of the plane's size are rounded by."""
    size = float(np.abs(walk[["x", "y"]].to_numpy()).max())
    return _number(0.0 if value < 1e-9 * size else value)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}".replace("-", "−")
