"""Figures carry the tables' numbers, keep the print rules and come out byte for byte the same."""

import io
import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mcanalysis.errors import UserError
from mcanalysis.plotting import (
    caption,
    plot_accuracy_matrix,
    plot_stability_plasticity,
    plot_transitions,
    save_figure,
)
from mcanalysis.plotting.style import STYLES, on_page

NAMES = ("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten", "MedMCQA", "JEC-QA", "Py150")
NAMES += ("NumGLUE-ds", "a-name-so-long-that-no-panel-has-room-for-it")
KINDS = (("linear", "factor", 1.0), ("linear", "delta", 0.7), ("bezier", "factor", 0.1))
TS = np.linspace(0, 1, 21)


def curves_of(number, task, height, forgetting):
    """Loss and score of one task (its index) on the way to task `number`: forgotten if old, learned if new."""
    hump = height * TS * (1 - TS)
    if task == number:
        return 0.1 + 2.5 * (1 - TS) ** 2 + hump, 0.05 + 0.9 * TS**3
    return 0.2 + 0.02 * task + 2 * forgetting * TS**2 + 2 * hump, 0.95 - 0.03 * task - 0.8 * forgetting * TS**2


def make_tables(number=3, strategy="sequential", learner="fast", seed=0, forgetting=1.0, names=NAMES, height=1.0):
    """Tables of `number` tasks: shapes as in a run, values simple enough to be looked up again."""
    profiles, barriers = [], []
    for new, (path, space, factor) in itertools.product(range(1, number), KINDS):
        labels = {"strategy": strategy, "learner": learner, "seed": seed, "space": space, "path": path}
        labels |= {"start": f"{new}-{names[new - 1]}", "end": f"{new + 1}-{names[new]}"}
        values = {names[i]: curves_of(new, i, height * factor, forgetting) for i in range(new + 1)}
        values["mean_old"] = tuple(np.mean([values[n][q] for n in names[:new]], axis=0) for q in (0, 1))
        values["mean"] = tuple((values["mean_old"][q] + values[names[new]][q]) / 2 for q in (0, 1))
        for split, (task, (loss, score)), i in itertools.product(("eval", "test"), values.items(), range(len(TS))):
            row = {
                "split": split,
                "t": TS[i],
                "task": task,
                "loss": loss[i],
                "score": score[i] - (split == "eval") / 99,
            }
            row |= {"num_examples": 50, "num_targets": 90}
            row |= {"loss_low": loss[i] * 0.9, "loss_high": loss[i] * 1.1}
            profiles.append(labels | row | {"score_low": score[i] - 0.04, "score_high": score[i] + 0.04})
        for task, quantity in itertools.product(values, ("loss", "score")):
            row = {"task": task, "split": "test", "quantity": quantity}
            gain = task == "mean" and quantity == "score"
            numbers = {"chord_barrier": new + factor / 10 + (task == "mean_old") / 100}
            numbers |= {"interpolation_gain": 0.1 * factor - 0.05 if gain else np.nan}
            numbers |= {"t_star": {1.0: 0.55, 0.7: 0.6, 0.1: 0.7}[factor] if gain else np.nan}
            for name, value in numbers.items():
                row |= {name: value, f"{name}_low": value - 0.03, f"{name}_high": value + 0.03}
            barriers.append(labels | row)
    return pd.DataFrame(profiles), pd.DataFrame(barriers)


def make_rewinding():
    """Tables of one path from the base, measured from t = −1 to 1 + 1/3."""
    profiles, barriers = make_tables(2)
    parts = [t[(t.path == "linear") & (t.space == "factor")].assign(start="0-BASE") for t in (profiles, barriers)]
    ends = [parts[0][parts[0].t == t].assign(t=far) for t, far in ((0.0, -1.0), (1.0, 4 / 3))]
    return pd.concat([ends[0], parts[0], ends[1]], ignore_index=True), parts[1]


