"""Kinds of path side by side: the barrier of the old tasks' loss and the gain, per transition, with intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import legend_size
from mcanalysis.plotting.selection import (
    BARRIER_KEYS,
    error_bars,
    few_events,
    label_name,
    only_value,
    require_columns,
    rows_of_test_split,
    where,
)
from mcanalysis.plotting.selection import transitions as transitions_of
from mcanalysis.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    Mark,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    path_lines,
    shortened,
    strategy_name,
    whose,
    write_head,
)

_MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (VERMILLION, "D"), (PURPLE, "v"), (BLACK, "P"), (GREY, "X"))
_LEFT, _RIGHT, _BETWEEN, _HEAD, _HEIGHT, _LETTER, _ANGLE = 0.52, 0.08, 0.56, 0.38, 1.6, 0.058, 40.0
_LINEAR = 0.01  # nats per token: below, a logarithmic axis of barriers is linear
_LOG_FROM = 8.0  # largest over median barrier where the axis is logarithmic
_QUANTITIES = (
    ("chord_barrier", "mean_old", "loss", "chord barrier, old tasks (nats/token)"),
    ("interpolation_gain", "mean", "score", "interpolation gain in S̄ (score, 0–1)"),
)


@in_print_style
def plot_path_comparison(barriers: pd.DataFrame) -> Figure:
    """Draw, per transition and kind of path, the chord barrier of the old tasks' loss (left) and the gain (right).

    `barriers`: `barriers.csv` of one strategy, learner and seed; the test split is drawn. Bars: 95 % intervals over
    examples. The left axis is logarithmic from 0.01 nats per token on where the barriers differ by much.

    Raises `UserError` for missing columns, several runs, repeated rows, or where only one kind of path was measured.
    """
    rows = compared_rows(barriers)
    kinds = path_lines(zip(rows.path, rows.space, strict=True))
    marks = {kind: Mark(*_MARKS[i % len(_MARKS)], line.label) for i, (kind, line) in enumerate(kinds.items())}
    pairs = transitions_of(rows)
    names = [f"{shortened(label_name(a), 12)} → {shortened(label_name(b), 12)}" for a, b in pairs]
    width = (double_column() - _LEFT - _RIGHT - _BETWEEN) / 2
    longest = _LETTER * max(map(len, names))
    angle = _ANGLE if longest > width / len(pairs) else 0.0
    below = (0.12 if angle else 0.26) + longest * math.sin(math.radians(angle))
    labels = [mark.label for mark in marks.values()]
    columns, lines = legend_size(labels, double_column(), 4)
    legend = 0.16 * lines + 0.08
    figure = new_figure(double_column(), _HEAD + _HEIGHT + below + legend)
    for i, (column, task, quantity, words) in enumerate(_QUANTITIES):
        axes = add_axes(figure, _LEFT + i * (width + _BETWEEN), legend + below, width, _HEIGHT)
        own = where(rows, task=task, quantity=quantity)
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0.5)
        for k, (kind, mark) in enumerate(marks.items()):
            aside = 0.62 * ((k + 0.5) / len(marks) - 0.5)
            of_kind = where(own, path=kind[0], space=kind[1]).set_index(["start", "end"])
            of_kind = of_kind.reindex(pd.MultiIndex.from_tuples(pairs))
            axes.errorbar(
                np.arange(len(pairs)) + aside, of_kind[column], np.nan_to_num(error_bars(of_kind, column)),
                linestyle="none", color=mark.colour, marker=mark.marker, markersize=3.4, markeredgecolor=BLACK,
                markeredgewidth=0.4, elinewidth=0.9, label=mark.label, gid=f"{column} {'-'.join(kind)}",
            )  # fmt: skip
        _scale(axes, own[column].to_numpy(float) if column == "chord_barrier" else np.zeros(0))
        axes.set_xlim(-0.5, len(pairs) - 0.5)
        side = "right" if angle else "center"
        axes.set_xticks(range(len(pairs)), names, rotation=angle, ha=side, rotation_mode="anchor")
        for border in range(len(pairs) - 1):
            axes.axvline(border + 0.5, color="#E4E4E4", linewidth=0.5, zorder=0.4)
        axes.set_title("ab"[i], loc="left", fontweight="bold", pad=3)
        axes.set_ylabel(words, labelpad=2)
    write_head(figure, f"{whose(rows.iloc[0])}, test split")
    handles, _ = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="lower center", ncols=columns, borderaxespad=0.2, columnspacing=1.2, handletextpad=0.4
    )
    return figure


def compared_rows(barriers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `barriers.csv` that `plot_path_comparison` draws; same errors."""
    columns = [name + end for name, *_ in _QUANTITIES for end in ("", "_low", "_high")]
    require_columns(barriers, [*BARRIER_KEYS, *columns], "barriers")
    rows = rows_of_test_split(barriers, BARRIER_KEYS, "barriers")
    for column in ("strategy", "learner", "seed"):
        only_value(rows, column, "barriers")
    wanted = [(rows.task == task) & (rows.quantity == quantity) for _, task, quantity, _ in _QUANTITIES]
    rows = rows[np.logical_or.reduce(wanted)]
    kinds = sorted({f"{p}-{s}" for p, s in zip(rows.path, rows.space, strict=True)})
    if len(kinds) < 2:
        raise UserError(
            f"Expected two kinds of path or more in the table barriers, got {', '.join(kinds) or 'none'}; measure "
            "with connectivity.py --paths linear-factor,linear-delta,linear-aligned,bezier-factor."
        )
    return rows


def path_comparison_caption(barriers: pd.DataFrame) -> str:
    """What the picture of `plot_path_comparison` shows, in words."""
    rows = compared_rows(barriers)
    row = rows.iloc[0]
    return (
        f"Kinds of path between successive minima of {strategy_name(row.strategy)} ({row.learner} adapter, seed "
        f"{row.seed}, test split). (a) Chord barrier of the mean loss of the tasks before the transition, max over t "
        "of L(t) − ((1−t)L(0) + tL(1)), in nats per target token; the axis is linear below 0.01 and logarithmic above "
        "where large and small ones occur. (b) Gain S̄(t*) − max(S̄(0), S̄(1)) of S̄ = ½(old tasks + new task), t* "
        "chosen on the eval split; it can be negative. Bars: 95 % intervals over examples. Bezier curves "
        f"are fitted on train examples of old and new tasks. {few_events(rows)}".rstrip()
    )


def _scale(axes: Axes, values: np.ndarray) -> None:
    finite = values[np.isfinite(values) & (values > 0)]
    if len(finite) and finite.max() > _LOG_FROM * max(float(np.median(values[np.isfinite(values)])), _LINEAR):
        axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.5)
        axes.set_ylim(bottom=-_LINEAR / 3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
