"""What the three spaces promise, for adapters and for plain points."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.params import (
    AlignedSpace,
    DeltaSpace,
    FactorSpace,
    combine,
    concatenate,
    delta_distance,
    delta_norm,
    delta_weights,
    distance,
    flatten,
    get_space,
    norm,
    ranks,
    space_names,
)

DIMS = {"q": (7, 5), "v": (3, 6)}
seeds = st.integers(0, 2**31)


def adapter(seed, rank=3, modules=tuple(DIMS), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        out, inn = DIMS[module]
        point[f"{module}.lora_A.weight"] = torch.randn(rank, inn, generator=generator, dtype=torch.float64).to(dtype)
        point[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator, dtype=torch.float64).to(dtype)
    return point


def rotated(point, seed):
    """The same adapter as (B·R, Rᵀ·A) with a random orthogonal R per module."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for module, rank in ranks(point).items():
        R = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
        result[f"{module}.lora_A.weight"] = R.T @ point[f"{module}.lora_A.weight"]
        result[f"{module}.lora_B.weight"] = point[f"{module}.lora_B.weight"] @ R
    return result


def test_spaces_are_found_by_name_and_objects_pass_through():
    assert {"factor", "delta", "aligned"} <= set(space_names())
    assert isinstance(get_space("delta"), DeltaSpace)
    space = AlignedSpace()
    assert get_space(space) is space
    with pytest.raises(UnknownNameError, match="Did you mean 'factor'"):
        get_space("factors")
    with pytest.raises(UserError, match="got int"):
        get_space(3)


@pytest.mark.parametrize("name", ["factor", "delta", "aligned"])
@given(seeds)
@settings(max_examples=20)
def test_anchors_have_the_delta_of_their_minima(name, seed):
    minima = [adapter(seed), adapter(seed + 1), adapter(seed + 2)]
    for minimum, anchor in zip(minima, get_space(name).embed(minima), strict=True):
        assert delta_distance(minimum, anchor) <= 1e-12 * delta_norm(minimum)


def test_factor_is_the_identity_and_refuses_other_ranks():
    minima = [adapter(0), adapter(1)]
    for minimum, anchor in zip(minima, FactorSpace().embed(minima), strict=True):
        assert all(anchor[name] is minimum[name] for name in minimum)
    with pytest.raises(PointMismatchError, match=r"'q\.lora_A.weight'.*space='delta'"):
        FactorSpace().embed([adapter(0), adapter(1, rank=2)])


@given(seeds, st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_delta_combinations_are_sums_of_deltas(seed, free):
    weights = [*free, 1.0 - sum(free)]
    minima = [adapter(seed, 1), adapter(seed + 1, 3), adapter(seed + 2, 2, modules=["v"])]
    anchors = DeltaSpace().embed(minima)
    expected = concatenate(minima, weights)
    scale = sum(delta_norm(m) for m in minima)
    assert delta_distance(combine(anchors, weights), expected) <= 1e-12 * scale
    assert ranks(anchors[0]) == {"q": 4, "v": 6}


@pytest.mark.parametrize("name", ["factor", "delta"])
def test_plain_points_are_their_own_anchors(name):
    minima = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}]
    for minimum, anchor in zip(minima, get_space(name).embed(minima), strict=True):
        assert anchor["w"] is minimum["w"]


def test_aligned_refuses_plain_points():
    with pytest.raises(PointMismatchError, match="space='factor'"):
        AlignedSpace().embed([{"w": torch.ones(1)}])


@pytest.mark.parametrize("name", ["delta", "aligned"])
def test_other_parts_beside_lora_factors_are_refused_by_name(name):
    with pytest.raises(PointMismatchError, match=r"'q\.lora_magnitude_vector'"):
        get_space(name).embed([adapter(0), {**adapter(1), "q.lora_magnitude_vector": torch.ones(7)}])
    with pytest.raises(UserError, match="got none"):
        get_space(name).embed([])


