"""The factor barrier over random factors, against its closed form; the ΔW line and the aligned path do not move."""

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.gauge import random_gauge
from mcanalysis.paths import Linear


def adapter(seed, rank=3):
    g = torch.Generator().manual_seed(seed)
    shapes = {"q.lora_B.weight": (6, rank), "q.lora_A.weight": (rank, 5)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()}


A, B = adapter(0), adapter(1)
TARGET = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
TS = np.linspace(0, 1, 11)


def loss(point):
    """Concave in ΔW, so that the straight line has a barrier."""
    return -float((point["q.lora_B.weight"] @ point["q.lora_A.weight"] - TARGET).square().sum())


def test_barriers_are_those_of_dense_matrices():
    found = mc.gauge_spread(A, B, loss, num_gauges=4, seed=5, ts=TS).set_index("gauge")
    assert found.index.tolist() == ["stored", "aligned", "delta", 5, 6, 7, 8]
    for number in (5, 6, 7, 8):
        end = random_gauge(B, number)
        b1, a1, b2, a2 = (p[f"q.lora_{f}.weight"].numpy() for p in (A, end) for f in "BA")
        values = [-np.square(((1 - t) * b1 + t * b2) @ ((1 - t) * a1 + t * a2) - TARGET.numpy()).sum() for t in TS]
        chord = (1 - TS) * values[0] + TS * values[-1]
        assert found.chord_barrier[number] == pytest.approx(max(0, *(values - chord)), abs=1e-9)
        assert found.max_barrier[number] == pytest.approx(max(values) - max(values[0], values[-1]), abs=1e-9)
    assert found.chord_barrier.iloc[3:].std() > 0.1 and (found.delta_change <= 1e-6).all()


@pytest.mark.parametrize("space", ["delta", "aligned"])
def test_no_gauge_moves_the_line_or_the_aligned_path(space):
    before = mc.profile(Linear(A, B, space=space), loss, TS)
    for number in range(6):
        ends = random_gauge(A, number + 50), random_gauge(B, number)
        after = mc.profile(Linear(*ends, space=space), loss, TS)
        np.testing.assert_allclose(after.losses, before.losses, rtol=1e-9)
        assert abs(after.chord_barrier() - before.chord_barrier()) <= 1e-6


def test_turning_both_ends_alike_changes_nothing():
    both = {}, {}
    R = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 3 * torch.eye(3)
    for point, turned in zip((A, B), both, strict=True):
        turned["q.lora_B.weight"] = point["q.lora_B.weight"] @ R
        turned["q.lora_A.weight"] = torch.linalg.solve(R, point["q.lora_A.weight"])
    np.testing.assert_allclose(mc.profile(Linear(*both), loss, TS).losses, mc.profile(Linear(A, B), loss, TS).losses)


def test_bad_input():
    with pytest.raises(UserError, match="at least 1 gauge"):
        mc.gauge_spread(A, B, loss, num_gauges=0)
    with pytest.raises(PointMismatchError, match="space='delta'"):
        mc.gauge_spread(A, adapter(1, rank=2), loss)


def test_over_the_draws_the_cross_terms_average_out():
    """E[R] = E[R⁻¹] = 0: the mean of ΔW(t) is (1−t)²·ΔW_a + t²·ΔW_b, nearer to the base than the line."""
    middles = []
    for seed in range(400):
        point = Linear(A, random_gauge(B, seed))(0.5)
        middles.append((point["q.lora_B.weight"] @ point["q.lora_A.weight"]).numpy())
    ends = [p["q.lora_B.weight"] @ p["q.lora_A.weight"] for p in (A, B)]
    expected = (0.25 * (ends[0] + ends[1])).numpy()
    error = np.std(middles, axis=0) / 20
    assert (np.abs(np.mean(middles, axis=0) - expected) < 4.5 * error).all()
    assert (np.abs(0.5 * (ends[0] + ends[1]).numpy() - expected) > 4.5 * error).any()


def test_plain_weights_have_no_gauge():
    plain = {"w": torch.zeros(2)}
    with pytest.raises(PointMismatchError, match="without factors to turn"):
        mc.gauge_spread(plain, {"w": torch.ones(2)}, lambda p: 0.0)
