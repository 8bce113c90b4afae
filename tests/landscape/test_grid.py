"""Grids over surfaces against closed forms and models changed by hand; keys, memory."""

import math
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.landscape.grid import (
    Axis,
    Node,
    evaluate_grid,
    grid_nodes,
    surrounding_axes,
)
from mcanalysis.landscape.slices import Slice
from mcanalysis.paths.plane import Plane


def random_points(number, seed=0, size=6):
    rng = np.random.default_rng(seed)
    return [{"w": torch.tensor(rng.normal(size=size)), "b": torch.tensor(rng.normal(size=2))} for _ in range(number)]


def flat(point):
    return np.concatenate([point["w"].numpy(), point["b"].numpy()])


def test_a_quadratic_on_a_plane_is_the_closed_form_at_every_node_and_anchor():
    """L = ½(θ−θ*)ᵀH(θ−θ*) with θ built by NumPy from an orthonormal frame of its own (QR)."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(8, 8))
    hessian, best = root @ root.T, rng.normal(size=8)
    a, b, c = random_points(3)

    def loss(point):
        d = torch.cat([point["w"], point["b"]]) - torch.tensor(best)
        return 0.5 * d @ torch.tensor(hessian) @ d

    plane = Plane(a, b, c)
    axes = surrounding_axes(plane.anchor_coordinates, (7, 4))
    table = evaluate_grid(plane, loss, *axes)
    frame, upper = np.linalg.qr(np.stack([flat(b) - flat(a), flat(c) - flat(a)], axis=1))
    frame = frame * np.sign(np.diag(upper))
    assert len(table) == 7 * 4 + 3
    for row in table.itertuples():
        d = flat(a) + frame @ [row.x, row.y] - best
        assert row.loss == pytest.approx(0.5 * d @ hessian @ d, rel=1e-10)
    exact = table[table.anchor != ""]
    assert list(exact.anchor) == ["a", "b", "c"]
    assert list(exact.loss) == [float(loss(p)) for p in (a, b, c)]  # bit for bit
    assert set(table[table.anchor == ""].x) == set(axes[0].ticks) and table.measured.all()


def test_several_objectives_on_a_slice_of_a_network_with_nan_and_infinity_kept():
    origin, direction = random_points(2)
    line = Slice(origin, direction)

    def bad(point):
        alpha = float((point["w"][0] - origin["w"][0]) / direction["w"][0])
        return math.nan if alpha > 0.6 else math.inf if alpha < -0.6 else alpha

    table = evaluate_grid(line, {"sum": lambda p: p["w"].sum(), "bad": bad}, Axis(-1, 1, 5))
    values = table[table.task == "bad"].loss.to_numpy()
    assert np.isinf(values[0]) and np.isnan(values[4])
    assert values[1:4] == pytest.approx([-0.5, 0, 0.5]) and values[5] == pytest.approx(0)  # the origin, exactly
    sums = table[(table.task == "sum") & (table.anchor == "")].set_index("x").loss
    for x, value in sums.items():
        assert value == pytest.approx(float((origin["w"] + x * direction["w"]).sum()))
    assert list(table[table.anchor == "origin"].task) == ["sum", "bad"]
    assert not any(t.requires_grad for t in origin.values())


def test_one_point_is_in_memory_at_a_time_and_no_graph():
    alive = weakref.WeakSet()
    most = 0
    leaf = torch.ones(3, requires_grad=True)

    class Weights(torch.Tensor):
        pass

    def surface(x, y):
        nonlocal most
        tensor = (leaf * (x + y)).as_subclass(Weights)
        assert not tensor.requires_grad
        alive.add(tensor)
        most = max(most, len(alive))
        return {"w": tensor}

    evaluate_grid(surface, lambda p: p["w"].sum(), Axis(0, 1, 9), Axis(0, 1, 9))
    assert most <= 2  # the one before may be alive until the name is bound again


def test_a_finer_grid_has_the_nodes_of_the_coarser_one_under_the_same_keys():
    coarse = {n.key: (n.x, n.y) for n in grid_nodes(Axis(-0.3, 0.7, 7), Axis(0.1, 0.9, 4), "k")}
    fine = {n.key: (n.x, n.y) for n in grid_nodes(Axis(-0.3, 0.7, 13), Axis(0.1, 0.9, 7), "k")}
    assert len(coarse) == 28 and coarse.items() <= fine.items()
    first = grid_nodes(Axis(-0.3, 0.7, 7), Axis(0.1, 0.9, 4), "k")
    assert (first[0].x, first[0].y, first[-1].x, first[-1].y) == (-0.3, 0.1, 0.7, 0.9)


finite = st.floats(-100, 100, allow_subnormal=False)


@settings(max_examples=25, deadline=None)
@given(
    places=st.lists(st.tuples(finite, finite), min_size=3, max_size=6),
    noise=st.floats(-1, 1),
    margin=st.floats(0.05, 2),
)
def test_axes_surround_the_places_and_do_not_see_their_last_bits(places, noise, margin):
    where = np.array(places)
    side = float(np.ptp(where, axis=0).max())
    if side < 1e-3:
        return
    axes = surrounding_axes(where, (3, 5), margin)
    for i, axis in enumerate(axes):
        assert axis.low <= where[:, i].min() - margin * side + 1e-6 * side
        assert axis.high >= where[:, i].max() + margin * side - 1e-6 * side
        assert axis.high - axis.low <= np.ptp(where[:, i]) + 2 * margin * side + 0.03 * side
    assert [a.num for a in axes] == [3, 5]
    simple = [(0.0, 0.0), (4.0, 0.0), (1.0, 2.0)]
    moved = np.array(simple) * (1 + 1e-15 * noise)
    assert surrounding_axes(moved, (3, 5), 0.3) == surrounding_axes(simple, (3, 5), 0.3)
    assert surrounding_axes([*simple, (math.nan, 1.0)], (3, 5)) == surrounding_axes(simple, (3, 5))


@pytest.mark.parametrize(
    ("call", "piece"),
    [
        (lambda: Axis(0, 1, 1), "at least 2 points on each axis of a grid, got 1; raise --grid"),
        (lambda: Axis(1, 0, 3), "the lower one first, got 1 and 0"),
        (lambda: Axis(0, math.inf, 3), "finite ends"),
        (lambda: surrounding_axes([(0, 0)], (2, 2), margin=0), "positive margin, got 0"),
        (lambda: surrounding_axes([(math.nan, 0)], (2, 2)), "none that is finite"),
    ],
)
def test_bad_grids_are_refused(call, piece):
    with pytest.raises(UserError, match=piece):
        call()


def test_every_node_is_the_model_with_the_weights_added_by_hand(
    make_model, make_tasks, random_point, plain_model_at, alone
):
    """An oracle without PEFT, merging or batches: W + BA by hand, each example alone."""
    model = make_model()
    points = [random_point(model, seed) for seed in range(3)]
    objectives = {t.task.name: make_objective(t, "test", model.tokenizer, 128) for t in make_tasks(num_test=4)}
    engine, plane = Engine(model), Plane(*points)
    measures = {name: lambda p, o=o: engine.evaluate(p, [o])[0].measurement for name, o in objectives.items()}
    table = evaluate_grid(plane, measures, *surrounding_axes(plane.anchor_coordinates, (3, 2)))
    for (x, y, _), rows in table.groupby(["x", "y", "anchor"]):
        weights = plane.weights(x, y).tolist()
        mixed = {k: sum(w * p[k].double() for w, p in zip(weights, points, strict=True)).float() for k in points[0]}
        plain = plain_model_at(mixed)
        for row in rows.itertuples():
            examples = objectives[row.task].encoded
            with torch.no_grad():
                nll = sum(float(alone(plain, e)[0]) for e in examples)
            assert row.loss == pytest.approx(nll / sum(len(e.answer_ids) for e in examples), rel=2e-4)


def test_a_node_on_an_exact_point_is_that_point():
    (low, middle, high, origin) = grid_nodes(Axis(-1, 1, 3), None, "k", [Node(0.0, 0.0, "minimum", "m")])
    assert (middle.key, middle.anchor, origin.anchor) == ("minimum", "", "m")
    assert low.key != high.key


def test_the_table_is_what_the_figure_reads(tmp_path):
    a, b, c = random_points(3)
    plane = Plane(a, b, c)
    table = evaluate_grid(plane, lambda p: p["w"].square().sum(), Axis(0, 1, 3), Axis(0, 1, 2))
    table.to_csv(tmp_path / "t.csv", index=False)
    from mcanalysis.plotting.landscape import plot_plane

    assert len(plot_plane(pd.read_csv(tmp_path / "t.csv")).axes) == 2  # the panel and its colour bar
