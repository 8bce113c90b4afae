"""LoRA algebra against dense matrices in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import (
    balance,
    compress,
    concatenate,
    delta_distance,
    delta_dot,
    delta_norm,
    delta_weights,
    factor_delta_deviation,
    interpolate,
    is_lora_point,
    module_names,
    ranks,
    truncate,
)

DIMS = {"layers.0.q_proj": (7, 5), "layers.0.v_proj": (3, 5), "layers.1.q_proj": (6, 9)}
seeds = st.integers(0, 2**31)


def make_adapter(seed, rank=2, modules=tuple(DIMS), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        out, inn = DIMS[module]
        point[f"{module}.lora_A.weight"] = torch.randn(rank, inn, generator=generator, dtype=torch.float64).to(dtype)
        point[f"{module}.lora_B.weight"] = torch.randn(out, rank, generator=generator, dtype=torch.float64).to(dtype)
    return point


def dense(point):
    """ΔW of all modules of DIMS as one vector, zeros where the adapter has none."""
    deltas = delta_weights(point)
    return torch.cat([deltas.get(m, torch.zeros(s, dtype=torch.float64)).reshape(-1).double() for m, s in DIMS.items()])


def test_names_and_ranks():
    point = make_adapter(0, rank=4)
    assert module_names(point) == list(DIMS)
    assert ranks(point) == dict.fromkeys(DIMS, 4)
    assert is_lora_point(point) and not is_lora_point({"weight": torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"layers.0.q_proj.lora_magnitude_vector": torch.ones(7)}, "lora_magnitude_vector"),
        ({"lm_head.weight": torch.ones(2, 2)}, "lm_head.weight"),
        ({"k.lora_A.weight": torch.ones(2, 5)}, "no 'k.lora_B.weight'"),
        (
            {"k.lora_A.weight": torch.ones(2, 5), "k.lora_B.weight": torch.ones(5, 3)},
            "2 rows of A and 3 columns",
        ),
        ({"k.lora_A.weight": torch.ones(2, 5, 3, 3), "k.lora_B.weight": torch.ones(5, 2)}, "2 dimensions"),
    ],
)
def test_what_is_not_a_lora_point_is_refused_by_name(extra, message):
    point = {**make_adapter(0), **extra}
    assert not is_lora_point(point)
    with pytest.raises(PointMismatchError, match=message):
        delta_weights(point)


@given(seeds, st.integers(1, 8))
def test_delta_norm_matches_dense(seed, rank):
    point = make_adapter(seed, rank)
    assert delta_norm(point) == pytest.approx(dense(point).norm().item(), rel=1e-12)


@given(seeds, seeds, st.integers(1, 6), st.integers(1, 6))
def test_delta_distance_and_dot_match_dense(i, j, rank_p, rank_q):
    p, q = make_adapter(i, rank_p), make_adapter(j, rank_q, modules=list(DIMS)[1:])
    scale = delta_norm(p) + delta_norm(q)
    assert delta_distance(p, q) == pytest.approx((dense(p) - dense(q)).norm().item(), abs=1e-12 * scale)
    assert delta_dot(p, q) == pytest.approx((dense(p) @ dense(q)).item(), abs=1e-12 * scale**2)


def test_delta_distance_of_close_adapters_keeps_its_digits():
    p = make_adapter(0)
    q = {n: x.clone() for n, x in p.items()}
    q["layers.0.q_proj.lora_B.weight"][0, 0] += 2.0**-40
    expected = 2.0**-40 * p["layers.0.q_proj.lora_A.weight"][0].norm().item()
    assert delta_distance(p, q) == pytest.approx(expected, rel=1e-4)  # B itself is rounded at 2⁻⁵²
    assert delta_distance(p, p) == 0.0


def test_delta_norm_of_cancelling_blocks_is_at_rounding_level():
    p = make_adapter(0)
    assert delta_norm(concatenate([p, p], [1.0, -1.0])) <= 1e-14 * delta_norm(p)


@given(seeds, st.lists(st.floats(-3, 3), min_size=3, max_size=3))
def test_concatenate_is_the_exact_weighted_sum(seed, weights):
    points = [
        make_adapter(seed, 1),
        make_adapter(seed + 1, 3),
        make_adapter(seed + 2, 2, modules=list(DIMS)[:2]),
    ]
    joint = concatenate(points, weights)
    expected = sum(w * dense(p) for w, p in zip(weights, points, strict=True))
    assert torch.allclose(dense(joint), expected, rtol=0, atol=1e-12)
    assert ranks(joint) == {"layers.0.q_proj": 6, "layers.0.v_proj": 6, "layers.1.q_proj": 4}


def test_two_equal_adapters_at_one_half_give_the_adapter_back():
    p = make_adapter(0)
    assert torch.allclose(dense(concatenate([p, p], [0.5, 0.5])), dense(p), rtol=0, atol=1e-14)


def test_concatenate_refuses_modules_of_other_dimensions():
    q = make_adapter(1)
    q["layers.0.v_proj.lora_B.weight"] = torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(PointMismatchError, match=r"\(3, 5\) at 'layers.0.v_proj', got \(4, 5\)"):
        concatenate([make_adapter(0), q], [1.0, 1.0])
    with pytest.raises(UserError, match="got 1 weights for 2 adapters"):
        concatenate([q, q], [1.0])


@given(seeds, st.integers(1, 8), st.integers(1, 8))
def test_truncate_is_the_best_approximation(seed, rank, kept):
    point = make_adapter(seed, rank)
    smaller, error = truncate(point, kept)
    lost = 0.0
    for module, delta in delta_weights(point).items():
        U, S, Vt = np.linalg.svd(delta.numpy())
        best = (U[:, :kept] * S[:kept]) @ Vt[:kept] if kept < len(S) else delta.numpy()
        np.testing.assert_allclose(delta_weights(smaller)[module].numpy(), best, atol=1e-10)
        lost += (S[kept:] ** 2).sum()
    assert error == pytest.approx(math.sqrt(lost) / delta_norm(point), abs=1e-10)
    assert set(ranks(smaller).values()) == {min(rank, kept)}


def test_truncate_of_a_fresh_adapter_has_no_error():
    fresh = {n: torch.zeros_like(x) if "lora_B" in n else x for n, x in make_adapter(0).items()}
    smaller, error = truncate(fresh, 1)
    assert error == 0.0 and delta_norm(smaller) == 0.0
    with pytest.raises(UserError, match="at least 1"):
        truncate(fresh, 0)


@given(seeds, st.integers(1, 8))
@settings(max_examples=30)
def test_balance_keeps_delta_and_equalises_factors(seed, rank):
    point = make_adapter(seed, rank)
    even = balance(point)
    assert {n: x.shape for n, x in even.items()} == {n: x.shape for n, x in point.items()}
    assert (dense(even) - dense(point)).norm() <= 1e-12 * dense(point).norm()
    for module in module_names(point):
        A, B = even[f"{module}.lora_A.weight"], even[f"{module}.lora_B.weight"]
        assert torch.allclose(A @ A.T, B.T @ B, atol=1e-10)
        assert torch.allclose(A @ A.T, torch.diag(torch.diagonal(A @ A.T)), atol=1e-10)


def test_balance_of_float32_keeps_the_dtype():
    assert {x.dtype for x in balance(make_adapter(0, dtype=torch.float32)).values()} == {torch.float32}


@given(seeds, st.floats(-0.5, 1.5))
def test_factor_path_misses_the_line_by_the_known_term(seed, t):
    a, b = make_adapter(seed), make_adapter(seed + 1)
    on_factor = delta_weights(interpolate(a, b, t))
    missed = []
    for module in DIMS:
        A, B = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        line = (1 - t) * (a[B] @ a[A]) + t * (b[B] @ b[A])
        expected = -t * (1 - t) * (b[B] - a[B]) @ (b[A] - a[A])
        assert torch.allclose(on_factor[module] - line, expected, rtol=0, atol=1e-12)
        missed.append((on_factor[module] - line).reshape(-1))
    relative = torch.cat(missed).norm() / (dense(b) - dense(a)).norm()
    assert factor_delta_deviation(a, b, [t])[0] == pytest.approx(relative.item(), abs=1e-12)


def test_deviation_in_the_special_cases():
    a, b = make_adapter(0), make_adapter(1)
    assert factor_delta_deviation(a, a, [0.0, 0.5]).tolist() == [0.0, 0.0]
    assert factor_delta_deviation({"w": torch.zeros(2)}, {"w": torch.ones(2)}, [0.5]).tolist() == [0.0]
    assert factor_delta_deviation(a, b, [0.0, 1.0]).tolist() == [0.0, 0.0]
    flipped = {n: -x for n, x in a.items()}  # the same ΔW in other factors: the path goes through 0
    assert factor_delta_deviation(a, flipped, [0.0, 0.5, 1.0])[1] > 1e6
    with pytest.raises(PointMismatchError, match="space='delta'"):
        factor_delta_deviation(a, make_adapter(1, rank=3), [0.5])


@given(seeds)
def test_compress_keeps_all_inner_products(seed):
    points = [make_adapter(seed, 1), make_adapter(seed + 1, 2)]
    small = compress(points)
    for p, x in zip(points, small, strict=True):
        for q, y in zip(points, small, strict=True):
            assert delta_dot(x, y) == pytest.approx(delta_dot(p, q), abs=1e-10)
    for p, x in zip(small, points, strict=True):
        for module in module_names(p):
            assert p[f"{module}.lora_B.weight"].shape[0] <= x[f"{module}.lora_B.weight"].shape[0]


@pytest.mark.parametrize("call", [lambda a: compress([a, a]), balance, lambda a: truncate(a, 1), delta_norm])
def test_factors_are_computed_with_in_one_thread(call, monkeypatch):
    """In two, with other processes on the same cores, measuring a path's length took up to 100 times as long."""
    seen, qr, number = [], torch.linalg.qr, torch.get_num_threads()
    monkeypatch.setattr(torch.linalg, "qr", lambda *a, **k: seen.append(torch.get_num_threads()) or qr(*a, **k))
    torch.set_num_threads(2)
    try:
        call(make_adapter(0))
        assert set(seen) == {1} and torch.get_num_threads() == 2
        monkeypatch.setattr(torch.linalg, "qr", None)
        with pytest.raises(TypeError):
            call(make_adapter(0))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(number)
