"""A plane's grid as a surface in three dimensions, seen from an angle, with its minima and a path over it."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from mpl_toolkits.mplot3d import Axes3D

from mcanalysis.plotting.style import BLACK, TEXT_SIZE, VERMILLION, in_print_style, new_figure, shortened, single_column

_HALO = [Stroke(linewidth=1.8, foreground="white"), Normal()]


@in_print_style
def plot_surface(
    xs: np.ndarray,
    ys: np.ndarray,
    heights: np.ndarray,
    *,
    elevation: float = 30.0,
    azimuth: float = -120.0,
    **rest: Any,
) -> Figure:
    """Draw a surface on a figure of its own, of one column's width; the arguments are those of `add_surface`."""
    figure = new_figure(single_column(), 2.9)
    add_surface(figure, (0.0, 0.02, 0.92, 0.98), xs, ys, heights, elevation=elevation, azimuth=azimuth, **rest)
    return figure


def add_surface(
    figure: Figure,
    place: tuple[float, float, float, float],
    xs: np.ndarray,
    ys: np.ndarray,
    heights: np.ndarray,
    *,
    minima: list[tuple[str, float, float, float]] = (),  # type: ignore[assignment]
    path: np.ndarray | None = None,
    here: np.ndarray | None = None,
    space: str = "",
    unit: str = "loss (nats/token)",
    log: bool = False,
    elevation: float = 30.0,
    azimuth: float = -120.0,
) -> Axes3D:
    """Add a surface to a figure at `place` (left, bottom, width, height as shares of the figure).

    `xs` (nx,), `ys` (ny,): distances in `space`; `heights` (ny, nx), gaps where NaN. `minima`: name, x, y, height of
    each. `path` (3, n), `here` (3, 1): a line over the surface and a place on it. `log`: draw log₁₀ of the heights.
    `elevation`, `azimuth`: from where it is seen, in degrees.
    """

    def up(values: Any) -> np.ndarray:
        return np.log10(values) if log else np.asarray(values, dtype=float)

    axes = figure.add_axes(place, projection="3d")
    assert isinstance(axes, Axes3D)
    colours = matplotlib.colormaps["YlGnBu_r" if unit.startswith("score") else "YlGnBu"]
    axes.computed_zorder = False  # lines and minima stay in front of the surface
    axes.plot_surface(
        *np.meshgrid(xs, ys), up(heights), cmap=colours, linewidth=0.15, edgecolor="#303030", alpha=0.85,
        rcount=60, ccount=60, zorder=1,
    )  # fmt: skip
    if path is not None and path.size:
        axes.plot(path[0], path[1], up(path[2]), color=BLACK, linewidth=1.5, zorder=3)
    if here is not None and here.size:
        axes.plot(here[0], here[1], up(here[2]), color=VERMILLION, marker="o", markersize=4, zorder=5)
    for name, x, y, height in minima:
        axes.plot([x], [y], up([height]), marker="D", markersize=3.5, color="white", markeredgecolor=BLACK, zorder=4)
        axes.text(x, y, float(up(height)), f"  {shortened(name, 22)}", fontsize=TEXT_SIZE, zorder=6, path_effects=_HALO)
    axes.set_xlabel(f"distance ({space})" if space else "distance", labelpad=-8)
    axes.set_ylabel(f"distance ({space})" if space else "distance", labelpad=-8)
    axes.set_zlabel(f"{unit}, log" if log else unit, labelpad=-6)
    if log:
        ticks = round_heights(heights)
        axes.zaxis.set_ticks(np.log10(ticks).tolist(), [f"{v:g}" for v in ticks])
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_tick_params(pad=-3, labelsize=TEXT_SIZE)
        axis._axinfo["grid"].update(linewidth=0.4, color="#D0D0D0")  # type: ignore[attr-defined], no public way
    axes.view_init(elevation, azimuth)
    axes.set_box_aspect((1, 1, 0.7), zoom=0.9)  # type: ignore[arg-type]
    return axes


def round_heights(heights: np.ndarray) -> list[float]:
    """The round numbers among these heights, for the ticks of a logarithmic axis.

    >>> round_heights(np.array([0.3, 4.0, np.nan]))
    [0.5, 1.0, 2.0]
    """
    round_numbers = [float(f"{digit}e{power}") for power in range(-9, 10) for digit in (1, 2, 5)]
    return [v for v in round_numbers if np.nanmin(heights) <= v <= np.nanmax(heights)]
