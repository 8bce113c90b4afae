"""Profiles of quadratics against their closed forms, and of a plain network: no language model needed."""

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.errors import UserError


def quadratic(dimension=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(dimension, dtype=torch.float64)
    points = torch.randn(3, dimension, generator=generator, dtype=torch.float64)
    return hessian, points


def test_profile_of_a_quadratic_has_the_closed_form_dip():
    hessian, (best, a, b) = quadratic()
    line = mc.Linear({"w": a}, {"w": b})
    found = mc.profile(line, lambda p: float(0.5 * (p["w"] - best) @ hessian @ (p["w"] - best)))
    d = b - a
    dip = 0.5 * found.ts * (1 - found.ts) * float(d @ hessian @ d)
    assert found.chord_dip() == pytest.approx(dip.max(), rel=1e-12)
    assert found.chord_barrier() == pytest.approx(0, abs=1e-9)
    assert found.max_barrier() == 0
    ends = found.losses[[0, -1]]
    assert found.mean_barrier() == pytest.approx(found.losses.max() - ends.mean())
    assert list(found.to_frame().columns) == ["t", "loss"]


def test_profile_of_a_plain_network_and_its_loss():
    torch.manual_seed(0)
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))

    def loss(point):
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, point, (x,)), y)

    line = mc.Linear(dict(net.named_parameters()), dict(other.named_parameters()))
    found = mc.profile(line, loss, ts=[0, 0.25, 1])
    by_hand = [
        torch.nn.functional.cross_entropy(
            x @ ((1 - t) * net.weight + t * other.weight).T + (1 - t) * net.bias + t * other.bias, y
        ).item()
        for t in (0, 0.25, 1)
    ]
    np.testing.assert_allclose(found.losses, by_hand, rtol=1e-5)
    # the loss of a linear classifier is convex: no barrier
    assert found.chord_barrier() == pytest.approx(0, abs=1e-6)


def test_intervals_need_per_example_values_and_hold_the_point_estimate():
    rng = np.random.default_rng(0)
    ts = grid(5)
    nll = rng.gamma(2.0, 1.0, size=(5, 60)) + 4 * (ts * (1 - ts))[:, None]
    targets = rng.integers(1, 4, 60)
    scores = (rng.random((5, 60)) < 0.5).astype(float)
    found = Profile(ts, nll.sum(1) / targets.sum(), nll, targets, scores.mean(1), scores)
    for name in ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip"):
        low, high = getattr(found, f"{name}_interval")()
        assert low <= getattr(found, name)() <= high
    assert found.chord_barrier("score") >= 0
    with pytest.raises(UserError, match="per-example"):
        Profile(ts, found.losses).chord_barrier_interval()
    with pytest.raises(UserError, match="with scores"):
        Profile(ts, found.losses).chord_barrier("score")


def test_scores_that_were_not_kept_have_a_curve_but_no_interval():
    measured = [{"nll": [1.0, 2.0], "targets": [1, 1], "scores": [], "score": score} for score in (0.5, 0.25)]
    found = Profile.of([0.0, 1.0], measured)
    assert found.scores.tolist() == [0.5, 0.25]
    with pytest.raises(UserError, match="per-example values"):
        found.chord_barrier_interval("score")


def test_an_objective_without_a_target_for_each_example_is_refused_by_name():
    line = mc.Linear({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    with pytest.raises(UserError, match=r"targets of shape \(2,\), one per example like nll, got \(0,\)"):
        mc.profile(line, lambda point: {"nll": [1.0, 2.0], "targets": []}, ts=[0, 1])


@pytest.mark.parametrize("num_points", [1, 0, -3])
def test_fewer_than_two_points_are_refused(num_points):
    with pytest.raises(UserError, match="--num-points of at least 2"):
        grid(num_points)
