"""The heat maps carry the table's numbers, hatch what is missing, keep inside the page and fit many layers."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from mcanalysis.errors import UserError
from mcanalysis.plotting.attribution import attribution_caption, plot_attribution

VALUES = ("above_chord", "end_change")


def make_table(num_layers=3, kinds=("q_proj", "v_proj"), missing=None, names=("C-STANCE", "FOMC")):
    rows = []
    layers = [f"model.layers.{i}" for i in range(num_layers)]
    cells = [*itertools.product([*layers, "all"], [*kinds, "all"])]
    for hold, task, (i, (layer, kind)) in itertools.product(("start", "end"), (*names, "mean_old"), enumerate(cells)):
        if (layer, kind) == missing:
            continue
        row = {"strategy": "sequential", "learner": "fast", "seed": 0, "space": "factor", "start": f"1-{names[0]}"}
        row |= {"end": f"2-{names[1]}", "hold": hold, "layer": layer, "kind": kind, "task": task}
        value = (i - 4) / 10 * (1 if hold == "start" else 2) * (3 if task == names[1] else 1)
        rows.append({**row, "quantity": "loss", "t_farthest": 0.4, "above_chord": value, "end_change": -value / 3})
        rows.append({**row, "quantity": "score", "t_farthest": 0.4, "above_chord": 9.0, "end_change": 9.0})
    return pd.DataFrame(rows)


def texts(figure):
    return {t.get_gid(): t.get_text() for t in figure.findobj(Text) if t.get_gid()}


@pytest.mark.parametrize(("role", "task"), [("old", "mean_old"), ("new", "FOMC")])
def test_every_cell_shows_its_number(role, task):
    table = make_table()
    shown = texts(plot_attribution(table, role))
    losses = table[(table.task == task) & (table.quantity == "loss")]
    assert len(shown) == 2 * len(losses)
    for row in losses.itertuples():
        for value in VALUES:
            text = shown[f"{value} {row.hold} {row.layer} {row.kind}"]
            assert float(text.replace("−", "-")) == pytest.approx(getattr(row, value), abs=0.005)


def test_colours_are_symmetric_about_zero_and_shared_by_a_row():
    figure = plot_attribution(make_table())
    images = [image for axes in figure.axes for image in axes.images]
    limits = [image.get_clim() for image in images]
    assert all(low == -high for low, high in limits)
    by_row = {image.get_gid().split()[0]: image.get_clim() for image in images}
    assert all(image.get_clim() == by_row[image.get_gid().split()[0]] for image in images)


def test_a_missing_module_is_hatched_and_has_no_number():
    table = make_table(missing=("model.layers.1", "v_proj"))
    figure = plot_attribution(table)
    assert "above_chord start model.layers.1 v_proj" not in texts(figure)
    hatched = [p for axes in figure.axes for p in axes.patches if p.get_hatch()]
    assert len(hatched) == 4


@pytest.mark.parametrize("num_layers", [1, 3, 32])
@pytest.mark.parametrize(
    "kinds", [("w",), ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")]
)
def test_nothing_leaves_the_page_and_no_number_its_cell(num_layers, kinds):
    figure = plot_attribution(make_table(num_layers, kinds))
    page = figure.bbox
    for text in figure.findobj(Text):
        if not (text.get_text() and text.get_visible()):
            continue
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
        if text.get_gid():
            cell = text.axes.transData.transform([[0, 0], [1, 1]])
            assert box.width <= abs(cell[1, 0] - cell[0, 0]) and box.height <= abs(cell[1, 1] - cell[0, 1])
    assert bool(texts(figure)) == (num_layers <= 12)


def test_all_zero_and_nan_are_drawn():
    table = make_table()
    table[list(VALUES)] = 0.0
    assert set(texts(plot_attribution(table)).values()) == {"0.00"}
    table[list(VALUES)] = 0.004
    assert set(texts(plot_attribution(table)).values()) == {"+0.004"}
    table[list(VALUES)] = np.nan
    assert texts(plot_attribution(table)) == {}
    assert "largest –" in attribution_caption(table)


def test_the_caption_names_the_largest_module_and_the_sum():
    table = make_table()
    chosen = table[(table.task == "mean_old") & (table.quantity == "loss") & (table.hold == "start")]
    modules = chosen[(chosen.layer != "all") & (chosen.kind != "all")]
    words = attribution_caption(table)
    assert f"sum over modules {modules.above_chord.sum():+.3f}".replace("-", "−") in words
    top = modules.loc[modules.above_chord.abs().idxmax()]
    largest = f"{top.above_chord:+.3f}".replace("-", "−")
    assert f"largest {largest} ({top.layer}, {top.kind})" in words and "t = 0.40" in words


def test_tables_of_something_else_are_refused_in_one_line():
    table = make_table()
    with pytest.raises(UserError, match="end_change"):
        plot_attribution(table.drop(columns="end_change"))
    with pytest.raises(UserError, match="one seed"):
        plot_attribution(pd.concat([table, table.assign(seed=1)]))
    with pytest.raises(UserError, match="held at start and at end"):
        plot_attribution(table[table.hold == "start"])
