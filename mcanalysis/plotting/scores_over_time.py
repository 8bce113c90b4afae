"""Forgetting over time: the score of every task after every task, a line per strategy."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.metrics.continual import forgetting
from mcanalysis.plotting.legend import legend_size
from mcanalysis.plotting.selection import require_columns, where
from mcanalysis.plotting.style import (
    GREY,
    Mark,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    strategy_marks,
)

MEAN, FORGETTING = "mean of learned tasks", "forgetting so far"
_COLUMNS = ("strategy", "learner", "seed", "after", "task", "number", "score")
_NARROWEST = 1.1  # inches: a panel as wide as its title
_LEFT, _RIGHT, _BETWEEN, _TITLE, _HEIGHT, _GAP, _TICKS, _LEGEND_ROW = 0.42, 0.08, 0.14, 0.20, 0.95, 0.16, 0.34, 0.16
_MOST_TICKS = 9


@in_print_style
def plot_scores_over_time(scores: pd.DataFrame) -> Figure:
    """Draw the score (0–1) of each task against the number of tasks learned, a panel per task, a line per strategy.

    The first panel has the mean over the tasks learned so far, the second, where there are two tasks or more, their
    forgetting: `mcanalysis.metrics.forgetting` of the matrix up to there, which can be negative. The vertical line says
    when a task was learned. Thick: mean over seeds; thin: each seed, where there are several.

    Args:
        scores: columns strategy, learner, seed, after (0 = base), task, number (of the task, from 1), score.

    Raises:
        UserError: for missing columns or an empty table.
    """
    require_columns(scores, _COLUMNS, "scores")
    if scores.empty:
        raise UserError("Expected rows in the table scores, got none; pass those of a run that has trained.")
    marks = strategy_marks(dict.fromkeys(zip(scores.strategy, scores.learner, strict=True)))
    tasks = scores.drop_duplicates("task").sort_values("number")[["task", "number"]].itertuples(index=False)
    panels = [(MEAN, 0, _mean_of_learned(scores)), (FORGETTING, 0, _forgetting(scores))]
    panels = [panel for panel in panels if len(panel[2])]
    panels += [(str(t.task), int(t.number), scores[scores.task == t.task]) for t in tasks]  # type: ignore[attr-defined]
    last = int(scores.after.max())
    ticks = range(0, last + 1, math.ceil((last + 1) / _MOST_TICKS))
    lowest_value = min(0.0, *(float(rows.score.min()) for _, _, rows in panels))
    most = int((double_column() - _LEFT - _RIGHT + _BETWEEN) / (_NARROWEST + _BETWEEN))
    per_row = -(-len(panels) // -(-len(panels) // most))  # rows as full as they can be
    num_rows = math.ceil(len(panels) / per_row)
    handles = [m.handle(markersize=3.4, linewidth=1.2) for m in marks.values()]
    if scores.seed.nunique() > 1:
        handles.append(Line2D([], [], color=GREY, linewidth=0.5, label="each seed"))
    columns, lines = legend_size(handles, double_column(), 6)
    legend = _LEGEND_ROW * lines + 0.06
    block = _TITLE + _HEIGHT + _GAP
    figure = new_figure(double_column(), num_rows * block - _GAP + _TICKS + legend + 0.05)
    width = (double_column() - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
    for i, (name, number, rows) in enumerate(panels):
        row, place = divmod(i, per_row)
        bottom = figure.get_figheight() - 0.05 - row * block - _TITLE - _HEIGHT
        axes = add_axes(figure, _LEFT + place * (width + _BETWEEN), bottom, width, _HEIGHT)
        _draw(axes, rows, marks, number)
        axes.set_title(name if number == 0 else f"{number} {shortened(name, 16)}", pad=3)
        axes.set(xlim=(-0.15, last + 0.15), ylim=(lowest_value - 0.05, 1.05))
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
        if name == FORGETTING:
            axes.axhline(0.0, color=GREY, linewidth=0.4, zorder=0.5)
        lowest = i + per_row >= len(panels)
        axes.set_xticks(ticks, [str(n) for n in ticks] if lowest else [""] * len(ticks))
        axes.tick_params(labelleft=place == 0)
        if place == 0:
            axes.set_ylabel("score (0–1)", labelpad=2)
    middle = (_LEFT + (per_row * (width + _BETWEEN) - _BETWEEN) / 2) / double_column()
    up = (legend + 0.03) / figure.get_figheight()
    figure.text(middle, up, "after task (0 = base)", ha="center", va="bottom")
    figure.legend(handles=handles, loc="lower center", ncols=columns, borderaxespad=0.2, columnspacing=1.4)
    return figure


_KEYS = ["strategy", "learner", "seed"]


def _mean_of_learned(scores: pd.DataFrame) -> pd.DataFrame:
    learned = scores[scores.number <= scores.after]
    return learned.groupby([*_KEYS, "after"], sort=False).score.mean().reset_index()


def _forgetting(scores: pd.DataFrame) -> pd.DataFrame:
    """What is forgotten after each task from the second on, where the matrix up to there has no gap."""
    rows = []
    for of_run, own in scores.groupby(_KEYS, sort=False):
        matrix = own.pivot(index="after", columns="number", values="score")
        for k in range(2, int(own.after.max()) + 1):
            value = forgetting(matrix.reindex(index=range(k + 1), columns=range(1, k + 1)))
            if not math.isnan(value):
                rows.append(dict(zip(_KEYS, of_run, strict=True)) | {"after": k, "score": value})  # type: ignore
    return pd.DataFrame(rows, columns=[*_KEYS, "after", "score"])


def _draw(axes: Axes, rows: pd.DataFrame, marks: dict[tuple[str, str], Mark], number: int) -> None:
    if number:
        axes.axvline(number, color=GREY, linewidth=0.6, zorder=0.5, gid="learned")
    for (strategy, learner), mark in marks.items():
        own = where(rows, strategy=strategy, learner=learner).sort_values("after")
        if own.seed.nunique() > 1:
            for _, of_seed in own.groupby("seed"):
                axes.plot(of_seed.after, of_seed.score, color=mark.colour, linewidth=0.5, alpha=0.7, zorder=2)
        mean = own.groupby("after").score.mean()
        axes.plot(
            mean.index, mean, color=mark.colour, marker=mark.marker, markersize=3.0, linewidth=1.1, zorder=3,
            clip_on=False, gid=f"{strategy} {learner}",
        )  # fmt: skip


def scores_over_time_caption(scores: pd.DataFrame) -> str:
    """What the picture of `plot_scores_over_time` shows, in words."""
    seeds = sorted(set(scores.seed))
    seed_words = f"seeds {', '.join(map(str, seeds))}; thin lines: each seed" if len(seeds) > 1 else f"seed {seeds[0]}"
    return (
        "Score (0–1) on the test split of each task after each task of the sequence, of the learner that answers "
        f"({seed_words}). First panel: mean over the tasks learned so far; second, where there are two or more: their "
        "forgetting, the fall from the best score a task ever had, mean over all but the last (Chaudhry et al. 2018; 0 "
        "or less: none). A panel's vertical line: when its task was learned; what falls to the right of it is "
        "forgotten."
    )
