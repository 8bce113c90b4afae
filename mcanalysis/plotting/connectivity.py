"""Score and loss along the paths between successive minima of one run, with the barriers in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mcanalysis.numbers_as_text import shown_number
from mcanalysis.plotting.legend import close_legend, legend_size, text_width
from mcanalysis.plotting.selection import label_name
from mcanalysis.plotting.style import (
    BLACK,
    GREY,
    ROLES,
    TITLE_SIZE,
    PathLine,
    add_axes,
    cross_not_finite,
    double_column,
    in_print_style,
    new_figure,
    path_lines,
    plain_numbers,
    shortened,
    single_column,
    write_head,
)
from mcanalysis.plotting.transition_rows import QUANTITIES, TransitionRows, are_adapters, transition_rows, whose_paths

PANELS_PER_ROW = 4
LOG_FROM_DECADES = 1.5  # by which the highest loss exceeds a curve's ends where the axis is logarithmic


# The layout, in inches.
_LEFT, _RIGHT, _BETWEEN = 0.70, 0.10, 0.12
_PANEL_HEIGHT = {"score": 1.12, "loss": 0.98}
_TITLE, _TITLE_LINE, _GAP, _TICKS, _BLOCK_GAP, _HEAD = 0.20, 0.12, 0.09, 0.34, 0.12, 0.15
_TALLEST = 9.0
_LINE = 0.122  # from one line of the table to the next
_CELLS = {  # line of the table: task (None: the new one), quantity and column of the barriers
    "old": ("mean_old", "loss", "chord_barrier"),
    "new": (None, "loss", "chord_barrier"),
    "t_star": ("mean", "score", "t_star"),
    "gain": ("mean", "score", "interpolation_gain"),
    "low": ("mean", "score", "interpolation_gain_low"),
    "high": ("mean", "score", "interpolation_gain_high"),
}
_WORDS = {
    "old": "barrier, old",
    "new": "barrier, new",
    "t_star": "t*",
    "gain": "gain",
    "low": "95 % from",
    "high": "to",
}
_RECIPE: dict[str, Any] = {
    "linestyle": "none", "marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": BLACK,
    "markeredgewidth": 0.8,
}  # fmt: skip
_BEYOND = 0.16  # opacity of the ground beyond the ends of a path
_MOST_LETTERS = 12  # of a line's words, which stand in the margin


@in_print_style
def plot_transitions(
    profiles: pd.DataFrame, barriers: pd.DataFrame, so_far: str = "", mark: tuple[str, float] | None = None
) -> Figure:
    """Draw score (upper) and loss (lower, nats per target token) against t in [0, 1], a pair of panels per transition.

    `profiles`, `barriers`: the tables of one strategy, learner and seed (`profiles.csv`, `barriers.csv`); the rows of
    the test split are drawn, others ignored. Blue squares: mean over the old tasks; orange circles: the new task;
    the kind of line tells the path. Band: 95 % interval on the first kind of path, linear in factor space where that
    was measured. Vertical line: t* of that path, star: S̄ there. Crosses on the upper edge: values that are not finite.
    Grey ground: beyond the ends of the path, where that was measured. Below each pair: chord barrier of the loss, t*
    and gain of every path. All loss panels share one axis. One transition gives a figure of one column's width, more a
    figure of two columns' width. `so_far`: how much of it there is, said above the panels. `mark`: a path
    (`linear-delta`) and t that diamonds point out, such as a recipe's.

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
    labels = _table_lines(shown)
    heights = dict(_PANEL_HEIGHT)
    handles = _legend_handles(lines, shown)
    if mark is not None:
        handles.append(Line2D([], [], **_RECIPE, label=f"recipe, t = {mark[1]:g}"))
    columns, num_rows = legend_size(handles, width, 4)
    notes = _table_notes(shown, 1 if width == double_column() else 2)
    notes_height = 0.05 + _LINE * len(notes)
    legend_height = notes_height + 0.135 * num_rows + 0.06
    fixed = title_height + _GAP + _TICKS + _LINE * (len(labels) + (len(lines) > 1)) + _BLOCK_GAP
    room = (_TALLEST - _HEAD - legend_height) / num_blocks - fixed
    scale = min(1.0, max(0.6, room / sum(heights.values())))
    heights = {name: height * scale for name, height in heights.items()}
    block = fixed + sum(heights.values())
    figure = new_figure(width, _HEAD + num_blocks * block + legend_height)

    loss_scale, loss_limits = _loss_axis(shown, lines)
    ts = pd.concat([transition.rows.t for transition in shown])
    reach = min(0.0, float(ts.min())), max(1.0, float(ts.max()))
    for i, transition in enumerate(shown):
        row, column = divmod(i, per_row)
        left = _LEFT + column * (panel + _BETWEEN)
        top = figure.get_figheight() - _HEAD - row * block - title_height
        score = add_axes(figure, left, top - heights["score"], panel, heights["score"])
        base = top - heights["score"] - _GAP - heights["loss"]
        loss = add_axes(figure, left, base, panel, heights["loss"])
        _limit(score, "linear", (-0.05, 1.05), column == 0, reach)
        _limit(loss, loss_scale, loss_limits, column == 0, reach)
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
            if mark is not None:
                _point_out(axes, transition, mark, quantity)
        size = (panel, heights["loss"])
        _write_table(loss, transition, lines, labels, _TICKS + 0.02, size, labelled=column == 0)
    kind = shown[0].rows.strategy.iloc[0].removesuffix("s")  # adapter or model, where it is no strategy
    ends = (f"first {kind}", "second") if are_adapters(shown[0].rows) else ("before", "after")
    is_rewinding = all(transition.is_from_base for transition in shown)
    if is_rewinding:
        ends = "base model", kind if are_adapters(shown[0].rows) else "minimum"
    for row in range(num_blocks):
        in_row = min(per_row, len(shown) - row * per_row)
        y = figure.get_figheight() - _HEAD - row * block - title_height - sum(heights.values()) - _GAP - _TICKS
        figure.text(
            (_LEFT + (in_row * (panel + _BETWEEN) - _BETWEEN) / 2) / width,
            (y + 0.03) / figure.get_figheight(),
            f"{_t_words(reach)} (0 = {ends[0]}, 1 = {ends[1]})",
            ha="center",
            va="bottom",
        )
    has_one_kind = len(lines) == 1 and not is_rewinding  # that is one line in every space
    of_path = f": {next(iter(lines.values())).label}" if has_one_kind else ""
    head = "rewinding: " * is_rewinding + whose_paths(shown[0].rows)
    write_head(figure, head + (f"; {so_far}" if so_far else of_path))
    close_legend(figure, handles, columns, notes_height, handlelength=2.4, borderpad=0.2)
    figure.text(0.5, 0.04 / figure.get_figheight(), "\n".join(notes), ha="center", va="bottom", linespacing=1.15)
    return figure


