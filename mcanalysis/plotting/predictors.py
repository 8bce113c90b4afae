"""What predicts an outcome of transitions: rank correlations of signals, with intervals, and predictions out of run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import require_columns
from mcanalysis.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
)

_TITLES = {
    "forgetting": "forgetting (loss)",
    "score_forgetting": "forgetting (score)",
    "barrier": "barrier (loss)",
    "gain": "gain (score)",
}
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP, _ROW = 1.35, 0.08, 0.2, 0.62, 0.12, 0.16
_OVERS = (("all", BLUE, "o", 0.14), ("within strategies", ORANGE, "s", -0.14))


@in_print_style
def plot_predictors(correlations: pd.DataFrame) -> Figure:
    """Draw Spearman's ρ of each signal (rows) with each outcome (panels), 95 % intervals, pooled and within strategies.

    Filled where p ≤ 0.05 after Holm's correction; signals in grey letters need no old data. Rows are sorted by the
    size of the pooled correlation with the first outcome.

    Args:
        correlations: `predictor_correlations`.

    Raises:
        UserError: for missing columns, or no signal.
    """
    need = ["outcome", "over", "signal", "needs_old_data", "rho", "low", "high", "p_holm"]
    require_columns(correlations, need, "predictor_correlations")
    outcomes = list(dict.fromkeys(correlations.outcome))
    first = correlations[(correlations.over == "all") & (correlations.outcome == next(iter(outcomes), ""))]
    if first.empty:
        raise UserError("Expected a signal in the table predictor_correlations, got none; run analyses/predictors.py.")
    first = first.assign(size=first.rho.abs().fillna(-1)).sort_values("size")
    order = {signal: place for place, signal in enumerate(first.signal)}
    height = _ROW * len(order)
    figure = new_figure(double_column(), _TOP + height + _BOTTOM)
    width = (double_column() - _LEFT - _RIGHT - _GAP * (len(outcomes) - 1)) / len(outcomes)
    for number, outcome in enumerate(outcomes):
        axes = add_axes(figure, _LEFT + number * (width + _GAP), _BOTTOM, width, height)
        axes.axvline(0.0, color=GREY, linewidth=0.6)
        for over, colour, marker, shift in _OVERS:
            rows = correlations[(correlations.over == over) & (correlations.outcome == outcome)]
            at = np.array([order[signal] for signal in rows.signal]) + shift
            axes.hlines(at, rows.low, rows.high, color=colour, linewidth=0.7)
            filled = np.where(rows.p_holm <= 0.05, colour, "white")
            axes.scatter(rows.rho, at, s=9, marker=marker, c=filled, edgecolors=colour, linewidths=0.7, zorder=3,
                         label=over, gid=f"{outcome} {over}")  # fmt: skip
        axes.set(
            xlim=(-1.05, 1.05),
            ylim=(-0.6, len(order) - 0.4),
            title=_TITLES.get(outcome, outcome),
            xlabel="ρ (Spearman)",
        )
        axes.set_yticks(range(len(order)), [signal.replace("_", " ") for signal in order] if number == 0 else [])
        if number == 0:
            for label, old in zip(axes.get_yticklabels(), first.needs_old_data, strict=True):
                label.set_color("black" if old else GREY)
    looks = {over: figure.axes[0].collections[2 * i + 1] for i, (over, *_) in enumerate(_OVERS)}
    figure.legend(list(looks.values()), list(looks), loc="lower left", ncols=2, borderaxespad=0.2)
    return figure


def predictors_picture(correlations: pd.DataFrame, out_of_run: pd.DataFrame, signals: pd.DataFrame) -> Picture:
    """The picture with its caption and data."""
    runs = len(signals.groupby(["strategy", "learner", "seed"]))
    best = out_of_run[out_of_run.signals.isin(["all signals", "without old data"])]
    said = "; ".join(
        f"{_TITLES.get(str(outcome), outcome)} {' and '.join(f'{r2:.2f}' for r2 in rows.r2)}"
        for outcome, rows in best.groupby("outcome", sort=False)
    )
    whose = ", ".join(dict.fromkeys(signals.strategy))
    words = (
        f"What predicts a transition: Spearman's rank correlation of signals with outcomes on {len(signals)} "
        f"transitions of {runs} runs ({whose}; {signals.space.iloc[0]} space), pooled (circles) and with ranks taken "
        "within each strategy (squares). Bars: 95 % intervals over runs (jackknife); filled: p up to 0.05 after Holm's "
        "correction over the signals. Signals in grey need no old data. R² of runs predicted from the others, by all "
        f"signals and by those without old data: {said}."
    )
    return Picture("predictors", plot_predictors(correlations), {"": correlations, "out_of_run": out_of_run}, words)
