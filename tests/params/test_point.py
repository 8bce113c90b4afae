"""The algebra of points against NumPy and against its own laws."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import (
    check_compatible,
    combine,
    content_hash,
    distance,
    dot,
    flatten,
    interpolate,
    norm,
    random_like,
    snapshot,
    subtract,
    unflatten,
)

SHAPES = {"layer.weight": (3, 4), "layer.bias": (3,), "scale": ()}
seeds = st.integers(0, 2**31)
unit = st.floats(0.0, 1.0)


def make_point(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}


def same_bits(p, q):
    return list(p) == list(q) and all(torch.equal(p[n], q[n]) and p[n].dtype == q[n].dtype for n in p)


def test_combine_matches_numpy_sum():
    points, weights = [make_point(i) for i in range(4)], [0.3, -1.5, 2.0, 0.0]
    expected = sum(w * flatten(p).numpy() for w, p in zip(weights, points, strict=True))
    np.testing.assert_allclose(flatten(combine(points, weights)).numpy(), expected, rtol=0, atol=1e-14)


@given(seeds, seeds, unit)
def test_interpolate_is_reversible(i, j, t):
    a, b = make_point(i), make_point(j)
    scale = norm(a) + norm(b)
    assert distance(interpolate(a, b, t), interpolate(b, a, 1.0 - t)) <= 1e-12 * scale


@given(seeds, seeds, unit, st.floats(-5, 5), st.floats(-5, 5))
def test_interpolate_commutes_with_affine_maps(i, j, t, factor, offset):
    a, b = make_point(i), make_point(j)

    def mapped(p):
        return {n: factor * x + offset for n, x in p.items()}

    assert distance(interpolate(mapped(a), mapped(b), t), mapped(interpolate(a, b, t))) <= 1e-12 * 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_interpolate_endpoints_are_bit_exact(dtype):
    a, b = make_point(0, dtype), make_point(1, dtype)
    a["layer.bias"][0], b["layer.bias"][1] = -0.0, float("nan")
    working = torch.float64 if dtype == torch.float64 else torch.float32
    start, end = interpolate(a, b, 0.0), interpolate(a, b, 1.0)
    assert content_hash(start) == content_hash({n: x.to(working) for n, x in a.items()})
    assert content_hash(end) == content_hash({n: x.to(working) for n, x in b.items()})


def test_interpolate_of_bfloat16_is_computed_in_float32():
    a, b = (
        {"w": torch.tensor([1.0], dtype=torch.bfloat16)},
        {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)},
    )
    middle = interpolate(a, b, 0.5)["w"]
    assert middle.dtype == torch.float32 and middle.item() == 1.00390625  # not representable in bfloat16


def test_results_share_no_memory_with_inputs():
    a, b = make_point(0), make_point(1)
    before = content_hash(a)
    for result in (combine([a], [1.0]), interpolate(a, b, 0.0), snapshot(a), subtract(a, b)):
        for tensor in result.values():
            tensor.fill_(7.0)
    assert content_hash(a) == before


def test_gradients_flow_through_combine():
    a = {"w": torch.ones(3, dtype=torch.float64, requires_grad=True)}
    b = {"w": torch.ones(3, dtype=torch.float64, requires_grad=True)}
    combine([a, b], [0.25, 0.75])["w"].sum().backward()
    assert a["w"].grad.tolist() == [0.25] * 3 and b["w"].grad.tolist() == [0.75] * 3


def test_all_weights_zero_give_zero():
    assert norm(combine([make_point(0)], [0.0])) == 0.0


@given(seeds, seeds)
def test_dot_norm_and_distance_match_numpy(i, j):
    a, b = make_point(i), make_point(j)
    x, y = flatten(a).numpy(), flatten(b).numpy()
    assert dot(a, b) == pytest.approx(x @ y, abs=1e-12)
    assert norm(a) == pytest.approx(np.linalg.norm(x), rel=1e-13)
    assert distance(a, b) == pytest.approx(np.linalg.norm(x - y), rel=1e-13, abs=1e-13)


def test_norm_of_many_small_float32_entries_does_not_saturate():
    point = {"big": torch.tensor([1e4]), "small": torch.full((10**6,), 1e-2)}
    assert norm(point) == pytest.approx(math.sqrt(1e8 + 1e2), rel=1e-9)


@given(seeds)
def test_flatten_and_unflatten_are_inverse(seed):
    point = make_point(seed)
    assert same_bits(unflatten(flatten(point), point), point)


def test_flatten_does_not_depend_on_the_order_of_names():
    point = make_point(0)
    assert torch.equal(flatten(point), flatten(dict(reversed(point.items()))))


def test_unflatten_refuses_a_vector_of_other_size():
    with pytest.raises(PointMismatchError, match=r"Expected a vector of shape \(16,\), got \(15,\)"):
        unflatten(torch.zeros(15), make_point(0))


def test_random_like_depends_on_the_seed_only():
    def draw(p, seed):
        return random_like(p, torch.Generator().manual_seed(seed))

    point = make_point(0)
    shuffled = dict(reversed(point.items()))
    assert distance(draw(point, 3), draw(shuffled, 3)) == 0.0
    assert distance(draw(point, 3), draw(point, 4)) > 0.0
    assert {n: x.shape for n, x in draw(point, 3).items()} == {n: x.shape for n, x in point.items()}


def test_random_like_is_standard_normal():
    drawn = random_like({"w": torch.zeros(200, 200)}, torch.Generator().manual_seed(0))["w"]
    assert abs(float(drawn.mean())) < 0.03 and float(drawn.std()) == pytest.approx(1.0, abs=0.03)


def test_content_hash_sees_every_bit_and_nothing_else():
    point = make_point(0, torch.float32)
    reference = content_hash(point)
    assert len(reference) == 64
    assert content_hash(dict(reversed(point.items()))) == reference
    assert content_hash({**point, "layer.weight": point["layer.weight"].T.contiguous().T}) == reference
    assert content_hash({**point, "layer.weight": point["layer.weight"].requires_grad_()}) == reference
    changed = snapshot(point)
    changed["layer.weight"][2, 3] += 1e-6
    renamed = {n.replace("scale", "size"): x for n, x in point.items()}
    reshaped = {**point, "layer.weight": point["layer.weight"].reshape(4, 3)}
    double = {n: x.double() for n, x in point.items()}
    assert len({reference, *map(content_hash, (changed, renamed, reshaped, double))}) == 5


def test_content_hash_takes_bfloat16_scalars_and_empty_tensors():
    assert content_hash({"w": torch.tensor(1.0, dtype=torch.bfloat16), "e": torch.zeros(0, 3)})


def test_mismatch_names_the_first_difference_and_counts_all():
    a = make_point(0)
    b = {"layer.weight": torch.zeros(3, 5), "scale": torch.tensor(0.0), "extra": torch.zeros(1)}
    with pytest.raises(PointMismatchError) as caught:
        check_compatible(a, b)
    message = str(caught.value)
    assert "'layer.weight' with shape (3, 4), got shape (3, 5)" in message and "3 differences" in message
    assert "\n" not in message
    with pytest.raises(PointMismatchError, match="in the second only"):
        check_compatible({"w": torch.zeros(1)}, {"w": torch.zeros(1), "v": torch.zeros(1)})


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({}, "empty"),
        (torch.nn.Linear(1, 1), "got Linear; take mc.snapshot"),
        ("folder", r"got str; take .* mc.load_adapter\(folder\)\.point of an adapter's folder"),
        (SimpleNamespace(point={}), r"got SimpleNamespace; take its \.point"),
        ({"w": [1.0]}, "got list"),
        ({"count": torch.zeros(1, dtype=torch.long)}, "'count'"),
    ],
)
def test_what_is_not_a_point_is_refused(point, message):
    with pytest.raises(UserError, match=message):
        combine([point], [1.0])


@pytest.mark.parametrize("weights", [[1.0], [0.5, float("nan")], [0.5, float("inf")]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(UserError):
        combine([make_point(0), make_point(1)], weights)


def test_snapshot_of_a_module_survives_training():
    module = torch.nn.Linear(2, 2)
    kept, live = snapshot(dict(module.named_parameters())), dict(module.named_parameters())
    with torch.no_grad():
        module.weight.add_(1.0)
    assert distance(kept, live) == pytest.approx(2.0)
    assert not any(tensor.requires_grad for tensor in kept.values())
