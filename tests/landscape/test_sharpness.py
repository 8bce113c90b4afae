"""Sharpness against closed forms: ½·tr(HΣ) for the mean, corners of the box for the maximum."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import UserError
from mcanalysis.landscape.sharpness import epsilon_sharpness, expected_sharpness
from mcanalysis.params import balance, content_hash, delta_weights, flatten

seeds = st.integers(0, 2**31)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def matrix(seed, *shape):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def adapter(seed, rank=2):
    return {"q.lora_A.weight": matrix(seed, rank, 4), "q.lora_B.weight": matrix(seed + 1, 3, rank)}


def quadratic(H, centre, slope=None, read=flatten):
    """½·(θ − θ*)ᵀH(θ − θ*) + gᵀ(θ − θ*) of a point's flat vector."""

    def loss(point):
        d = read(point) - centre
        return 0.5 * d @ H @ d + (0.0 if slope is None else slope @ d)

    return loss


def flat_delta(point):
    return delta_weights(point)["q"].reshape(-1)


def expected_rise(H, rows, radius):
    """½·tr(HΣ): entries of a row of θ have variance radius²·‖row‖²/(entries of the row)."""
    variances = (radius**2 * rows.square().sum(1, keepdim=True) / rows.shape[1]).expand_as(rows)
    return 0.5 * float((H.diagonal() * variances.reshape(-1)).sum())


@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_mean_rise_of_a_quadratic_is_half_the_trace(radius):
    theta = {"w": matrix(0, 3, 4)}
    A = matrix(1, 12, 12)
    H, slope = A @ A.T, 50 * matrix(2, 12)  # θ need not be a minimum: the slope cancels
    result = expected_sharpness(quadratic(H, flatten(theta), slope), theta, radius, num_samples=400, seed=1)
    expected = expected_rise(H, theta["w"], radius)
    assert abs(result.value - expected) < 4 * result.standard_error
    assert 0 < result.standard_error < 0.05 * expected
    assert result.standard_error == pytest.approx(np.std(result.samples, ddof=1) / 20, rel=1e-12)
    assert result.loss == 0.0 and result.samples.shape == (400,)


def test_mean_rise_of_a_quadratic_in_delta_is_half_the_trace():
    a = adapter(0)
    A = matrix(5, 12, 12)
    H = A @ A.T
    loss = quadratic(H, flat_delta(a), 10 * matrix(3, 12), read=flat_delta)
    result = expected_sharpness(loss, a, radius=0.3, num_samples=800)
    assert abs(result.value - expected_rise(H, delta_weights(a)["q"], 0.3)) < 4 * result.standard_error
    R = torch.tensor([[2.0, 1.0], [0.0, -0.5]], dtype=torch.float64)
    turned = {n: torch.linalg.solve(R, t) if "lora_A" in n else t @ R for n, t in a.items()}
    assert expected_sharpness(loss, turned, 0.3, 800).value == pytest.approx(result.value, rel=1e-9)


def test_an_isotropic_bowl_and_a_slope_are_exact():
    theta = {"w": matrix(0, 3, 4), "b": torch.ones(5, dtype=torch.float64)}
    bowl = expected_sharpness(lambda p: 0.5 * (p["w"] - theta["w"]).square().sum() + 7, theta, radius=0.2)
    assert bowl.value == pytest.approx(0.5 * 0.04 * float(theta["w"].square().sum()), rel=1e-12)
    assert bowl.standard_error < 1e-12 and bowl.loss == 7.0
    slope = expected_sharpness(lambda p: (3 * p["w"]).sum() + p["b"].sum(), theta)
    assert abs(slope.value) < 1e-12


def test_losses_may_be_numbers_or_objects_with_a_loss():
    class Measured:
        def __init__(self, loss):
            self.loss = loss

    theta = {"w": matrix(0, 3, 4)}
    values = {
        expected_sharpness(read, theta, num_samples=3).value
        for read in (
            lambda p: p["w"].square().sum(),
            lambda p: float(p["w"].square().sum()),
            lambda p: Measured(float(p["w"].square().sum())),
        )
    }
    assert len(values) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stay_what_they_are(bad):
    theta = {"w": matrix(0, 3, 4)}
    centre = content_hash(theta)
    result = expected_sharpness(lambda p: 0.0 if content_hash(p) == centre else bad, theta)
    assert np.array_equal(result.value, bad, equal_nan=True)
    steep = epsilon_sharpness(
        lambda p: p["w"].sum() * 0 + (0.0 if content_hash(p) == centre else bad), theta, epsilon=0.1, num_starts=2
    )
    assert np.array_equal(steep.max_loss, bad, equal_nan=True) and np.array_equal(steep.value, bad, equal_nan=True)


