"""Adapters that diverged, do nothing in a module, or have nothing to do with each other."""

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_weights
from mcanalysis.params.merging import dare, magmax, ties
from mcanalysis.params.spaces import aligned
from mcanalysis.paths import Slerp


def adapter(seed, modules=("q", "v"), rank=2):
    g = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        point[f"{module}.lora_A.weight"] = torch.randn(rank, 5, generator=g)
        point[f"{module}.lora_B.weight"] = torch.randn(4, rank, generator=g)
    return point


@pytest.mark.parametrize("merge", [lambda p: ties(p, 0.2), lambda p: ties(p, 1.0), magmax, lambda p: dare(p, 0.5)])
def test_a_diverged_adapter_is_not_left_out_in_silence(merge):
    """Comparisons with NaN are false, so that it would be as if it were not there."""
    one, broken = adapter(1), adapter(2)
    broken["v.lora_A.weight"][1, 3] = float("nan")
    for points in ([one, broken], [broken, one]):
        with pytest.raises(UserError, match=r"got NaN or ∞ in 'v.lora_A.weight' of adapter [12]; leave out"):
            merge(points)


def test_dare_draws_in_float32_whatever_the_default_is():
    point = adapter(1)
    expected = delta_weights(dare([point], 0.5, seed=3))
    torch.set_default_dtype(torch.float64)
    try:
        found = delta_weights(dare([point], 0.5, seed=3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[m], expected[m]) for m in expected)


def test_a_tensor_of_0_is_at_a_right_angle_as_in_mergekit():
    a, b = {"w": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}, {"w": torch.tensor([4.0, -3.0]), "b": torch.ones(2)}
    found = Slerp(a, b)(0.25)
    sine = float(np.sin(np.pi / 8))
    torch.testing.assert_close(found["b"], sine * b["b"])
    torch.testing.assert_close(found["w"], float(np.cos(np.pi / 8)) * a["w"] + sine * b["w"])
    ts = (np.arange(10_000) + 0.5) / 10_000
    speed = np.pi / 2 * np.hypot(5.0, np.sqrt(2) * np.cos(np.pi / 2 * ts))
    assert Slerp(a, b).length() == pytest.approx(speed.mean(), rel=1e-4)


@pytest.mark.parametrize("other", [("q",), ("q", "v")])
def test_a_module_in_which_one_of_two_does_nothing_grows_as_t(other, caplog):
    full, part = adapter(1), adapter(2, other)
    if "v" in other:
        part["v.lora_B.weight"].zero_()
    for ends, share in (((part, full), 0.25), ((full, part), 0.75)):
        deltas = delta_weights(mc.Linear(*ends, space="aligned")(0.25))
        torch.testing.assert_close(deltas["v"], share * delta_weights(full)["v"], rtol=1e-5, atol=1e-6)
    assert not caplog.messages


def test_with_three_corners_that_is_warned_of(caplog):
    corners = adapter(1, ("q",)), adapter(2), adapter(3)
    point = mc.Simplex(*corners, space="aligned")([0.5, 0.5, 0.0])
    torch.testing.assert_close(delta_weights(point)["v"], 0.25 * delta_weights(corners[1])["v"])
    assert "does nothing in v (1 modules in all): in aligned space ΔW grows as t²" in caplog.text
    caplog.clear()
    mc.Simplex(adapter(4), adapter(2), adapter(3), space="aligned")
    assert not caplog.messages


def test_an_alignment_that_is_not_determined_is_warned_of(caplog):
    """Adapters that are orthogonal in both factors: every rotation is as good, and the path depends on the choice."""
    aligned._told.clear()
    unit = torch.eye(4)
    a = {"q.lora_A.weight": unit[:2], "q.lora_B.weight": unit[:, :2]}
    b = {"q.lora_A.weight": unit[2:], "q.lora_B.weight": unit[:, 2:] * torch.tensor([2.0, 1.0])}
    for seed in range(20):  # none of which is of that kind
        mc.Linear(adapter(seed), adapter(seed + 50, rank=1 + seed % 3), space="aligned")
        mc.Linear(adapter(seed), adapter(seed, ("q",)), space="aligned")
    assert not caplog.messages
    mc.Linear(a, b, space="aligned")
    assert "how they are aligned is not determined there" in caplog.text
