"""Random directions: the norms of their rows, what they depend on, and what they must not see."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import content_hash, delta_weights, flatten, ranks
from mcanalysis.params.directions import _ratio, random_delta_direction, random_direction

SHAPES = {"conv.weight": (4, 3, 2, 2), "linear.weight": (3, 5), "linear.bias": (3,), "scale": ()}
seeds = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plain(seed, dtype=torch.float64):
    g = generator(seed)
    return {n: torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for n, s in SHAPES.items()}


def adapter(seed, rank=3, dtype=torch.float64):
    g = generator(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, 5, generator=g, dtype=torch.float64).to(dtype),
        "q.lora_B.weight": torch.randn(7, rank, generator=g, dtype=torch.float64).to(dtype),
        "v.lora_A.weight": torch.randn(rank, 6, generator=g, dtype=torch.float64).to(dtype),
        "v.lora_B.weight": torch.randn(4, rank, generator=g, dtype=torch.float64).to(dtype),
    }


def row_norms(tensor):
    return np.sqrt((tensor.numpy().reshape(len(tensor), -1) ** 2).sum(1))


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_filters_are_as_long_as_those_of_the_point(seed):
    point = plain(seed)
    point["linear.weight"][1] = 0.0
    direction = random_direction(point, generator(seed + 1))
    for name in ("conv.weight", "linear.weight"):
        np.testing.assert_allclose(row_norms(direction[name]), row_norms(point[name]), rtol=1e-12)
    assert not direction["linear.bias"].any() and not direction["scale"].any()
    assert not direction["linear.weight"][1].any()


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_rows_of_delta_are_as_long_as_those_of_the_adapter(seed):
    for rank in (1, 3, 6):
        point = adapter(seed, rank)
        point["v.lora_B.weight"][2] = 0.0
        direction = random_delta_direction(point, generator(seed + 1))
        assert set(ranks(direction).values()) == {rank}
        mine, theirs = delta_weights(direction), delta_weights(point)
        for module in ("q", "v"):
            np.testing.assert_allclose(row_norms(mine[module]), row_norms(theirs[module]), rtol=1e-10, atol=1e-12)
            assert np.linalg.matrix_rank(mine[module].numpy()) == min(rank, *mine[module].shape) - (
                1 if module == "v" and rank >= 4 else 0
            )


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_delta_directions_do_not_see_the_gauge(seed):
    point = adapter(seed)
    R = torch.randn(3, 3, generator=generator(seed + 1), dtype=torch.float64) + 3 * torch.eye(3)
    turned = {n: torch.linalg.solve(R, t) if "lora_A" in n else t @ R for n, t in point.items()}
    one, other = (delta_weights(random_delta_direction(p, generator(7))) for p in (point, turned))
    for module in one:
        torch.testing.assert_close(one[module], other[module], rtol=1e-8, atol=1e-9)


def test_rows_of_a_delta_direction_point_anywhere():
    """E[rowᵢ rowⱼᵀ] = ‖ΔWᵢ‖²/in · 1 for i = j and 0 otherwise, to 4 standard errors."""
    point = {"q.lora_A.weight": torch.tensor([[1.0, 2.0, 2.0]]), "q.lora_B.weight": torch.tensor([[1.0], [2.0]])}
    g = generator(0)
    draws = torch.stack([delta_weights(random_delta_direction(point, g))["q"] for _ in range(4000)]).double()
    second = torch.einsum("nik,njl->ikjl", draws, draws) / len(draws)
    expected = torch.einsum("ij,kl->ikjl", torch.diag(torch.tensor([9.0, 36.0])) / 3, torch.eye(3)).double()
    assert float((second - expected).abs().max()) < 4 * 36 / 4000**0.5


def test_the_seed_says_everything_and_order_nothing():
    for make, point in ((random_direction, plain(0)), (random_delta_direction, adapter(0))):
        shuffled = dict(reversed(point.items()))
        assert content_hash(make(point, generator(5))) == content_hash(make(shuffled, generator(5)))
        assert content_hash(make(point, generator(5))) != content_hash(make(point, generator(6)))
        before, state = content_hash(point), torch.random.get_rng_state()
        direction = make(point, generator(5))
        for tensor in direction.values():
            tensor.fill_(1.0)
        assert content_hash(point) == before and torch.equal(torch.random.get_rng_state(), state)


def test_two_directions_are_nearly_orthogonal_but_not_made_so():
    point = {"w": torch.randn(50, 100, generator=generator(0))}
    g = generator(1)
    first, second = (flatten(random_direction(point, g)).double() for _ in range(2))
    cosine = float(first @ second / (first.norm() * second.norm()))
    assert 0 < abs(cosine) < 4 / 5000**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_points_get_float32_directions(dtype):
    for direction in (
        random_direction(plain(0, dtype), generator(0)),
        random_delta_direction(adapter(0, dtype=dtype), generator(0)),
    ):
        assert {t.dtype for t in direction.values()} == {torch.float32}


def test_live_parameters_bring_no_graph():
    module = torch.nn.Linear(3, 2)
    direction = random_direction(dict(module.named_parameters()), generator(0))
    assert not any(t.requires_grad for t in direction.values())


def test_degenerate_points_are_refused_by_name():
    fresh = {**adapter(0), "q.lora_B.weight": torch.zeros(7, 3), "v.lora_B.weight": torch.zeros(4, 3)}
    with pytest.raises(UserError, match="ΔW = 0 in all modules"):
        random_delta_direction(fresh, generator(0))
    for point in ({"w": torch.zeros(2, 3)}, {"b": torch.ones(3)}):
        with pytest.raises(UserError, match=r"direction of 0 everywhere .* give a point with a weight matrix"):
            random_direction(point, generator(0))
    for module, other in (("q", "v"), ("v", "q")):  # one of the two moves: which is first must not matter
        half = {**fresh, f"{other}.lora_B.weight": adapter(0)[f"{other}.lora_B.weight"]}
        moved = delta_weights(random_delta_direction(half, generator(0)))
        assert not moved[module].any() and moved[other].any()


def test_a_module_of_rank_0_does_not_move():
    point = {**adapter(0), "q.lora_A.weight": torch.zeros(0, 5), "q.lora_B.weight": torch.zeros(7, 0)}
    direction = random_delta_direction(point, generator(0))
    assert all(bool(t.isfinite().all()) for t in direction.values())
    assert not delta_weights(direction)["q"].any() and delta_weights(direction)["v"].any()


def test_rows_that_are_drawn_as_0_stay_0():
    drawn = {"w": torch.zeros(2, 3), "v": torch.ones(1, 3)}
    assert not _ratio(torch.ones(2, 1), torch.zeros(2, 1)).any()
    assert random_direction(drawn, generator(0))["w"].isfinite().all()


def test_a_plain_point_has_no_direction_of_delta():
    with pytest.raises(PointMismatchError, match="Expected only LoRA factors"):
        random_delta_direction(plain(0), generator(0))


def test_empty_tensors_are_left_alone():
    point = {"w": torch.ones(2, 3), "no rows": torch.ones(0, 3), "no columns": torch.ones(3, 0, 2)}
    direction = random_direction(point, generator(0))
    assert direction["no rows"].shape == (0, 3) and direction["no columns"].shape == (3, 0, 2)