@given(seeds, seeds)
@settings(max_examples=30)
def test_aligned_undoes_a_rotation(seed, rotation):
    a, b = adapter(seed), adapter(seed + 1)
    plain, turned = AlignedSpace().embed([a, b]), AlignedSpace().embed([a, rotated(b, rotation)])
    assert distance(plain[1], turned[1]) <= 1e-6 * norm(plain[1])
    same = AlignedSpace().embed([a, rotated(a, rotation)])
    assert distance(same[0], same[1]) <= 1e-6 * norm(same[0])


@given(seeds)
@settings(max_examples=10)
def test_aligned_undoes_any_invertible_change_of_factors(seed):
    a = adapter(seed)
    R = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 3.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    b = {n: torch.linalg.inv(R) @ x if "lora_A" in n else x @ R for n, x in a.items()}
    first, second = AlignedSpace().embed([a, b])
    assert distance(first, second) <= 1e-6 * norm(first)


def test_rotation_is_undone_for_a_deficient_rank_and_repeated_singular_values():
    eye = torch.eye(7, 5, dtype=torch.float64)
    a = {"q.lora_A.weight": torch.eye(4, 5, dtype=torch.float64), "q.lora_B.weight": eye[:, :4].clone()}
    a["q.lora_B.weight"][:, 3] = 0.0  # singular values 1, 1, 1, 0
    first, second = AlignedSpace().embed([a, rotated(a, 5)])
    assert distance(first, second) <= 1e-6 * norm(first)


def test_alignment_brings_pairs_as_close_as_any_rotation_can():
    a, b = AlignedSpace().embed([adapter(0), adapter(1)])
    for seed in range(50):
        assert distance(a, b) <= distance(a, rotated(b, seed)) + 1e-12


def test_aligned_joins_adapters_of_different_ranks_and_targets():
    minima = [adapter(0, 1), adapter(1, 3, modules=["q"])]
    anchors = AlignedSpace().embed(minima)
    assert ranks(anchors[0]) == ranks(anchors[1]) == {"q": 3, "v": 1}
    for minimum, anchor in zip(minima, anchors, strict=True):
        assert delta_distance(minimum, anchor) <= 1e-12 * delta_norm(minimum)


