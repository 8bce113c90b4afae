"""`run.explore()`: a slider along a path, with losses, scores and what the model writes; and a plane to turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.explore.pictures import first_shown, png, walk_picture
from mcanalysis.explore.stored_plane import stored_surface
from mcanalysis.explore.tables import chinese_font, task_name, values_table, written_table
from mcanalysis.explore.walk import Walk, start_walk, walkable_kinds
from mcanalysis.plotting.selection import TASK_WORDS
from mcanalysis.plotting.style import Figure
from mcanalysis.runs.run import Run

NUM_SHOWN = 4  # examples of which the model's answers are shown at a time
GRID = [i / 10 for i in range(11)]  # what "measure along the path" measures
_FEW = (0.0, 0.25, 0.5, 0.75, 1.0)  # what a plain picture measures where nothing is known


def explore(
    run: Run,
    start: int | str | None = None,
    end: int | str | None = None,
    space: str = "factor",
    path: str = "linear",
    learner: str | None = None,
) -> Explorer | Figure:
    """Walk along a path by hand: the widget in a notebook, elsewhere (or without ipywidgets) a picture of the path.

    `start`, `end`: minima by number (from 1; 0 or "base": the base model) or label, by default the first two; `path`,
    `space`: registered names.
    Values come from the run's tables and store; what is missing is measured when one goes there. Raises what
    `start_walk` raises.
    """
    walk = start_walk(run, start, end, space, path, learner)
    if has_widgets():
        return Explorer(walk)
    if not walk.known_ts:
        for t in _FEW:
            walk.read(t)
    show_figures()
    surface = stored_surface(run)
    return walk_picture(walk, surface=surface if surface is not None and surface.contains(walk) else None)


def _notebook() -> Any:
    """The shell of the notebook's kernel this runs in, None elsewhere."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return shell if hasattr(shell, "kernel") else None


def has_widgets() -> bool:
    """Whether this is a notebook's kernel and ipywidgets is installed."""
    return _notebook() is not None and find_spec("ipywidgets") is not None


def show_figures() -> None:
    """Let a notebook show matplotlib figures that pyplot did not make, as `%matplotlib inline` does."""
    if (shell := _notebook()) is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})