def make_matrix(number=8):
    matrix = pd.DataFrame(np.where(np.tri(number + 1, number, -1) > 0, 0.83, 0.07), columns=NAMES[:number])
    matrix.insert(0, "after", range(number + 1))
    return matrix


def several_strategies():
    runs = (("er", "fast", 0.5), ("ilora", "fast", 0.45), ("ilora", "slow", 0.3), ("gem", "fast", 0.7))
    parts = [make_tables()[0], *(make_tables(3, s, learner, forgetting=f)[0] for s, learner, f in runs)]
    return pd.concat(parts, ignore_index=True)


def by_gid(parent, gid):
    """The artists of that name; titles of axes and their like are among the children."""
    return [artist for artist in parent.findobj(lambda a: a.get_gid() == gid)]


def one(parent, gid):
    (artist,) = by_gid(parent, gid)
    return artist


def texts(figure):
    found = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    ticks_outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks() + axis.get_minor_ticks():
                if not low <= tick.get_loc() <= high or not tick.label1.get_visible():
                    ticks_outside |= {tick.label1, tick.label2}
    return [t for t in found if t not in ticks_outside]


def polygon(text, renderer):
    """The corners of a text, rotated as it is drawn, for an exact test of overlap: (4, 2) pixels."""
    angle = text.get_rotation()
    text.set_rotation(0)
    flat = text.get_window_extent(renderer)
    text.set_rotation(angle)
    turned = text.get_window_extent(renderer)
    centre = np.array([(turned.x0 + turned.x1) / 2, (turned.y0 + turned.y1) / 2])
    half = np.array([flat.width, flat.height]) / 2 * 0.96  # a hair of room for descenders and rounding
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    a = np.deg2rad(angle)
    return centre + corners @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def overlap(p, q):
    """Separating axes: two convex polygons are apart if one of their sides parts them."""
    for shape in (p, q):
        for edge in np.roll(shape, -1, axis=0) - shape:
            normal = np.array([-edge[1], edge[0]])
            a, b = p @ normal, q @ normal
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True


def on_narrow_page(draw):
    with on_page(STYLES["paper"]._replace(single=2.7, double=5.5)):
        return draw()


FIGURES = {
    "one transition": lambda: plot_transitions(*make_tables(2)),
    "two transitions": lambda: plot_transitions(*make_tables(3)),
    "one rewinding beyond its ends": lambda: plot_transitions(*make_rewinding()),
    "seven transitions": lambda: plot_transitions(*make_tables(8)),
    "ten transitions": lambda: plot_transitions(*make_tables(11)),
    "seven transitions on a narrow page": lambda: on_narrow_page(lambda: plot_transitions(*make_tables(8))),
    "high barriers": lambda: plot_transitions(*make_tables(4, height=4000.0)),
    "stability and plasticity": lambda: plot_stability_plasticity(several_strategies()),
    "one strategy": lambda: plot_stability_plasticity(make_tables()[0]),
    "matrix": lambda: plot_accuracy_matrix(make_matrix()),
    "wide matrix": lambda: plot_accuracy_matrix(make_matrix(11)),
    "matrix of one task": lambda: plot_accuracy_matrix(make_matrix(1)),
}


@pytest.fixture(params=FIGURES, scope="module")
def figure(request):
    return FIGURES[request.param]()


def test_no_text_is_smaller_than_seven_points(figure):
    figure.canvas.draw()
    assert min(t.get_fontsize() for t in texts(figure)) >= 7
    assert not [t for t in texts(figure) if "$" in t.get_text() and "^" in t.get_text()]  # exponents would be smaller


def test_no_text_leaves_the_figure_or_covers_another(figure):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    shapes = [(t.get_text(), polygon(t, renderer)) for t in texts(figure)]
    width, height = figure.get_size_inches() * figure.dpi
    for words, shape in shapes:
        assert shape.min() >= -0.5 and (shape.max(axis=0) <= (width + 0.5, height + 0.5)).all(), words
    clashes = [(a[0], b[0]) for a, b in itertools.combinations(shapes, 2) if overlap(a[1], b[1])]
    assert clashes == []


