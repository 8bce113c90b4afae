"""Legends below the panels, in as many columns as the figure's width holds, so that they end at the figure's edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from mcanalysis.plotting.style import TEXT_SIZE, print_style

_MARK, _BETWEEN, _AROUND = 2.4 + 0.8, 1.4, 2 * 0.4  # mark and its distance, columns, frame; in the text's size


def legend_size(entries: Sequence[Artist | str], width: float, most: int) -> tuple[int, int]:
    """The largest number of columns, `most` at most, in which a legend is `width` inches wide or less; and its rows.

    `entries`: handles or their labels, which go down the columns, as matplotlib orders them. At least one column,
    however long the labels are.

    >>> legend_size(["old tasks", "new task"], 6.75, 4), legend_size(["a label of many letters"] * 4, 3.25, 4)
    ((2, 1), (2, 2))
    """
    em = TEXT_SIZE / 72
    labels = [entry if isinstance(entry, str) else str(entry.get_label()) for entry in entries]
    lengths = [text_width(label) + _MARK * em for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        full, longer = divmod(len(lengths), columns)
        taken, total = 0, ((columns - 1) * _BETWEEN + _AROUND) * em
        for column in range(columns):
            size = full + (column < longer)
            total += max(lengths[taken : taken + size])
            taken += size
        if total <= width:
            return columns, math.ceil(len(labels) / columns)
    return 1, len(labels)


def close_legend(figure: Figure, handles: Sequence[Artist], columns: int, up: float = 0.02, **style: Any) -> None:
    """Write a legend without margins in the middle of a figure, `up` inches above its lower edge."""
    style = {"handlelength": 2.2, "borderpad": 0.1} | style
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, up / figure.get_figheight()), ncols=columns,
        columnspacing=1.2, borderaxespad=0, labelspacing=0.25, **style,
    )  # fmt: skip


@cache
def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """The width of a line of text in inches; `size` in points."""
    with print_style():
        return float(TextPath((0, 0), text or " ", size=size).get_extents().width) / 72