def _t_words(reach: tuple[float, float]) -> str:
    low, high = (f"{t:.3g}".replace("-", "−") for t in reach)
    return "position t on the path" if reach == (0.0, 1.0) else f"t from {low} to {high}"


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
            mark, name = ROLES[role], f"{role} {'-'.join(kind)}"
            if kind == banded:
                axes.fill_between(
                    curve.t, curve[f"{quantity}_low"], curve[f"{quantity}_high"], color=mark.colour, alpha=0.22,
                    linewidth=0, zorder=1.5, gid=f"{name} interval",
                )  # fmt: skip
            axes.plot(curve.t, curve[quantity], color=mark.colour, linestyle=line.dashes, zorder=3, gid=name)
            ends = curve[curve.t.isin([0.0, 1.0])]
            axes.plot(
                ends.t, ends[quantity], linestyle="none", marker=mark.marker, markersize=3.6, color=mark.colour,
                markeredgecolor=BLACK, markeredgewidth=0.5, clip_on=False, zorder=4, gid=f"{role} ends",
            )  # fmt: skip
            lost = curve[~np.isfinite(curve[quantity])]
            if not lost.empty:
                cross_not_finite(axes, lost.t, mark.colour, f"{role} not finite")
    if quantity == "score" and not math.isnan(t_star):
        mean = transition.curve(banded, "mean")
        there = mean[np.isclose(mean.t, t_star)]
        mark = ROLES["mean"]
        axes.plot(
            there.t, there.score, linestyle="none", marker=mark.marker, markersize=6.5, color=mark.colour,
            markeredgecolor="white", markeredgewidth=0.5, zorder=5, gid="mean at t_star",
        )  # fmt: skip


