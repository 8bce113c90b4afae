"""Which answers turn along paths: what is lost and gained against the start, and what the middle alone knows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.selection import between_ends, label_name, only_value, require_columns, transitions
from mcanalysis.plotting.style import (
    GREEN,
    GREY,
    ROLES,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    single_column,
    whose,
    write_head,
)

PANELS_PER_ROW = 4
_LEFT, _RIGHT, _BETWEEN, _HEAD, _HEIGHT, _TITLE, _TICKS, _FOOT, _ROW = 0.55, 0.08, 0.14, 0.22, 1.2, 0.2, 0.2, 0.42, 0.15
_WHOSE = ["strategy", "learner", "seed", "path", "space"]
_KEYS = ["start", "end", "role", "t"]
_SHARES = [f"{name}_{end}" for name in ("lost", "gained") for end in ("rate", "corrected")]


def turned_rows(flips: pd.DataFrame) -> pd.DataFrame:
    """What is drawn of the rows of one path: per transition, role (old, new) and t the means over tasks.

    `lost_*` and `gained_*` are against the start, `alone_*` what t answers right and both ends answer wrong. Raises
    `UserError` for missing columns, several paths, or no row of a trained task.
    """
    require_columns(flips, [*_WHOSE, *_KEYS, "task", "against", *_SHARES], "flips")
    for column in _WHOSE:
        only_value(flips, column, "flips")
    trained = between_ends(flips[flips.role.isin(["old", "new"])])
    if trained.empty:
        raise UserError("Expected rows of trained tasks in the table flips, got none; measure a run with exact scores.")
    against_start, both = (trained[trained.against == name] for name in ("start", "both"))
    made = against_start.groupby(_KEYS, sort=False)[_SHARES].mean()
    alone = both.groupby(_KEYS, sort=False)[["gained_rate", "gained_corrected"]].mean()
    made[["alone_rate", "alone_corrected"]] = alone.to_numpy()
    return made.assign(num_tasks=against_start.groupby(_KEYS, sort=False).size()).reset_index()


@in_print_style
def plot_flips(flips: pd.DataFrame) -> Figure:
    """Draw, per transition, shares of the questions that turn right (up) and wrong (down) against the start, over t.

    Lines, filled to zero: as counted; dotted: corrected for guessing, where that is above zero. Old tasks by their
    mean, and the new task. Above zero also what t alone answers right, wrong at both ends.

    Args:
        flips: `flips.csv` of one strategy, learner, seed and kind of path.

    Raises:
        UserError: as `turned_rows`.
    """
    rows = turned_rows(flips)
    panels = transitions(rows)
    per_row = min(PANELS_PER_ROW, len(panels))
    width = single_column() if per_row == 1 else double_column()
    lines = math.ceil(len(panels) / per_row)
    panel, block = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row, _TITLE + _HEIGHT + _TICKS
    foot = _FOOT if per_row > 1 else _FOOT + 2 * _ROW
    figure = new_figure(width, _HEAD + lines * block + foot)
    reach = 1.08 * max(0.05, float(np.nanmax(rows.drop(columns=[*_KEYS, "num_tasks"]).to_numpy(), initial=0.0)))
    for i, (start, end) in enumerate(panels):
        line, column = divmod(i, per_row)
        bottom = figure.get_figheight() - _HEAD - line * block - _TITLE - _HEIGHT
        axes = add_axes(figure, _LEFT + column * (panel + _BETWEEN), bottom, panel, _HEIGHT)
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0.5)
        here = rows[(rows.start == start) & (rows.end == end)]
        for role in ("old", "new"):
            one, mark = here[here.role == role].sort_values("t"), ROLES[role]
            for name, sign in (("gained", 1), ("lost", -1)):
                value = sign * one[f"{name}_rate"]
                axes.fill_between(one.t, 0, value, color=mark.colour, alpha=0.15, linewidth=0)
                axes.plot(
                    one.t, value, color=mark.colour, linewidth=1.0, marker=mark.marker, markersize=2.2, markevery=5,
                    label=mark.label if name == "gained" else None, gid=f"{name} {role} {i}",
                )  # fmt: skip
                known = one[f"{name}_corrected"].where(lambda share: share >= 0)  # below, nothing is left but noise
                axes.plot(one.t, sign * known, color=mark.colour, linewidth=0.6, linestyle=":")
        alone = here.groupby("t").alone_rate.mean()
        axes.plot(
            alone.index, alone, color=GREEN, linewidth=1.0, linestyle="--", label="right here, wrong at both ends",
            gid=f"alone {i}",
        )  # fmt: skip
        room = max(8, int(panel * 7.5) - 1)  # letters of a name
        title = " → ".join(shortened(label_name(label), room) for label in (start, end))
        axes.set_title(title, pad=3, fontsize=7.0)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_ylim(-reach, reach)
        if column == 0:
            axes.set_ylabel("share of questions (0–1)\nlost ↓     ↑ gained", labelpad=2)
        else:
            axes.tick_params(labelleft=False)
    first = flips.iloc[0]
    write_head(figure, f"{whose(first)}, test split: {first.path.replace('_', ' ')}, {first.space} space")
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    handles["corrected for guessing"] = Line2D([], [], color=GREY, linewidth=0.6, linestyle=":")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower left",
        bbox_to_anchor=(_LEFT / width, 0.0),
        ncols=4 if per_row > 1 else 1,
        borderaxespad=0.2,
    )
    figure.text(
        1 - _RIGHT / width,
        (foot - _ROW) / figure.get_figheight(),
        "position t from start to end",
        ha="right",
        va="bottom",
    )
    return figure


def flips_caption(flips: pd.DataFrame) -> str:
    """The figure in words."""
    turned_rows(flips)  # refuses what is not drawn
    first = flips.iloc[0]
    ends = flips[(flips.t == 1.0) & (flips.against == "start")]
    lost, gained = (ends[ends.role == role] for role in ("old", "new"))
    numbers = [
        f"{words} {of_role[f'{name}_rate'].mean():.1%} ({of_role[f'{name}_corrected'].mean():.1%} corrected)"
        for words, name, of_role in (("lost of old tasks", "lost", lost), ("gained of the new task", "gained", gained))
        if len(of_role)
    ]
    return (
        f"Answers that turn along the {first.path.replace('_', ' ')} path in {first.space} space of each transition "
        f"({whose(first)}), against those at its start (t = 0): shares of the test "
        "questions that turn right (up) and wrong (down). Lines: as counted; dotted: corrected for "
        "guesses, independent from point to point, where that is above zero (near points repeat their guesses, which "
        "takes too much away). Old tasks: mean over those with exact scores; a new task with a graded score has no "
        "line. Dashed: right at t and wrong at both ends, mean over old and new. "
        f"At t = 1, mean over transitions and tasks: {'; '.join(numbers)}."
    )