def corners(H, half_widths, slope):
    """The maximum of ½δᵀHδ + gᵀδ over the box by trying all corners: convex functions have it there. The oracle."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=len(half_widths)))) * half_widths
    return (0.5 * np.einsum("ni,ij,nj->n", signs, H, signs) + signs @ slope).max()


@given(seeds, st.floats(1e-3, 1.0))
@settings(max_examples=25, deadline=None)
def test_linear_losses_reach_their_corner(seed, epsilon):
    theta, slope = {"w": matrix(seed, 2, 3), "b": matrix(seed + 1, 4)}, matrix(seed + 2, 10)
    result = epsilon_sharpness(lambda p: slope @ flatten(p) + 100, theta, epsilon, num_starts=1)
    rise = float((slope.abs() * epsilon * (flatten(theta).abs() + 1)).sum())
    loss = float(slope @ flatten(theta)) + 100
    assert result.loss == pytest.approx(loss, rel=1e-12)
    assert result.value == pytest.approx(100 * rise / (1 + loss), rel=1e-9)


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_separable_convex_losses_reach_their_corner(seed):
    theta = {"w": matrix(seed, 2, 4)}
    h = matrix(seed + 1, 8).abs()
    result = epsilon_sharpness(quadratic(torch.diag(h), flatten(theta)), theta, epsilon=0.1, num_starts=2)
    expected = 0.5 * float((h * (0.1 * (flatten(theta).abs() + 1)).square()).sum())
    assert result.max_loss == pytest.approx(expected, rel=1e-9)  # from θ itself: a saddle of the ascent


def test_coupled_convex_losses_reach_the_best_of_all_corners():
    """Ascent finds local maxima, as any would; of enough starts one leads to the best corner."""
    found = []
    for seed in range(10):
        theta, A, slope = {"w": matrix(seed, 2, 3)}, matrix(seed + 100, 6, 6), 0.1 * matrix(seed + 200, 6)
        H = A @ A.T
        loss = quadratic(H, flatten(theta), slope)
        best = corners(H.numpy(), 0.1 * (flatten(theta).abs().numpy() + 1), slope.numpy())
        few, many = (epsilon_sharpness(loss, theta, 0.1, num_starts=n).max_loss for n in (1, 100))
        assert few <= many <= best * (1 + 1e-12)
        found.append(many / best)
    assert min(found) > 1 - 1e-9


def test_a_maximum_inside_of_the_box_is_found():
    theta = {"w": torch.zeros(4, dtype=torch.float64)}
    top = torch.tensor([0.3, -0.2, 0.05, 0.6], dtype=torch.float64)
    result = epsilon_sharpness(lambda p: 5 - (p["w"] - top).square().sum(), theta, epsilon=1.0, num_steps=200)
    assert result.max_loss == pytest.approx(5.0, abs=1e-4)


def test_sharpness_is_never_negative():
    theta = {"w": torch.zeros(4, dtype=torch.float64)}
    result = epsilon_sharpness(lambda p: 5 - p["w"].square().sum(), theta, epsilon=0.5, num_steps=1)
    assert result.value == 0.0 and result.max_loss == result.loss == 5.0


def test_epsilon_sharpness_of_an_adapter_does_not_see_the_gauge():
    a = adapter(0)
    R = torch.tensor([[2.0, 1.0], [0.0, -0.5]], dtype=torch.float64)
    turned = {n: torch.linalg.solve(R, t) if "lora_A" in n else t @ R for n, t in a.items()}
    target = matrix(9, 12)

    def loss(point):
        return (flat_delta(point) - target).square().sum()

    one, other = (epsilon_sharpness(loss, p, epsilon=0.05, num_starts=3) for p in (a, turned))
    assert one.value == pytest.approx(other.value, rel=1e-9)
    assert one.loss == pytest.approx(float(loss(a)), rel=1e-12)
    factors = balance(a)
    inside = {n: t + 0.05 * (t.abs() + 1) * (2 * torch.rand_like(t) - 1) for n, t in factors.items()}
    assert one.max_loss > float(loss(inside))


def test_nothing_of_the_caller_is_changed():
    module = torch.nn.Linear(3, 2)
    point = dict(module.named_parameters())
    before, state = content_hash(point), torch.random.get_rng_state()

    def loss(p):
        return torch.func.functional_call(module, p, (torch.ones(1, 3),)).square().sum()

    first = expected_sharpness(loss, point).value, epsilon_sharpness(loss, point).value
    assert first == (expected_sharpness(loss, point).value, epsilon_sharpness(loss, point).value)
    assert first[0] != expected_sharpness(loss, point, seed=1).value
    assert content_hash(point) == before and torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_bad_input_is_refused_in_one_line():
    theta = {"w": torch.ones(2, 3)}

    def total(p):
        return p["w"].sum()

    cases = [
        (lambda: expected_sharpness(total, theta, radius=0.0), "radius to be positive, got 0.0"),
        (lambda: expected_sharpness(total, theta, num_samples=1), "num_samples to be at least 2"),
        (lambda: expected_sharpness(total, {"b": torch.ones(3)}), "0 everywhere"),
        (lambda: expected_sharpness(lambda p: 0.0, {**adapter(0), "q.lora_B.weight": torch.zeros(3, 2)}), "ΔW = 0"),
        (lambda: epsilon_sharpness(total, theta, epsilon=-1.0), "epsilon to be positive"),
        (lambda: epsilon_sharpness(total, theta, num_steps=0), "num_steps"),
        (lambda: epsilon_sharpness(total, theta, num_starts=0), "num_starts"),
        (lambda: epsilon_sharpness(lambda p: p["w"], theta), r"got shape \(2, 3\)"),
        (lambda: epsilon_sharpness(lambda p: 3.0, theta), "got a float"),  # pyright: ignore[reportArgumentType]
        (lambda: epsilon_sharpness(lambda p: torch.ones(()), theta), "without a gradient"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
