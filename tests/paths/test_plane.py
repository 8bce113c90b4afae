"""What a plane promises: anchors, distances, projections, in every space, against dense NumPy geometry."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import (
    AlignedSpace,
    combine,
    content_hash,
    delta_distance,
    delta_norm,
    delta_weights,
    distance,
    flatten,
    get_space,
    norm,
)
from mcanalysis.paths import Plane

SHAPES = {"layer.weight": (3, 4), "layer.bias": (3,)}
DIMS = {"q": (7, 5), "v": (3, 6)}
seeds = st.integers(0, 2**31)
places = st.floats(-5, 5)
every_space = pytest.mark.parametrize("space", ["factor", "delta", "aligned"])


def plain(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}


def adapter(seed, rank=2, modules=tuple(DIMS), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        out, inn = DIMS[module]
        point[f"{module}.lora_A.weight"] = torch.randn(rank, inn, generator=generator, dtype=torch.float64).to(dtype)
        point[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator, dtype=torch.float64).to(dtype)
    return point


def regauged(point, seed):
    """The same adapter as (B·R, R⁻¹·A) with a random invertible R per module."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name in point:
        if "lora_A" in name:
            B = name.replace("lora_A", "lora_B")
            rank = len(point[name])
            R = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
            R = R * (0.5 + torch.rand(rank, generator=generator, dtype=torch.float64))
            result[name], result[B] = torch.linalg.solve(R, point[name]), point[B] @ R
    return result


def dense(point):
    """All entries of all ΔW as one NumPy vector."""
    deltas = delta_weights(point)
    return np.concatenate([deltas[m].numpy().ravel() for m in sorted(deltas)])


def least_squares(a, b, c, p):
    """Foot and distance of vectors by NumPy's QR and least squares. The oracle."""
    Q, R = np.linalg.qr(np.stack([b - a, c - a], axis=1))
    Q, R = Q * np.sign(np.diag(R)), R * np.sign(np.diag(R))[:, None]
    foot = Q.T @ (p - a)
    return np.array([*foot, np.linalg.norm(p - a - Q @ foot)]), R


def vectors(space, points):
    """The points as NumPy vectors in which the space is Euclidean."""
    if space == "delta":
        return [dense(p) for p in points]
    return [flatten(p).numpy() for p in get_space(space).embed(points)]


@every_space
@given(seeds)
@settings(max_examples=25, deadline=None)
def test_triangle_and_projection_match_dense_least_squares(space, seed):
    points = [adapter(seed + k) for k in range(4)]
    plane = Plane(*points[:3], space=space)
    a, b, c, p = vectors(space, points)
    expected, R = least_squares(a, b, c, p)
    triangle = [[0, 0], [R[0, 0], 0], [R[0, 1], R[1, 1]]]
    np.testing.assert_allclose(plane.anchor_coordinates.numpy(), triangle, rtol=0, atol=1e-11)
    np.testing.assert_allclose(plane.project(points[3]), expected, rtol=0, atol=1e-11)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_projection_of_plain_points_matches_least_squares(seed):
    points = [plain(seed + k) for k in range(4)]
    expected, _ = least_squares(*(flatten(p).numpy() for p in points))
    for space in ("factor", "delta"):
        np.testing.assert_allclose(Plane(*points[:3], space=space).project(points[3]), expected, atol=1e-12)


@pytest.mark.parametrize("space", ["factor", "delta"])
@given(seeds, places, places)
@settings(max_examples=25, deadline=None)
def test_projection_gives_the_coordinates_back(space, seed, x, y):
    plane = Plane(adapter(seed), adapter(seed + 1), adapter(seed + 2), space=space)
    x_back, y_back, rest = plane.project(plane(x, y))
    assert abs(x_back - x) <= 1e-10 and abs(y_back - y) <= 1e-10 and 0.0 <= rest <= 1e-10


@every_space
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_minima_are_projected_where_their_anchors_are(space, seed):
    minima = [adapter(seed + k) for k in range(3)]
    plane = Plane(*minima, space=space)
    for (x, y), projected in zip(plane.anchor_coordinates.tolist(), plane.project_many(iter(minima)), strict=True):
        np.testing.assert_allclose(projected, [x, y, 0.0], rtol=0, atol=1e-10)