def test_figures_fit_a_column_and_a_page(figure):
    width, height = figure.get_size_inches()
    assert width in (3.25, 6.75, 5.5) and height <= 9.7  # A4 less its margins


def test_lines_carry_the_test_split_of_the_table():
    profiles, barriers = make_tables(4)
    figure = plot_transitions(profiles, barriers)
    assert len(figure.axes) == 6
    test = profiles[profiles.split == "test"]
    for number in range(1, 4):
        score, loss = figure.axes[2 * number - 2 : 2 * number]
        assert score.get_title() == f"{NAMES[number - 1]} → {NAMES[number]}"
        for (path, space, _), (role, task), (quantity, axes) in itertools.product(
            KINDS, (("old", "mean_old"), ("new", NAMES[number])), (("score", score), ("loss", loss))
        ):
            rows = test[(test.path == path) & (test.space == space) & (test.task == task)]
            rows = rows[rows.end == f"{number + 1}-{NAMES[number]}"].sort_values("t")
            line = one(axes, f"{role} {path}-{space}")
            np.testing.assert_array_equal(line.get_xdata(), TS)
            np.testing.assert_array_equal(line.get_ydata(), rows[quantity])
            assert len(by_gid(axes, f"{role} {path}-{space} interval")) == (path == "linear" and space == "factor")


def test_paths_differ_in_dashes_and_roles_in_markers():
    axes = plot_transitions(*make_tables(2)).axes[0]
    dashes = {str(one(axes, f"old {p}-{s}")._unscaled_dash_pattern) for p, s, _ in KINDS}
    assert len(dashes) == 3
    assert {by_gid(axes, f"{role} ends")[0].get_marker() for role in ("old", "new")} == {"s", "o"}


def test_a_marked_point_lies_on_the_curves_of_its_path():
    profiles, barriers = make_tables(2)
    score, loss = plot_transitions(profiles, barriers, mark=("linear-factor", 0.3)).axes[:2]
    for axes in (score, loss):
        curve, (mark,) = one(axes, "new linear-factor"), [line for line in axes.lines if line.get_gid() == "new recipe"]
        assert mark.get_xdata() == [0.3]
        assert mark.get_ydata()[0] == pytest.approx(np.interp(0.3, *curve.get_data()))


def test_band_is_the_interval_of_the_first_path():
    profiles, barriers = make_tables(2)
    band = one(plot_transitions(profiles, barriers).axes[1], "new linear-factor interval")
    rows = profiles[(profiles.split == "test") & (profiles.task == "FOMC") & (profiles.space == "factor")]
    rows = rows[rows.path == "linear"]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == rows.loss_low.min() and heights.max() == rows.loss_high.max()


def test_t_star_stands_where_the_table_says():
    profiles, barriers = make_tables(3)
    figure = plot_transitions(profiles, barriers)
    for axes in figure.axes:
        assert set(one(axes, "t_star").get_xdata()) == {0.55}
    rows = profiles[(profiles.split == "test") & (profiles.task == "mean") & (profiles.path == "linear")]
    rows = rows[(rows.space == "factor") & (rows.start == "2-FOMC") & np.isclose(rows.t, 0.55)]
    star = one(figure.axes[2], "mean at t_star")
    assert star.get_xydata().tolist() == [[rows.t.item(), rows.score.item()]]


def test_numbers_below_the_panels_are_those_of_the_barriers():
    figure = plot_transitions(*make_tables(3))
    loss = figure.axes[3]
    shown = {
        name: one(loss, f"table {name} linear-delta").get_text() for name in ("old", "new", "t_star", "gain", "low")
    }
    assert shown == {"old": "2.08", "new": "2.07", "t_star": "0.60", "gain": "+0.02", "low": "−0.01"}
    assert one(loss, "table gain bezier-factor").get_text() == "−0.04"


