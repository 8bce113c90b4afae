"""When a task leaves the basin: barriers between forks, radii of minima, good shares of simplices."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.picture import Picture
from mcanalysis.plotting.selection import error_bars
from mcanalysis.plotting.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    strategy_marks,
    strategy_name,
)

_LEFT, _TOP, _BOTTOM, _HEIGHT, _BETWEEN, _RIGHT = 0.5, 0.25, 0.42, 1.8, 0.6, 0.1
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")  # by strategy; the colour is by task, from dark to bright
_MARKS = {"random": (BLUE, "o"), "worst": (ORANGE, "v"), "forgetting": (PURPLE, "s")}


@in_print_style
def plot_basin(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw what there is of forks, radii and volumes side by side.

    Left: a line per task and run, the chord barrier between forks against the share of the task's steps that they have
    in common, from the first task (dark) to the last one, another style of line for another strategy; the threshold,
    and k₅₀ with its interval. Middle: each minimum's radius per direction; triangles at the upper edge are radii beyond
    the largest step. Right: the share of a simplex, a line per run, marked as its strategy is elsewhere.

    Args:
        tables: of the study, by name; any of them may be missing.

    Raises:
        UserError: where there is none of them.
    """
    panels = [
        (tables[name], draw)
        for name, draw in (("basin_forks", _forks), ("basin_radius", _radii), ("basin_volume", _volumes))
        if name in tables
    ]
    if not panels:
        raise UserError(
            "Expected the table basin_forks, basin_radius or basin_volume, got none; run analyses/basin.py."
        )
    figure = new_figure(double_column(), _TOP + _HEIGHT + _BOTTOM)
    width = (double_column() - _LEFT - _RIGHT + _BETWEEN) / len(panels) - _BETWEEN
    for number, (table, draw) in enumerate(panels):
        axes = add_axes(figure, _LEFT + number * (width + _BETWEEN), _BOTTOM, width, _HEIGHT)
        draw(axes, table, tables)
    return figure


def _forks(axes, forks: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> None:
    threshold = forks.threshold.iloc[0]
    numbers = sorted({int(task.partition("-")[0]) for task in forks.task})
    colours = {k: colormaps["viridis"](0.95 * i / max(len(numbers) - 1, 1)) for i, k in enumerate(numbers)}
    dashes = dict(zip(dict.fromkeys(forks.strategy), cycle(_DASHES)))
    for whose, rows in forks.groupby(["strategy", "seed", "task"], sort=False):
        largest = rows.loc[rows.groupby("after").chord_barrier.idxmax()].sort_values("after")
        axes.errorbar(
            largest.after / largest.num_steps, largest.chord_barrier, error_bars(largest, "chord_barrier"),
            color=colours[int(str(whose[2]).partition("-")[0])], linestyle=dashes[whose[0]], linewidth=0.7,
            elinewidth=0.4, marker="o", markersize=2, gid="forks " + " ".join(map(str, whose)),
        )  # fmt: skip
    axes.axhline(threshold, color=GREY, linestyle="--", linewidth=0.8, gid="threshold")
    if "basin_half" in tables:
        half = tables["basin_half"].iloc[0]
        if np.isfinite(half.half):
            axes.axvspan(
                max(half.half_low, 0.0), min(half.half_high, 1.0), color=GREY, alpha=0.15, linewidth=0, gid="half"
            )
            axes.axvline(half.half, color=GREY, linewidth=0.8)
    axes.set(xlabel="steps in common (share of the task's)", ylabel="chord barrier (nats)", xlim=(-0.03, 1.03))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    handles = [Line2D([], [], color=colour, linewidth=1.0, label=str(k)) for k, colour in colours.items()]
    tasks = axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles), columnspacing=0.6,
        handlelength=0.7, handletextpad=0.2,
    )  # fmt: skip
    if len(dashes) > 1:
        axes.add_artist(tasks)  # which a second legend would replace
        styles = {"color": BLACK, "linewidth": 0.7}
        axes.legend(
            handles=[Line2D([], [], linestyle=d, label=strategy_name(s), **styles) for s, d in dashes.items()],
            loc="upper right", handlelength=2.2,
        )  # fmt: skip


