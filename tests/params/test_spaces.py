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
    distance,
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
