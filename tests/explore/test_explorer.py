"""The widget without a browser: what its controls do, what it falls back to, and that nothing is shown unescaped."""

import builtins
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.explore.pictures import walk_picture
from mcanalysis.explore.stored_plane import stored_surface
from mcanalysis.explore.tables import chinese_font, written_table
from mcanalysis.explore.walk import Written, start_walk

pytest.importorskip("ipywidgets", reason="needs the packages of the extra `jupyter`")


def explorer(run, *where, **rest):
    from mcanalysis.explore.explorer import Explorer

    return Explorer(start_walk(run, *where), **rest)


@pytest.fixture
def kernel(monkeypatch):
    """As in a notebook."""
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


@pytest.fixture
def without(monkeypatch):
    """without("plotly"): a machine where that is not installed."""

    def hide(*names):
        import mcanalysis.explore.explorer as module

        found = module.find_spec
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else found(name))
        real = builtins.__import__

        def imported(name, *rest, **more):
            if name.split(".")[0] in names:
                raise ModuleNotFoundError(name)
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", imported)

    return hide


def test_the_slider_moves_values_line_and_answers(run):
    shown = explorer(run, 1, 2)
    assert "t = 0.5" in shown.status.value and "stored" in shown.status.value
    before = shown.values.value, shown.written.value
    shown.t = 0.25
    assert "t = 0.25" in shown.status.value and "measured now" in shown.status.value
    assert shown.values.value != before[0] and shown.written.value != before[1]
    lines = shown._path_view.figure.layout.shapes
    assert len(lines) == 2 and all(line.x0 == line.x1 == 0.25 for line in lines)
    curve = next(trace for trace in shown._path_view.figure.data if trace.name == "FOMC (new)")
    assert list(curve.x) == [0.0, 0.25, 0.5, 1.0]
    assert list(curve.y) == pytest.approx(shown.walk.curve("FOMC").score.tolist())
    with pytest.raises(UserError, match=r"t in \[0, 1\]"):
        shown.t = 1.2


def test_another_transition_another_path_other_examples(run):
    shown = explorer(run, 1, 2)
    shown.kind.value = "bezier-factor"
    assert str(shown.walk.kind) == "bezier-factor" and "bezier-factor" in shown.status.value
    shown.transition.value = ("2-FOMC", "3-MeetingBank")
    assert shown.walk.new == "MeetingBank" and str(shown.walk.kind) == "bezier-factor"
    assert [value for _, value in shown.task.options] == ["FOMC", "C-STANCE", "MeetingBank"]
    shown.task.value = "MeetingBank"
    before = shown.written.value
    shown.more.click()
    assert shown.written.value != before
    shown.step.value = 0.01
    assert shown.slider.step == 0.01


def test_drawing_anew_replaces_the_pictures(run, plane_table):
    plane_table()
    shown = explorer(run)
    before = shown._path_view.figure, shown._plane_view.figure
    shown.anew.click()
    after = shown._path_view.figure, shown._plane_view.figure
    assert all(a is not b and len(a.data) == len(b.data) for a, b in zip(before, after, strict=True))
    assert shown._plane_view.widget.children == (after[1],)
    shown.t = 0.25
    assert shown._path_view.figure.layout.shapes[0].x0 == 0.25


def test_a_path_between_minima_that_are_no_neighbours(run):
    shown = explorer(run, 1, 3)
    assert shown.transition.value == ("1-C-STANCE", "3-MeetingBank")
    assert "bezier-factor" not in shown.kind.options


def test_measuring_along_the_path(unmeasured_run):
    shown = explorer(unmeasured_run)
    assert shown.walk.known_ts == [0.0, 0.5, 1.0] and shown.fill.layout.display is None
    shown.fill.click()
    assert shown.walk.known_ts == pytest.approx(np.linspace(0, 1, 11).tolist())
    assert shown.fill.layout.display == "none"


def test_what_goes_wrong_is_said_in_the_widget(run, monkeypatch):
    shown = explorer(run)
    monkeypatch.setattr(type(shown.walk), "read", lambda self, t: (_ for _ in ()).throw(UserError("Expected <b>.")))
    shown.t = 0.25
    assert "Expected &lt;b&gt;." in shown.status.value


def test_without_a_plane_the_command_that_measures_it_is_named(run):
    shown = explorer(run)
    assert "analyses/landscape.py --run" in shown.about_plane.value
    assert shown._plane_box.layout.display == "none"