def _radii(axes, radii: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> None:
    tasks = sorted(dict.fromkeys(radii.task), key=lambda label: int(label.partition("-")[0]))
    finite = radii.first_lost[np.isfinite(radii.first_lost)]
    held = radii.last_held[np.isinf(radii.first_lost)]
    top = 1.08 * max([*finite, *held, 1e-3])
    for number, (kind, (colour, marker)) in enumerate(_MARKS.items()):
        rows = radii[radii.direction == kind]
        at = np.array([tasks.index(task) for task in rows.task]) + 1 + 0.2 * (number - 1)
        beyond = np.isinf(rows.radius)
        axes.plot(at[~beyond], rows.radius[~beyond], marker, color=colour, markersize=2.8, label=kind, gid=kind)
        axes.plot(at[beyond], np.full(beyond.sum(), top), "^", color=colour, markersize=2.8, gid=f"{kind} beyond")
    axes.set(xlabel="minimum after task (number)", ylabel="radius (relative step)", ylim=(0.0, 1.04 * top))
    axes.set_xticks(range(1, len(tasks) + 1), [label.partition("-")[0] for label in tasks])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=0.8, handletextpad=0.2)


def _volumes(axes, volumes: pd.DataFrame, tables: Mapping[str, pd.DataFrame]) -> None:
    runs = volumes.groupby(["strategy", "learner", "seed"], sort=False)
    marks = strategy_marks(zip(volumes.strategy, volumes.learner, strict=True))
    for number, ((strategy, learner, seed), rows) in enumerate(runs):
        at = rows.num_minima + 0.4 / len(runs) * (number - (len(runs) - 1) / 2)
        mark = marks[str(strategy), str(learner)]
        axes.errorbar(
            at, rows.volume, error_bars(rows, "volume"), color=mark.colour, linewidth=0.8, elinewidth=0.6,
            marker=mark.marker, markersize=2.8, gid=f"volume {strategy} {seed}",
        )  # fmt: skip
    axes.set(xlabel="minima T (number)", ylabel="good share of the simplex (0–1)", ylim=(-0.03, 1.03))
    axes.set_xticks(sorted(set(volumes.num_minima)))
    if len(marks) > 1:
        axes.legend(handles=[mark.handle(linewidth=0.8, markersize=2.8) for mark in marks.values()], loc="best")


def basin_picture(tables: Mapping[str, pd.DataFrame]) -> Picture:
    """The picture of a study, with its caption and data."""
    words = []
    if "basin_forks" in tables:
        forks = tables["basin_forks"]
        words.append(
            "Chord barrier of a task's test loss between two trainings of it that share their first steps and then see "
            "its examples in another order, one line per task (its number above, the first one dark) and "
            f"run{' (style: its strategy)' if forks.strategy.nunique() > 1 else ''}, the largest of several forks; "
            f"bars: 95 % intervals over examples; grey and dashed: {forks.threshold.iloc[0]:g} nats. The grey line is "
            "the share of steps from which on half of the tasks stay below that, grey its 95 % interval over tasks."
        )
    if "basin_radius" in tables:
        radii = tables["basin_radius"]
        keep, runs = radii.keep.iloc[0], len(radii.groupby(["strategy", "seed"]))
        words.append(
            "Relative step (in units of ‖ΔW‖) at which a task's score at its own minimum falls below "
            f"{keep:.0%} of its value, along random directions, the worst one found, and towards the next minimum; "
            f"triangles at the upper edge: beyond the largest step{f'; of {runs} runs together' if runs > 1 else ''}."
        )
    if "basin_volume" in tables:
        volumes = tables["basin_volume"]
        words.append(
            "Share of the simplex of the first T minima where the mean score is at least "
            f"{volumes.keep.iloc[0]:.0%} of that of the best minimum, of {volumes.num_samples.max()} uniform samples; "
            "bars: 95 % intervals of the sampling."
        )
    data = {name.removeprefix("basin_"): table for name, table in tables.items() if name.startswith("basin_")}
    return Picture("basin", plot_basin(tables), data, " ".join(words))
