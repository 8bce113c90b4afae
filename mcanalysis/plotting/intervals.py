"""Means with their intervals, a row each: the picture of a question's table."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.selection import require_columns
from mcanalysis.plotting.style import BLUE, GREY, add_axes, double_column, in_print_style, new_figure, shortened

_ROW, _TOP, _BOTTOM, _LETTER, _RIGHT = 0.17, 0.1, 0.45, 0.049, 0.12
_MOST, _LONGEST = 60, 64


@in_print_style
def plot_intervals(table: pd.DataFrame, value: str) -> Figure:
    """Draw `mean` with `low` and `high` of each row against 0, filled where `p_holm` is at most 0.05.

    Rows are named by the columns before `pairs` and `mean` that tell them apart; only the first 60 are drawn.

    Args:
        table: columns that name a row, then `mean`, `low`, `high`, perhaps `pairs` and `p_holm`.
        value: what the mean is, under the axis.

    Raises:
        UserError: for missing columns, or no row.
    """
    require_columns(table, ["mean", "low", "high"], "intervals")
    if table.empty:
        raise UserError("Expected at least one row to draw, got none; measure something first.")
    rows = table[:_MOST]
    named = list(rows)[: min(list(rows).index(name) for name in ("pairs", "mean") if name in rows)]
    names = [name for name in named if rows[name].astype(str).nunique() > 1]
    labels = [", ".join(_word(value) for value in row) for row in rows[names].itertuples(index=False)]
    labels = [shortened(label, _LONGEST) for label in labels]
    left = 0.2 + _LETTER * max(map(len, labels))
    height = _ROW * len(rows)
    figure = new_figure(double_column(), _TOP + height + _BOTTOM)
    axes = add_axes(figure, left, _BOTTOM, double_column() - left - _RIGHT, height)
    axes.axvline(0, color=GREY, linewidth=0.8)
    for place, row in enumerate(rows.to_dict("records")):
        is_settled = row.get("p_holm", 1.0) <= 0.05
        axes.plot([row["low"], row["high"]], [place, place], color=BLUE, linewidth=1.0)
        axes.plot(row["mean"], place, "o", color=BLUE, markersize=3.5, markerfacecolor=BLUE if is_settled else "white")
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(value)
    return figure


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")
