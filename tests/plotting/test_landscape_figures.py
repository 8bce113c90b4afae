"""Planes and slices carry the tables' numbers, show what is missing or not finite, and come out the same."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mcanalysis.errors import UserError
from mcanalysis.plotting.contour_levels import contour_levels
from mcanalysis.plotting.landscape import plane_caption, plot_plane
from mcanalysis.plotting.slices import plot_slices, slices_caption
from mcanalysis.plotting.style import save_figure

XS, YS = np.linspace(-1, 3, 6), np.linspace(-0.5, 2, 4)
ANCHORS = {"1-FOMC fast": (0.0, 0.0), "2-MedMCQA fast": (2.0, 0.0), "2-MedMCQA slow": (1.5, 1.2)}
LABELS = {"strategy": "ilora", "learner": "fast", "seed": 0, "space": "factor", "kind": "plane"}
LABELS |= {"start": "1-FOMC", "end": "2-MedMCQA", "direction": "", "split": "test"}


def value(task, x, y):
    return {"FOMC": x * x + y * y, "mean_old": x * x + y * y, "MedMCQA": (x - 2) ** 2 + y, "mean": x + 10 * y}[task]


def plane_table(xs=XS, ys=YS):
    """loss = value(task, x, y), score a tenth of it: simple enough to be looked up again."""
    places = [(x, y, "") for y in ys for x in xs] + [(x, y, n) for n, (x, y) in ANCHORS.items()]
    rows = [
        LABELS | {"x": x, "y": y, "anchor": anchor, "task": task, "loss": value(task, x, y),
                  "score": value(task, x, y) / 10, "measured": True, "num_examples": 5, "num_targets": 9}
        for x, y, anchor in places
        for task in ("FOMC", "MedMCQA", "mean_old", "mean")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def trajectory_table():
    rows = []
    for learner, end in (("fast", (2.0, 0.0)), ("slow", (1.5, 1.2))):
        for step in (0, 5, 10):
            x, y = np.array(end) * step / 10
            rows.append(LABELS | {"learner": learner, "step": step, "x": x, "y": y, "distance": 0.25 * (10 - step)})
    return pd.DataFrame(rows)


def by_gid(parent, gid):
    return [artist for artist in parent.findobj(lambda a: a.get_gid() == gid)]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def shown_texts(figure):
    """Texts that are drawn: ticks beyond the limits are not."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high or not tick.label1.get_visible():
                    hidden |= {tick.label1, tick.label2}
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    assert min(t.get_fontsize() for t in found) >= 7
    return found


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_cell_has_the_value_of_its_node_and_no_other(shuffle):
    table = plane_table()
    figure = plot_plane(table.sample(frac=1, random_state=0) if shuffle else table, trajectory_table())
    for gid, task, factor in (
        ("loss mean_old", "mean_old", 1),
        ("loss MedMCQA", "MedMCQA", 1),
        ("score mean", "mean", 0.1),
    ):
        (mesh,) = by_gid(figure, gid)
        expected = [[factor * value(task, x, y) for x in XS] for y in YS]
        np.testing.assert_allclose(mesh.get_array(), expected)
        corners = mesh.get_coordinates()  # a node is in the middle of its cell
        np.testing.assert_allclose((corners[0, :-1, 0] + corners[0, 1:, 0]) / 2, XS)
        np.testing.assert_allclose((corners[:-1, 0, 1] + corners[1:, 0, 1]) / 2, YS)
        assert mesh.axes.get_aspect() == 1.0


def test_letters_of_close_minima_stand_on_the_sides_away_from_each_other():
    table = plane_table()
    names = [name for name in dict.fromkeys(table.anchor) if name]
    table.loc[table.anchor == names[1], ["x", "y"]] = [1.0, 0.2]
    table.loc[table.anchor == names[2], ["x", "y"]] = [1.06, 0.2]
    assert "Of each task 5 examples." in plane_caption(table)
    axes = plot_plane(table).axes[0]
    letters = {t.get_text(): t for t in axes.texts if t.get_text() in "bc" and t.get_text()}
    assert letters["b"].get_position()[0] <= 0 <= letters["c"].get_position()[0]  # shifts, in points


def test_minima_and_trajectories_lie_where_the_tables_say():
    figure = plot_plane(plane_table(), trajectory_table())
    for name, place in ANCHORS.items():
        markers = by_gid(figure, f"anchor {name}")
        assert len(markers) == 3  # one per panel
        assert all((m.get_xdata()[0], m.get_ydata()[0]) == place for m in markers)
    (slow, *_) = by_gid(figure, "trajectory slow")
    np.testing.assert_allclose(np.stack([slow.get_xdata(), slow.get_ydata()], 1), [[0, 0], [0.75, 0.6], [1.5, 1.2]])
    words = [t.get_text() for t in figure.findobj(Text)]
    assert "a: 1-FOMC fast" in words and "training, slow (≤ 2.5 off the plane)" in words
    assert words.count("distance in factor space") == 4  # x of three panels, y of the first
    caption = plane_caption(plane_table(), trajectory_table())
    assert "c = 2-MedMCQA slow at (1.5, 1.2): old tasks (mean) 3.69, new task, MedMCQA 1.45" in caption
    assert "1.25 in the median and 2.5 at most" in caption and "6 × 4 nodes;" in caption