@every_space
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_anchors_come_back_bit_for_bit(space, dtype):
    for seed in range(20):
        minima = [adapter(seed + k, dtype=dtype) for k in range(3)]
        plane = Plane(*minima, space=space)
        for index, (x, y) in enumerate(plane.anchor_coordinates.tolist()):
            assert plane.weights(x, y).tolist() == [float(index == k) for k in range(3)]
            assert content_hash(plane(x, y)) == content_hash(plane.anchors[index])
            tolerance = 1e-12 if dtype == torch.float64 else 1e-6
            assert delta_distance(plane(x, y), minima[index]) <= tolerance * delta_norm(minima[index])
            if space == "factor":
                assert content_hash(plane(x, y)) == content_hash(minima[index])


@given(seeds, places, places, places, places)
@settings(max_examples=25, deadline=None)
def test_the_sheet_is_isometric(seed, x1, y1, x2, y2):
    on_paper = np.hypot(x1 - x2, y1 - y2)
    for space, apart in (("factor", distance), ("delta", delta_distance), ("aligned", distance)):
        plane = Plane(adapter(seed), adapter(seed + 1), adapter(seed + 2), space=space)
        assert apart(plane(x1, y1), plane(x2, y2)) == pytest.approx(on_paper, abs=1e-10)


@every_space
@given(seeds)
@settings(max_examples=15, deadline=None)
def test_exchanging_b_and_c_keeps_all_distances(space, seed):
    a, b, c, p = (adapter(seed + k) for k in range(4))
    one, other = Plane(a, b, c, space=space), Plane(a, c, b, space=space)
    sides = [torch.pdist(plane.anchor_coordinates[order]) for plane, order in ((one, [0, 1, 2]), (other, [0, 2, 1]))]
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=1e-10)
    (x1, y1, rest1), (x2, y2, rest2) = one.project(p), other.project(p)
    assert np.hypot(x1, y1) == pytest.approx(np.hypot(x2, y2), abs=1e-10) and rest1 == pytest.approx(rest2, abs=1e-10)
    assert distance(one(x1, y1), other(x2, y2)) <= 1e-9 or space == "delta"
    assert delta_distance(one(x1, y1), other(x2, y2)) <= 1e-9


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_delta_does_not_see_the_gauge(seed):
    points = [adapter(seed + k) for k in range(4)]
    turned = [regauged(p, seed + k) for k, p in enumerate(points)]
    one, other = Plane(*points[:3], space="delta"), Plane(*turned[:3], space="delta")
    torch.testing.assert_close(one.anchor_coordinates, other.anchor_coordinates, rtol=0, atol=1e-9)
    np.testing.assert_allclose(one.project(points[3]), other.project(turned[3]), rtol=0, atol=1e-9)
    assert delta_distance(one(1.5, -0.5), other(1.5, -0.5)) <= 1e-9


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_aligned_does_not_see_the_gauge(seed):
    points = [adapter(seed + k) for k in range(4)]
    turned = [regauged(p, seed + k) for k, p in enumerate(points)]
    one, other = Plane(*points[:3], space="aligned"), Plane(*turned[:3], space="aligned")
    torch.testing.assert_close(one.anchor_coordinates, other.anchor_coordinates, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.project(points[3]), other.project(turned[3]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("space", ["delta", "aligned"])
def test_ranks_and_targets_may_differ(space):
    minima = [adapter(0, 1), adapter(1, 3), adapter(2, 2, modules=["v"])]
    plane = Plane(*minima, space=space)
    for (x, y), minimum in zip(plane.anchor_coordinates.tolist(), minima, strict=True):
        np.testing.assert_allclose(plane.project(minimum), [x, y, 0.0], rtol=0, atol=1e-10)
        assert delta_distance(plane(x, y), minimum) <= 1e-12 * delta_norm(minimum)
    snapshot = adapter(9, rank=4)
    x, y, rest = plane.project(snapshot)
    if space == "delta":
        filled = [{**adapter(0, 0), **m} for m in minima]
        expected, _ = least_squares(*(dense(p) for p in [*filled, snapshot]))
        np.testing.assert_allclose([x, y, rest], expected, rtol=0, atol=1e-11)
    else:
        placed = AlignedSpace().place(snapshot, plane.anchors[0])
        assert delta_distance(placed, snapshot) <= 1e-12 * delta_norm(snapshot)
        assert np.hypot(np.hypot(x, y), rest) == pytest.approx(
            AlignedSpace().distance(placed, plane.anchors[:1], [1.0]), abs=1e-10
        )


def test_float32_points_close_together_keep_their_digits():
    """Differences are taken before products: 1e-4 apart at size 100 the Gram form of float32 would be noise."""
    base = {n: 100 + x for n, x in plain(0).items()}
    points = [{n: (x + 1e-4 * plain(k)[n]).double() for n, x in base.items()} for k in (1, 2, 3, 4)]
    expected, _ = least_squares(*(flatten(p).numpy() for p in points))
    np.testing.assert_allclose(Plane(*points[:3]).project(points[3]), expected, rtol=1e-9)


@every_space
def test_collinear_and_equal_points_are_refused(space):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        a, b = adapter(0, dtype=dtype), adapter(1, dtype=dtype)
        for points, names in (((a, a, b), "a and b"), ((a, b, a), "a and c"), ((a, b, b), "b and c")):
            with pytest.raises(UserError, match=f"got {names} equal") as caught:
                Plane(points[0], points[1], points[2], space=space)
            assert "\n" not in str(caught.value)
    anchors = get_space(space).embed([adapter(0), adapter(1)])
    for weight in (0.5, 0.01, 3.0):
        between = combine(anchors, [1 - weight, weight])
        if space != "aligned":  # whose balanced form of a point in between is not in between
            with pytest.raises(UserError, match="not on one line") as caught:
                Plane(anchors[0], anchors[1], between, space=space)
            assert "\n" not in str(caught.value)
    single = [{n: x.float() for n, x in p.items()} for p in anchors]
    if space != "aligned":
        with pytest.raises(UserError, match="not on one line"):
            Plane(single[0], single[1], combine(single, [0.3, 0.7]), space=space)


def test_almost_flat_triangles_are_accepted_down_to_the_stated_limit():
    def at(x, y):
        return {"w": torch.tensor([x, y], dtype=torch.float64)}

    plane = Plane(at(0, 0), at(1, 0), at(0.5, 2e-5))
    assert plane.anchor_coordinates[2].tolist() == [0.5, pytest.approx(2e-5, rel=1e-12)]
    with pytest.raises(UserError, match="not on one line"):
        Plane(at(0, 0), at(1, 0), at(0.5, 0.9e-5))


@every_space
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_not_finite(space, bad):
    broken = adapter(2)
    broken["v.lora_A.weight"][0, 0] = bad
    with pytest.raises(UserError, match=r"NaN or ∞ in 'v\.lora_A\.weight' of c"):
        Plane(adapter(0), adapter(1), broken, space=space)
    plane = Plane(adapter(0), adapter(1), adapter(3), space=space)
    assert np.isnan(plane.project(broken)).all()
    for place in ((bad, 0.0), (0.0, bad)):
        with pytest.raises(UserError, match="finite coordinates"):
            plane(*place)


def test_points_that_do_not_fit_are_refused_by_the_first_difference():
    with pytest.raises(
        PointMismatchError, match=r"'q\.lora_A\.weight' with shape \(2, 5\), got shape \(3, 5\) \(4 diff"
    ):
        Plane(adapter(0), adapter(1), adapter(2, rank=3))
    with pytest.raises(PointMismatchError, match=r"differences? in all"):
        Plane(adapter(0), adapter(1), adapter(2)).project(adapter(3, rank=3))
    with pytest.raises(PointMismatchError, match="Expected only LoRA factors"):
        Plane(adapter(0), adapter(1), adapter(2), space="delta").project(plain(0))


def test_nothing_of_the_caller_is_changed_or_shared():
    modules = [torch.nn.Linear(2, 3) for _ in range(3)]
    points = [dict(module.named_parameters()) for module in modules]
    before = [content_hash(p) for p in points]
    state = torch.random.get_rng_state()
    plane = Plane(*points)
    for x, y in ((0.0, 0.0), (0.3, 0.2)):
        point = plane(x, y)
        assert not any(t.requires_grad for t in point.values())
        for tensor in point.values():
            tensor.fill_(9.0)
    plane.project(points[0])
    assert [content_hash(p) for p in points] == before
    assert bool((torch.random.get_rng_state() == state).all())


def test_gradients_do_not_leak_into_projections():
    module = torch.nn.Linear(2, 3)
    plane = Plane(*(dict(torch.nn.Linear(2, 3).named_parameters()) for _ in range(3)))
    assert all(isinstance(number, float) for number in plane.project(dict(module.named_parameters())))
    assert norm(plane(0.0, 0.0)) > 0