def test_caption_tells_barriers_and_gains_with_intervals():
    words = caption(*make_tables(3))
    assert "FOMC → MeetingBank:" in words and "C-STANCE → FOMC:" in words
    assert "Of each task 50 examples." in words
    assert "2.11 [2.08, 2.14] (old tasks), 2.10 [2.07, 2.13] (MeetingBank)" in words
    assert "gain −0.04 [−0.07, −0.01] at t* = 0.70" in words


def test_caption_tells_where_intervals_promise_nothing():
    profiles, barriers = make_tables(3)
    assert "promise no 95 %" not in caption(profiles, barriers)
    barriers["few_events"] = False
    barriers.loc[barriers.index[barriers.split == "test"][0], "few_events"] = True
    number = (profiles.split == "test").sum() + (barriers.split == "test").sum()
    assert f"Intervals of 1 of {number} table rows promise no 95 %" in caption(profiles, barriers)


def test_order_of_rows_does_not_matter_and_numbers_sort_as_numbers():
    profiles, barriers = make_tables(11)
    mixed = plot_transitions(profiles.sample(frac=1, random_state=1), barriers.sample(frac=1, random_state=1))
    assert [a.get_title() for a in mixed.axes] == [a.get_title() for a in plot_transitions(profiles, barriers).axes]


def test_without_old_tasks_or_gain_the_new_task_alone_is_drawn():
    profiles, barriers = make_tables(2, names=("left", "right"))
    renamed = {"right": "FOMC"}  # adapters are labelled by folder, the task has another name
    profiles, barriers = (
        t[t.task == "right"].replace({"task": renamed}).assign(strategy="adapters") for t in (profiles, barriers)
    )
    figure = plot_transitions(profiles, barriers)
    assert by_gid(figure.axes[0], "new linear-factor") and not by_gid(figure.axes[0], "old linear-factor")
    assert not by_gid(figure.axes[0], "t_star")
    words, told = caption(profiles, barriers).split("left → right:")
    assert "gain" not in told and "No t* and no gain are given" in words and "eval split" not in words
    assert "curve fitted on these examples" in words  # it is no finding about others
    assert [t for t in figure.texts if t.get_text() == "two adapters; curve fitted on these examples"]


def test_values_that_are_not_finite_are_marked_and_not_smoothed():
    profiles, barriers = make_tables(2)
    chosen = (profiles.task == "mean_old") & (profiles.space == "factor") & (profiles.path == "linear")
    profiles.loc[chosen & np.isclose(profiles.t, 0.5), "loss"] = np.inf
    profiles.loc[chosen & np.isclose(profiles.t, 0.7), "loss"] = np.nan
    axes = plot_transitions(profiles, barriers).axes[1]
    np.testing.assert_allclose(one(axes, "old not finite").get_xdata(), [0.5, 0.7])
    assert np.isinf(one(axes, "old linear-factor").get_ydata()).sum() == 1
    assert np.isfinite(axes.get_ylim()).all()


def test_the_loss_axis_is_logarithmic_only_where_ends_would_lie_flat():
    assert plot_transitions(*make_tables(3)).axes[1].get_yscale() == "linear"
    assert plot_transitions(*make_tables(3, height=4000.0)).axes[1].get_yscale() == "log"


def test_paths_unknown_to_the_style_are_drawn_too():
    profiles, barriers = (t.replace({"path": {"bezier": "spiral"}}) for t in make_tables(2))
    assert by_gid(plot_transitions(profiles, barriers).axes[0], "old spiral-factor")


def test_stability_and_plasticity_are_the_scores_of_old_and_new():
    profiles = several_strategies()
    axes = plot_stability_plasticity(profiles).axes[0]
    test = profiles[(profiles.split == "test") & (profiles.start == "2-FOMC")]

    def scores(strategy, learner, task, path="linear", space="factor"):
        rows = test[(test.strategy == strategy) & (test.learner == learner) & (test.task == task)]
        return rows[(rows.path == path) & (rows.space == space)].sort_values("t").score.to_numpy()

    for path, space, _ in KINDS:
        line = one(axes, f"sequential {path}-{space}")
        np.testing.assert_array_equal(line.get_xdata(), scores("sequential", "fast", "mean_old", path, space))
        np.testing.assert_array_equal(line.get_ydata(), scores("sequential", "fast", "MeetingBank", path, space))
    for container in axes.containers:
        strategy, learner = container[0].get_gid().split()[1:]
        x, y = (scores(strategy, learner, task)[-1] for task in ("mean_old", "MeetingBank"))
        point, _, (across, up) = container
        assert point.get_xydata().tolist() == [[x, y]]
        np.testing.assert_allclose(across.get_segments()[0][:, 0], [x - 0.04, x + 0.04])
        np.testing.assert_allclose(up.get_segments()[0][:, 1], [y - 0.04, y + 0.04])