class Explorer:
    """The widget. `t` may be read and set, as the slider may; `walk` holds what is known of the path shown.

    Shows Plotly's pictures where plotly and anywidget are installed, else matplotlib's with sliders to turn the plane.
    Where a page cannot show widgets (a saved notebook on a web site) a plain picture stands in its place.
    """

    def __init__(self, walk: Walk, t: float = 0.5) -> None:
        import ipywidgets as widgets

        self.walk, self._t = walk, t
        self._is_reacting = False
        self._first = 0  # the number of the first example shown
        self._surface = stored_surface(walk.run)
        run, learner = walk.run, walk.start.learner
        minima = run.minima_of(learner)
        pairs = [(a.label, b.label) for a, b in pairwise(minima)]
        chosen = (walk.start.label, walk.end.label)
        pairs += [] if chosen in pairs else [chosen]
        wide = {"description_width": "initial"}
        self.transition = widgets.Dropdown(
            options=[(f"{a} → {b}", (a, b)) for a, b in pairs], value=chosen, description="from → to", style=wide
        )
        self.kind = widgets.Dropdown(options=self._kinds(), value=str(walk.kind), description="path", style=wide)
        self.slider = widgets.FloatSlider(
            t, min=0.0, max=1.0, step=0.05, description="t", continuous_update=False, layout={"width": "520px"}
        )
        self.step = widgets.Dropdown(options=[0.05, 0.01], description="step", layout={"width": "170px"})
        self.fill = widgets.Button(description="Measure along the path", icon="line-chart", layout={"width": "200px"})
        self.anew = widgets.Button(icon="refresh", tooltip="Draw the pictures anew", layout={"width": "40px"})
        self.status = widgets.HTML()
        self.task = widgets.Dropdown(description="examples of", style=wide)
        self.more = widgets.Button(description="Other examples", icon="refresh")
        self.values, self.written = widgets.HTML(), widgets.HTML(layout={"width": "100%"})
        self.font = widgets.HTML()
        self.quantity = widgets.Dropdown(description="height", style=wide)
        self.about_plane = widgets.HTML()
        self._path_view, self._plane_view = _views()
        self._plane_box = widgets.VBox([self.quantity, self._plane_view.widget])
        self._offer_tasks()
        self._offer_quantities()
        self.widget = widgets.VBox(
            [
                widgets.HBox([self.transition, self.kind], layout={"flex_flow": "row wrap"}),
                widgets.HBox([self.slider, self.step, self.anew, self.fill], layout={"flex_flow": "row wrap"}),
                self.status,
                widgets.HBox(
                    [
                        self._path_view.widget,
                        widgets.VBox([self._plane_box, self.about_plane], layout={"max_width": "510px"}),
                    ],
                    layout={"flex_flow": "row wrap"},
                ),
                self.values,
                widgets.HBox([self.task, self.more]),
                self.written,
                self.font,
            ]
        )
        self._show()
        for control, react in (
            (self.transition, self._change_walk),
            (self.kind, self._change_walk),
            (self.slider, self._go),
            (self.task, self._change_task),
            (self.quantity, self._draw_plane),
        ):
            control.observe(self._guarded(react), "value")
        self.step.observe(lambda change: setattr(self.slider, "step", change["new"]), "value")
        self.anew.on_click(self._guarded(self._draw_anew))
        self.more.on_click(self._guarded(self._page_on))
        self.fill.on_click(self._guarded(self._measure_along))

    def __repr__(self) -> str:
        return f"Explorer({self.walk!r}, t={self._t:g})"

    @property
    def t(self) -> float:
        """Where one stands, in [0, 1]."""
        return self._t

    @t.setter
    def t(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise UserError(
                f"Expected t in [0, 1], got {value}; choose 0 for {self.walk.start.label}, 1 for {self.walk.end.label}."
            )
        self.slider.value = value

    def _repr_mimebundle_(self, **rest: Any) -> Any:
        self._path_view.renew()
        self._plane_view.renew()
        bundle = self.widget._repr_mimebundle_(**rest)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        surface = self._surface if self._surface is not None and self._surface.contains(self.walk) else None
        picture = walk_picture(self.walk, self.walk.read(self._t), surface, self.quantity.value)
        return {**(data or {}), "image/png": png(picture), "text/plain": repr(self)}, metadata

    def _guarded(self, react: Callable[[], None]) -> Callable[[Any], None]:
        """An observer that says what went wrong in the widget: a notebook does not show what a callback raises."""

        def observer(_: Any) -> None:
            if self._is_reacting:  # to one change at a time: the controls it changes itself are no news
                return
            self._is_reacting = True
            try:
                react()
            except UserError as error:
                self.status.value = f'<span role="alert" style="color:#D55E00">{escape(str(error))}</span>'
            finally:
                self._is_reacting = False

        return observer

    def _kinds(self) -> list[str]:
        kinds = walkable_kinds(self.walk.run, self.walk.start, self.walk.end)
        own = str(self.walk.kind)
        return kinds if own in kinds else [*kinds, own]

    def _change_walk(self) -> None:
        walk, (start, end) = self.walk, self.transition.value  # type: ignore[misc]
        kinds = walkable_kinds(walk.run, *walk.run.ends(start, end, walk.start.learner))
        chosen = str(self.kind.value)
        path, _, space = (chosen if chosen in kinds else kinds[0]).rpartition("-")
        self.walk = start_walk(walk.run, start, end, space, path, walk.start.learner)
        self.kind.options = self._kinds()
        self.kind.value = str(self.walk.kind)
        self._first = 0
        self._offer_tasks()
        self._show()

    def _change_task(self) -> None:
        self._first = 0
        self._show_written()

    def _page_on(self) -> None:
        self._first += NUM_SHOWN
        self._show_written()

    def _measure_along(self) -> None:
        for i, t in enumerate(GRID):
            self.status.value = f"measuring {i + 1} of {len(GRID)} …"
            self.walk.read(t)
        self._show()

    def _draw_anew(self) -> None:
        """For pictures that stay empty or stand still: a page so slow that their code took over two seconds to load."""
        self._path_view.renew(always=True)
        self._plane_view.renew(always=True)

    def _go(self) -> None:
        self._t = round(float(self.slider.value), 6)
        self._show()

    def _show(self) -> None:
        """Everything for the t where one stands; what has to be measured for it is measured."""
        self.status.value = f"measuring and writing at t = {self._t:g} …"
        started = time.monotonic()
        self._start, here, self._end = (self.walk.read(t) for t in (0.0, self._t, 1.0))
        self._here = here
        how = f"measured now, in {time.monotonic() - started:.1f} s" if here.is_new else "stored"
        self.fill.layout.display = "none" if len(self.walk.known_ts) >= len(GRID) else None
        self._path_view.show(self.walk, here)
        self.values.value = values_table(self.walk, self._start, here, self._end)
        self._draw_plane()
        self._show_written()
        self.status.value = (
            f"<b>t = {here.t:g}</b> between {escape(self.walk.start.label)} (t = 0) and "
            f"{escape(self.walk.end.label)} (t = 1), {escape(str(self.walk.kind))}: {how}"
        )

    def _show_written(self) -> None:
        ts = list(dict.fromkeys((0.0, self._t, 1.0)))
        task = str(self.task.value)
        examples = self.walk.write(task, ts, self._first, NUM_SHOWN)
        self.written.value = written_table(examples, ts, self._t, self.walk.score_name(task))
        self.font.value = self.font.value or chinese_font(self.written.value)

    def _draw_plane(self) -> None:
        if self._surface is not None and self.quantity.value is not None:
            task, quantity = self.quantity.value
            self._plane_view.show(self._surface, task, quantity, self.walk, self._here)
            self.about_plane.value = self._words_of_plane()

    def _words_of_plane(self) -> str:
        assert self._surface is not None
        plane = f"Plane of {self._surface.start} → {self._surface.end}, {self._surface.space} space"
        if self._surface.contains(self.walk):
            return escape(f"{plane}: the black line is the path, the dot where you stand. Drag to turn.")
        number = self.walk.start.label.partition("-")[0]
        return (
            f"{escape(plane)}; the path chosen does not lie in it. For its own: <code>python analyses/landscape.py "
            f"--run {escape(str(self.walk.run.directory))} --transition {escape(number)} --space "
            f"{escape(self.walk.kind.space)}</code>"
        )

    def _offer_tasks(self) -> None:
        """The tasks of the path; what was chosen stays, where it can."""
        before, tasks = self.task.value, [*reversed(self.walk.old), self.walk.new]
        self.task.options = [(task_name(self.walk, task), task) for task in tasks]
        self.task.value = before if before in tasks else tasks[0]

    def _offer_quantities(self) -> None:
        if self._surface is None:
            self._plane_box.layout.display = "none"
            self.about_plane.value = (
                "<p>No plane is measured yet. To have one to turn: <code>python analyses/landscape.py --run "
                f"{escape(str(self.walk.run.directory))}</code></p>"
            )
            return
        pairs = sorted(self._surface.heights, key=lambda pair: pair[1])
        named = [(f"{quantity}: {TASK_WORDS.get(task, task)}", (task, quantity)) for task, quantity in pairs]
        self.quantity.options = named
        self.quantity.value = first_shown(self._surface)


def _views() -> tuple[Any, Any]:
    """The pictures of the path and of the plane, as good as what is installed allows."""
    if find_spec("plotly") and find_spec("anywidget"):
        from mcanalysis.explore.turning_pictures import TurningPath, TurningPlane

        return TurningPath(), TurningPlane()
    from mcanalysis.explore.drawn_pictures import DrawnPath, DrawnPlane

    return DrawnPath(), DrawnPlane()
