"""How many columns a legend may have: as many as the figure's width holds, so that it ends at the figure's edge."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib.textpath import TextPath

from mcanalysis.plotting.style import TEXT_SIZE, print_style

_MARK, _BETWEEN, _AROUND = 2.4 + 0.8, 1.4, 2 * 0.4  # mark and its distance, columns, frame; in the text's size


def legend_columns(labels: Sequence[str], width: float, most: int) -> int:
    """The largest number of columns, `most` at most, in which a legend of these labels is `width` inches wide or less.

    Entries go down the columns, as matplotlib orders them. At least one column, however long the labels are.

    >>> legend_columns(["old tasks", "new task"], 6.75, 4), legend_columns(["a label of many letters"] * 4, 3.25, 4)
    (2, 2)
    """
    em = TEXT_SIZE / 72
    lengths = [text_width(label) + _MARK * em for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        full, longer = divmod(len(lengths), columns)
        taken, total = 0, ((columns - 1) * _BETWEEN + _AROUND) * em
        for column in range(columns):
            size = full + (column < longer)
            total += max(lengths[taken : taken + size])
            taken += size
        if total <= width:
            return columns
    return 1


def legend_rows(labels: Sequence[str], width: float, most: int) -> int:
    """How many rows such a legend then has.

    >>> legend_rows(["a label of many letters"] * 4, 3.25, 4)
    2
    """
    return -(-len(labels) // legend_columns(labels, width, most))


@cache
def text_width(text: str, size: float = TEXT_SIZE) -> float:
    """The width of a line of text in inches; `size` in points."""
    with print_style():
        return float(TextPath((0, 0), text or " ", size=size).get_extents().width) / 72
