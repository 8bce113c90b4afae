"""The explorer as one plain picture: what is shown where there are no widgets."""

from __future__ import annotations

import io
from typing import Any

from mcanalysis.explore.stored_plane import StoredSurface
from mcanalysis.explore.walk import Reading, Walk
from mcanalysis.plotting.plane_surface import plot_surface
from mcanalysis.plotting.style import Figure, print_style, strategy_name
from mcanalysis.plotting.walk import plot_walk


def walk_picture(
    walk: Walk, here: Reading | None = None, surface: StoredSurface | None = None, shown: tuple[str, str] | None = None
) -> Figure:
    """Score and loss along a path with a line at `here`, and beside them a `surface`, its (task, quantity) `shown`."""
    whose = f"{strategy_name(walk.run.strategy)}, {walk.start.learner} adapter: {walk.kind}"
    title = f"{whose}\n{walk.start.label} → {walk.end.label}"
    beside = None
    if surface is not None:
        here = here or walk.read(0.5)
        beside = surface_arguments(surface, *(shown or first_shown(surface)), walk, here)
    return plot_walk(walk.table, walk.new, title, None if here is None else here.t, beside)


def surface_picture(arguments: dict[str, Any], elevation: float, azimuth: float) -> Figure:
    """The surface alone, seen from an angle in degrees; `arguments` as `surface_arguments` makes them."""
    return plot_surface(**arguments, elevation=elevation, azimuth=azimuth)


def surface_arguments(surface: StoredSurface, task: str, quantity: str, walk: Walk, here: Reading) -> dict[str, Any]:
    """What `mcanalysis.plotting.plane_surface` wants to know to draw one quantity of a surface."""
    path, place = surface.path_on_it(walk, here, task, quantity)
    minima = surface.minima
    return {
        "xs": surface.xs,
        "ys": surface.ys,
        "heights": surface.heights[task, quantity],
        "minima": list(zip(minima.name, minima.x, minima.y, surface.minimum_heights[task, quantity], strict=True)),
        "path": path,
        "here": place,
        "space": {"delta": "ΔW"}.get(surface.space, surface.space),
        "unit": "score (0–1)" if quantity == "score" else "loss (nats/token)",
        "log": surface.is_log(task, quantity),
    }


def first_shown(surface: StoredSurface) -> tuple[str, str]:
    """The quantity of a surface that is looked at first: the loss of the old tasks, or of the only one."""
    pairs = list(surface.heights)
    return ("mean_old", "loss") if ("mean_old", "loss") in pairs else pairs[0]


def png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    with print_style():
        figure.savefig(buffer, format="png")
    return buffer.getvalue()
