"""The exponential moving average against its recursion in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import content_hash, ema_decay_at, ema_update_


def test_decay_ramps_up_and_is_capped():
    assert [ema_decay_at(step, 0.8) for step in (1, 2, 3, 4, 5, 100)] == [
        1 / 2,
        1 - 1 / 3,
        3 / 4,
        0.8,
        0.8,
        0.8,
    ]
    with pytest.raises(UserError, match="got 0"):
        ema_decay_at(0, 0.9)
    with pytest.raises(UserError, match=r"got 1\.1"):
        ema_decay_at(1, 1.1)


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_update_follows_the_numpy_recursion(ema_decay, seed):
    rng = np.random.default_rng(seed)
    trajectory = rng.normal(size=(12, 2, 3))
    slow = {"w": torch.tensor(trajectory[0])}
    expected = trajectory[0].copy()
    for step, values in enumerate(trajectory[1:], start=1):
        fast = {"w": torch.tensor(values)}
        ema_update_(slow, fast, ema_decay_at(step, ema_decay))
        decay = min(1 - 1 / (step + 1), ema_decay)
        expected = decay * expected + (1 - decay) * values
        np.testing.assert_array_equal(fast["w"].numpy(), values)
    np.testing.assert_allclose(slow["w"].numpy(), expected, rtol=0, atol=1e-14)


def test_without_a_cap_the_slow_point_is_the_mean_of_all():
    values = [3.0, -1.0, 4.0, 1.0, 5.0]
    slow = {"w": torch.tensor([values[0]], dtype=torch.float64)}
    for step, value in enumerate(values[1:], start=1):
        ema_update_(slow, {"w": torch.tensor([value], dtype=torch.float64)}, ema_decay_at(step, 1.0))
    assert slow["w"].item() == pytest.approx(np.mean(values))


def test_slow_lies_strictly_between_its_old_value_and_fast():
    """Fails for an average of a parameter with itself, whichever of the two it takes twice."""
    slow, fast = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
    ema_update_(slow, fast, 0.9)
    assert slow["w"].item() == pytest.approx(0.1) and fast["w"].item() == 1.0


def test_update_is_in_place_and_exact_at_the_limits():
    torch.manual_seed(0)
    slow, fast = {"w": torch.randn(5)}, {"w": torch.randn(5)}
    tensor, before = slow["w"], content_hash(slow)
    ema_update_(slow, fast, 1.0)
    assert content_hash(slow) == before
    ema_update_(slow, {"w": tensor.clone()}, 0.3)
    assert content_hash(slow) == before
    ema_update_(slow, fast, 0.0)
    assert content_hash(slow) == content_hash(fast) and slow["w"] is tensor


def test_float32_average_of_bfloat16_parameters_keeps_small_steps():
    slow, fast = {"w": torch.ones(1)}, {"w": torch.full((1,), 1.0078125, dtype=torch.bfloat16)}
    ema_update_(slow, fast, 0.99)
    assert slow["w"].item() == pytest.approx(1.000078125, abs=4 * torch.finfo(torch.float32).eps)


def test_parameters_are_updated_without_a_graph():
    fast = torch.nn.Linear(2, 2)
    slow = {name: parameter.detach().clone() for name, parameter in fast.named_parameters()}
    ema_update_(slow, dict(fast.named_parameters()), 0.5)
    assert not any(tensor.requires_grad for tensor in slow.values())


def test_shared_storage_is_refused():
    module = torch.nn.Linear(2, 2)
    live = dict(module.named_parameters())
    detached = {name: parameter.detach() for name, parameter in live.items()}
    for slow in (live, detached):
        with pytest.raises(ValueError, match="'weight' sharing storage with fast 'weight'"):
            ema_update_(slow, live, 0.9)
    buffer = torch.zeros(8)
    with pytest.raises(ValueError, match="slow 'b' sharing storage with fast 'a'"):
        ema_update_(
            {"a": torch.zeros(4), "b": buffer[4:]},
            {"a": buffer[:4], "b": torch.zeros(4)},
            0.9,
        )


def test_mismatch_and_bad_decay_are_refused_before_anything_moves():
    slow = {"w": torch.zeros(2), "v": torch.zeros(2)}
    with pytest.raises(PointMismatchError):
        ema_update_(slow, {"w": torch.ones(2), "v": torch.ones(3)}, 0.5)
    with pytest.raises(UserError):
        ema_update_(slow, {"w": torch.ones(2), "v": torch.ones(2)}, -0.1)
    assert float(slow["w"].sum()) == 0.0
