"""The explorer's pictures in Plotly: hover for values, turn the surface with the mouse."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mcanalysis.explore.stored_plane import StoredSurface
from mcanalysis.explore.tables import task_name
from mcanalysis.explore.walk import Reading, Walk
from mcanalysis.plotting.plane_surface import round_heights
from mcanalysis.plotting.style import BLACK, BLUE, GREY, ORANGE, VERMILLION

_FONT = {"family": "system-ui, sans-serif", "size": 12}
_QUIET_AXIS = {"backgroundcolor": "#F4F6F8", "gridcolor": "white", "zeroline": False}
_BUTTONS = ["zoom", "pan", "select", "lasso", "zoomin", "zoomout", "autoscale", "resetscale", "toimage"]
_MARKS = {"mean_old": (BLUE, "square"), "mean": (BLACK, "star")}


class _WholeFigure(go.FigureWidget):
    """A figure that a page meets complete.

    Plotly's own opens an empty figure and sends data and layout after it; a page that is slow to load the widget's
    code, as it is the first time, may draw before these arrive, and shows empty axes for good.
    """

    is_whole = False  # whether what was sent to open it is all that it holds

    def __init__(self, figure: go.Figure) -> None:
        super().__init__(figure)
        self.is_whole = True
        self.open()

    def open(self) -> None:
        """Called by ipywidgets before there is anything to send."""
        if self.is_whole:
            super().open()


class _Turning:
    """A figure that is changed in place while it is shown, and made anew where it cannot be."""

    def __init__(self) -> None:
        self.widget = widgets.VBox()
        self.figure: Any = None  # a FigureWidget, whose types say nothing of traces

    def open(self, figure: go.Figure) -> None:
        """Show another figure."""
        self.figure = _WholeFigure(figure)
        self.widget.children = (self.figure,)

    def renew(self, always: bool = False) -> None:
        """Before it is displayed: what was changed until now becomes part of the figure that is sent."""
        if self.figure is not None and (always or not self.figure.is_whole):
            self.open(go.Figure(self.figure))


class TurningPath(_Turning):
    """Score over loss along the path; the vertical line is where one stands."""

    _walk: Walk | None = None

    def show(self, walk: Walk, here: Reading) -> None:
        """Draw everything that is known of the path."""
        drawn = _path_figure(walk, here)
        if self.figure is None or self._walk is not walk:
            self._walk = walk
            self.open(drawn)
            return
        with self.figure.batch_update():
            for trace, of_now in zip(self.figure.data, drawn.data, strict=True):
                trace.x, trace.y = of_now.x, of_now.y
            self.figure.layout.shapes = drawn.layout.shapes
        self.figure.is_whole = False


def _path_figure(walk: Walk, here: Reading) -> Any:
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure.add_traces(_curves(walk), rows=[1, 2] * len(_drawn(walk)), cols=1)
    figure.update_layout(
        width=540, height=430, margin={"l": 60, "r": 10, "t": 10, "b": 45}, template="simple_white", font=_FONT,
        hovermode="x unified", modebar={"remove": _BUTTONS},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        shapes=[
            {
                "type": "line", "x0": here.t, "x1": here.t, "y0": 0, "y1": 1, "xref": "x", "yref": f"y{axis} domain",
                "line": {"color": VERMILLION, "width": 2}, "opacity": 1.0,
            }
            for axis in ("", "2")
        ],
    )  # fmt: skip
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title_text="position t on the path", row=2, col=1)
    figure.update_yaxes(title_text="score (0–1)", range=[-0.05, 1.05], row=1, col=1)
    figure.update_yaxes(title_text="loss (nats/token)", row=2, col=1)
    return figure


def _drawn(walk: Walk) -> list[str]:
    """The curves to draw, those in front last: single old tasks only where there are several."""
    means = ["mean_old", "mean"] if walk.old else []
    return [*(walk.old if len(walk.old) > 1 else []), *means, walk.new]


def _curves(walk: Walk) -> list[go.Scatter]:
    traces = []  # single old tasks have no place in the legend, which would fill the picture: hovering names them
    for task in _drawn(walk):
        colour, symbol = (ORANGE, "circle") if task == walk.new else _MARKS.get(task, (GREY, "line-ns"))
        curve, behind = walk.curve(task), task in walk.old
        for quantity in ("score", "loss"):
            traces.append(
                go.Scatter(
                    x=curve.t, y=curve[quantity], name=escape(task_name(walk, task)), mode="lines+markers",
                    line={"color": colour, "width": 1 if behind else 2},
                    marker={"symbol": symbol, "size": 3 if behind else 7}, opacity=0.6 if behind else 1.0,
                    legendgroup=task, showlegend=quantity == "score" and not behind, hovertemplate="%{y:.3f}",
                )
            )  # fmt: skip
    return traces


class TurningPlane(_Turning):
    """The measured surface with its minima, and the path on it where it lies in the plane."""

    def show(self, surface: StoredSurface, task: str, quantity: str, walk: Walk, here: Reading) -> None:
        """Draw one quantity; the view that was turned stays."""
        drawn = _plane_figure(surface, task, quantity, walk, here)
        if self.figure is None:
            self.open(drawn)
            return
        with self.figure.batch_update():
            for trace, of_now in zip(self.figure.data, drawn.data, strict=True):
                for name in ("x", "y", "z", "hovertext"):
                    if not np.array_equal(np.asarray(trace[name]), np.asarray(of_now[name])):
                        trace[name] = of_now[name]
            sheet, scene, now = self.figure.data[0], self.figure.layout.scene, drawn.layout.scene
            if sheet.reversescale != drawn.data[0].reversescale:
                sheet.reversescale = drawn.data[0].reversescale
            if scene.zaxis.to_plotly_json() != now.zaxis.to_plotly_json():
                scene.zaxis = now.zaxis
            scene.annotations = now.annotations
        self.figure.is_whole = False


def _plane_figure(surface: StoredSurface, task: str, quantity: str, walk: Walk, here: Reading) -> Any:
    log = surface.is_log(task, quantity)
    path, place = surface.path_on_it(walk, here, task, quantity)
    labels = _names(surface, task, quantity, log)
    labels += [_label(f"t = {here.t:g}", where, VERMILLION) for where in _places(place, log)]
    traces = [_sheet(surface, task, quantity, log), _minima(surface, task, quantity, log)]
    for rows, look in (
        (path, {"mode": "lines", "line": {"color": BLACK, "width": 7}}),
        (place, {"mode": "markers", "marker": {"size": 8, "color": VERMILLION}}),
    ):
        x, y, z = rows[0], rows[1], _raised(rows[2], log)
        traces.append(go.Scatter3d(x=x, y=y, z=z, hovertext=_words(rows[2], quantity), hoverinfo="text", **look))
    figure = go.Figure(traces)
    figure.update_layout(
        width=480, height=430, margin={"l": 10, "r": 0, "t": 0, "b": 0}, font=_FONT, showlegend=False,
        modebar={"orientation": "v", "bgcolor": "rgba(255,255,255,0)"},
        scene={
            **_scene(surface, task, quantity, log),
            "annotations": labels,
            "camera": {"eye": {"x": -1.45, "y": -1.55, "z": 1.0}, "center": {"x": 0, "y": 0, "z": -0.12}},
        },
    )  # fmt: skip
    return figure


def _raised(heights: np.ndarray, log: bool) -> np.ndarray:
    """Logarithms are taken here: Plotly's own logarithmic axis places labels of minima elsewhere."""
    return np.log10(heights) if log else heights


