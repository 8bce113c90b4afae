"""Score and loss along the paths between successive minima of one run, with the barriers in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mcanalysis.plotting.barrier_table import LINE, table_lines, table_notes, write_table
from mcanalysis.plotting.legend import legend_columns, text_width
from mcanalysis.plotting.selection import label_name
from mcanalysis.plotting.style import (
    BLACK,
    GREY,
    ROLES,
    TITLE_SIZE,
    PathLine,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    path_lines,
    plain_numbers,
    shortened,
    single_column,
)
from mcanalysis.plotting.transition_rows import QUANTITIES, TransitionRows, are_adapters, transition_rows, whose

PANELS_PER_ROW = 4
LOG_FROM_DECADES = 1.5  # by which the highest loss exceeds a curve's ends where the axis is logarithmic


# The layout, in inches.
_LEFT, _RIGHT, _BETWEEN = 0.70, 0.10, 0.12
_PANEL_HEIGHT = {"score": 1.12, "loss": 0.98}
_TITLE, _TITLE_LINE, _GAP, _TICKS, _BLOCK_GAP, _HEAD = 0.20, 0.12, 0.09, 0.34, 0.12, 0.15
_TALLEST = 9.0


@in_print_style
def plot_transitions(profiles: pd.DataFrame, barriers: pd.DataFrame) -> Figure:
    """Draw score (upper) and loss (lower, nats per target token) against t in [0, 1], a pair of panels per transition.

    `profiles`, `barriers`: the tables of one strategy, learner and seed (`profiles.csv`, `barriers.csv`); the rows of
    the test split are drawn, others ignored. Blue squares: mean over the old tasks; orange circles: the new task;
    the kind of line tells the path. Band: 95 % interval on the first kind of path, linear in factor space where that
    was measured. Star and vertical line: t* of that path. Crosses on the upper edge: values that are not finite.
    Below each pair: chord barrier of the loss, t* and gain of every path. All loss panels share one axis. One
    transition gives a figure of one column's width, more a figure of two columns' width.

    Raises `UserError` for missing columns, no row of the test split, several runs, repeated rows, or barriers that hold
    nothing of these transitions.
    """
    shown, kinds = transition_rows(profiles, barriers)
    lines = path_lines(kinds)
    per_row = min(len(shown), max(1, min(PANELS_PER_ROW, 16 // len(lines))))
    num_blocks = math.ceil(len(shown) / per_row)
    width = single_column() if per_row == 1 else double_column()
    panel = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
    titles = _titles(shown, panel)
    title_height = _TITLE + _TITLE_LINE * any("\n" in title for title in titles)
    labels = table_lines(shown)
    heights = dict(_PANEL_HEIGHT)
    handles = _legend_handles(lines, shown)
    columns = legend_columns([str(h.get_label()) for h in handles], width, 4)
    notes = table_notes(shown, 1 if width == double_column() else 2)
    notes_height = 0.05 + LINE * len(notes)
    legend_height = notes_height + 0.135 * math.ceil(len(handles) / columns) + 0.06
    fixed = title_height + _GAP + _TICKS + LINE * (len(labels) + (len(lines) > 1)) + _BLOCK_GAP
    room = (_TALLEST - _HEAD - legend_height) / num_blocks - fixed
    scale = min(1.0, max(0.6, room / sum(heights.values())))
    heights = {name: height * scale for name, height in heights.items()}
    block = fixed + sum(heights.values())
    figure = new_figure(width, _HEAD + num_blocks * block + legend_height)

    loss_scale, loss_limits = _loss_axis(shown, lines)
    for i, transition in enumerate(shown):
        row, column = divmod(i, per_row)
        left = _LEFT + column * (panel + _BETWEEN)
        top = figure.get_figheight() - _HEAD - row * block - title_height
        score = add_axes(figure, left, top - heights["score"], panel, heights["score"])
        base = top - heights["score"] - _GAP - heights["loss"]
        loss = add_axes(figure, left, base, panel, heights["loss"])
        _limit(score, "linear", (-0.05, 1.05), column == 0)
        _limit(loss, loss_scale, loss_limits, column == 0)
        score.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"] if column == 0 else [""] * 5)
        score.tick_params(labelbottom=False)
        score.set_title(titles[i], pad=3, linespacing=1.1)
        if column == 0:
            score.set_ylabel("score (0–1)")
            loss.set_ylabel("loss (nats/token)" + "\n(log scale)" * (loss_scale == "log"))
            for axes in (score, loss):
                axes.yaxis.set_label_coords(-0.40 / panel, 0.5)
                axes.yaxis.label.set(multialignment="center", va="bottom")
        for quantity, axes in (("score", score), ("loss", loss)):
            _draw(axes, transition, lines, quantity)
        size = (panel, heights["loss"])
        write_table(loss, transition, lines, labels, _TICKS + 0.02, size, labelled=column == 0)
    ends = ("first adapter", "second") if are_adapters(shown[0].rows) else ("before", "after")
    for row in range(num_blocks):
        in_row = min(per_row, len(shown) - row * per_row)
        y = figure.get_figheight() - _HEAD - row * block - title_height - sum(heights.values()) - _GAP - _TICKS
        figure.text(
            (_LEFT + (in_row * (panel + _BETWEEN) - _BETWEEN) / 2) / width,
            (y + 0.03) / figure.get_figheight(),
            f"position t on the path (0 = {ends[0]}, 1 = {ends[1]})",
            ha="center",
            va="bottom",
        )
    figure.text(
        0.05 / width,
        1 - 0.05 / figure.get_figheight(),
        whose(shown[0].rows) + (f": {next(iter(lines.values())).label}" if len(lines) == 1 else ""),
        ha="left",
        va="top",
        color="#404040",
    )
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, notes_height / figure.get_figheight()),
        ncols=columns,
        handlelength=2.4,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0.2,
        labelspacing=0.25,
    )
    figure.text(0.5, 0.04 / figure.get_figheight(), "\n".join(notes), ha="center", va="bottom", linespacing=1.15)
    return figure


def _curves(transition: TransitionRows, kind: tuple[str, str]) -> dict[str, pd.DataFrame]:
    """The curves drawn for a path: role to rows; a role without rows is left out."""
    curves = {"old": transition.curve(kind, "mean_old"), "new": transition.curve(kind, transition.new)}
    return {role: curve for role, curve in curves.items() if not curve.empty}


def _draw(axes: Axes, transition: TransitionRows, lines: Mapping[tuple[str, str], PathLine], quantity: str) -> None:
    banded = next(iter(lines))
    t_star = transition.number(banded, "mean", "score", "t_star")
    if not math.isnan(t_star):
        axes.axvline(t_star, color=GREY, linewidth=0.7, zorder=1, gid="t_star")
    for kind, line in lines.items():
        for role, curve in _curves(transition, kind).items():
            mark = ROLES[role]
            if kind == banded:
                axes.fill_between(
                    curve.t,
                    curve[f"{quantity}_low"],
                    curve[f"{quantity}_high"],
                    color=mark.colour,
                    alpha=0.22,
                    linewidth=0,
                    zorder=1.5,
                    gid=f"{role} {'-'.join(kind)} interval",
                )
            axes.plot(
                curve.t,
                curve[quantity],
                color=mark.colour,
                linestyle=line.dashes,
                zorder=3,
                gid=f"{role} {'-'.join(kind)}",
            )
            ends = curve[curve.t.isin([0.0, 1.0])]
            axes.plot(
                ends.t,
                ends[quantity],
                linestyle="none",
                marker=mark.marker,
                markersize=3.6,
                color=mark.colour,
                markeredgecolor=BLACK,
                markeredgewidth=0.5,
                clip_on=False,
                zorder=4,
                gid=f"{role} ends",
            )
            lost = curve[~np.isfinite(curve[quantity])]
            if not lost.empty:
                axes.plot(
                    lost.t,
                    np.ones(len(lost)),
                    linestyle="none",
                    marker="x",
                    markersize=3.6,
                    color=mark.colour,
                    transform=axes.get_xaxis_transform(),
                    clip_on=False,
                    zorder=4,
                    gid=f"{role} not finite",
                )
    if quantity == "score" and not math.isnan(t_star):
        mean = transition.curve(banded, "mean")
        there = mean[np.isclose(mean.t, t_star)]
        axes.plot(
            there.t,
            there.score,
            linestyle="none",
            marker=ROLES["mean"].marker,
            markersize=6.5,
            color=ROLES["mean"].colour,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=5,
            gid="mean at t_star",
        )


def _limit(axes: Axes, scale: str, limits: tuple[float, float], labelled: bool) -> None:
    axes.set_yscale(scale)
    axes.set_ylim(*limits)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.tick_params(labelleft=labelled)
    if scale == "log":
        plain_numbers(axes.yaxis)


def _loss_axis(
    shown: Sequence[TransitionRows], lines: Mapping[tuple[str, str], PathLine]
) -> tuple[str, tuple[float, float]]:
    """The scale and limits that all loss panels share.

    Linear, as the chord of a barrier is straight there, unless that would press the ends of a panel flat.
    """
    drawn, ends = [], []
    for transition in shown:
        for i, kind in enumerate(lines):
            for curve in _curves(transition, kind).values():
                columns = ["loss", "loss_low", "loss_high"] if i == 0 else ["loss"]
                drawn.append(curve[columns].to_numpy(dtype=float).ravel())
                ends.append(curve.loss[curve.t.isin([0.0, 1.0])].to_numpy(dtype=float))
    values = _finite(np.concatenate(drawn))
    if not len(values):
        return "linear", (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    highest_ends = [max(finite) for finite in map(_finite, ends) if len(finite)]
    if low > 0 and highest_ends and high > 10**LOG_FROM_DECADES * min(highest_ends):
        margin = (high / low) ** 0.07
        return "log", (low / margin, high * margin)
    low = min(low, 0.0)
    margin = 0.07 * (high - low or 1.0)
    return "linear", (low - margin, high + margin)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _legend_handles(lines: Mapping[tuple[str, str], PathLine], shown: Sequence[TransitionRows]) -> list[Line2D | Patch]:
    first = next(iter(lines.values()))
    roles = ("old", "new") if any(s.has_old for s in shown) else ("new",)
    words = {role: ROLES[role].label for role in roles}
    if are_adapters(shown[0].rows):
        words = {role: shortened(name, 24) for role, name in shown[0].role_names().items()}
    handles: list[Line2D | Patch] = [
        Line2D(
            [], [], color=m.colour, marker=m.marker, markersize=3.6, markeredgecolor=BLACK, markeredgewidth=0.5,
            label=words[role],
        )
        for role, m in ((role, ROLES[role]) for role in roles)
    ]  # fmt: skip
    of_first = ""
    if len(lines) > 1:
        handles += [Line2D([], [], color=BLACK, linestyle=line.dashes, label=line.label) for line in lines.values()]
        of_first = f" ({first.short})"
    handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label=f"95 % interval{of_first}"))
    if any(not math.isnan(s.number(next(iter(lines)), "mean", "score", "t_star")) for s in shown):
        handles.append(
            Line2D(
                [], [], color=GREY, linewidth=0.7, marker=ROLES["mean"].marker, markersize=6.5,
                markerfacecolor=ROLES["mean"].colour, markeredgecolor="white", markeredgewidth=0.5,
                label=f"t*{of_first}: best {ROLES['mean'].label}",
            )
        )  # fmt: skip
    values = pd.concat([curve[list(QUANTITIES)] for s in shown for k in lines for curve in _curves(s, k).values()])
    if not np.isfinite(values.to_numpy(dtype=float)).all():
        handles.append(Line2D([], [], color=BLACK, linestyle="none", marker="x", markersize=3.6, label="not finite"))
    return handles


def _titles(shown: Sequence[TransitionRows], panel: float) -> list[str]:
    """`A → B` for each panel of that width in inches; on two lines where one title is too long, and shortened then."""
    names = [(label_name(s.start), label_name(s.end)) for s in shown]
    if all(text_width(" → ".join(pair), TITLE_SIZE) <= panel for pair in names):
        return [" → ".join(pair) for pair in names]

    def fitted(name: str, end: str) -> str:
        length = len(name)
        while length > 3 and text_width(shortened(name, length) + end, TITLE_SIZE) > panel:
            length -= 1
        return shortened(name, length) + end

    return [fitted(start, " →") + "\n" + fitted(end, "") for start, end in names]