def test_every_strategy_has_a_marker_of_its_own():
    axes = plot_stability_plasticity(several_strategies()).axes[0]
    assert len({c[0].get_marker() for c in axes.containers}) == len(axes.containers) == 5


def test_markers_of_equal_results_are_nested():
    same = [make_tables()[0], *(make_tables(3, name)[0] for name in ("er", "gem"))]
    axes = plot_stability_plasticity(pd.concat(same, ignore_index=True)).axes[0]
    sizes = [c[0].get_markersize() for c in axes.containers]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3


def test_long_titles_take_two_lines_and_names_are_cut_only_where_one_alone_is_too_long():
    titles = [a.get_title() for a in plot_transitions(*make_tables(11)).axes[::2]]
    assert titles[3] == "ScienceQA →\nNumGLUE-cm"
    assert titles[9].startswith("NumGLUE-ds →\na-name-") and "…" in titles[9]
    assert not any("…" in title for title in titles[:9])


def test_two_adapters_are_told_by_the_names_of_their_data():
    profiles, barriers = (t.assign(strategy="adapters") for t in make_tables(2, names=("old-questions", "new")))
    figure = plot_transitions(profiles, barriers)
    assert [t.get_text() for t in figure.legends[0].get_texts()[:2]] == ["old-questions", "new"]
    shown = {t.get_text() for t in texts(figure)}
    assert {"position t on the path (0 = first adapter, 1 = second)", "old-qu…tions"} <= shown
    assert not [words for words in shown if "barrier, " in words]


def test_an_earlier_transition_can_be_chosen():
    figure = plot_stability_plasticity(make_tables()[0], ("1-C-STANCE", "2-FOMC"))
    assert figure.axes[0].get_title() == "C-STANCE → FOMC"


def test_matrix_shows_every_number_and_hatches_what_is_missing():
    matrix = make_matrix()
    matrix.loc[3, "FOMC"] = np.nan
    axes = plot_accuracy_matrix(matrix).axes[0]
    assert one(axes, "8 JEC-QA").get_text() == "0.83" and one(axes, "0 JEC-QA").get_text() == "0.07"
    assert one(axes, "missing 3 FOMC").get_hatch() and not by_gid(axes, "3 FOMC")
    assert not by_gid(axes, "staircase") and by_gid(plot_accuracy_matrix(make_matrix()).axes[0], "staircase")


@pytest.mark.parametrize(
    "name",
    ["two transitions", *(pytest.param(n, marks=pytest.mark.slow) for n in ("stability and plasticity", "matrix"))],
)
def test_two_saves_give_the_same_bytes(name, tmp_path):
    figure = FIGURES[name]()
    first = save_figure(figure, tmp_path / "first" / "a.b", ("pdf", "png", "svg"))
    again = save_figure(figure, tmp_path / "again" / "a.b", ("pdf", "png", "svg"))
    afresh = save_figure(FIGURES[name](), tmp_path / "afresh" / "a.b", ("pdf", "png", "svg"))
    assert [f.name for f in first] == ["a.b.pdf", "a.b.png", "a.b.svg"]
    for a, b, c in zip(first, again, afresh, strict=True):
        assert a.read_bytes() == b.read_bytes() == c.read_bytes()
    assert sorted(f.name for f in (tmp_path / "first").iterdir()) == [f.name for f in first]  # no temporary file


