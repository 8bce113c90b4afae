"""A run's training on the plane in which it moved most, and losses of old and new tasks along it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.label_placement import LabelPlacer, places_around
from mcanalysis.plotting.legend import close_legend, legend_size
from mcanalysis.plotting.selection import label_name, only_value, require_columns, span
from mcanalysis.plotting.style import (
    BLACK,
    ROLES,
    Mark,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    single_column,
    strategy_marks,
    strategy_name,
    write_head,
)

PLACES = (
    "strategy", "seed", "space", "learner", "minimum", "step", "kind", "fitted", "pc_1", "pc_2", "distance",
    "explained_1", "explained_2",
)  # fmt: skip
LOSSES = ("strategy", "seed", "learner", "minimum", "step", "task", "role", "loss", "num_examples")
_SPACES = {"factor": "LoRA factors", "delta": "ΔW", "aligned": "aligned factors"}

# The layout, in inches.
_LEFT, _RIGHT, _BETWEEN, _HEAD, _AXIS, _ROW, _FOOT = 0.50, 0.10, 0.55, 0.22, 0.38, 0.14, 0.06


@in_print_style
def plot_trajectory(places: pd.DataFrame, losses: pd.DataFrame | None = None) -> Figure:
    """Draw each learner's snapshots, joined task by task, and its minima by their numbers; both axes have one unit.

    With losses, beside it the loss of the new task (circles) and of the old ones (squares) over all steps.

    Args:
        places: rows of `trajectory_pca.csv` of one run.
        losses: rows of `trajectory_losses.csv` of the same run.

    Raises:
        UserError: for missing columns and for rows of several runs.
    """
    _check(places, losses)
    marks = strategy_marks([(str(s), str(name)) for s, name in zip(places.strategy, places.learner, strict=True)])
    learners = {learner: mark for (_, learner), mark in marks.items()}
    has_losses = losses is not None and len(losses) > 0
    width = double_column() if has_losses else single_column()
    across = (width - _LEFT - _RIGHT - (_BETWEEN if has_losses else 0)) / (2 if has_losses else 1)
    height = min(across, 2.6)
    handles = _handles(learners, has_losses)
    columns, rows = legend_size(handles, width, 4)
    below = _AXIS + _ROW * rows + _FOOT
    figure = new_figure(width, _HEAD + height + below)
    _draw_plane(add_axes(figure, _LEFT, below, across, height), places, learners)
    if losses is not None and has_losses:
        beside = add_axes(figure, _LEFT + across + _BETWEEN, below, across, height)
        _draw_losses(beside, places, losses, learners)
    write_head(figure, f"{strategy_name(str(places.strategy.iloc[0]))}, seed {places.seed.iloc[0]}", 0.04)
    close_legend(figure, handles, columns)
    return figure


def trajectory_caption(places: pd.DataFrame, losses: pd.DataFrame | None = None) -> str:
    """What the figure shows, how much of the variance it has, and how far from it the points are; same input."""
    _check(places, losses)
    fitted = places[places.fitted]
    first, learner = places.iloc[0], fitted.learner.iloc[0]
    others = [name for name in dict.fromkeys(places.learner) if name != learner]
    share = first.explained_1 + first.explained_2
    parts = [
        f"{strategy_name(first.strategy)}, seed {first.seed}: training on the plane in which the {learner} adapter "
        f"moved most ({_SPACES.get(first.space, first.space)}; principal components of {len(fitted)} snapshots and "
        f"minima, about their mean; {share:.0%} of the variance). Both axes have one unit, distance. "
        + (f"Projected onto it: {', '.join(others)}. " if others else "")
        + "Numbers: minima after each task, "
        + ", ".join(f"{n.partition('-')[0]} = {label_name(n)}" for n in dict.fromkeys(places.minimum))
        + "."
    ]
    for name, own in places.groupby("learner", sort=False):
        parts.append(
            f"Distance of {name} from the plane: {shown_number(float(own.distance.median()))} in the median, "
            f"{shown_number(float(own.distance.max()))} at most."
        )
    parts.append("Two principal components hold most of any random walk, too, so that a high share is no finding.")
    if losses is not None and len(losses):
        parts.append(
            "Right: loss at some snapshots (nats per target token, test split, "
            f"{span(losses[losses.task != 'mean_old'].num_examples)} examples per task) of the task that is trained, "
            "and mean of those before it."
        )
    return " ".join(parts)


def _check(places: pd.DataFrame, losses: pd.DataFrame | None) -> None:
    for table, columns, name in ((places, PLACES, "trajectory_pca"), (losses, LOSSES, "trajectory_losses")):
        if table is not None and (len(table) or name == "trajectory_pca"):
            require_columns(table, columns, name)
            for column in ("strategy", "seed"):
                only_value(table, column, name)


def _draw_plane(axes: Axes, places: pd.DataFrame, learners: dict[str, Mark]) -> None:
    minima = places[places.kind == "minimum"]
    axes.set_aspect("equal", adjustable="datalim")
    for learner, mark in learners.items():
        own = places[places.learner == learner]
        for label, walk in own[own.kind == "snapshot"].groupby("minimum", sort=False):
            axes.plot(
                walk.pc_1, walk.pc_2, color=mark.colour, linewidth=0.8, marker=mark.marker, markersize=2,
                markeredgewidth=0, gid=f"walk {learner} {label}",
            )  # fmt: skip
        ends = minima[minima.learner == learner]
        axes.plot(
            ends.pc_1, ends.pc_2, linestyle="", marker="D", markersize=4, color="white", markeredgecolor=mark.colour,
            markeredgewidth=0.9, zorder=3, gid=f"minima {learner}",
        )  # fmt: skip
    for axis, number in ((axes.xaxis, 1), (axes.yaxis, 2)):
        axis.set_major_locator(MaxNLocator(5))
        share = places[f"explained_{number}"].iloc[0]
        axis.set_label_text(f"direction {number}, distance ({share:.0%} of the variance)")
    axes.margins(0.08)
    axes.apply_aspect()
    placer = LabelPlacer(axes, places[["pc_1", "pc_2"]].to_numpy(dtype=float))
    for row in minima.to_dict("records"):
        placer.add(
            row["minimum"].partition("-")[0], places_around(row["pc_1"], row["pc_2"], (4, 7, 11)), zorder=4,
            color=learners[row["learner"]].colour, fontweight="bold",
            path_effects=[Stroke(linewidth=1.8, foreground="white"), Normal()],
        )  # fmt: skip


def _draw_losses(axes: Axes, places: pd.DataFrame, losses: pd.DataFrame, learners: dict[str, Mark]) -> None:
    """Losses over the steps of all tasks; each task begins where the one before ended."""
    last = places.groupby("minimum", sort=False).step.max().fillna(0).astype(float)
    begins = last.cumsum() - last
    rows = losses.assign(at=losses.minimum.map(begins) + losses.step.astype(float))
    of_old = rows[rows.task == "mean_old"]
    of_new = rows[rows.role == "new"].groupby(["learner", "minimum", "step", "at"], sort=False, as_index=False)
    for role, of_role in (("old", of_old), ("new", of_new.loss.mean())):
        for (learner, label), walk in of_role.groupby(["learner", "minimum"], sort=False):
            axes.plot(
                walk["at"], walk.loss, color=learners[str(learner)].colour, linestyle="--" if role == "old" else "-",
                marker=ROLES[role].marker, markersize=3, linewidth=0.9, gid=f"loss {role} {learner} {label}",
            )  # fmt: skip
    for begin in begins[1:]:
        axes.axvline(begin, color="#C0C0C0", linewidth=0.5, zorder=0)
    axes.set(xlabel="optimiser steps, all tasks", ylabel="loss, nats/token")
    finite = rows.loss[np.isfinite(rows.loss)]
    if len(finite) and finite.min() >= 0:
        axes.set_ylim(bottom=0)


def _handles(learners: dict[str, Mark], has_losses: bool) -> list[Line2D]:
    made = [
        Line2D([], [], color=mark.colour, marker=mark.marker, markersize=3, linewidth=0.8, label=mark.label)
        for mark in learners.values()
    ]
    hollow: dict[str, Any] = {"linestyle": "", "color": "white", "markeredgecolor": BLACK, "markeredgewidth": 0.9}
    made.append(Line2D([], [], marker="D", markersize=4, label="minimum after a task", **hollow))
    if has_losses:
        made += [
            Line2D(
                [], [], color=BLACK, linestyle="--" if role == "old" else "-", marker=ROLES[role].marker, markersize=3,
                linewidth=0.9, label=f"loss: {ROLES[role].label}",
            )
            for role in ("old", "new")
        ]  # fmt: skip
    return made
