"""Algebra that holds for every point of paths through many minima, of simplexes, and of LoRA spaces under gauge."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.params import delta_distance, delta_norm, distance
from mcanalysis.paths import Linear, SegmentedBezier, Simplex

seeds = st.integers(0, 2**31)
unit = st.floats(0.0, 1.0)
numbers = st.integers(2, 5)


def plain(seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in {"w": (3, 4), "b": (3,)}.items()}


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, 5, generator=generator, dtype=torch.float64),
        "q.lora_B.weight": torch.randn(7, rank, generator=generator, dtype=torch.float64),
    }


def regauged(point, seed):
    """The same ΔW through other factors: (B·R, R⁻¹·A) for a well-conditioned R."""
    generator = torch.Generator().manual_seed(seed)
    rank = point["q.lora_A.weight"].shape[0]
    R = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0]
    R = R @ torch.diag(0.5 + torch.rand(rank, generator=generator, dtype=torch.float64))
    return {
        "q.lora_A.weight": torch.linalg.inv(R) @ point["q.lora_A.weight"],
        "q.lora_B.weight": point["q.lora_B.weight"] @ R,
    }


def bent(minima, seed=99, num_bends=2):
    way = SegmentedBezier(*minima, num_bends=num_bends)
    return way.with_bends([plain(seed + i) for i in range(len(way.bends))])


@given(numbers, unit, seeds)
@settings(max_examples=25, deadline=None)
def test_a_way_through_many_minima_sums_to_one_and_can_be_reversed(k, t, seed):
    minima = [plain(seed + i) for i in range(k)]
    forth = bent(minima)
    weights = forth.weights(t)
    assert abs(float(weights.sum()) - 1.0) <= 1e-14 and float(weights.min()) >= 0.0
    back = SegmentedBezier(*minima[::-1], bends=forth.bends[::-1])
    assert distance(forth(t), back(1.0 - t)) <= 1e-12 * 30


@given(numbers, unit, seeds, st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_affine_maps_commute_with_a_way_through_many_minima(k, t, seed, factor, offset):
    def mapped(point):
        return {n: factor * x + offset for n, x in point.items()}

    way = bent([plain(seed + i) for i in range(k)])
    image = SegmentedBezier(*(mapped(plain(seed + i)) for i in range(k)), bends=[mapped(b) for b in way.bends])
    assert distance(image(t), mapped(way(t))) <= 1e-11


@given(numbers, seeds, st.permutations(range(5)), st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_a_simplex_knows_no_order_and_commutes_with_affine_maps(k, seed, order, factor):
    order = [i for i in order if i < k]
    weights = np.random.default_rng(seed).dirichlet(np.ones(k))
    minima = [plain(seed + i) for i in range(k)]
    here = Simplex(*minima)(weights)
    shuffled = Simplex(*(minima[i] for i in order))([weights[i] for i in order])
    assert distance(here, shuffled) <= 1e-12
    image = Simplex(*({n: factor * x - 1.0 for n, x in m.items()} for m in minima))(weights)
    assert distance(image, {n: factor * x - 1.0 for n, x in here.items()}) <= 1e-12 * 30
    edge = Simplex(minima[0], minima[1])(
        [weights[0] / (weights[0] + weights[1]), weights[1] / (weights[0] + weights[1])]
    )
    assert distance(edge, Linear(minima[0], minima[1])(weights[1] / (weights[0] + weights[1]))) <= 1e-12 * 10


@given(unit, seeds)
@settings(max_examples=25, deadline=None)
def test_delta_and_aligned_paths_are_blind_to_the_choice_of_factors(t, seed):
    a, b = adapter(seed), adapter(seed + 1)
    size = delta_norm(a) + delta_norm(b)
    for space, tolerance in (("delta", 1e-12), ("aligned", 1e-6)):
        here = Linear(a, b, space=space)(t)
        there = Linear(regauged(a, seed), regauged(b, seed + 7), space=space)(t)
        assert delta_distance(here, there) <= tolerance * size, space


def test_the_factor_path_is_not():
    a, b = adapter(0), adapter(1)
    moved = delta_distance(Linear(a, b)(0.5), Linear(a, regauged(b, 3))(0.5))
    assert moved > 0.01 * delta_norm(a)
