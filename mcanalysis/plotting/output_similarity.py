"""How alike minima compute and answer: CKA of hidden states per layer, churn and divergence of predictions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import legend_rows
from mcanalysis.plotting.selection import label_name
from mcanalysis.plotting.similarity_panels import (
    COMPARISONS,
    LINK,
    error_bars,
    finish,
    minima_of,
    minimum_labels,
    minimum_marks,
    name_minima,
    row_of_axes,
    rows_of_learner,
    write_head,
)
from mcanalysis.plotting.style import (
    BLUE,
    GREY,
    VERMILLION,
    double_column,
    in_print_style,
    new_figure,
    plain_numbers,
    shortened,
    single_column,
)

CKA_COLUMNS = ("strategy", "seed", *LINK, "task", "layer", "cka", "cka_low", "cka_high")
PREDICTION_COLUMNS = (
    "strategy",
    "seed",
    *LINK,
    "task",
    *(c + e for c in ("churn", "kl") for e in ("", "_low", "_high")),
)
KL_LINEAR_TO = 1e-3  # nats per token; the axis is logarithmic from here on


@in_print_style
def plot_cka(cka: pd.DataFrame, learner: str) -> Figure:
    """Draw linear CKA against the layer, one line per minimum reached, mean over the tasks learned before it.

    One panel per comparison: with the minimum before, with the base, and between learners where there are several.
    Bars: 95 % intervals over examples, set apart sideways where they would cover each other.
    """
    rows = rows_of_learner(cka, CKA_COLUMNS, "cka", learner)
    rows = rows[rows.task == "mean_old"]
    if rows.empty:
        raise UserError("Expected rows of the task mean_old in the table cka, got none; pass cka.csv of a run.")
    shown = [c for c in COMPARISONS if (rows.comparison == c).any()]
    marks = minimum_marks(rows)
    width = single_column() if len(shown) == 1 else double_column()
    per_row = 2 if width == single_column() else 4
    legend = 0.14 * legend_rows(minimum_labels(marks), width, per_row) + 0.08
    figure = new_figure(width, 0.34 + 1.75 + 0.40 + legend)
    panels = row_of_axes(figure, len(shown), legend + 0.40, 1.75)
    numbers = sorted(rows.layer.unique())
    low = float(np.nanmin([rows.cka_low.min(), rows.cka.min(), 0.9]))
    for axes, comparison in zip(panels, shown, strict=True):
        of_panel = rows[rows.comparison == comparison]
        for i, (end, (colour, marker)) in enumerate(marks.items()):
            line = of_panel[of_panel.end == end].sort_values("layer")
            aside = 0.4 * ((i + 0.5) / len(marks) - 0.5)
            axes.errorbar(
                line.layer + aside, line.cka, error_bars(line, "cka"), color=colour, marker=marker, markersize=3.2,
                linewidth=0.9, elinewidth=0.6, gid=f"{comparison} {end}",
            )  # fmt: skip
        axes.set_title(COMPARISONS[comparison], pad=3)
        axes.set_xlabel("layer", labelpad=2)
        axes.set_xticks(numbers if len(numbers) <= 8 else numbers[:: math.ceil(len(numbers) / 8)])
        axes.set_ylim(low - 0.03 * (1.0 - low), 1.0 + 0.03 * (1.0 - low) + 0.005)
        axes.axhline(1.0, color=GREY, linewidth=0.5, zorder=0)
        axes.tick_params(labelleft=axes is panels[0])
    panels[0].set_ylabel("linear CKA (unbiased)")
    finish(figure, rows, learner, ", test split, mean over old tasks", marks, per_row)
    return figure


@in_print_style
def plot_predictions(predictions: pd.DataFrame, learner: str) -> Figure:
    """Draw churn (left) and KL divergence (right, nats per target token) on the tasks learned before each minimum.

    Against the minimum before (circles), the base (squares) and, where there are several, between learners (triangles):
    means over these tasks with 95 % intervals. The axis of KL is logarithmic, and linear below 0.001 where
    intervals reach that far.
    """
    rows = rows_of_learner(predictions, PREDICTION_COLUMNS, "prediction_similarity", learner)
    rows = rows[rows.task == "mean_old"]
    if rows.empty:
        raise UserError(
            "Expected rows of the task mean_old in the table prediction_similarity, got none; pass that of a run."
        )
    ends = [end for end in minima_of(rows) if end in set(rows.end)]
    handles = []
    styles = {"successive": (BLUE, "o"), "base": (VERMILLION, "s"), "learners": (GREY, "^")}
    longest = max(len(shortened(label_name(end), 14)) for end in ends)
    bottom = 0.12 + 0.056 * (longest + 2) * math.sin(math.radians(50)) + 0.24
    figure = new_figure(double_column(), 0.34 + 1.5 + bottom)
    panels = row_of_axes(figure, 2, bottom, 1.5, between=0.55)
    for axes, name in zip(panels, ("churn", "kl"), strict=True):
        for i, (comparison, (colour, marker)) in enumerate(styles.items()):
            line = rows[rows.comparison == comparison]
            if line.empty:
                continue
            places = [ends.index(end) + 0.12 * (i - 1) for end in line.end]
            axes.errorbar(
                places, line[name], error_bars(line, name), color=colour, marker=marker, markersize=3.4,
                linestyle="none", elinewidth=0.8, gid=f"{name} {comparison}",
            )  # fmt: skip
            if axes is panels[0]:
                label = COMPARISONS[comparison]
                handles.append(Line2D([], [], color=colour, marker=marker, markersize=3.4, linewidth=0.8, label=label))
        name_minima(axes, ends, "x")
        if name == "kl":
            _kl_axis(axes, float(rows.kl_low.min()), float(rows.kl_high.max()))
        else:
            axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.5, len(ends) - 0.5)
    panels[0].set_ylabel("churn (share of answers)")
    panels[1].set_ylabel("KL(before‖after) (nats/token)")
    write_head(figure, rows, learner, ", test split, mean over old tasks")
    figure.legend(handles=handles, loc="lower center", ncols=3, borderaxespad=0.3, columnspacing=1.2)
    return figure


def _kl_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, as from base to minimum the divergence is a thousand times that from fast to slow."""
    if low > KL_LINEAR_TO:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, 1.6 * high)
    else:
        axes.set_yscale("symlog", linthresh=KL_LINEAR_TO, linscale=0.5)
        axes.set_ylim(-KL_LINEAR_TO / 5, max(2 * KL_LINEAR_TO, 1.6 * high))
    plain_numbers(axes.yaxis)
