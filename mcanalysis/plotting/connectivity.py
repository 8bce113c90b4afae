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
from matplotlib.ticker import FuncFormatter, NullFormatter

from mcanalysis.plotting.legend import legend_columns
from mcanalysis.plotting.selection import (
    label_name,
)
from mcanalysis.plotting.style import (
    BLACK,
    GREY,
    ROLES,
    PathLine,
    add_axes,
    double_column,
    new_figure,
    path_lines,
    print_style,
    shortened,
    single_column,
)
from mcanalysis.plotting.transition_rows import QUANTITIES, TransitionRows, shown_number, transition_rows, whose

PANELS_PER_ROW = 4
LOG_FROM_DECADES = 1.5  # by which the highest loss exceeds a curve's ends where the axis is logarithmic


# The layout, in inches.
_LEFT, _RIGHT, _BETWEEN = 0.70, 0.10, 0.12
_PANEL_HEIGHT = {"score": 1.12, "loss": 0.98}
_TITLE, _GAP, _TICKS, _LINE, _BLOCK_GAP, _HEAD = 0.20, 0.09, 0.34, 0.122, 0.12, 0.15
_TALLEST = 9.0


def plot_transitions(profiles: pd.DataFrame, barriers: pd.DataFrame) -> Figure:
    """Draw score (upper) and loss (lower, nats per target token) against t in [0, 1], a pair of panels per transition.

    `profiles`, `barriers`: the tables of one strategy, learner and seed (`profiles.csv`, `barriers.csv`); the rows of
    the test split are drawn, others ignored. Blue squares: mean over the earlier tasks; orange circles: the new task;
    the kind of line tells the path. Band: 95 % interval on the first kind of path, linear in factor space where that
    was measured. Star and vertical line: t* of that path. Crosses on the upper edge: values that are not finite.
    Below each pair: chord barrier of the loss, t* and gain of every path. All loss panels share one axis. One
    transition gives a figure of one column's width, more a figure of two columns' width.

    Raises `UserError` for missing columns, no row of the test split, several runs, repeated rows, or barriers that hold
    nothing of these transitions.
    """
    shown, kinds = transition_rows(profiles, barriers)
    lines = path_lines(kinds)
    with print_style():
        per_row = min(len(shown), max(1, min(PANELS_PER_ROW, 16 // len(lines))))
        num_blocks = math.ceil(len(shown) / per_row)
        width = single_column() if per_row == 1 else double_column()
        labels = _table_labels(shown)
        heights = dict(_PANEL_HEIGHT)
        handles = _legend_handles(lines, shown)
        columns = legend_columns([str(h.get_label()) for h in handles], width, 4)
        notes = _notes(labels, 1 if width == double_column() else 2)
        notes_height = 0.05 + _LINE * len(notes)
        legend_height = notes_height + 0.135 * math.ceil(len(handles) / columns) + 0.06
        fixed = _TITLE + _GAP + _TICKS + _LINE * (len(labels) + 1) + _BLOCK_GAP
        room = (_TALLEST - _HEAD - legend_height) / num_blocks - fixed
        scale = min(1.0, max(0.65, room / sum(heights.values())))
        heights = {name: height * scale for name, height in heights.items()}
        block = fixed + sum(heights.values())
        figure = new_figure(width, _HEAD + num_blocks * block + legend_height)

        panel = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
        loss_scale, loss_limits = _loss_axis(shown, lines)
        for i, transition in enumerate(shown):
            row, column = divmod(i, per_row)
            left = _LEFT + column * (panel + _BETWEEN)
            top = figure.get_figheight() - _HEAD - row * block - _TITLE
            score = add_axes(figure, left, top - heights["score"], panel, heights["score"])
            base = top - heights["score"] - _GAP - heights["loss"]
            loss = add_axes(figure, left, base, panel, heights["loss"])
            _limit(score, "linear", (-0.05, 1.05), column == 0)
            _limit(loss, loss_scale, loss_limits, column == 0)
            score.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"] if column == 0 else [""] * 5)
            score.tick_params(labelbottom=False)
            _write_title(score, transition)
            if column == 0:
                score.set_ylabel("score (0–1)")
                loss.set_ylabel("loss (nats/token)")
                for axes in (score, loss):
                    axes.yaxis.set_label_coords(-0.40 / panel, 0.5)
            for quantity, axes in (("score", score), ("loss", loss)):
                _draw(axes, transition, lines, quantity)
            _write_table(loss, transition, lines, labels, panel, heights["loss"], column == 0)
        for row in range(num_blocks):
            in_row = min(per_row, len(shown) - row * per_row)
            y = figure.get_figheight() - _HEAD - row * block - _TITLE - sum(heights.values()) - _GAP - _TICKS
            figure.text(
                (_LEFT + (in_row * (panel + _BETWEEN) - _BETWEEN) / 2) / width,
                (y + 0.03) / figure.get_figheight(),
                "position t on the path (0 = before, 1 = after)",
                ha="center",
                va="bottom",
            )
        figure.text(
            0.05 / width, 1 - 0.05 / figure.get_figheight(), whose(shown[0].rows), ha="left", va="top", color="#404040"
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
        figure.draw_without_rendering()  # makes the ticks while the style holds
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
    if scale == "log":  # plain numbers: the small exponents of 10⁻¹ would be below the smallest text
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


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


_TABLE = {
    "old": ("barrier, old", "mean_old", "loss", "chord_barrier"),
    "new": ("barrier, new", None, "loss", "chord_barrier"),
    "t_star": ("t*", "mean", "score", "t_star"),
    "gain": ("gain", "mean", "score", "interpolation_gain"),
    "low": ("95 % from", "mean", "score", "interpolation_gain_low"),
    "high": ("to", "mean", "score", "interpolation_gain_high"),
}


def _table_labels(shown: Sequence[TransitionRows]) -> list[str]:
    """The lines of the small table below each pair: those that have a number somewhere."""
    has_old = any("mean_old" in set(s.rows.task) for s in shown)
    has_gain = any(bool(s.barriers.interpolation_gain.notna().any()) for s in shown)
    return [name for name in _TABLE if name == "new" or (has_old if name == "old" else has_gain)]


def _notes(labels: Sequence[str], num_lines: int) -> list[str]:
    """What the small tables hold, on one line or one sentence per line."""
    notes = ["Barrier: chord barrier of the loss (nats/token)."]
    if "gain" in labels:
        notes.append("Gain: S̄(t*) − max(S̄(0), S̄(1)), S̄ = ½ (old + new).")
    return notes if num_lines > 1 else ["  ".join(notes)]


def _write_table(
    axes: Axes,
    transition: TransitionRows,
    lines: Mapping[tuple[str, str], PathLine],
    labels: Sequence[str],
    panel: float,
    height: float,
    labelled: bool,
) -> None:
    top = -(_TICKS + 0.02) / height

    def write(x: float, line: int, words: str, **style) -> None:
        axes.text(x, top - line * _LINE / height, words, transform=axes.transAxes, va="top", **style)

    for column, (kind, line) in enumerate(lines.items()):
        x = (column + 0.5) / len(lines)
        write(x, 0, line.short, ha="center", style="italic")
        for i, name in enumerate(labels, start=1):
            _, task, quantity, cell = _TABLE[name]
            value = transition.number(kind, task or transition.new, quantity, cell)
            signed = name in ("gain", "low", "high")
            write(x, i, shown_number(value, signed), ha="center", gid=f"table {name} {'-'.join(kind)}")
    for i, name in enumerate(labels if labelled else (), start=1):
        write(-0.08 / panel, i, _TABLE[name][0], ha="right")


def _legend_handles(lines: Mapping[tuple[str, str], PathLine], shown: Sequence[TransitionRows]) -> list[Line2D | Patch]:
    first = next(iter(lines.values()))
    roles = ("old", "new") if any("mean_old" in set(s.rows.task) for s in shown) else ("new",)
    handles: list[Line2D | Patch] = [
        Line2D(
            [], [], color=m.colour, marker=m.marker, markersize=3.6, markeredgecolor=BLACK, markeredgewidth=0.5,
            label=m.label,
        )
        for m in (ROLES[role] for role in roles)
    ]  # fmt: skip
    handles += [Line2D([], [], color=BLACK, linestyle=line.dashes, label=line.label) for line in lines.values()]
    handles.append(Patch(color=GREY, alpha=0.4, linewidth=0, label=f"95 % interval ({first.short})"))
    if any(not math.isnan(s.number(next(iter(lines)), "mean", "score", "t_star")) for s in shown):
        handles.append(
            Line2D(
                [], [], color=GREY, linewidth=0.7, marker=ROLES["mean"].marker, markersize=6.5,
                markerfacecolor=ROLES["mean"].colour, markeredgecolor="white", markeredgewidth=0.5,
                label=f"t* ({first.short}): best {ROLES['mean'].label}",
            )
        )  # fmt: skip
    values = pd.concat([curve[list(QUANTITIES)] for s in shown for k in lines for curve in _curves(s, k).values()])
    if not np.isfinite(values.to_numpy(dtype=float)).all():
        handles.append(Line2D([], [], color=BLACK, linestyle="none", marker="x", markersize=3.6, label="not finite"))
    return handles


def _write_title(axes: Axes, transition: TransitionRows) -> None:
    """`A → B` above the panel, names shortened until it is hardly wider than the panel."""
    names = [label_name(transition.start), label_name(transition.end)]
    title = axes.set_title(" → ".join(names), pad=3)
    room = axes.bbox.width + _BETWEEN / 2 * axes.figure.dpi
    while title.get_window_extent().width > room and max(map(len, names)) > 3:
        longest = max(names, key=len)
        names[names.index(longest)] = shortened(longest.replace("…", ""), len(longest) - 1)
        title.set_text(" → ".join(names))
