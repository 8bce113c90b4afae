"""What is known of loss barriers to a tolerance: bands along paths, and how many examples points were measured on."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import cell, shown_number
from mcanalysis.plotting.selection import TASK_WORDS, label_name, require_columns
from mcanalysis.plotting.style import (
    BLUE,
    GREY,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    plain_numbers,
    shortened,
    single_column,
)

PANELS_PER_ROW = 4
_KEYS = ["path", "space", "start", "end", "task"]
_LEFT, _RIGHT, _BETWEEN, _TOP, _HEIGHT, _TITLE, _TICKS, _BAR = 0.72, 0.10, 0.40, 0.06, 1.15, 0.32, 0.36, 0.44
_TICKS_APART = 0.15  # of the bar
_MOST_LETTERS = 24  # of a panel's title


@in_print_style
def plot_certificates(certificates: pd.DataFrame) -> Figure:
    """Draw the loss above the chord between the ends against t, a panel per path and task, with the band of a search.

    Points: where losses were measured, coloured by the number of examples, with intervals for all examples given that
    hold together; band: what the curve between them is estimated to lie in.

    Args:
        certificates: columns path, space, start, end, task, t, loss, loss_low, loss_high, num_examples (0 between
            points): `certificates.csv` of one strategy, learner and seed.

    Raises:
        UserError: for missing columns or an empty table.
    """
    require_columns(certificates, [*_KEYS, "t", "loss", "loss_low", "loss_high", "num_examples"], "certificates")
    if certificates.empty:
        raise UserError("Expected rows in the table certificates, got none; measure with --tolerance.")
    panels = list(certificates.groupby(_KEYS, sort=False))
    are_many = len(certificates[["path", "space"]].drop_duplicates()) > 1  # kinds of paths
    per_row = min(PANELS_PER_ROW, len(panels))
    width = single_column() if per_row == 1 else double_column()
    rows = math.ceil(len(panels) / per_row)
    panel = (width - _LEFT - _RIGHT - (per_row - 1) * _BETWEEN) / per_row
    block = _TITLE + _HEIGHT + _TICKS
    figure = new_figure(width, _TOP + rows * block + _BAR)
    measured = certificates.num_examples[certificates.num_examples > 0]
    least, most = float(measured.min()), float(measured.max())
    norm = LogNorm(least, most if most > least else least * 1.01)
    for i, (names, one) in enumerate(panels):
        row, column = divmod(i, per_row)
        bottom = figure.get_figheight() - _TOP - row * block - _TITLE - _HEIGHT
        axes = add_axes(figure, _LEFT + column * (panel + _BETWEEN), bottom, panel, _HEIGHT)
        drawn = one.sort_values("t")
        chord = np.interp(drawn.t, [0.0, 1.0], drawn.loss.iloc[[0, -1]])
        above = {name: drawn[name] - chord for name in ("loss", "loss_low", "loss_high")}
        axes.axhline(0, color=GREY, linewidth=0.6, linestyle="--", zorder=0.5)
        axes.fill_between(
            drawn.t, above["loss_low"], above["loss_high"], color=BLUE, alpha=0.18, linewidth=0, gid=f"band {i}"
        )
        axes.plot(drawn.t, above["loss"], color=BLUE, linewidth=0.8, zorder=2)
        points = (drawn.num_examples > 0).to_numpy()
        at = drawn.t[points]
        bars = np.nan_to_num(
            [(above["loss"] - above["loss_low"])[points], (above["loss_high"] - above["loss"])[points]], posinf=0.0
        )
        axes.errorbar(at, above["loss"][points], bars, fmt="none", ecolor=GREY, elinewidth=0.7, zorder=3)
        axes.scatter(
            at, above["loss"][points], c=drawn.num_examples[points], norm=norm, cmap="viridis", s=13, zorder=4,
            edgecolors="black", linewidths=0.35, gid=f"points {i}",
        )  # fmt: skip
        path, space, start, end, task = map(str, names)  # type: ignore[arg-type]
        head = f"{label_name(start)} → {label_name(end)}"
        words = TASK_WORDS.get(task, task)
        words += f", {path} {space}" if are_many else ""
        axes.set_title(f"{shortened(head, _MOST_LETTERS)}\n{words}", pad=3, linespacing=1.1, fontsize=7.0)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_xlabel("t", labelpad=1)
        if column == 0:
            axes.set_ylabel("loss above chord\n(nats per target)")
    bar = add_axes(figure, _LEFT, 0.2, min(2.4, width - 2 * _LEFT), 0.06)
    colours = figure.colorbar(ScalarMappable(norm, "viridis"), cax=bar, orientation="horizontal")
    colours.set_ticks(_apart(sorted(set(measured)), _TICKS_APART))
    plain_numbers(bar.xaxis)
    bar.minorticks_off()
    bar.set_title("examples that a point was measured on", pad=2, loc="left", fontsize=7.0)
    return figure


def _apart(numbers: list[float], share: float) -> list[float]:
    """The first, the last and those between that lie at least `share` of the logarithmic range from the one before.

    >>> _apart([64, 88, 176, 200, 1400], 0.15)
    [64, 176, 1400]
    """
    first, last = numbers[0], numbers[-1]
    least, kept = share * math.log(last / first), [first]
    for number in numbers[1:-1]:
        if math.log(number / kept[-1]) >= least and math.log(last / number) >= least:
            kept.append(number)
    return [*kept, last] if last > first else kept


def caption(certificates: pd.DataFrame, barriers: pd.DataFrame) -> str:
    """The figure in words, with what each search says of the chord barrier; `barriers`: the rows of the same paths."""
    lines = [
        "Loss above the chord between the ends of each path, on the test examples given. Points: where it was "
        "measured, coloured by the number of examples, with intervals for all examples that hold together at 95 %. "
        "Band: what the curve between points lies in, estimated by interpolation: a bump that lies wholly between two "
        "points is not seen, so that no band is proven."
    ]
    known = barriers[barriers.chord_barrier_at_most.notna()]
    for row in known.to_dict("records"):
        number = {name: cell(row[f"chord_barrier_at_{name}"], 3) for name in ("least", "most")}
        words = "" if row["tolerance_reached"] else " (the budget ended before the tolerance was reached)"
        lines.append(
            f"{label_name(row['start'])} → {label_name(row['end'])}, {row['path']} {row['space']}, "
            f"{TASK_WORDS.get(row['task'], row['task'])}: chord barrier of the loss from {number['least']} to "
            f"{number['most']}{words}; work of {shown_number(row['evaluations'])} points on all examples."
        )
    return "\n\n".join([lines[0], "\n".join(lines[1:])])
