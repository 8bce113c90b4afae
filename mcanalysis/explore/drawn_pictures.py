"""The explorer's pictures without Plotly: drawn by matplotlib anew at each step, the surface turned by two sliders."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from mcanalysis.explore.pictures import png, surface_arguments, surface_picture, walk_picture
from mcanalysis.explore.stored_plane import StoredSurface
from mcanalysis.explore.walk import Reading, Walk


class DrawnPath:
    """Score over loss along the path; the vertical line is where one stands."""

    def __init__(self) -> None:
        self.widget = widgets.Image(format="png", layout={"max_width": "100%"})

    def show(self, walk: Walk, here: Reading) -> None:
        """Draw everything that is known of the path."""
        self.widget.value = png(walk_picture(walk, here))

    def renew(self, always: bool = False) -> None:
        """Before it is displayed; a picture is always sent whole."""


class DrawnPlane:
    """The measured surface with its minima, and the path on it where it lies in the plane."""

    def __init__(self) -> None:
        self._image = widgets.Image(format="png", layout={"max_width": "100%"})
        self._sliders = [
            widgets.IntSlider(value, low, high, 5, description=name, continuous_update=False)
            for name, value, low, high in (("height", 30, 0, 90), ("turn", -120, -180, 180))
        ]
        for slider in self._sliders:
            slider.observe(lambda _: self._draw(), "value")
        self.widget = widgets.VBox([self._image, *self._sliders])
        self._arguments: dict[str, Any] | None = None

    def show(self, surface: StoredSurface, task: str, quantity: str, walk: Walk, here: Reading) -> None:
        """Draw one quantity; the view that was turned stays."""
        self._arguments = surface_arguments(surface, task, quantity, walk, here)
        self._draw()

    def renew(self, always: bool = False) -> None:
        """Before it is displayed; a picture is always sent whole."""

    def _draw(self) -> None:
        if self._arguments is not None:
            elevation, azimuth = (slider.value for slider in self._sliders)
            self._image.value = png(surface_picture(self._arguments, elevation, azimuth))
