"""What every path promises, and closed forms of each."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.params import (
    concatenate,
    content_hash,
    delta_distance,
    delta_norm,
    distance,
    get_space,
    interpolate,
    norm,
    random_like,
)
from mcanalysis.paths import Bezier, Curve, Linear, Merge, SegmentedBezier, Simplex, get_path, path_names

SHAPES = {"layer.weight": (3, 4), "layer.bias": (3,)}
seeds = st.integers(0, 2**31)
unit = st.floats(0.0, 1.0)
every_path = pytest.mark.parametrize("name", [n for n in path_names() if not issubclass(get_path(n), Merge)])
every_curve = pytest.mark.parametrize("name", [n for n in path_names() if issubclass(get_path(n), Curve)])


def plain(seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, 5, generator=generator, dtype=torch.float64),
        "q.lora_B.weight": torch.randn(7, rank, generator=generator, dtype=torch.float64),
    }


def bent(name, a, b, seed=0, **options):
    """A path of the class, with bends away from the straight line where it has any."""
    path = get_path(name)(a, b, **options)
    if isinstance(path, Curve):
        generator = torch.Generator().manual_seed(seed)
        path = path.with_bends(
            [{n: x + d for (n, x), d in zip(bend.items(), random_like(bend, generator).values(), strict=True)}
             for bend in path.bends]
        )  # fmt: skip
    return path


def test_paths_are_found_by_name():
    assert get_path("bezier") is Bezier
    with pytest.raises(UnknownNameError, match="Did you mean 'bezier'"):
        get_path("bezzier")


@every_path
@given(unit, seeds)
@settings(max_examples=25)
def test_weights_sum_to_one_and_their_derivatives_to_zero(name, t, seed):
    path = bent(name, plain(seed), plain(seed + 1))
    weights, derivatives = path.weights(t), path.weight_derivatives(t)
    assert weights.dtype == derivatives.dtype == torch.float64
    assert weights.shape == derivatives.shape == (len(path.anchors),)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-14)
    assert float(derivatives.sum()) == pytest.approx(0.0, abs=1e-12)
    assert float(weights.min()) >= 0.0


@every_path
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_ends_are_the_anchors_bit_for_bit(name, space):
    a, b = adapter(0), adapter(1)
    path, anchors = bent(name, a, b, space=space), get_space(space).embed([a, b])
    assert path.space.name == space
    assert content_hash(path(0.0)) == content_hash(anchors[0])
    assert content_hash(path(1.0)) == content_hash(anchors[1])
    assert delta_distance(path(0), a) <= 1e-12 * delta_norm(a)
    if space == "factor":
        assert content_hash(path(0)) == content_hash(a) and content_hash(path(1)) == content_hash(b)


@every_path
def test_low_precision_ends_keep_their_values(name):
    a, b = ({n: x.to(torch.bfloat16) for n, x in plain(seed).items()} for seed in (0, 1))
    path = get_path(name)(a, b)
    assert content_hash(path(0)) == content_hash({n: x.float() for n, x in a.items()})
    assert content_hash(path(1)) == content_hash({n: x.float() for n, x in b.items()})


@every_path
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
@given(unit)
@settings(max_examples=10)
def test_new_paths_are_straight_and_can_be_reversed(name, space, t):
    a, b = adapter(0), adapter(1)
    forth, back = get_path(name)(a, b, space=space), get_path(name)(b, a, space=space)
    assert distance(forth(t), Linear(a, b, space=space)(t)) <= 1e-12 * (norm(forth(0)) + norm(forth(1)))
    assert delta_distance(forth(t), back(1.0 - t)) <= 1e-12 * (delta_norm(a) + delta_norm(b))


@every_curve
@given(unit, seeds)
@settings(max_examples=20)
def test_bent_curves_can_be_reversed(name, t, seed):
    forth = bent(name, plain(seed), plain(seed + 1), num_bends=3)
    back = get_path(name)(forth.anchors[-1], forth.anchors[0], bends=forth.bends[::-1])
    assert distance(forth(t), back(1.0 - t)) <= 1e-12 * 20


@every_path
@given(unit, seeds, st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=20)
def test_affine_maps_commute_with_paths(name, t, seed, factor, offset):
    def mapped(point):
        return {n: factor * x + offset for n, x in point.items()}

    path = bent(name, plain(seed), plain(seed + 1))
    image = get_path(name)(mapped(path.anchors[0]), mapped(path.anchors[-1]))
    if isinstance(path, Curve):
        image = image.with_bends([mapped(bend) for bend in path.bends])
    assert distance(image(t), mapped(path(t))) <= 1e-12 * 50


@given(unit, seeds, st.integers(1, 3), st.integers(1, 3))
def test_delta_path_is_straight_in_delta(t, seed, rank_a, rank_b):
    a, b = adapter(seed, rank_a), adapter(seed + 1, rank_b)
    expected = concatenate([a, b], [1.0 - t, t])
    assert delta_distance(Linear(a, b, space="delta")(t), expected) <= 1e-12 * (delta_norm(a) + delta_norm(b))


@every_curve
def test_bends_in_delta_start_on_the_straight_line(name):
    a, b = adapter(0, 1), adapter(1, 3)
    curve = get_path(name)(a, b, space="delta", num_bends=3)
    for i, bend in enumerate(curve.bends, start=1):
        assert delta_distance(bend, concatenate([a, b], [1 - i / 4, i / 4])) <= 1e-12 * delta_norm(a)


@every_path
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_equal_minima_give_a_constant_path(name, space):
    a = adapter(0)
    path = get_path(name)(a, adapter(0), space=space)
    for t in np.linspace(0, 1, 7):
        assert delta_distance(path(t), a) <= 1e-12 * delta_norm(a)
    assert path.length(space="delta") <= 1e-9


@every_path
@given(st.floats(0.02, 0.98).filter(lambda t: abs(t * 3 - round(t * 3)) > 0.01), seeds)
@settings(max_examples=20)
def test_derivative_matches_finite_differences(name, t, seed):
    options = {} if name == "linear" else {"num_bends": 2}
    path = bent(name, plain(seed), plain(seed + 1), **options)
    h = 1e-5
    after, before = path(t + h), path(t - h)
    numeric = {n: (after[n] - before[n]) / (2 * h) for n in after}
    assert distance(path.derivative(t), numeric) <= 1e-6 * (1 + norm(numeric))


@every_path
@pytest.mark.parametrize("t", [-0.01, 1.01, float("nan"), float("inf")])
def test_t_outside_is_refused(name, t):
    path = get_path(name)(plain(0), plain(1))
    for call in (path, path.weights, path.derivative):
        with pytest.raises(UserError, match=r"Expected t in \[0, 1\]"):
            call(t)


@every_path
@pytest.mark.parametrize("t", [-0.5, 1.5])
def test_extrapolation_of_a_straight_path_goes_on_straight(name, t):
    a, b = plain(0), plain(1)
    assert distance(get_path(name)(a, b, extrapolate=True)(t), interpolate(a, b, t)) <= 1e-12


@every_path
def test_points_share_no_memory_with_the_anchors(name):
    path = get_path(name)(plain(0), plain(1))
    before = [content_hash(anchor) for anchor in path.anchors]
    for t in (0.0, 0.5, 1.0):
        for tensor in path(t).values():
            tensor.fill_(9.0)
    assert [content_hash(anchor) for anchor in path.anchors] == before


@every_path
def test_live_parameters_bring_no_graph(name):
    modules = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    path = get_path(name)(*(dict(module.named_parameters()) for module in modules))
    assert not any(tensor.requires_grad for tensor in path(0.3).values())


@every_curve
def test_gradients_reach_the_bends(name):
    curve = get_path(name)(plain(0), plain(1), num_bends=1)
    bends = [{n: x.clone().requires_grad_() for n, x in bend.items()} for bend in curve.bends]
    sum(x.sum() for x in curve.with_bends(bends)(0.25).values()).backward()
    weight = float(curve.weights(0.25)[1])
    for tensor in bends[0].values():
        assert torch.allclose(tensor.grad, torch.full_like(tensor, weight))


@every_curve
def test_with_bends_leaves_the_curve_alone(name):
    curve = get_path(name)(plain(0), plain(1), num_bends=2)
    before = [content_hash(anchor) for anchor in curve.anchors]
    other = curve.with_bends([plain(5), plain(6)])
    assert type(other) is type(curve) and [content_hash(b) for b in other.bends] == [
        content_hash(plain(5)),
        content_hash(plain(6)),
    ]
    assert [content_hash(anchor) for anchor in curve.anchors] == before
    with pytest.raises(UserError, match="Expected 2 bends, got 1"):
        curve.with_bends([plain(5)])


@every_curve
def test_bends_that_do_not_fit_are_refused(name):
    a, b = adapter(0), adapter(1)
    with pytest.raises(PointMismatchError, match="coordinates of the curve's space"):
        get_path(name)(a, b, bends=[a], space="delta")
    for options in ({"num_bends": 0}, {"bends": []}):
        with pytest.raises(UserError, match="at least one bend"):
            get_path(name)(a, b, **options)


def test_bezier_matches_de_casteljau():
    curve = bent("bezier", plain(0), plain(1), num_bends=3)
    for t in np.linspace(0, 1, 9):
        level = list(curve.anchors)
        while len(level) > 1:
            level = [interpolate(p, q, t) for p, q in itertools.pairwise(level)]
        assert distance(curve(t), level[0]) <= 1e-13


def test_polychain_reaches_its_anchors_bit_for_bit():
    for num_bends in (1, 2, 6, 48):
        chain = bent("polychain", plain(0), plain(1), num_bends=num_bends)
        for t, anchor in zip(chain.knots, chain.anchors, strict=True):
            assert content_hash(chain(t)) == content_hash(anchor)


def test_segmented_bezier_reaches_its_minima_and_is_bezier_in_between():
    minima = [plain(seed) for seed in range(4)]
    way = SegmentedBezier(*minima, num_bends=2)
    assert len(way.bends) == 6
    way = way.with_bends([plain(10 + seed) for seed in range(6)])
    for t, minimum in zip(way.knots, minima, strict=True):
        assert content_hash(way(t)) == content_hash(minimum)
    segment = Bezier(minima[1], minima[2], bends=way.bends[2:4])
    for u in (0.1, 0.5, 0.9):
        assert distance(way((1 + u) / 3), segment(u)) <= 1e-13


def test_segmented_bezier_can_free_its_inner_minima():
    a, b, c = (plain(seed) for seed in range(3))
    way = SegmentedBezier(a, b, c, anchored=False)
    assert len(way.bends) == 3 and content_hash(way.bends[1]) == content_hash(b)
    moved = way.with_bends([way.bends[0], plain(9), way.bends[2]])
    assert content_hash(moved(0.5)) == content_hash(plain(9)) and content_hash(moved(1.0)) == content_hash(c)
    with pytest.raises(UserError, match="two or more"):
        SegmentedBezier(a)
    with pytest.raises(UserError, match="multiple of 2"):
        SegmentedBezier(a, b, c, bends=[a])


def test_length_of_a_parabola_matches_the_closed_form():
    ends = (
        {"x": torch.tensor([-1.0, 0.0], dtype=torch.float64)},
        {"x": torch.tensor([1.0, 0.0], dtype=torch.float64)},
    )
    curve = Bezier(*ends, bends=[{"x": torch.tensor([0.0, 2.0], dtype=torch.float64)}])  # y = 1 − x²
    exact = math.sqrt(5) + math.asinh(2) / 2
    assert curve.length() == pytest.approx(exact, rel=2e-5)
    assert curve.length(num=4001) == pytest.approx(exact, rel=1e-7)
    half = curve.arc_lengths([0.5, 0.0, 1.0], num=4001)
    assert half.tolist() == pytest.approx([exact / 2, 0.0, exact], rel=1e-6)


def test_length_of_straight_pieces_is_exact():
    a, b = plain(0), plain(1)
    assert Linear(a, b).length() == pytest.approx(distance(a, b), rel=1e-12)
    chain = bent("polychain", a, b, num_bends=2)
    exact = sum(distance(p, q) for p, q in itertools.pairwise(chain.anchors))
    assert chain.length(num=2) == pytest.approx(exact, rel=1e-12)


def test_length_in_delta_is_that_of_the_weights():
    a, b = adapter(0, 1), adapter(1, 2)
    assert Linear(a, b, space="delta").length() == pytest.approx(delta_distance(a, b), rel=1e-12)
    c = adapter(2, 1)
    factor = Linear(a, c)
    assert factor.length() == pytest.approx(distance(a, c), rel=1e-12)
    ts = np.linspace(0, 1, 201)
    points = [factor(t) for t in ts]
    polygon = sum(delta_distance(p, q) for p, q in itertools.pairwise(points))
    assert factor.length(space="delta") == pytest.approx(polygon, rel=1e-10)
    assert factor.length(space="delta") >= delta_distance(a, c)
    with pytest.raises(UserError, match="num=1"):
        factor.length(num=1)


@given(seeds, seeds, unit)
@settings(max_examples=40)
def test_quadratic_loss_lies_below_its_chord_by_the_known_amount(i, j, t):
    generator = torch.Generator().manual_seed(i)
    root = torch.randn(15, 15, generator=generator, dtype=torch.float64)
    H, target = (
        root @ root.T + torch.eye(15, dtype=torch.float64),
        torch.randn(15, dtype=torch.float64, generator=generator),
    )

    def loss(point):
        gap = torch.cat([x.reshape(-1) for x in point.values()]) - target
        return float(0.5 * gap @ H @ gap)

    a, b = plain(j), plain(j + 1)
    d = torch.cat([(b[n] - a[n]).reshape(-1) for n in a])
    below = loss(Linear(a, b)(t)) - ((1 - t) * loss(a) + t * loss(b))
    assert below == pytest.approx(-0.5 * t * (1 - t) * float(d @ H @ d), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_simplex_corners_edges_and_middle(space):
    minima = [adapter(seed) for seed in range(3)]
    simplex = Simplex(*minima, space=space)
    anchors = get_space(space).embed(minima)
    for i, anchor in enumerate(anchors):
        assert content_hash(simplex(torch.eye(3)[i])) == content_hash(anchor)
    assert distance(simplex([0.3, 0.7, 0.0]), interpolate(anchors[0], anchors[1], 0.7)) <= 1e-14
    if space == "delta":
        middle = concatenate(minima, [1 / 3] * 3)
        assert delta_distance(simplex([1 / 3] * 3), middle) <= 1e-12 * delta_norm(middle)


def test_simplex_grid_is_complete_and_exact():
    grid = Simplex(plain(0), plain(1), plain(2)).grid(5)
    assert grid.shape == (math.comb(6, 2), 3)
    assert torch.equal(grid.sum(1), torch.ones(15, dtype=torch.float64)) and float(grid.min()) == 0.0
    rows = {tuple(row) for row in grid.tolist()}
    assert len(rows) == 15 and {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)} <= rows


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.5, 0.4, 0.2], [1.5, -0.5, 0.0], [float("nan"), 0.5, 0.5]])
def test_simplex_refuses_other_weights(weights):
    with pytest.raises(UserError):
        Simplex(plain(0), plain(1), plain(2))(weights)
    with pytest.raises(UserError, match="two or more"):
        Simplex(plain(0))


def test_simplex_extrapolates_on_request():
    a, b = plain(0), plain(1)
    assert distance(Simplex(a, b, extrapolate=True)([1.5, -0.5]), interpolate(a, b, -0.5)) <= 1e-14


def test_minima_of_a_simplex_in_one_list_are_asked_for_one_by_one():
    corners = [{"w": torch.tensor([x])} for x in (0.0, 1.0, 2.0)]
    with pytest.raises(UserError, match=r"one by one, got a list of them; write Simplex\(\*points\)"):
        Simplex(corners)
