"""Slices: the origin, straightness, units, and the spaces in which directions are added."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.landscape.slices import Slice, filter_direction, random_slice
from mcanalysis.params import combine, content_hash, delta_distance, delta_norm, delta_weights, distance, norm, ranks

seeds = st.integers(0, 2**31)
steps = st.floats(-3, 3)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(seed):
    g = generator(seed)
    shapes = {"layer.weight": (3, 4), "layer.bias": (3,)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


def adapter(seed, rank=2):
    g = generator(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, 5, generator=g, dtype=torch.float64),
        "q.lora_B.weight": torch.randn(7, rank, generator=g, dtype=torch.float64),
    }


@given(seeds, steps, steps)
@settings(max_examples=25, deadline=None)
def test_plain_slices_are_sums(seed, alpha, beta):
    theta, d1, d2 = plain(seed), plain(seed + 1), plain(seed + 2)
    expected = {n: theta[n] + alpha * d1[n] + beta * d2[n] for n in theta}
    for space in ("factor", "delta"):
        assert distance(Slice(theta, d1, d2, space=space)(alpha, beta), expected) <= 1e-13 * 50
    assert distance(Slice(theta, d1)(alpha), combine([theta, d1], [1.0, alpha])) <= 1e-13 * 50


@given(seeds, steps, steps)
@settings(max_examples=25, deadline=None)
def test_slices_of_adapters_add_delta(seed, alpha, beta):
    theta, d1, d2 = adapter(seed), adapter(seed + 1, 1), adapter(seed + 2, 3)
    point = Slice(theta, d1, d2)(alpha, beta)
    expected = sum(w * delta_weights(p)["q"] for p, w in ((theta, 1.0), (d1, alpha), (d2, beta)))
    assert float((delta_weights(point)["q"] - expected).norm()) <= 1e-12 * 100
    assert ranks(point)["q"] == 2 + (1 if alpha else 0) + (3 if beta else 0)


def test_factor_slices_of_adapters_add_factors():
    theta, d = adapter(0), adapter(1)
    assert distance(Slice(theta, d, space="factor")(0.5), {n: theta[n] + 0.5 * d[n] for n in theta}) == 0.0
    with pytest.raises(PointMismatchError, match="shape"):
        Slice(theta, adapter(1, rank=3), space="factor")


@pytest.mark.parametrize("make", [plain, adapter])
@pytest.mark.parametrize("space", ["factor", "delta"])
def test_the_middle_is_the_origin_bit_for_bit_in_memory_of_its_own(make, space):
    origin = make(0)
    flat = Slice(origin, make(1), make(2), space=space)
    line = random_slice(origin, num_directions=1)
    before = content_hash(origin)
    for point in (flat(0.0, 0.0), flat(-0.0, 0), line(0.0)):
        assert content_hash(point) == before
        for tensor in point.values():
            tensor.fill_(9.0)
    assert content_hash(origin) == before == content_hash(flat.origin)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_step_of_one_moves_each_filter_by_its_own_length(seed):
    theta = plain(seed)
    moved = random_slice(theta, num_directions=2, seed=seed)
    for place in ((1.0, 0.0), (0.0, 1.0)):
        step = moved(*place)["layer.weight"] - theta["layer.weight"]
        torch.testing.assert_close(step.norm(dim=1), theta["layer.weight"].norm(dim=1), rtol=1e-12, atol=0)
    assert torch.equal(moved(1.0, 1.0)["layer.bias"], theta["layer.bias"])
    a = adapter(seed)
    step = delta_weights(random_slice(a, 1, seed)(1.0))["q"] - delta_weights(a)["q"]
    torch.testing.assert_close(step.norm(dim=1), delta_weights(a)["q"].norm(dim=1), rtol=1e-9, atol=1e-10)


@given(seeds, steps)
@settings(max_examples=20, deadline=None)
def test_random_slices_do_not_see_the_gauge(seed, alpha):
    a = adapter(seed)
    R = torch.tensor([[2.0, 1.0], [0.0, -0.5]], dtype=torch.float64)
    b = {n: torch.linalg.solve(R, t) if "lora_A" in n else t @ R for n, t in a.items()}
    one, other = (random_slice(p, 2, seed)(alpha, 0.5) for p in (a, b))
    assert delta_distance(one, other) <= 1e-11 * (1 + delta_norm(one))


def test_lengths_are_distances_of_the_space():
    d = adapter(1)
    assert Slice(adapter(0), d).lengths == (pytest.approx(delta_norm(d), rel=1e-12),)
    assert Slice(adapter(0), d, space="factor").lengths == (pytest.approx(norm(d), rel=1e-12),)
    first, second = Slice(plain(0), plain(1), plain(2)).lengths
    assert (first, second) == (pytest.approx(norm(plain(1))), pytest.approx(norm(plain(2))))


def test_the_second_direction_leaves_the_first_and_the_seed_says_everything():
    for point in (plain(0), adapter(0)):
        one, two = random_slice(point, 1, seed=3), random_slice(point, 2, seed=3)
        assert content_hash(one.directions[0]) == content_hash(two.directions[0])
        assert content_hash(one.directions[0]) == content_hash(filter_direction(point, generator(3)))
        assert content_hash(two.directions[0]) != content_hash(two.directions[1])
        assert content_hash(one.directions[0]) != content_hash(random_slice(point, 1, seed=4).directions[0])


def test_live_parameters_bring_no_graph():
    module = torch.nn.Linear(3, 2)
    state = torch.random.get_rng_state()
    point = random_slice(dict(module.named_parameters()))(0.3, 0.2)
    assert not any(t.requires_grad for t in point.values())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_input_is_refused_in_one_line():
    theta, d = plain(0), plain(1)
    cases = [
        (lambda: Slice(theta), "got 0"),
        (lambda: Slice(theta, d, d, d), "got 3"),
        (lambda: Slice(theta, d)(0.1, 0.2), "Expected 1 steps, got 2"),
        (lambda: Slice(theta, d, d)(0.1), "Expected 2 steps, got 1"),
        (lambda: Slice(theta, d)(float("nan")), "finite steps"),
        (lambda: Slice(theta, d, {n: 0 * t for n, t in d.items()}), "got direction 2 of length 0"),
        (lambda: Slice(adapter(0), {**adapter(1), "q.lora_B.weight": torch.zeros(7, 2)}), "got direction 1 of length"),
        (lambda: random_slice(theta, num_directions=3), "got 3"),
        (lambda: random_slice({**adapter(0), "q.lora_B.weight": torch.zeros(7, 2)}), "ΔW = 0"),
        (
            lambda: Slice(theta, {"layer.weight": d["layer.weight"]}),
            r"one without 'layer\.bias' \(1 in all\); add zeros",
        ),
        (lambda: Slice(adapter(0), plain(1)), "Expected only LoRA factors"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