@pytest.mark.parametrize("how", ["flagged", "absent"])
def test_missing_is_hatched_and_nan_and_infinity_are_drawn_as_such(how):
    table = plane_table()
    here = {name: (np.isclose(table.x, XS[i]) & np.isclose(table.y, YS[j]) & (table.anchor == ""))
            for name, (i, j) in {"not measured": (1, 1), "NaN": (2, 3), "∞": (4, 0)}.items()}  # fmt: skip
    table.loc[here["NaN"] & (table.task == "mean_old"), "loss"] = np.nan
    table.loc[here["∞"] & (table.task == "mean_old"), "loss"] = np.inf
    if how == "flagged":
        table.loc[here["not measured"], ["loss", "score", "measured"]] = [np.nan, np.nan, False]
    else:
        table = table[~here["not measured"]]
    figure = plot_plane(table)
    (mesh,) = by_gid(figure, "loss mean_old")
    for name, number in (("not measured", 3), ("NaN", 1), ("∞", 1)):  # missing in three panels
        assert len(by_gid(figure, f"{name} cell")) == number
        assert name in [t.get_text() for t in figure.findobj(Text)]
    (patch,) = by_gid(figure, "NaN cell")
    assert patch.get_x() < XS[2] < patch.get_x() + patch.get_width() and patch.get_y() < YS[3]
    assert mesh.get_array().mask.sum() == 3
    assert "1 of them not measured" in plane_caption(table)


def test_zeros_are_values_with_the_colour_of_the_lowest_losses():
    table = plane_table()
    table.loc[table.loss < 0.3, "loss"] = 0.0
    figure = plot_plane(table)
    (mesh,) = by_gid(figure, "loss mean_old")
    zero = mesh.get_array() == 0
    assert zero.any() and not np.ma.is_masked(mesh.get_array())
    colours = mesh.to_rgba(mesh.get_array())
    lowest = colours[zero][0]
    assert (colours[zero] == lowest).all()
    assert lowest[:3].sum() >= colours[~zero][:, :3].sum(axis=1).max()  # the lightest


def test_levels_are_round_and_inside_whatever_the_values():
    for values in ([0, 0, 0], [0.0, 1e-9, 4.0], [1.0, 1.0], [-3, 5], [np.nan], [0.2, 900.0], [0.5, 0.6], [0, 3.0]):
        levels = contour_levels(np.array(values, dtype=float))
        assert (np.diff(levels) > 0).all() and 2 <= len(levels) <= 13, (values, levels)
    wide = contour_levels(np.array([1e-9, 4.0]))
    assert wide.min() >= 4e-4 and wide.max() <= 4.0
    np.testing.assert_allclose(contour_levels(np.array([0.0, 0.1, 1.0])), [0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0])
    np.testing.assert_allclose(np.diff(contour_levels(np.array([0.05, 0.95]), may_be_log=False)), 0.1)


def test_one_value_everywhere_and_nothing_measured_can_be_drawn():
    table = plane_table()
    plot_plane(table.assign(loss=1.0, score=0.5))
    plot_plane(table.assign(loss=np.nan, score=np.nan))
    figure = plot_plane(table.assign(loss=np.nan, score=np.nan, measured=False))
    assert len(by_gid(figure, "not measured cell")) == 3 * 24


def test_a_table_without_means_has_a_panel_per_task():
    table = plane_table()[["x", "y", "anchor", "task", "loss", "measured"]]
    figure = plot_plane(table[table.task.isin(["FOMC", "MedMCQA"])])
    assert [a.get_title() for a in figure.axes if a.get_title()] == ["FOMC", "MedMCQA"]
    assert plane_caption(table[table.task == "FOMC"]).startswith("Plane through three points.")


