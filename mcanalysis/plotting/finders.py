"""Path finders compared: how often they succeed, and how high their paths are, against the gradients they take."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import error_bars, require_columns
from mcanalysis.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
)

_COLOURS = (BLUE, SKY_BLUE, GREEN, ORANGE, PURPLE)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_LEFT, _TOP, _BOTTOM, _HEIGHT, _BETWEEN, _LEGEND = 0.5, 0.1, 0.42, 1.9, 0.75, 1.75


@in_print_style
def plot_finders(success: pd.DataFrame) -> Figure:
    """Draw the success rate (left, with 95 % intervals) and the median barrier (right) against gradients taken.

    The straight path, which takes none, is a grey line. Curves stand side by side at each number of gradients.

    Args:
        success: what `success_table` returns.

    Raises:
        UserError: for missing columns, or no curve.
    """
    need = ["curve", "gradients", "success", "success_low", "success_high", "median_barrier"]
    require_columns(success, need, "finder_success")
    curves = list(dict.fromkeys(success.curve[success.gradients > 0]))
    if not curves:
        raise UserError("Expected a fitted curve in the table finder_success, got none; run analyses/finders.py.")
    figure = new_figure(double_column(), _TOP + _HEIGHT + _BOTTOM)
    width = (double_column() - _LEFT - _BETWEEN - _LEGEND) / 2
    straight, budgets = success[success.gradients == 0], sorted(set(success.gradients) - {0})
    panels = (
        ("success", "paths that succeed (share)"),
        ("median_barrier", "median of the largest\nbarrier of a task (nats)"),
    )
    for number, (quantity, words) in enumerate(panels):
        axes = add_axes(figure, _LEFT + number * (width + _BETWEEN), _BOTTOM, width, _HEIGHT)
        for value in straight[quantity]:
            axes.axhline(value, color=GREY, linewidth=1.2, label="linear (no gradient)", gid=f"{quantity} linear")
        for i, curve in enumerate(curves):
            rows = success[success.curve == curve].sort_values("gradients")
            at = np.array([budgets.index(g) for g in rows.gradients]) + 0.6 * ((i + 0.5) / len(curves) - 0.5)
            bars = np.nan_to_num(error_bars(rows, quantity)) if quantity == "success" else None
            axes.errorbar(
                at, rows[quantity].to_numpy(float), bars, color=_COLOURS[i % len(_COLOURS)], linewidth=0.8,
                marker=_MARKERS[i % len(_MARKERS)], markersize=3.6, elinewidth=0.7, label=curve,
                gid=f"{quantity} {curve}",
            )  # fmt: skip
        axes.set(xlabel="gradients of the loss (number)", ylabel=words, xlim=(-0.5, len(budgets) - 0.5))
        axes.set_xticks(range(len(budgets)), [f"{g}" for g in budgets])
        top = 1.0 if quantity == "success" else max(float(success.median_barrier.max()), 1e-3)
        axes.set_ylim(-0.03 * top, 1.03 * top)
    handles, labels = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", borderaxespad=0.3)
    return figure


def finders_picture(success: pd.DataFrame, finders: pd.DataFrame) -> Picture:
    """The picture of a benchmark, with its caption and data."""
    runs = len(finders.groupby(["strategy", "seed"]))
    fits = sorted({len(set(rows.fit_seed)) for _, rows in finders[finders.gradients > 0].groupby(["strategy", "seed"])})
    words = (
        f"Path finders on {success.pairs.max()} pairs of successive minima of {runs} run{'s' * (runs > 1)} "
        f"({finders.space.iloc[0]} space, {' or '.join(map(str, fits))} fit{'s' * (max(fits) > 1)} each). Left: share "
        "of paths on which the largest chord barrier of a task's test loss, old tasks and the new one, is below "
        f"{finders.threshold.iloc[0]:g} nats; bars: 95 % intervals over pairs. Right: median of that barrier. A "
        "curve's name is its kind, its number of bends, and its finder if it is not the mean over t. Curves stand side "
        "by side at each number of gradients of the loss at a point; the straight path takes none."
    )
    return Picture("finders", plot_finders(success), {"": success, "fits": finders}, words)