def test_files_hold_fonts_and_neither_time_nor_version(tmp_path):
    pdf, png = save_figure(plot_accuracy_matrix(make_matrix(3)), tmp_path / "matrix")
    content = pdf.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content
    for word in (b"CreationDate", matplotlib.__version__.encode()):
        assert word not in content
    assert b"tEXt" not in png.read_bytes() and b"matplotlib" not in png.read_bytes().lower()


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    figure = plot_accuracy_matrix(make_matrix(2))
    (file,) = save_figure(figure, tmp_path / "matrix", ("png",))
    before = file.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_figure(figure, tmp_path / "matrix", ("png",))
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_the_users_settings_neither_matter_nor_change():
    def drawn():
        buffer = io.BytesIO()
        plot_transitions(*make_tables(2)).savefig(buffer, format="rgba")
        return buffer.getvalue()

    plain = drawn()
    with matplotlib.rc_context({"font.size": 3, "lines.linewidth": 9, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert drawn() == plain
        assert dict(matplotlib.rcParams) == before


def test_no_display_and_no_pyplot_are_needed():
    code = "import sys, mcanalysis.plotting; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


PROFILES, BARRIERS = make_tables(3)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot_transitions(PROFILES.drop(columns="loss_low"), BARRIERS), "column.*loss_low.*profiles"),
        (lambda: plot_transitions(PROFILES, BARRIERS.drop(columns="t_star")), "column.*t_star.*barriers"),
        (lambda: plot_transitions(PROFILES[PROFILES.split == "eval"], BARRIERS), "split test.*got eval"),
        (lambda: plot_transitions(PROFILES.iloc[:0], BARRIERS), "split test.*got no row"),
        (lambda: plot_transitions(pd.concat([PROFILES, PROFILES]), BARRIERS), "one row per point.*repeated"),
        (lambda: plot_transitions(PROFILES, BARRIERS.assign(seed=4)), "barriers of the seed 0.*got 4"),
        (lambda: plot_transitions(PROFILES, BARRIERS[BARRIERS.start == "2-FOMC"]), "1-C-STANCE to 2-FOMC, got none"),
        (lambda: plot_transitions(several_strategies(), BARRIERS), "one strategy.*sequential, er"),
        (lambda: plot_transitions(PROFILES.assign(end="FOMC"), BARRIERS), "label like 3-ScienceQA, got 'FOMC'"),
        (lambda: plot_transitions("profiles.csv", BARRIERS), "DataFrame.*got str"),
        (lambda: caption(PROFILES.drop(columns="t"), BARRIERS), "column.*t in the table profiles"),
        (lambda: plot_stability_plasticity(make_tables(strategy="er")[0]), "strategy sequential.*got er"),
        (lambda: plot_stability_plasticity(PROFILES, ("1-C-STANCE", "3-MeetingBank")), "1-C-STANCE to 2-FOMC, .*got"),
        (lambda: plot_stability_plasticity(PROFILES[PROFILES.task != "mean_old"]), "mean_old and MeetingBank.*got"),
        (lambda: plot_stability_plasticity(pd.concat([PROFILES, make_tables(seed=1)[0]])), "one seed.*0, 1"),
        (lambda: plot_stability_plasticity(PROFILES.drop(columns="score_high")), "column.*score_high"),
        (lambda: plot_accuracy_matrix(make_matrix().drop(columns="after")), "column.*after"),
        (lambda: plot_accuracy_matrix(make_matrix()[["after"]]), r"one task.*0 task\(s\)"),
        (lambda: plot_accuracy_matrix(make_matrix() * 100), "from 0 to 1.*got 7;"),
        (lambda: save_figure(plot_accuracy_matrix(make_matrix(2)), "/nonexistent/x", ("gif",)), "formats.*got gif"),
    ],
)
def test_bad_input_is_refused_in_one_line(draw, message):
    with pytest.raises(UserError, match=message) as refusal:
        draw()
    words = str(refusal.value)
    assert words.startswith("Expected ") and ", got " in words and ";" in words and "\n" not in words
