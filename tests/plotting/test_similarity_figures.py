"""Figures of similarity carry the tables' numbers and keep the print rules."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mcanalysis.errors import UserError
from mcanalysis.plotting.similarity import (
    captions,
    plot_cka,
    plot_predictions,
    plot_principal_angles,
    plot_similarity,
    plot_weight_distances,
)
from mcanalysis.plotting.style import save_figure

NAMES = ("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten", "MedMCQA", "JEC-QA", "Py150")
NAMES += ("NumGLUE-ds", "a-name-so-long-that-nothing-has-room-for-it")
RUN = {"strategy": "ilora", "seed": 0}
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")


def link(comparison, a, b, learners=("slow", "slow")):
    labels = ["0-base" if k == 0 else f"{k}-{NAMES[k - 1]}" for k in (a, b)]
    first = "base" if a == 0 else learners[0]
    return RUN | {"comparison": comparison, "start": labels[0], "start_learner": first, "end": labels[1],
                  "end_learner": learners[1]}  # fmt: skip


def make_tables(number=4, layers=3, kinds=KINDS[:4], learners=("slow", "fast")):
    tables = {name: [] for name in ("cka", "prediction_similarity", "weight_distance", "subspace_overlap")}
    links = []
    for one in learners:
        links += [link("successive", k - 1, k, (one, one)) for k in range(1, number + 1)]
        links += [link("base", 0, k, (one, one)) for k in range(1, number + 1)]
        for a, b in itertools.combinations(range(1, number + 1), 2):
            told = link("successive" if b == a + 1 else "any", a, b, (one, one))
            for space, module in itertools.product(("delta", "factor"), ("all", "layers.0.q")):
                row = {
                    "distance": a + b / 10 + 90 * (space != "delta" or module != "all"),
                    "cosine": (b - a) / 20 - 0.3,
                }
                tables["weight_distance"].append(told | {"space": space, "module": module} | row)
            for side, layer, kind in itertools.product(("column", "row"), range(layers), kinds):
                mean = 30 + 5 * layer + b + 20 * (side == "row")
                row = {"smallest_angle": mean - 20.0, "mean_angle": mean, "largest_angle": mean + 25.0}
                row |= {"module": f"model.layers.{layer}.{kind}", "side": side}
                tables["subspace_overlap"].append(told | row)
    if len(learners) > 1:
        links += [link("learners", k, k, ("fast", "slow")) for k in range(1, number + 1)]
    for told, task in itertools.product(links, ("C-STANCE", "mean_old")):
        k = int(told["end"].partition("-")[0])
        if task == "mean_old" and k == 1:
            continue
        height = {"successive": 0.8, "base": 0.2, "learners": 0.99}[told["comparison"]] - 0.4 * (task != "mean_old")
        for layer in range(1, layers + 1):
            value = height - 0.02 * layer + 0.01 * k
            row = {"cka": value, "cka_low": value - 0.05, "cka_high": value + 0.04}
            tables["cka"].append(told | {"task": task, "layer": layer, "num_examples": 100} | row)
        row = {"churn": 1 - height, "churn_low": 0.9 - height, "churn_high": 1.0 - height + 0.01}
        row |= {"kl": 3 * (1 - height) ** 2, "kl_low": 2 * (1 - height) ** 2, "kl_high": 4 * (1 - height) ** 2}
        tables["prediction_similarity"].append(told | {"task": task, "num_examples": 100} | row)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


FIGURES = {
    "cka": lambda: plot_cka(make_tables()["cka"], "slow"),
    "cka of one learner, two minima": lambda: plot_cka(make_tables(2, learners=("fast",))["cka"], "fast"),
    "cka of 32 layers and 11 minima": lambda: plot_cka(make_tables(11, layers=32)["cka"], "slow"),
    "predictions": lambda: plot_predictions(make_tables(8)["prediction_similarity"], "slow"),
    "predictions of 11 minima": lambda: plot_predictions(make_tables(11)["prediction_similarity"], "fast"),
    "distances": lambda: plot_weight_distances(make_tables(8)["weight_distance"], "slow"),
    "distances of two": lambda: plot_weight_distances(make_tables(2)["weight_distance"], "slow"),
    "distances of eleven": lambda: plot_weight_distances(make_tables(11)["weight_distance"], "slow"),
    "angles": lambda: plot_principal_angles(make_tables(8)["subspace_overlap"], "slow"),
    "angles of 32 layers": lambda: plot_principal_angles(make_tables(11, 32, KINDS)["subspace_overlap"], "slow"),
}


@pytest.fixture(params=FIGURES, scope="module")
def figure(request):
    return FIGURES[request.param]()


def one(parent, gid):
    (found,) = [artist for artist in parent.findobj(lambda a: a.get_gid() == gid)]
    return found


def texts(figure):
    """All visible texts but those of ticks outside of their axis."""
    outside = set()
    for axis in (a for axes in figure.axes for a in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            if not low <= tick.get_loc() <= high or not tick.label1.get_visible():
                outside |= {tick.label1, tick.label2}
    return [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in outside]


def test_texts_are_legible_and_inside_and_upright_ones_apart(figure):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    assert figure.get_figwidth() in (3.25, 6.75) and figure.get_figheight() <= 9.7
    boxes = []
    for text in texts(figure):
        assert text.get_fontsize() >= 7
        box = text.get_window_extent(renderer)
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5, text.get_text()
        if text.get_rotation() in (0, 90):
            boxes.append((text.get_text(), box.shrunk(0.96, 0.9)))
    clashes = [(a[0], b[0]) for a, b in itertools.combinations(boxes, 2) if a[1].overlaps(b[1])]
    assert clashes == []


def test_the_first_panel_says_what_it_shows(figure):
    first = figure.axes[0]
    assert first.get_ylabel() or first.get_title()
    assert [t for t in figure.texts if "slow adapter, seed 0" in t.get_text() or "fast adapter, seed 0" in t.get_text()]


def test_cka_lines_carry_the_mean_over_earlier_tasks():
    tables = make_tables()
    figure = plot_cka(tables["cka"], "slow")
    assert [axes.get_title() for axes in figure.axes] == [
        "minimum before → after",
        "base → minimum",
        "fast ↔ slow adapter",
    ]
    rows = tables["cka"]
    for axes, comparison in zip(figure.axes, ("successive", "base", "learners"), strict=True):
        for k in (2, 3, 4):
            end = f"{k}-{NAMES[k - 1]}"
            chosen = rows[(rows.comparison == comparison) & (rows.end == end) & (rows.task == "mean_old")]
            chosen = chosen[chosen.end_learner == "slow"]
            line, _, (bars,) = one_container(axes, f"{comparison} {end}")
            np.testing.assert_allclose(line.get_ydata(orig=False), chosen.cka)
            np.testing.assert_allclose(np.round(line.get_xdata(orig=False)), [1, 2, 3])
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            np.testing.assert_allclose(ends, chosen[["cka_low", "cka_high"]])


def one_container(axes, gid):
    """Line, caps and bars: errorbar() gives its gid to the line."""
    (found,) = [c for c in axes.containers if c.lines[0].get_gid() == gid]
    return found.lines


def test_heat_maps_carry_the_delta_rows_of_all_modules_both_ways():
    figure = plot_weight_distances(make_tables()["weight_distance"], "fast")
    distance, cosine = (one(figure, name).get_array() for name in ("distance", "cosine"))
    for a, b in itertools.combinations(range(4), 2):
        assert distance[a, b] == distance[b, a] == pytest.approx(a + 1 + (b + 1) / 10)
        assert cosine[a, b] == cosine[b, a] == pytest.approx((b - a) / 20 - 0.3)
    assert distance.mask.diagonal().all()
    assert one(figure, "distance 0 1").get_text() == "1.20" and one(figure, "cosine 0 1").get_text() == "−0.25"


def test_angles_stand_at_their_layer_and_side():
    tables = make_tables()
    figure = plot_principal_angles(tables["subspace_overlap"], "slow")
    assert [axes.get_title() for axes in figure.axes[:4]] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    for axes, side in ((figure.axes[1], "column"), (figure.axes[5], "row")):
        line, _, (bars,) = one_container(axes, f"{side} self_attn.k_proj 3-MeetingBank")
        np.testing.assert_allclose(line.get_ydata(orig=False), np.array([33, 38, 43]) + 20 * (side == "row"))
        assert bars.get_segments()[0][:, 1] == pytest.approx(
            [line.get_ydata(orig=False)[0] - 20, line.get_ydata(orig=False)[0] + 25]
        )


def test_churn_and_kl_stand_above_their_minimum():
    figure = plot_predictions(make_tables()["prediction_similarity"], "slow")
    line, _, _ = one_container(figure.axes[0], "churn base")
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.8, 0.8, 0.8])
    line, _, _ = one_container(figure.axes[1], "kl learners")
    np.testing.assert_allclose(line.get_ydata(orig=False), [3e-4] * 3)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2 FOMC", "3 MeetingBank", "4 ScienceQA"]


def test_the_axis_of_kl_has_a_linear_part_only_where_something_lies_in_it():
    table = make_tables()["prediction_similarity"]
    assert plot_predictions(table, "slow").axes[1].get_yscale() == "symlog"
    axes = plot_predictions(table[table.comparison != "learners"], "slow").axes[1]
    low = float(table.kl_low[(table.comparison != "learners") & (table.task == "mean_old")].min())
    assert axes.get_yscale() == "log" and low / 2 < axes.get_ylim()[0] < low


def test_every_figure_has_a_caption_and_equal_tables_give_equal_bytes(tmp_path):
    tables = make_tables()
    figures = plot_similarity(tables)
    assert set(figures) == set(captions(tables))
    assert len(figures) == 8 and all(stem.startswith("similarity_") for stem in figures)
    assert "100 test examples" in captions(tables)["similarity_cka_fast"]
    again = plot_similarity(make_tables())
    for name, drawn in (("a", figures), ("b", again)):
        save_figure(drawn["similarity_cka_slow"], tmp_path / name)
    for ending in ("pdf", "png"):
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_missing_values_are_left_out_and_not_drawn_as_zero():
    tables = make_tables()
    lost = tables["cka"].copy()
    lost.loc[lost.layer == 2, ["cka", "cka_low", "cka_high"]] = np.nan
    line, _, _ = one_container(plot_cka(lost, "slow").axes[0], "successive 2-FOMC")
    assert np.isnan(line.get_ydata(orig=False)[1]) and np.isfinite(line.get_ydata(orig=False)[[0, 2]]).all()
    angles = tables["subspace_overlap"].copy()
    angles.loc[angles.module.str.contains("layers.1"), ["smallest_angle", "mean_angle", "largest_angle"]] = np.nan
    line, _, _ = one_container(plot_principal_angles(angles, "slow").axes[0], "column self_attn.q_proj 2-FOMC")
    assert len(line.get_ydata(orig=False)) == 2
    with pytest.raises(UserError, match="every ΔW is zero"):
        plot_principal_angles(angles.assign(mean_angle=np.nan), "slow")


def test_bad_tables_are_named():
    tables = make_tables()
    with pytest.raises(UserError, match=r"column.* cka_low in the table cka"):
        plot_cka(tables["cka"].drop(columns="cka_low"), "slow")
    with pytest.raises(UserError, match="learner medium"):
        plot_weight_distances(tables["weight_distance"], "medium")
    two = pd.concat([tables["cka"], tables["cka"].assign(seed=1)])
    with pytest.raises(UserError, match="one seed"):
        plot_cka(two, "slow")
    with pytest.raises(UserError, match="mean_old"):
        plot_predictions(tables["prediction_similarity"].query("task != 'mean_old'"), "slow")
