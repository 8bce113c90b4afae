"""The figure of a classic result: one curve per seed, thin, and their mean, thick, side by side in panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from mcanalysis.errors import UserError
from mcanalysis.plotting.selection import require_columns
from mcanalysis.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
)


class Panel(NamedTuple):
    """What a panel says: its title, and its axes with their units and scales (linear, log, symlog)."""

    title: str
    x_label: str
    y_label: str
    x_scale: str = "linear"
    y_scale: str = "linear"


_LOOKS = (
    (VERMILLION, "-", "s"),
    (BLUE, (0, (4, 1.4)), "o"),
    (BLACK, (0, (1, 1.1)), "^"),
    (GREEN, (0, (4, 1.2, 1, 1.2)), "D"),
)
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 0.5, 0.1, 0.24, 0.34, 1.75  # inches
_FEW = 12  # so many x or fewer are measured places worth a marker and a tick each


@in_print_style
def plot_classic(curves: pd.DataFrame, panels: Mapping[str, Panel]) -> Figure:
    """Draw each panel's series against x: thin per seed (`y`), thick for the mean over seeds (`mean`).

    `curves` has the columns panel, series, seed, x, y, mean. A series looks the same in every panel. The figure has
    the width of a page. Raises `UserError` for missing columns, a panel without rows, or more than four series.
    """
    require_columns(curves, ["panel", "series", "seed", "x", "y", "mean"], "curves")
    of_panel = {name: curves[curves.panel == name] for name in panels}
    for name, own in of_panel.items():
        if own.empty:
            raise UserError(f"Expected rows of the panel '{name}' in the table curves, got none; measure it as well.")
    names = list(dict.fromkeys(series for own in of_panel.values() for series in own.series))
    if len(names) > len(_LOOKS):
        raise UserError(f"Expected at most {len(_LOOKS)} series in one figure, got {len(names)}; draw two figures.")
    looks = dict(zip(names, _LOOKS, strict=False))
    legend_height = 0.125 * (1 + max(own.series.nunique() for own in of_panel.values())) + 0.03
    figure = new_figure(double_column(), legend_height + _BOTTOM + _HEIGHT + _TOP)
    width = double_column() / len(panels)
    for i, (name, panel) in enumerate(panels.items()):
        axes = add_axes(figure, i * width + _LEFT, legend_height + _BOTTOM, width - _LEFT - _RIGHT, _HEIGHT)
        _draw(axes, of_panel[name], looks)
        _dress(axes, of_panel[name], panel)
        key = Line2D([], [], color=GREY, linewidth=0.5, label="thin: one seed each; thick: their mean")
        axes.legend(
            handles=[*axes.get_legend_handles_labels()[0], key],
            loc="upper left",
            bbox_to_anchor=(0.0, -(_BOTTOM - 0.02) / _HEIGHT),
            handlelength=3.0,
            borderaxespad=0,
            borderpad=0,
            labelspacing=0.25,
        )
    return figure


def _draw(axes: Axes, curves: pd.DataFrame, looks: Mapping[str, tuple[str, Any, str]]) -> None:
    for name, own in curves.groupby("series", sort=False):
        colour, dashes, marker = looks[str(name)]
        for seed, one in own.groupby("seed"):
            line = one.sort_values("x")
            axes.plot(line.x, line.y, color=colour, linewidth=0.5, alpha=0.45, zorder=2, gid=f"{name} seed {seed}")
        mean = own.drop_duplicates("x").sort_values("x")
        axes.plot(
            mean.x,
            mean["mean"],
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            marker=marker,
            markersize=3.5 if len(mean) <= _FEW else 0,
            zorder=3,
            label=str(name),
            gid=f"{name} mean",
        )


def _dress(axes: Axes, curves: pd.DataFrame, panel: Panel) -> None:
    axes.set_title(panel.title, pad=5)
    axes.set_xlabel(panel.x_label, labelpad=2)
    axes.set_ylabel(panel.y_label, labelpad=2)
    xs = np.unique(curves.x)
    if panel.x_scale == "symlog":  # linear from 0 to the first positive place
        axes.set_xscale("symlog", linthresh=float(xs[xs > 0].min(initial=np.inf)) if (xs > 0).any() else 1.0)
    else:
        axes.set_xscale(panel.x_scale)
    axes.set_yscale(panel.y_scale)
    if panel.y_scale != "linear":
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if len(xs) <= _FEW:
        axes.xaxis.set_major_locator(FixedLocator(xs.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
