"""Which layers and kinds of module make what happens along a path: heat maps of layers × kinds, and of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mcanalysis.errors import UserError
from mcanalysis.numbers_as_text import fixed
from mcanalysis.plotting.heat_map import hatch_cell, hide_frame, readable_on
from mcanalysis.plotting.selection import few_events, label_name, new_task, only_value, require_columns, where
from mcanalysis.plotting.style import (
    SLANTED,
    TITLE_SIZE,
    add_axes,
    double_column,
    in_print_style,
    new_figure,
    shortened,
    strategy_name,
    whose,
    write_head,
)

Role = Literal["old", "new"]

_WHOLE = "all"
_COLUMNS = (
    "strategy", "learner", "seed", "space", "start", "end", "hold", "layer", "kind", "task", "quantity", "t_farthest",
    "above_chord", "end_change",
)  # fmt: skip
_MARGIN, _LETTER = 0.24, 0.062  # inches: left of the layers' names, and each letter of them
_RIGHT, _GAP, _BETWEEN = 0.86, 0.16, 0.2  # inches
_ROW, _THIN_ROW, _MANY = 0.22, 0.1, 12  # more layers than this get thin rows without numbers
_BOTTOM, _SLANTED, _TOP, _HEAD = 0.54, 0.24, 0.24, 0.15  # slanted names of modules need more room
_LOWEST = 0.88  # inches: the words beside the colour bar need as much
_LABEL_LENGTH = 12
_ONE_LINE, _LINE = 6.3, 0.12  # inches: a page of more than this width has room for the note on one line
_NARROWEST_NUMBER = 0.31  # inches: a cell that is narrower holds no number
_number = partial(fixed, signed=True)


class _Panel(NamedTuple):
    hold: str
    value: str  # the column that is drawn
    cells: np.ndarray


@in_print_style
def plot_attribution(barriers: pd.DataFrame, role: Role = "old") -> Figure:
    """Draw what each module, each layer and each kind of module does to the loss when it alone moves along the path.

    Upper panels: the loss above its chord where the whole path is farthest from its own. Lower panels: the change of
    the loss at the other end. Left: the others stay at the start; right: at the end. The last column is a whole layer,
    the last row a whole kind in all layers, their corner the whole path. Orange: higher loss; purple: lower. Hatched:
    no such module.

    Args:
        barriers: `attribution_barriers.csv` of one run and transition.
        role: the tasks: "old" (mean over the earlier ones) or "new".

    Raises:
        UserError: if a column lacks, or the table is not of one run and transition with both ends.
    """
    rows, task = attributed_rows(barriers, role)
    layers, kinds = _order(rows.layer), _order(rows.kind)
    panels = [
        [_Panel(hold, value, _cells(rows[rows.hold == hold], layers, kinds, value)) for hold in ("start", "end")]
        for value in ("above_chord", "end_change")
    ]
    thin = len(layers) > _MANY
    t = rows.t_farthest.iloc[0]
    height = max(_LOWEST, len(layers) * (_THIN_ROW if thin else _ROW))
    lines = 1 if double_column() > _ONE_LINE else 2
    floor = _BOTTOM + (_SLANTED if _are_long(kinds) else 0.0) + _LINE * (lines - 1)
    total = floor + 2 * height + _BETWEEN + _TOP + _HEAD
    figure = new_figure(double_column(), total)
    left = _MARGIN + _LETTER * max(len(name) for name in [*_without_common_start(layers[:-1]), "all"])
    width = (double_column() - left - _RIGHT - _GAP) / 2
    for row, of_row in enumerate(panels):
        bottom = floor + (1 - row) * (height + _BETWEEN)
        finite = np.concatenate([p.cells[np.isfinite(p.cells)] for p in of_row])
        limit = float(np.abs(finite).max()) if finite.size and np.abs(finite).max() > 0 else 1.0
        scale = Normalize(-limit, limit)
        decimals = 2 if limit >= 0.1 else 3
        for column, panel in enumerate(of_row):
            axes = add_axes(figure, left + column * (width + _GAP), bottom, width, height)
            numbers = not thin and width / len(kinds) >= _NARROWEST_NUMBER
            _heat(axes, panel, layers, kinds, scale, decimals if numbers else None)
            _ticks(axes, layers if column == 0 else None, kinds if row == 1 else None, thin)
            if row == 0:
                end = label_name(str(rows[panel.hold].iloc[0]))
                axes.set_title(f"others stay at the {panel.hold}, {end}", fontsize=TITLE_SIZE, pad=4)
        bar = add_axes(figure, left + 2 * width + _GAP + 0.08, bottom, 0.09, height)
        figure.colorbar(figure.axes[-2].images[0], cax=bar, ticks=[-limit, 0, limit])
        bar.set_yticklabels([_number(-limit, decimals), "0", _number(limit, decimals)])
        bar.tick_params(length=1.5)
        bar.set_ylabel(f"{'above chord' if row == 0 else 'change'}\n(nats/token)", labelpad=2)
    note = f"Loss of the {_whose(role, task)}. Above: over the chord of the group's own curve, at t = {t:.2f}. "
    note = note.rstrip() + (" " if lines == 1 else "\n") + "Below: its change at the other end."
    figure.text(0.06 / double_column(), 0.05 / total, note, ha="left", va="bottom")
    first = rows.iloc[0]
    write_head(figure, f"{whose(first)}, test split: {label_name(first.start)} → {label_name(first.end)}")
    return figure


def attribution_caption(barriers: pd.DataFrame, role: Role = "old") -> str:
    """The figure of `plot_attribution` in words, with the largest numbers; same table and errors."""
    rows, task = attributed_rows(barriers, role)
    first = rows.iloc[0]
    paragraphs = [
        f"Loss (nats per target token, test split) of the {_whose(role, task)} on the straight path in {first.space} "
        f"space from {label_name(first.start)} to {label_name(first.end)}, of {strategy_name(first.strategy)}, learner "
        f"{first.learner}, seed {first.seed}, when one group of modules moves and all others stay at an end. Upper "
        "panels: loss minus the straight line between the two ends of the group's own curve, at the t where the whole "
        "path is farthest from its chord. Lower panels: change of the loss when the group goes from the held end to "
        "the other. Last column: all modules of a layer; last row: one kind of module in all layers; corner: the whole "
        "path. If the loss were a sum over modules, cells would add up to the margins and the corner; what they lack "
        "is interaction. Layer 1 is the first block, `layers.0` in module names. Colours are scaled to the largest "
        f"number of a row of panels, however small. Brackets: 95 % intervals over examples. {few_events(rows)}".rstrip()
    ]
    for hold in ("start", "end"):
        of_hold = rows[rows.hold == hold]
        corner = where(of_hold, layer=_WHOLE, kind=_WHOLE).iloc[0]
        modules = of_hold[(of_hold.layer != _WHOLE) & (of_hold.kind != _WHOLE)]
        lines = [f"Others at the {hold}:"]
        for value, words in (
            ("above_chord", f"above the chord at t = {corner.t_farthest:.2f}"),
            ("end_change", "change at the other end"),
        ):
            total, largest = modules[value].sum(), _largest(modules, value)
            numbers = (
                f"whole path {_value_words(corner, value)}, sum over modules {_number(total, 3)}, largest {largest}"
            )
            lines.append(f"  {words}: {numbers}.")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


def attributed_rows(barriers: pd.DataFrame, role: Role) -> tuple[pd.DataFrame, str]:
    """The rows of the loss of one role's tasks that are drawn, and the task's name; errors as `plot_attribution`."""
    require_columns(barriers, list(_COLUMNS), "attribution_barriers")
    for column in ("strategy", "learner", "seed", "space", "start", "end"):
        only_value(barriers, column, "attribution_barriers")
    new = new_task(barriers, str(barriers.end.iloc[0]))
    task = new if role == "new" else "mean_old"
    rows = where(barriers, task=task, quantity="loss")
    if set(rows.hold) != {"start", "end"}:
        raise UserError(
            f"Expected rows of '{task}' held at start and at end in the table attribution_barriers, got "
            f"{', '.join(sorted(set(rows.hold))) or 'none'}; pass attribution_barriers.csv of a run."
        )
    return rows, task


def _order(names: pd.Series) -> list[str]:
    """In order of appearance, the margin last."""
    return [n for n in dict.fromkeys(names) if n != _WHOLE] + [_WHOLE]


def _cells(rows: pd.DataFrame, layers: Sequence[str], kinds: Sequence[str], value: str) -> np.ndarray:
    cells = np.full((len(layers), len(kinds)), np.nan)
    for layer, kind, number in zip(rows.layer, rows.kind, rows[value], strict=True):
        cells[layers.index(layer), kinds.index(kind)] = number
    return cells


def _heat(
    axes: Axes, panel: _Panel, layers: Sequence[str], kinds: Sequence[str], scale: Normalize, decimals: int | None
) -> None:
    """Draw the cells of one panel, with their numbers where `decimals` is given."""
    shades = colormaps["PuOr_r"]
    axes.imshow(
        np.ma.masked_invalid(panel.cells), cmap=shades, norm=scale, aspect="auto", gid=f"{panel.value} {panel.hold}"
    )
    for (i, k), value in np.ndenumerate(panel.cells):
        if not np.isfinite(value):
            hatch_cell(axes, k, i)
        elif decimals is not None:
            axes.text(
                k, i, _number(value, decimals), ha="center", va="center", color=readable_on(shades(scale(value))),
                gid=f"{panel.value} {panel.hold} {layers[i]} {kinds[k]}",
            )  # fmt: skip
    hide_frame(axes)
    for x in range(1, len(kinds)):
        axes.axvline(x - 0.5, color="white", linewidth=2.5 if x == len(kinds) - 1 else 0.6)
    for y in range(1, len(layers)):
        axes.axhline(y - 0.5, color="white", linewidth=2.5 if y == len(layers) - 1 else 0.6)


def _ticks(axes: Axes, layers: Sequence[str] | None, kinds: Sequence[str] | None, thin: bool) -> None:
    axes.tick_params(length=0)
    if layers is None:
        axes.set_yticks([])
    else:
        step = 4 if thin else 1
        shown = [i for i in range(len(layers) - 1) if i % step == 0] + [len(layers) - 1]
        if thin and len(shown) > 1 and shown[-1] - shown[-2] < 2:
            shown.pop(-2)
        short = _counted_from_one(_without_common_start(layers[:-1]))
        axes.set_yticks(shown, [[*short, "all"][i] for i in shown])
        axes.set_ylabel("layer", labelpad=3)
    if kinds is None:
        axes.set_xticks([])
    else:
        names = [shortened(k, _LABEL_LENGTH) for k in kinds[:-1]]
        slanted: dict[str, Any] = {"rotation": 30, **SLANTED} if _are_long(kinds) else {}
        axes.set_xticks(np.arange(len(kinds)), [*names, "all"], **slanted)
        axes.set_xlabel("kind of module", labelpad=3)


def _are_long(kinds: Sequence[str]) -> bool:
    """Whether the names of the columns do not fit side by side."""
    return max(min(len(k), _LABEL_LENGTH) for k in kinds) * len(kinds) > 44


def _without_common_start(names: Sequence[str]) -> list[str]:
    parts = [n.split(".") for n in names]
    same = 0
    while all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    return [shortened(".".join(p[same:]), _LABEL_LENGTH) for p in parts]


def _counted_from_one(names: Sequence[str]) -> list[str]:
    """Numbers of layers as the other figures count them; other names stay."""
    return [str(int(name) + 1) for name in names] if all(name.isdigit() for name in names) else list(names)


def _whose(role: Role, task: str) -> str:
    return "old tasks (mean)" if role == "old" else f"new task, {task}"


def _value_words(row: pd.Series, value: str) -> str:
    text = _number(row[value], 3)
    if f"{value}_low" in row.index and np.isfinite(row[f"{value}_low"]):
        text += f" [{_number(row[f'{value}_low'], 3)}, {_number(row[f'{value}_high'], 3)}]"
    return text


def _largest(modules: pd.DataFrame, value: str) -> str:
    if modules[value].isna().all():
        return "–"
    top = modules.iloc[int(np.nanargmax(modules[value].abs().to_numpy()))]
    return f"{_value_words(top, value)} ({top.layer}, {top.kind})"
