"""Two-dimensional slices side by side carry the table's numbers on one scale per row, and are nowhere a flat colour."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import ContourSet

from mcanalysis.errors import UserError
from mcanalysis.plotting.slice_surfaces import plot_slice_surfaces, slice_surfaces_caption
from mcanalysis.plotting.style import STYLES, VENUES, on_page

STEPS = np.linspace(-1, 1, 7)
LEARNERS = {("sequential", "fast"): 3.0, ("ilora", "fast"): 0.06, ("ilora", "slow"): 0.05}


def loss(height, task, x, y):
    return height * (1 + 0.3 * (x * x + 2 * y * y)) * (1 if task == "mean_old" else 0.5)


def table(missing=None):
    rows = []
    for ((strategy, learner), height), task in itertools.product(LEARNERS.items(), ("FOMC", "mean_old", "mean")):
        where = [*itertools.product(STEPS, STEPS, ("",)), (0.0, 0.0, "minimum")]
        for x, y, anchor in where:
            row = {"strategy": strategy, "learner": learner, "seed": 0, "kind": "surface", "start": "2-FOMC"}
            row |= {"x": x, "y": y, "anchor": anchor, "task": task, "split": "test"}
            rows.append(row | {"loss": loss(height, task, x, y), "measured": (x, y) != missing})
    return pd.DataFrame(rows)


def meshes(figure):
    found = [c for axes in figure.axes for c in axes.collections if isinstance(c, QuadMesh) and c.get_gid()]
    return {mesh.get_gid(): mesh for mesh in found}


def test_cells_have_the_values_of_their_nodes_and_rows_share_a_scale():
    drawn = meshes(plot_slice_surfaces(table().sample(frac=1, random_state=0)))
    assert len(drawn) == 6
    for (name, height), task in itertools.product(LEARNERS.items(), ("FOMC", "mean_old")):
        expected = loss(height, task, STEPS[None, :], STEPS[:, None])
        np.testing.assert_allclose(drawn[f"{task} {' '.join(name)}"].get_array(), expected)
    for task in ("FOMC", "mean_old"):
        norms = {id(mesh.norm) for gid, mesh in drawn.items() if gid.startswith(task)}
        assert len(norms) == 1


def test_a_panel_without_levels_of_the_scale_has_its_own_with_numbers():
    figure = plot_slice_surfaces(table())
    flat = next(axes for axes in figure.axes if axes.get_title() == "sequential")
    numbers = [float(t.get_text()) for t in flat.texts]
    assert numbers and all(3.0 < number < 5.7 for number in numbers)
    dashed = [c for c in flat.collections if isinstance(c, ContourSet) and c.labelTexts]
    assert len(dashed) == 1


def test_a_node_that_was_not_measured_is_left_white():
    mesh = meshes(plot_slice_surfaces(table(missing=(-1.0, -1.0))))["FOMC sequential fast"]
    assert np.ma.getmaskarray(mesh.get_array()).reshape(7, 7)[0, 0]


@pytest.mark.parametrize("venue", VENUES)
def test_words_of_the_bars_stand_in_one_line_and_on_the_page(venue):
    single, double = VENUES[venue]
    with on_page(STYLES["paper"]._replace(single=single, double=double)):
        figure = plot_slice_surfaces(table())
    figure.canvas.draw()
    boxes = [a.yaxis.label.get_window_extent() for a in figure.axes if a.get_ylabel() == "loss (nats/token)"]
    assert len(boxes) == 2 and boxes[0].x0 == pytest.approx(boxes[1].x0)
    assert all(box.x1 <= figure.get_figwidth() * figure.dpi for box in boxes)


def test_tables_of_something_else_are_refused_and_the_caption_tells_the_grid():
    assert "7 × 7 nodes" in slice_surfaces_caption(table())
    with pytest.raises(UserError, match="Expected rows of the kind surface"):
        plot_slice_surfaces(table().assign(kind="slice"))
    with pytest.raises(UserError, match="Expected one seed"):
        plot_slice_surfaces(pd.concat([table(), table().assign(seed=1)]))
