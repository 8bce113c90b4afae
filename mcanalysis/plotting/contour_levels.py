"""Round values for contour lines and the borders between colours, those colours, and the bar that tells them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap
from matplotlib.ticker import MaxNLocator

LOG_FROM = 8.0  # contours are log-spaced where the largest value exceeds the smallest one by this factor
DECADES = 4.0  # which log-spaced contours cover at most; what is lower, 0 too, lies below the lowest contour
NUM_LEVELS = 9
_FEWEST = 5


def contour_levels(
    values: np.ndarray, num: int = NUM_LEVELS, may_be_log: bool = True, fewest: int = _FEWEST
) -> np.ndarray:
    """Round levels for values of which some may be 0, NaN or ∞: log-spaced, `fewest` if possible, or `num` linear ones.

    Log-spaced over at most `DECADES` below the largest value, where it is more than `LOG_FROM` times the smallest
    positive one and none is negative.

    >>> contour_levels(np.array([0.0, 0.02, 1.3, np.nan, np.inf])).tolist()
    [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    >>> contour_levels(np.array([1.0, 2.0]), num=4).tolist()
    [1.0, 1.25, 1.5, 1.75, 2.0]
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return np.array([0.0, 1.0])
    low, high = float(finite.min()), float(finite.max())
    positive = finite[finite > 0]
    if may_be_log and low >= 0 and len(positive):
        floor = max(float(positive.min()), high / 10**DECADES)
        if high > LOG_FROM * floor:
            powers = range(math.floor(math.log10(floor)), math.ceil(math.log10(high)) + 1)
            for digits in (("1",), ("1", "2", "5"), ("1", "1.5", "2", "3", "5", "7")):  # as few as tell enough apart
                levels = np.array([float(f"{digit}e{power}") for power in powers for digit in digits])
                inside = levels[(levels >= floor * 0.999) & (levels <= high * 1.001)]
                if len(inside) >= fewest:
                    break
            if len(inside) >= 2:
                return inside
    if low == high:
        low, high = low - 0.5 * abs(low or 1.0), high + 0.5 * abs(high or 1.0)
    levels = np.asarray(MaxNLocator(num).tick_values(low, high))
    inside = levels[(levels >= low - 1e-9 * abs(low)) & (levels <= high + 1e-9 * abs(high))]
    return inside if len(inside) >= 2 else np.array([low, high])


class Shades(NamedTuple):
    """Colours that change at levels; light is good, the lightness alone tells the order."""

    levels: np.ndarray
    colours: Colormap
    norm: BoundaryNorm

    def write_bar(self, bar: Axes, most: float, label: str, across: bool = True, ends: float = 0.04) -> None:
        """Fill the axes `bar` with the colours and about `most` of the levels' numbers; `ends`: its tips' length."""
        way = "horizontal" if across else "vertical"
        legend = bar.figure.colorbar(ScalarMappable(self.norm, self.colours), cax=bar, orientation=way, extendfrac=ends)
        shown = self.levels[:: math.ceil(len(self.levels) / most)]
        legend.set_ticks(list(shown), labels=[f"{v:g}" for v in shown])
        legend.ax.minorticks_off()
        legend.ax.tick_params(length=2, pad=1.5)
        legend.outline.set_linewidth(0.5)  # type: ignore[operator]
        if across:
            bar.set_xlabel(label, labelpad=1)
        else:
            bar.set_ylabel(label)


def shades(levels: np.ndarray, higher_is_better: bool = False) -> Shades:
    """The colours between these levels and beyond them."""
    colours = colormaps["YlGnBu" + ("_r" if higher_is_better else "")]
    return Shades(levels, colours, BoundaryNorm(levels, colours.N, extend="both"))
