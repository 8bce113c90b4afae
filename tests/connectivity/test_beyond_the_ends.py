"""Straight paths beyond their ends: values by hand, barriers that do not move, what is refused and what is told."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mcanalysis as mc
from mcanalysis.connectivity.profile import grid, grid_beyond
from mcanalysis.errors import UserError

A, B = {"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([2.0, 0.0])}
X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))


def objective(point):
    nll = torch.cos(3 * X @ point["w"]).double().numpy() + 1
    scores = (nll < 1).astype(float)
    ones = np.ones(len(nll))
    return SimpleNamespace(nll=nll, targets=ones, loss=nll.mean(), scores=scores, score=scores.mean())


def test_the_grid_goes_on_at_its_own_spacing():
    assert grid_beyond(21, -0.5, 1.5).tolist() == [i / 20 for i in (*range(-10, 0), *range(21, 31))]
    assert grid_beyond(11, -0.25, 1.0).tolist() == [-0.2, -0.1]  # no point off the spacing
    assert grid_beyond(4, 0.0, 4 / 3).tolist() == [4 / 3]
    for low, high in ((0.1, 1.5), (0, 0.9), (float("nan"), 1.5), (-1, float("inf"))):
        with pytest.raises(UserError, match="--extrapolate LOW,HIGH"):
            grid_beyond(21, low, high)
    with pytest.raises(UserError, match=r"a step of 0\.1 beyond"):
        grid_beyond(11, -0.05, 1.05)


def test_values_beyond_are_of_the_line_and_barriers_are_those_of_the_path():
    path = mc.Linear(A, B, extrapolate=True)
    ts = grid(11)
    short, far = mc.profile(path, objective, ts), mc.profile(path, objective, [-0.4, *ts, 1.7])
    for t, loss in zip((-0.4, 1.7), far.losses[[0, -1]], strict=True):
        weights = (1 - t) * np.array([0.0, 1.0]) + t * np.array([2.0, 0.0])
        assert loss == pytest.approx((np.cos(3 * X.numpy() @ weights) + 1).mean(), rel=1e-6)
    assert abs(far.losses[-1] - short.losses).min() > 1e-3
    for name in ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip"):
        for quantity in ("loss", "score"):
            assert getattr(far, name)(quantity) == getattr(short, name)(quantity)
    for quantity in ("loss", "score"):
        assert far.chord_barrier_interval(quantity) == short.chord_barrier_interval(quantity)
    assert far.summary() == short.summary() and far.summary("score") == short.summary("score")
    assert far.to_frame().t.tolist()[0] == -0.4 and "chord_barrier" in far._repr_html_()
    with pytest.raises(UserError, match="extrapolate=True"):
        mc.profile(mc.Linear(A, B), objective, [0, 1, 1.2])


@pytest.mark.parametrize("kind", [mc.Bezier, mc.PolyChain])
def test_curves_are_not_measured_beyond_their_ends(kind):
    curve = kind(A, B, extrapolate=True)
    for ts in ([-0.1, 0, 1], [0, 1, 1.1]):
        with pytest.raises(UserError, match=r"Expected t in \[0, 1\] on a curve, got .* take a straight path"):
            mc.profile(curve, objective, ts)
    assert len(mc.profile(curve, objective, [0, 0.5, 1]).ts) == 3


def test_what_is_not_finite_beyond_the_ends_is_told(caplog):
    line = mc.Linear({"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}, extrapolate=True)
    found = mc.profile(line, lambda p: float(torch.log(1.2 - p["w"])), [-0.5, 0, 1, 1.25, 1.5])
    assert np.isnan(found.losses[-2:]).all() and np.isfinite(found.chord_barrier())
    assert "not finite at t = 1.25, 1.5" in caplog.text
    caplog.clear()
    mc.profile(line, lambda p: float(p["w"]), [-0.5, 0, 1, 1.5])
    assert not caplog.text


def batch_norm(mean, var):
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        net[0].running_mean.copy_(torch.tensor(mean))
        net[0].running_var.copy_(torch.tensor(var))
    return net


def test_a_negative_running_variance_is_refused_and_not_computed_with():
    torch.manual_seed(0)
    nets = batch_norm([0.0, 0.0], [2.0, 1.0]), batch_norm([1.0, 0.0], [0.5, 1.0])
    ends = [mc.snapshot(net) for net in nets]
    path = mc.Linear(*ends, extrapolate=True)
    loss = mc.module_objective(nets[0], lambda net, x: net(x)[:, 0] ** 2, [X])
    far = path(1.2)  # 2 − 1.2·1.5 = 0.2: still a variance
    x = (X - far["0.running_mean"]) / (far["0.running_var"] + nets[0][0].eps).sqrt()
    x = x * far["0.weight"] + far["0.bias"]
    by_hand = (x @ far["1.weight"].T + far["1.bias"])[:, 0].square().mean()
    assert mc.profile(path, loss, [0, 1, 1.2]).losses[-1] == pytest.approx(float(by_hand.detach()), rel=1e-5)
    assert float(path(1.5)["0.running_var"][0]) < 0
    with pytest.raises(UserError, match=r"got -0\.25 in '0\.running_var'.*give recalibrate"):
        mc.profile(path, loss, [0, 1, 1.5])
    anew = mc.module_objective(nets[0], lambda net, x: net(x)[:, 0] ** 2, [X], recalibrate=[X])
    assert np.isfinite(mc.profile(path, anew, [0, 1, 1.5]).losses).all()
