"""The barriers between every two of several minima as a heat map, clusters together and framed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mcanalysis.plotting.heat_map import hatch_cell, hide_frame, readable_on
from mcanalysis.plotting.style import SLANTED, add_axes, in_print_style, new_figure, shortened

_LEFT, _RIGHT, _TOP, _NAMES = 0.95, 0.6, 0.08, 0.85  # inches
_CELL, _WIDEST, _LETTERS = 0.34, 5.0, 18
_MOST_WITH_NUMBERS = 15


@in_print_style
def plot_barrier_matrix(table: pd.DataFrame) -> Figure:
    """Draw rows of `barrier_matrix.csv` of one path, task and quantity: dark for high, numbers up to 15 minima.

    Rows and columns are in the order of `place`; a frame is drawn round each cluster, if there are several.
    """
    rows = table.sort_values("place")
    names = list(rows.minimum)
    values = rows[names].to_numpy(dtype=float)
    size = min(_CELL * len(names), _WIDEST)
    figure = new_figure(_LEFT + size + _RIGHT, _TOP + size + _NAMES)
    axes = add_axes(figure, _LEFT, _NAMES, size, size)
    shades, scale = colormaps["Blues"], Normalize(0.0, float(np.nanmax(values, initial=0.0)) or 1.0)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, norm=scale, aspect="auto", gid="barriers")
    for (i, j), value in np.ndenumerate(values):
        if not np.isfinite(value):
            hatch_cell(axes, j, i, f"missing {names[i]} {names[j]}")
        elif len(names) <= _MOST_WITH_NUMBERS and i != j:
            colour = readable_on(shades(scale(value)))
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", color=colour, gid=f"{names[i]} {names[j]}")
    ticks = [shortened(name, _LETTERS) for name in names]
    axes.set_xticks(np.arange(len(names)), ticks, rotation=55.0, **SLANTED)
    axes.set_yticks(np.arange(len(names)), ticks)
    axes.tick_params(length=0)
    hide_frame(axes)
    clusters = list(rows.cluster)
    for number in dict.fromkeys(clusters) if len(set(clusters)) > 1 else ():
        first, count = clusters.index(number), clusters.count(number)
        frame = {"fill": False, "edgecolor": "black", "linewidth": 1.4, "clip_on": False, "gid": f"cluster {number}"}
        axes.add_patch(Rectangle((first - 0.5, first - 0.5), count, count, **frame))
    bar = add_axes(figure, _LEFT + size + 0.08, _NAMES, 0.09, size)
    figure.colorbar(image, cax=bar)
    bar.set_ylabel("chord barrier (nats/token)", labelpad=3)
    bar.tick_params(length=1.5)
    return figure


def caption(table: pd.DataFrame) -> str:
    """What is drawn, in words."""
    row = table.iloc[0]
    number = table.cluster.nunique()
    drawn = "Frames: clusters" if number > 1 else "All are one cluster"
    if (table.cluster == 0).any():
        drawn = "Hatched: no number, and therefore no clusters"
    return (
        "Chord barrier of the loss, max over t of L(t) − ((1−t)L(0) + tL(1)), between every two of "
        f"{len(table)} minima ({row.path} path, {row.space} space, {row.task}), nats per target token. {drawn} "
        "(average linkage on the barriers that are told from 0, where there are 95 % intervals by these, corrected for "
        "the number of pairs; others count as 0; cut at 0.7 of the highest merger). Rows and columns are in the order "
        "of the tree."
    )