def _words(heights: np.ndarray, quantity: str) -> np.ndarray:
    return np.vectorize(lambda value: f"{quantity} {value:.3g}", otypes=[object])(heights)


def _scene(surface: StoredSurface, task: str, quantity: str, log: bool) -> dict[str, Any]:
    unit = "score (0–1)" if quantity == "score" else "loss (nats/token)" + (", log" if log else "")
    across = {"title": {"text": f"distance ({escape(surface.space)})"}, "nticks": 5, **_QUIET_AXIS}
    up: dict[str, Any] = {"title": {"text": unit}, **_QUIET_AXIS}
    if log:
        ticks = round_heights(surface.heights[task, quantity])
        up |= {"tickvals": np.log10(ticks).tolist(), "ticktext": [f"{v:g}" for v in ticks]}
    return {"xaxis": across, "yaxis": across, "zaxis": up, "aspectratio": {"x": 1, "y": 1, "z": 0.7}}


def _names(surface: StoredSurface, task: str, quantity: str, log: bool) -> list[dict[str, Any]]:
    places = np.vstack([surface.minima[["x", "y"]].to_numpy().T, surface.minimum_heights[task, quantity]])
    return [_label(str(n), place) for n, place in zip(surface.minima.name, _places(places, log), strict=True)]


def _places(rows: np.ndarray, log: bool) -> list[list[float]]:
    """From x, y and heights, (3, n), to one place in the picture each."""
    return np.vstack([rows[:2], _raised(rows[2], log)]).T.tolist()


def _label(text: str, place: list[float], colour: str = BLACK) -> dict[str, Any]:
    """A label with an arrow, in front of the surface from wherever it is seen."""
    return {
        **dict(zip("xyz", place, strict=True)),
        "text": escape(text), "ax": 0, "ay": -30, "bgcolor": "rgba(255,255,255,0.8)",
        "arrowwidth": 1.5, "arrowhead": 0, "arrowcolor": colour, "font": {"size": 11, "color": colour},
    }  # fmt: skip


def _sheet(surface: StoredSurface, task: str, quantity: str, log: bool) -> go.Surface:
    heights = surface.heights[task, quantity]
    return go.Surface(
        x=surface.xs, y=surface.ys, z=_raised(heights, log), colorscale="YlGnBu", reversescale=quantity == "score",
        showscale=False, opacity=0.92, hovertext=_words(heights, quantity), hoverinfo="text",
        contours={"z": {"show": True, "color": "rgba(40,40,40,0.5)", "width": 1, "usecolormap": False}},
    )  # fmt: skip


def _minima(surface: StoredSurface, task: str, quantity: str, log: bool) -> go.Scatter3d:
    heights = surface.minimum_heights[task, quantity]
    return go.Scatter3d(
        x=surface.minima.x, y=surface.minima.y, z=_raised(heights, log), mode="markers", hoverinfo="text",
        hovertext=[
            f"{escape(str(name))}<br>{words}"
            for name, words in zip(surface.minima.name, _words(heights, quantity), strict=True)
        ],
        marker={"symbol": "diamond", "size": 5, "color": "white", "line": {"color": BLACK, "width": 2}},
    )  # fmt: skip