def test_the_plane_has_the_measured_heights_and_the_path_on_it(run, plane_table):
    plane_table()
    shown = explorer(run, 1, 2)
    assert shown.quantity.value == ("mean_old", "loss")
    sheet, minima, path, here = shown._plane_view.figure.data
    surface = stored_surface(run)
    assert np.allclose(10 ** np.array(sheet.z), surface.heights["mean_old", "loss"])  # it spans decades: logarithms
    assert surface.heights["mean_old", "loss"][1, 2] == pytest.approx(0.1 + surface.xs[2] ** 2 + surface.ys[1] ** 2)
    assert len(minima.x) == 3 and len(path.x) == 3 and len(here.x) == 1
    assert 10 ** here.z[0] == pytest.approx(shown._here.values.loc["mean_old", "loss"])
    assert (path.x[0], path.x[-1]) == pytest.approx((minima.x[0], minima.x[1]))
    shown.quantity.value = ("mean", "score")
    assert np.allclose(shown._plane_view.figure.data[0].z, surface.heights["mean", "score"])
    shown.kind.value = "linear-delta"
    assert "does not lie in it" in shown.about_plane.value
    assert len(shown._plane_view.figure.data[2].x) == 0


def test_without_plotly_the_plane_turns_by_sliders(run, plane_table, without):
    plane_table()
    without("plotly", "anywidget")
    shown = explorer(run, 1, 2)
    view = shown._plane_view
    picture = bytes(view._image.value)
    assert picture.startswith(b"\x89PNG") and bytes(shown._path_view.widget.value).startswith(b"\x89PNG")
    view._sliders[1].value = 0
    assert bytes(view._image.value) != picture


def test_a_page_without_widgets_gets_a_picture(run):
    data, _ = explorer(run)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/png"].startswith(b"\x89PNG") and data["text/plain"].startswith("Explorer(Walk(1-C-STANCE")


def test_a_page_meets_whole_figures_only(run, plane_table, monkeypatch):
    """With data and layout in the message that opens them; what comes after that a slow page may miss."""
    import comm

    opened = []
    create = comm.create_comm

    def recorded(*rest, **more):
        opened.append(more["data"]["state"])
        return create(*rest, **more)

    monkeypatch.setattr(comm, "create_comm", recorded)
    plane_table()
    shown = explorer(run)
    shown.t = 0.25
    shown._repr_mimebundle_()
    figures = [state for state in opened if "_widget_data" in state]
    assert len(figures) == 4  # path and plane, made and then displayed
    assert all(state["_widget_data"] and state["_widget_layout"] for state in figures)
    assert [len(state["_widget_data"]) for state in figures] == [6, 4, 6, 4]
    assert figures[2]["_widget_layout"]["shapes"][0]["x0"] == 0.25


def test_in_a_kernel_a_widget_elsewhere_a_figure(run, kernel, monkeypatch):
    from matplotlib.figure import Figure

    from mcanalysis.explore.explorer import Explorer

    assert isinstance(run.explore(2, 3, space="delta"), Explorer)
    monkeypatch.delitem(sys.modules, "IPython")
    assert isinstance(run.explore(), Figure)


def test_without_ipywidgets_a_figure(run, kernel, without, monkeypatch):
    from matplotlib.figure import Figure

    import mcanalysis.explore.explorer as module

    monkeypatch.setattr(module, "show_figures", lambda: None)  # asks the real IPython
    without("ipywidgets")
    assert isinstance(run.explore(), Figure)


def test_a_figure_of_an_unmeasured_path_measures_five_points(unmeasured_run):
    figure = unmeasured_run.explore()
    score, loss = figure.axes
    assert [len(line.get_xdata()) for line in loss.lines] == [5, 5, 5]
    assert score.get_ylabel() == "score (0–1)" and loss.get_ylabel() == "loss (nats/token)"


def test_a_figure_with_its_plane(run, plane_table):
    plane_table()
    walk = start_walk(run)
    figure = walk_picture(walk, walk.read(0.5), stored_surface(run))
    assert len(figure.axes) == 3 and figure.axes[2].name == "3d"
    assert len(figure.axes[2].lines) == 2 + 3  # the path, where one stands, three minima


def test_text_of_runs_is_escaped():
    bad = "<script>alert(1)</script>"
    table = written_table([Written(bad, bad, {0.0: bad}, {0.0: 0.0})], [0.0], 0.0, bad)
    assert "<script" not in table and "&lt;script&gt;" in table


def test_the_font_for_chinese_comes_only_where_it_is_needed():
    assert chinese_font("Was ist das? A.") == ""
    assert "@font-face" in chinese_font("甲")
