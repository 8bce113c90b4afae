"""Ablations: what one setting of a strategy does to average accuracy and forgetting, all others kept."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mcanalysis.errors import UserError
from mcanalysis.plotting.legend import legend_size
from mcanalysis.plotting.selection import error_bars, require_columns, where
from mcanalysis.plotting.style import (
    GREY,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    strategy_marks,
    strategy_name,
)

QUANTITIES = {"average_accuracy": "average accuracy\n(score, 0–1)", "forgetting": "forgetting\n(score, −1 to 1)"}
SETTINGS = {
    "ema_decay": "EMA decay λ",
    "consistency_weight": "consistency weight γ",
    "memory_size": "buffer size (examples)",
}
_LEFT, _RIGHT, _BETWEEN, _TOP, _HEIGHT, _GAP, _TICKS = 0.62, 0.08, 0.16, 0.10, 1.15, 0.12, 0.40


@in_print_style
def plot_ablation(ablation: pd.DataFrame) -> Figure:
    """Draw average accuracy (upper) and forgetting (lower) against the value of each setting, a panel per setting.

    Values stand at equal steps. Marker: mean over seeds; bar: its 95 % interval; dots: each seed. The base value is
    marked by a vertical line.

    Args:
        ablation: columns setting, value, is_base, strategy, learner, and per quantity <name>, <name>_low, <name>_high
            and <name>_seeds (the values of the seeds, separated by spaces).

    Raises:
        UserError: for missing columns or an empty table.
    """
    parts = ("", "_low", "_high", "_seeds")
    need = ["setting", "value", "is_base", "strategy", "learner", *(q + end for q in QUANTITIES for end in parts)]
    require_columns(ablation, need, "ablation")
    if ablation.empty:
        raise UserError("Expected rows in the table ablation, got none; pass runs that differ in one setting.")
    settings = list(dict.fromkeys(ablation.setting))
    marks = strategy_marks(dict.fromkeys(zip(ablation.strategy, ablation.learner, strict=True)))
    handles = [
        m.handle(markersize=3.6, markeredgecolor="black", markeredgewidth=0.4, linewidth=0.9) for m in marks.values()
    ]
    handles.append(Line2D([], [], color=GREY, marker=".", markersize=2.2, linestyle="none", label="each seed"))
    handles.append(Line2D([], [], color="#D0D0D0", linewidth=2.5, label="base, as in the other panels"))
    ncols, lines = legend_size(handles, double_column(), 4)
    legend = 0.16 * lines + 0.08
    figure = new_figure(double_column(), _TOP + 2 * _HEIGHT + _GAP + _TICKS + legend)
    width = (double_column() - _LEFT - _RIGHT - (len(settings) - 1) * _BETWEEN) / len(settings)
    limits = {q: _limits(ablation, q) for q in QUANTITIES}
    for column, setting in enumerate(settings):
        rows = ablation[ablation.setting == setting]
        values = sorted(set(rows.value))
        base = [values.index(v) for v in set(rows.value[rows.is_base])]
        for row, (quantity, words) in enumerate(QUANTITIES.items()):
            bottom = legend + _TICKS + (1 - row) * (_HEIGHT + _GAP)
            axes = add_axes(figure, _LEFT + column * (width + _BETWEEN), bottom, width, _HEIGHT)
            for place in base:
                axes.axvline(place, color="#D0D0D0", linewidth=2.5, zorder=0.4, gid="base")
            if limits[quantity][0] < 0:
                axes.axhline(0, color=GREY, linewidth=0.5, zorder=0.5)
            for i, ((strategy, learner), mark) in enumerate(marks.items()):
                own = where(rows, strategy=strategy, learner=learner).sort_values("value")
                aside = 0.24 * ((i + 0.5) / len(marks) - 0.5)
                at = np.array([values.index(v) for v in own.value]) + aside
                middle = own[quantity].to_numpy(float)
                axes.errorbar(
                    at, middle, np.nan_to_num(error_bars(own, quantity)), color=mark.colour, marker=mark.marker,
                    markersize=3.6, markeredgecolor="black", markeredgewidth=0.4, linewidth=0.8, elinewidth=0.9,
                    zorder=3, gid=f"{setting} {quantity} {learner}",
                )  # fmt: skip
                for x, seeds in zip(at, own[f"{quantity}_seeds"], strict=True):
                    ys = [float(v) for v in str(seeds).split()]
                    beside = math.copysign(0.07, aside or 1.0)  # outwards, not below the next learner's mark
                    axes.plot([x + beside] * len(ys), ys, ".", color=mark.colour, markersize=2.2, zorder=2)
            axes.set_xlim(-0.4, len(values) - 0.6)
            axes.set_ylim(*limits[quantity])
            axes.set_xticks(range(len(values)), [f"{v:g}" for v in values] if row else [""] * len(values))
            axes.tick_params(labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(words, labelpad=2)
                axes.yaxis.set_label_coords(-0.36 / width, 0.5)
            if row:
                axes.set_xlabel(_words(setting), labelpad=2)
    figure.legend(handles=handles, loc="lower center", ncols=ncols, borderaxespad=0.2, columnspacing=1.4)
    return figure


def ablation_caption(ablation: pd.DataFrame) -> str:
    """What the picture of `plot_ablation` shows, in words."""
    settings = [
        f"{_words(name)}: {', '.join(f'{v:g}' for v in sorted(set(rows.value)))}"
        for name, rows in ablation.groupby("setting", sort=False)
    ]
    numbers = sorted({len(str(seeds).split()) for seeds in ablation.average_accuracy_seeds})
    return (
        f"Ablations of {strategy_name(ablation.strategy.iloc[0])}: average accuracy and forgetting after the last task "
        f"(test split) where one setting varies and all others stay ({'; '.join(settings)}). Marker: mean over seeds "
        f"({' or '.join(map(str, numbers))} each); bars: 95 % intervals (Student's t over seeds), cut off at the edge "
        "of the panel; dots: each seed. Grey: the base, whose value the runs of the other panels have. "
        "Values stand at equal steps, not to scale. Forgetting: fall from the best score a task ever had, mean over "
        "all but the last; below 0 where later tasks raised scores."
    )


def _words(setting: object) -> str:
    return SETTINGS.get(str(setting), str(setting).replace("_", " "))


def _limits(ablation: pd.DataFrame, quantity: str) -> tuple[float, float]:
    """Around the seeds' values and not more than their range beyond it: t intervals of two seeds reach far."""
    values = np.array([float(v) for seeds in ablation[f"{quantity}_seeds"] for v in str(seeds).split()])
    low, high = float(values.min()), float(values.max())
    room = max(high - low, 0.05)
    ends = ablation[[f"{quantity}_low", f"{quantity}_high"]].to_numpy(float)
    ends = ends[np.isfinite(ends)]
    if len(ends):
        low, high = max(low - 0.6 * room, min(low, ends.min())), min(high + 0.6 * room, max(high, ends.max()))
    margin = 0.06 * max(high - low, 0.05)
    return (low - margin, high + margin) if math.isfinite(low) else (0.0, 1.0)
