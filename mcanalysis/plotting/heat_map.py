"""What cells of heat maps share: text that can be read on a shade, cells without a number, no frame."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle


def readable_on(shade: Sequence[float]) -> str:
    """Black or white, whichever has the greater contrast ratio (WCAG 2) on `shade` (red, green, blue, alpha).

    >>> readable_on((1.0, 1.0, 0.8, 1.0)), readable_on((0.0, 0.1, 0.4, 1.0))
    ('black', 'white')
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shade[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def hatch_cell(axes: Axes, column: int, row: int, gid: str | None = None) -> None:
    """Hatch a cell that has no number."""
    look = {"facecolor": "#E4E4E4", "edgecolor": "#707070", "hatch": "////", "linewidth": 0, "gid": gid}
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))


def hide_frame(axes: Axes) -> None:
    """The cells end where the axes do."""
    for spine in axes.spines.values():
        spine.set_visible(False)
