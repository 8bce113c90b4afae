"""What is known along one path, with a line where one stands; and beside it the plane, where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.plotting.plane_surface import add_surface
from mcanalysis.plotting.selection import MEANS, require_columns
from mcanalysis.plotting.style import (
    GREY,
    ROLES,
    VERMILLION,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    single_column,
)

_LEFT, _WIDTH, _HEIGHT, _BOTTOM, _GAP, _TOP, _LEGEND = 0.45, 2.65, 1.0, 0.34, 0.10, 0.32, 0.32


@in_print_style
def plot_walk(
    table: pd.DataFrame, new: str, title: str, t: float | None = None, surface: Mapping[str, Any] | None = None
) -> Figure:
    """Draw score over loss against t in [0, 1].

    Args:
        table: columns t, task, loss (nats per target token), score (0–1); tasks `mean_old` and `mean` where there are
            old tasks. Orange circles: the new task; blue squares: the old ones' mean; stars: ½(old + new); grey: each
            old task.
        new: the new task.
        title: whose path it is.
        t: where to draw a vertical line.
        surface: arguments of `add_surface`, to draw it beside.

    Raises:
        UserError: for missing columns.
    """
    require_columns(table, ["t", "task", "loss", "score"], "of a walk")
    tasks = list(dict.fromkeys(table.task))
    old = [task for task in tasks if task not in (*MEANS, new)]
    width = double_column() if surface else single_column()
    height = _BOTTOM + 2 * _HEIGHT + _GAP + _TOP + _LEGEND
    figure = new_figure(width, height)
    bottoms = {"score": _BOTTOM + _LEGEND + _HEIGHT + _GAP, "loss": _BOTTOM + _LEGEND}
    for quantity, bottom in bottoms.items():
        axes = add_axes(figure, _LEFT, bottom, _WIDTH, _HEIGHT)
        for task in old if len(old) > 1 else ():
            curve = table[table.task == task].sort_values("t")
            label = "each old task" if task == old[0] else None
            axes.plot(curve.t, curve[quantity], color=GREY, linewidth=0.6, alpha=0.7, label=label)
        for role, task in (("old", "mean_old"), ("mean", "mean"), ("new", new)):
            curve = table[table.task == task].sort_values("t")
            if len(curve):
                mark = ROLES[role]
                name = f"new task, {shortened(new, 20)}" if role == "new" and old else shortened(task, 20)
                label = mark.label if role != "new" else name
                axes.plot(curve.t, curve[quantity], color=mark.colour, marker=mark.marker, markersize=2.5, label=label)
        if t is not None:
            axes.axvline(t, color=VERMILLION, linewidth=1.0, zorder=1)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylabel("score (0–1)" if quantity == "score" else "loss (nats/token)")
        axes.yaxis.set_label_coords(-0.32 / _WIDTH, 0.5)
        axes.tick_params(labelbottom=quantity == "loss")
        if quantity == "score":
            axes.set_ylim(-0.05, 1.05)
            axes.set_title(title, pad=4, loc="left")
        else:
            axes.set_xlabel("position t on the path", labelpad=1)
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(
                handles, labels, loc="lower left", ncols=2, bbox_to_anchor=(0.3 / width, 0.0), columnspacing=1.2
            )
    if surface:
        add_surface(figure, (0.50, 0.02, 0.46, 0.96), **surface)
    return figure
