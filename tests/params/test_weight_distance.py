"""Distances against dense ΔW and plain vectors; what the freedom of the factors changes, and what not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UnknownNameError
from mcanalysis.params.lora import delta_weights
from mcanalysis.params.weight_distance import module_distances, weight_distance

SHAPES = {"layers.0.q": (6, 5), "layers.1.v": (4, 7)}


def adapter(seed, rank=2, modules=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        out, into = SHAPES[module]
        point[f"{module}.lora_A.weight"] = torch.randn(rank, into, generator=generator, dtype=torch.float64)
        point[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return point


def transformed(point, seed):
    """The same adapter in other factors: (B·R, R⁻¹·A)."""
    generator = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in point.items():
        if ".lora_A." in name:
            R = torch.randn(len(tensor), len(tensor), generator=generator, dtype=torch.float64)
            R = R + 3 * torch.eye(len(tensor), dtype=torch.float64)
            other = name.replace("lora_A", "lora_B")
            changed[name], changed[other] = torch.linalg.solve(R, tensor), point[other] @ R
    return changed


def dense(point, modules=SHAPES):
    deltas = delta_weights(point)
    parts = [deltas.get(m, torch.zeros(SHAPES[m], dtype=torch.float64)).flatten() for m in modules]
    return torch.cat(parts)


def by_hand(x, y):
    cosine = float(torch.nn.functional.cosine_similarity(x, y, dim=0))
    return float((y - x).norm()), float((y - x).norm() / x.norm()), cosine, float(x.norm()), float(y.norm())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 4))
def test_delta_is_the_distance_of_dense_changes(seed, rank_a, rank_b):
    a, b = adapter(seed, rank_a), adapter(seed + 1, rank_b)
    assert tuple(weight_distance(a, b)) == pytest.approx(by_hand(dense(a), dense(b)), rel=1e-12)
    for module, found in module_distances(a, b).items():
        assert tuple(found) == pytest.approx(by_hand(dense(a, [module]), dense(b, [module])), rel=1e-12)


def test_factor_is_the_distance_of_the_tensors_whole_and_per_module():
    a, b = adapter(0), adapter(1)
    flat = [torch.cat([t.flatten() for t in p.values()]) for p in (a, b)]
    assert tuple(weight_distance(a, b, "factor")) == pytest.approx(by_hand(*flat), rel=1e-12)
    parts = module_distances(a, b, "factor")
    assert list(parts) == list(SHAPES)
    assert sum(p.distance**2 for p in parts.values()) == pytest.approx(weight_distance(a, b, "factor").distance ** 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999))
def test_only_factor_sees_how_a_change_is_split(seed):
    a, b = adapter(seed), adapter(seed + 1)
    other = transformed(b, seed)
    for space in ("delta", "aligned"):
        assert tuple(weight_distance(a, other, space)) == pytest.approx(tuple(weight_distance(a, b, space)), rel=1e-7)
        assert weight_distance(b, other, space).distance < 1e-6
        assert weight_distance(b, other, space).cosine == pytest.approx(1.0)
    assert weight_distance(b, other, "factor").distance > 0.1


def test_alignment_brings_the_factors_as_close_as_any_rotation():
    a, b = adapter(3), adapter(4)
    from mcanalysis.params.low_rank import balance

    first, second = balance(a), balance(b)
    found = weight_distance(a, b, "aligned").distance
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        total = 0.0
        for module in SHAPES:
            R = torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64)).Q
            A, B = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
            total += float((second[B] @ R - first[B]).norm() ** 2 + (R.T @ second[A] - first[A]).norm() ** 2)
        assert found <= math.sqrt(total) + 1e-12
    parts = module_distances(a, b, "aligned")
    assert sum(p.distance**2 for p in parts.values()) == pytest.approx(found**2)


def test_without_a_norm_there_is_neither_ratio_nor_cosine():
    a = adapter(0)
    fresh = {name: t * 0 if ".lora_B." in name else t for name, t in a.items()}
    found = weight_distance(fresh, a)
    assert found.distance == found.norm_b > 0 and found.norm_a == 0
    assert math.isnan(found.relative) and math.isnan(found.cosine)
    back = weight_distance(a, fresh)
    assert back.relative == pytest.approx(1.0) and math.isnan(back.cosine)


def test_targets_may_differ_in_delta_and_aligned_space():
    a, b = adapter(0), adapter(1, rank=3, modules=["layers.0.q"])
    for space in ("delta", "aligned"):
        parts = module_distances(a, b, space)
        assert set(parts) == set(SHAPES)
        assert math.isnan(parts["layers.1.v"].cosine) and parts["layers.1.v"].norm_b == 0
    assert weight_distance(a, b).distance == pytest.approx(float((dense(a) - dense(b)).norm()))


def test_plain_points_need_no_lora():
    a, b = {"w": torch.ones(2, 2), "b": torch.zeros(3)}, {"w": torch.zeros(2, 2), "b": torch.ones(3)}
    for space in ("factor", "delta"):
        assert weight_distance(a, b, space).distance == pytest.approx(math.sqrt(7))
        assert {n: d.distance for n, d in module_distances(a, b, space).items()} == {"w": 2, "b": pytest.approx(3**0.5)}
    with pytest.raises(PointMismatchError, match="plain weights"):
        weight_distance(a, b, "aligned")


def test_bfloat16_weights_are_compared_in_float64_and_left_as_they_are():
    a = {"w": torch.full((1000,), 1.0, dtype=torch.bfloat16)}
    b = {"w": torch.full((1000,), 1.0078125, dtype=torch.bfloat16)}
    assert weight_distance(a, b, "factor").distance == pytest.approx(0.0078125 * math.sqrt(1000), rel=1e-9)
    assert a["w"].dtype == torch.bfloat16


def test_mismatches_name_the_first_difference_and_their_number():
    a, b = adapter(0), adapter(1, rank=3)
    for function in (weight_distance, module_distances):
        with pytest.raises(PointMismatchError, match=r"layers.0.q.lora_A.weight.*4 differences"):
            function(a, b, "factor")
    with pytest.raises(UnknownNameError, match="Unknown space 'deltas'"):
        weight_distance(a, b, "deltas")
    wrong = {n: torch.zeros(9, 2) if n == "layers.0.q.lora_B.weight" else t for n, t in a.items()}
    with pytest.raises(PointMismatchError, match=r"layers\.0\.q"):
        weight_distance(a, wrong)