def _point_out(axes: Axes, transition: TransitionRows, mark: tuple[str, float], quantity: str) -> None:
    """A diamond on each curve of a path at t, between measured points on the line that joins them."""
    path, _, space = mark[0].rpartition("-")
    for role, curve in _curves(transition, (path, space)).items():
        value = np.interp(mark[1], curve.t, curve[quantity], left=np.nan, right=np.nan)
        axes.plot([mark[1]], [value], **_RECIPE, zorder=6, gid=f"{role} recipe")


def _limit(
    axes: Axes, scale: str, limits: tuple[float, float], labelled: bool, reach: tuple[float, float] = (0.0, 1.0)
) -> None:
    """`reach`: from which t to which was measured; what lies beyond [0, 1] is shaded."""
    axes.set_yscale(scale)
    axes.set_ylim(*limits)
    low, high = reach
    margin = 0.03 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    shaded = [(low - margin, 0.0)] * (low < 0) + [(1.0, high + margin)] * (high > 1)
    for start, end in shaded:
        axes.axvspan(start, end, color=GREY, alpha=_BEYOND, linewidth=0, zorder=0, gid="beyond the ends")
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
        ROLES[role].handle(markersize=3.6, markeredgecolor=BLACK, markeredgewidth=0.5, label=words[role])
        for role in roles
    ]
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
    if not all(s.rows.t.between(0, 1).all() for s in shown):
        handles.append(Patch(color=GREY, alpha=_BEYOND, linewidth=0, label="beyond the ends"))
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


def _table_lines(shown: Sequence[TransitionRows]) -> dict[str, str]:
    """The lines that have a number somewhere, and their words; between two adapters these are the data files' names."""
    has_gain = any(bool(s.barriers.interpolation_gain.notna().any()) for s in shown)
    names = [n for n in _CELLS if n == "new" or (any(s.has_old for s in shown) if n == "old" else has_gain)]
    words = _WORDS
    if are_adapters(shown[0].rows):
        words = words | {role: shortened(name, _MOST_LETTERS) for role, name in shown[0].role_names().items()}
    return {name: words[name] for name in names}


def _table_notes(shown: Sequence[TransitionRows], num_lines: int) -> list[str]:
    """What the small tables hold, on one line or one sentence per line."""
    what = "Numbers" if are_adapters(shown[0].rows) else "Barrier"
    notes = [f"{what}: chord barrier of the loss (nats/token)."]
    if "gain" in _table_lines(shown):
        notes.append("Gain: S̄(t*) − max(S̄(0), S̄(1)), S̄ = ½ (old + new).")
    return notes if num_lines > 1 else ["  ".join(notes)]


def _write_table(
    axes: Axes,
    transition: TransitionRows,
    paths: Mapping[tuple[str, str], PathLine],
    lines: Mapping[str, str],
    below: float,
    size: tuple[float, float],
    labelled: bool,
) -> None:
    """Write the table `below` inches under axes of `size` (width, height) inches, with words on its left or without."""
    width, height = size

    def write(x: float, line: int, words: str, **style) -> None:
        axes.text(x, -(below + line * _LINE) / height, words, transform=axes.transAxes, va="top", **style)

    for column, (kind, path) in enumerate(paths.items()):
        x = (column + 0.5) / len(paths)
        if len(paths) > 1:
            write(x, 0, path.short, ha="center", style="italic")
        for i, name in enumerate(lines, start=len(paths) > 1):
            task, quantity, cell = _CELLS[name]
            value = transition.number(kind, task or transition.new, quantity, cell)
            signed = name in ("gain", "low", "high")
            write(x, i, shown_number(value, signed), ha="center", gid=f"table {name} {'-'.join(kind)}")
    for i, words in enumerate(lines.values() if labelled else (), start=len(paths) > 1):
        write(-0.08 / width, i, words, ha="right")
