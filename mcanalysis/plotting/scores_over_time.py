"""Forgetting over time: the score of every task after every task, a line per strategy."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import legend_columns
from mcanalysis.plotting.selection import require_columns
from mcanalysis.plotting.style import (
    GREY,
    Mark,
    add_axes,
    double_column,
    new_figure,
    print_style,
    shortened,
    strategy_marks,
)

MEAN = "mean of learnt tasks"
_COLUMNS = ("strategy", "learner", "seed", "after", "task", "number", "score")
_PANELS_PER_ROW = 4  # at most
_LEFT, _RIGHT, _BETWEEN, _TITLE, _HEIGHT, _GAP, _TICKS, _LEGEND_ROW = 0.42, 0.08, 0.14, 0.20, 0.95, 0.16, 0.34, 0.16


def plot_scores_over_time(scores: pd.DataFrame) -> Figure:
    """Draw the score (0–1) of each task against the number of tasks learnt, a panel per task, a line per strategy.

    The first panel has the mean over the tasks learnt so far. The vertical line says when a task was learnt. Thick:
    mean over seeds; thin: each seed, where there are several.

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
    panels = [(MEAN, 0), *((str(t.task), int(t.number)) for t in tasks)]  # type: ignore[attr-defined]
    last = int(scores.after.max())
    per_row = -(-len(panels) // -(-len(panels) // _PANELS_PER_ROW))  # rows as full as they can be
    with print_style():
        num_rows = math.ceil(len(panels) / per_row)
        handles = [
            Line2D([], [], color=m.colour, marker=m.marker, markersize=3.4, linewidth=1.2, label=m.label)
            for m in marks.values()
        ]
        if scores.seed.nunique() > 1:
            handles.append(Line2D([], [], color=GREY, linewidth=0.5, label="each seed"))
        columns = legend_columns([str(h.get_label()) for h in handles], double_column(), 6)
        legend = _LEGEND_ROW * math.ceil(len(handles) / columns) + 0.06
        block = _TITLE + _HEIGHT + _GAP
        figure = new_figure(double_column(), num_rows * block - _GAP + _TICKS + legend + 0.05)
        width = (double_column() - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
        for i, (name, number) in enumerate(panels):
            row, place = divmod(i, per_row)
            bottom = figure.get_figheight() - 0.05 - row * block - _TITLE - _HEIGHT
            axes = add_axes(figure, _LEFT + place * (width + _BETWEEN), bottom, width, _HEIGHT)
            _draw(axes, _of_panel(scores, name, number), marks, number)
            axes.set_title(name if number == 0 else f"{number} {shortened(name, 16)}", pad=3)
            axes.set(xlim=(-0.15, last + 0.15), ylim=(-0.05, 1.05))
            axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
            lowest = i + per_row >= len(panels)
            axes.set_xticks(range(last + 1), [str(n) for n in range(last + 1)] if lowest else [""] * (last + 1))
            axes.tick_params(labelleft=place == 0)
            if place == 0:
                axes.set_ylabel("score (0–1)", labelpad=2)
            if lowest:
                axes.set_xlabel("after task (0 = base)", labelpad=2)
        figure.legend(handles=handles, loc="lower center", ncols=columns, borderaxespad=0.2, columnspacing=1.4)
        figure.draw_without_rendering()
    return figure


def _of_panel(scores: pd.DataFrame, name: str, number: int) -> pd.DataFrame:
    keys = ["strategy", "learner", "seed", "after"]
    if number:
        return scores[scores.task == name][[*keys, "score"]]
    learnt = scores[scores.number <= scores.after]
    return learnt.groupby(keys, sort=False).score.mean().reset_index()


def _draw(axes: Axes, rows: pd.DataFrame, marks: dict[tuple[str, str], Mark], number: int) -> None:
    if number:
        axes.axvline(number, color=GREY, linewidth=0.6, zorder=0.5, gid="learnt")
    for (strategy, learner), mark in marks.items():
        own = rows[(rows.strategy == strategy) & (rows.learner == learner)].sort_values("after")
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
    told = f"seeds {', '.join(map(str, seeds))}; thin lines: each seed" if len(seeds) > 1 else f"seed {seeds[0]}"
    return (
        "Score (0–1) on the test split of each task after each task of the sequence, of the learner that answers "
        f"({told}). First panel: mean over the tasks learnt so far. A panel's vertical line: when its task was learnt; "
        "what falls to the right of it is forgotten."
    )


__all__ = ["MEAN", "plot_scores_over_time", "scores_over_time_caption"]