@pytest.mark.parametrize("make", [lambda: plot_plane(plane_table(), trajectory_table()), lambda: plot_slices(slices())])
def test_same_tables_same_bytes_and_texts_are_legible_inside_and_apart(make, tmp_path):
    figure = make()
    assert png(figure) == png(make())
    for file in save_figure(figure, tmp_path / "a"):
        assert (
            file.read_bytes()
            == next(f for f in save_figure(make(), tmp_path / "b") if f.suffix == file.suffix).read_bytes()
        )
    figure.canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown_texts(figure)]
    for i, (words, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 and box.y1 <= figure.bbox.height, words
        for others, other in boxes[:i]:
            assert not box.shrunk(0.96, 0.96).overlaps(other), (words, others)


@pytest.mark.parametrize("shape", [(2.0, 0.2), (0.2, 3.0)])
def test_flat_and_tall_planes_keep_their_aspect(shape):
    figure = plot_plane(plane_table(np.linspace(0, shape[0], 5), np.linspace(0, shape[1], 3)))
    (mesh,) = by_gid(figure, "loss mean_old")
    box = mesh.axes.get_window_extent()
    (x0, x1), (y0, y1) = mesh.axes.get_xlim(), mesh.axes.get_ylim()
    assert box.width / box.height == pytest.approx((x1 - x0) / (y1 - y0), rel=0.01)
    assert figure.get_figheight() < 6


def slices(missing=False):
    rows = []
    for (strategy, learner), curvature in {
        ("sequential", "fast"): 4.0,
        ("ilora", "fast"): 2.0,
        ("ilora", "slow"): 1.0,
    }.items():
        for direction, bend in (("0", 0.9), ("1", 1.1), ("mean", 1.0)):
            for task in ("FOMC", "MedMCQA", "mean_old", "mean"):
                for x in (*np.linspace(-1, 1, 9), 0.0):
                    loss = curvature * bend * x * x + 0.01
                    row = {"strategy": strategy, "learner": learner, "direction": direction, "x": x, "y": 0.0}
                    row |= {"task": task, "loss": loss, "score": 0.5, "measured": True, "kind": "slice"}
                    row |= {"start": "2-MedMCQA", "end": "2-MedMCQA", "anchor": "", "space": "delta"}
                    is_mean = direction == "mean"
                    row |= {"loss_low": loss / 2 if is_mean else np.nan, "loss_high": 2 * loss if is_mean else np.nan}
                    rows.append(LABELS | row)
    return pd.DataFrame(rows)


def test_slices_have_a_line_and_a_band_per_learner():
    table = slices()
    figure = plot_slices(table)
    (line,) = by_gid(figure, "mean_old I-LoRA, slow mean")
    np.testing.assert_allclose(line.get_ydata(), np.linspace(-1, 1, 9) ** 2 + 0.01)
    assert line.axes.get_yscale() == "log"
    (band,) = by_gid(figure, "MedMCQA sequential mean interval")
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(2 * 4.01)
    assert band.axes.get_ylim()[1] > 2 * 4.01  # the band is inside
    assert len(by_gid(figure, "mean_old I-LoRA, slow 0")) == 1
    assert "I-LoRA, slow, 2-MedMCQA: old tasks (mean): 0.01, at the ends 1.01 and 1.01" in slices_caption(table)


def test_a_learner_that_may_cover_another_of_its_strategy_is_dashed():
    figure = plot_slices(slices())
    styles = {
        name: by_gid(figure, f"mean_old {name} mean")[0].get_linestyle()
        for name in ("sequential", "I-LoRA, fast", "I-LoRA, slow")
    }
    assert styles == {"sequential": "-", "I-LoRA, fast": "-", "I-LoRA, slow": "--"}


def test_slices_show_what_is_not_finite_and_leave_gaps_where_nothing_is_measured():
    table = slices()
    mean = (table.direction == "mean") & (table.task == "mean_old") & (table.learner == "slow")
    table.loc[mean & np.isclose(table.x, 1.0), "loss"] = np.inf
    table.loc[mean & np.isclose(table.x, -0.5), "measured"] = False
    figure = plot_slices(table)
    (lost,) = by_gid(figure, "mean_old I-LoRA, slow mean not finite")
    assert list(lost.get_xdata()) == [1.0]
    (line,) = by_gid(figure, "mean_old I-LoRA, slow mean")
    assert np.isnan(line.get_ydata()).sum() == 2


def test_losses_of_zero_lie_on_the_lower_edge():
    figure = plot_slices(slices().assign(loss=lambda t: t.loss - 0.01, loss_low=lambda t: t.loss_low - 0.005))
    (line,) = by_gid(figure, "mean_old sequential mean")
    low = line.axes.get_ylim()[0]
    assert low > 0 and line.get_ydata().min() == pytest.approx(low)


@pytest.mark.parametrize(
    ("call", "piece"),
    [
        (lambda t: plot_plane(t.drop(columns="measured")), r"column\(s\) measured in the table landscape"),
        (lambda t: plot_plane(pd.concat([t, t.assign(seed=1)])), "one seed in the table landscape, got 0, 1"),
        (lambda t: plot_plane(pd.concat([t, t])), "one row per node and task"),
        (lambda t: plot_plane(t[np.isclose(t.x, XS[0])]), "at least 2 × 2 nodes, got 1 × 4"),
        (lambda t: plot_plane(t, trajectory_table().drop(columns="distance")), "distance in the table trajectory"),
        (lambda t: plot_slices(t.assign(loss_low=0.0, loss_high=0.0)), "rows of the kind slice"),
        (lambda t: plot_slices(pd.concat([slices(), slices().assign(seed=1)])), "one seed in the table landscape"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_in_one_line(call, piece):
    with pytest.raises(UserError, match=piece):
        call(plane_table())