@pytest.mark.parametrize("name", ["factor", "delta", "aligned"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_equal_adapters_give_a_constant_path(name, dtype):
    a = adapter(0, dtype=dtype)
    anchors = get_space(name).embed([a, {n: x.clone() for n, x in a.items()}])
    for t in (0.0, 0.3, 0.5, 1.0):
        assert delta_distance(combine(anchors, [1 - t, t]), a) <= 1e-6 * delta_norm(a)


def test_chord_lengths_in_delta_are_norms_of_delta():
    a, b = adapter(0), adapter(1, rank=2)
    space = DeltaSpace()
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    lengths = space.chord_lengths(space.embed([a, b]), rows)
    assert torch.allclose(lengths, torch.full((2,), delta_distance(a, b) / 2, dtype=torch.float64), rtol=1e-12)


# Inner products, distances and sums: what planes, slices and trajectory PCA are measured with.


def dense(point):
    """All ΔW as one vector, over all modules, missing ones 0."""
    deltas = delta_weights(point)
    pieces = [deltas.get(m, torch.zeros(DIMS[m], dtype=torch.float64)).double().reshape(-1) for m in DIMS]
    return torch.cat(pieces)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_inner_products_in_delta_are_those_of_dense_matrices(seed):
    points = [adapter(seed, 1), adapter(seed + 1, 3), adapter(seed + 2, 2, modules=["v"]), adapter(seed + 3, 6)]
    products = DeltaSpace().inner_products(points[0], points[1:], points)
    rows = torch.stack([dense(p) - dense(points[0]) for p in points])
    torch.testing.assert_close(products, rows[1:] @ rows.T, rtol=1e-11, atol=1e-10)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_inner_products_in_factor_and_aligned_are_those_of_coordinates(seed):
    points = [adapter(seed + k) for k in range(4)]
    for space in (FactorSpace(), AlignedSpace()):
        anchors = space.embed(points)
        rows = torch.stack([flatten(p) - flatten(anchors[0]) for p in anchors])
        products = space.inner_products(anchors[0], anchors[1:], anchors)
        torch.testing.assert_close(products, rows[1:] @ rows.T, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", ["factor", "delta", "aligned"])
def test_inner_products_keep_their_digits_close_to_the_origin(name):
    """1e-9 apart at size 1: products of the points themselves would be noise of 1e-16 / 1e-18."""
    origin = adapter(0)
    near = [{n: t + 1e-9 * adapter(k)[n] for n, t in origin.items()} for k in (1, 2)]
    products = get_space(name).inner_products(origin, near, near)
    if name == "delta":
        rows = torch.stack([dense(p) - dense(origin) for p in near])
    else:
        rows = torch.stack([flatten(p) - flatten(origin) for p in near])
    torch.testing.assert_close(products, rows @ rows.T, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["factor", "delta", "aligned"])
@given(seeds, st.floats(-2, 2))
@settings(max_examples=15, deadline=None)
def test_distances_are_those_of_the_difference_itself(name, seed, free):
    space = get_space(name)
    anchors = space.embed([adapter(seed), adapter(seed + 1), adapter(seed + 2)])
    weights = [free, 1.0 - free]
    there = combine(anchors[1:], weights)
    apart = delta_distance if name == "delta" else distance
    assert space.distance(anchors[0], anchors[1:], weights) == pytest.approx(apart(anchors[0], there), rel=1e-9)
    assert space.distance(there, anchors[1:], weights) <= 1e-13 * (1 + norm(there))  # no square root of rounding
    length = delta_norm(there) if name == "delta" else norm(there)
    assert space.distance(there, [], []) == pytest.approx(length, rel=1e-12)


@given(seeds, st.floats(-2, 2), st.floats(-2, 2))
@settings(max_examples=15, deadline=None)
def test_sums_in_delta_need_no_weights_that_sum_to_one(seed, first, second):
    points = [adapter(seed, 1), adapter(seed + 1, 3)]
    total = DeltaSpace().combine(points, [first, second])
    torch.testing.assert_close(dense(total), first * dense(points[0]) + second * dense(points[1]), rtol=0, atol=1e-11)
    alone = DeltaSpace().combine(points, [0.0, 1.0])
    assert ranks(alone) == ranks(points[1]) and all(torch.equal(alone[n], points[1][n]) for n in alone)
    assert not dense(DeltaSpace().combine(points, [0.0, 0.0])).any()


@given(seeds, seeds)
@settings(max_examples=15, deadline=None)
def test_points_placed_in_aligned_are_where_embedding_puts_them(seed, rotation):
    space, a, b = AlignedSpace(), adapter(seed), adapter(seed + 1)
    anchors = space.embed([a, b])
    for point in (b, rotated(b, rotation)):
        assert distance(space.place(point, anchors[0]), anchors[1]) <= 1e-6 * norm(anchors[1])
    assert distance(space.place(a, anchors[0]), anchors[0]) <= 1e-6 * norm(anchors[0])


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(PointMismatchError, match="difference"):
        FactorSpace().place(adapter(0, 2), adapter(1, 3))
    with pytest.raises(PointMismatchError, match="Expected only LoRA factors"):
        DeltaSpace().place({"w": torch.ones(1)}, adapter(1, 3))
    with pytest.raises(PointMismatchError, match="Expected only LoRA factors"):
        AlignedSpace().place({"w": torch.ones(1)}, adapter(1, 3))
    other = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.ones(7, 2)}
    with pytest.raises(PointMismatchError, match=r"Expected ΔW of shape \(7, 5\) at 'q'"):
        DeltaSpace().place(other, adapter(0))
