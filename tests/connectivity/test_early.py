"""Early profiles against populations whose losses are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from mcanalysis.connectivity.early import early_profile
from mcanalysis.connectivity.profile import grid
from mcanalysis.errors import UserError
from mcanalysis.paths import Linear

N = 400
PATH = Linear({"x": torch.zeros(1)}, {"x": torch.ones(1)})
TS = grid(5)


def population(seed, spread=1.0):
    """nll (points, examples) with a common part per example, and targets of unequal number."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, 9, N)
    per_token = 1.0 + spread * rng.gamma(2.0, 0.2, N) + 0.5 * np.outer(np.sin(3 * TS), rng.uniform(0.8, 1.2, N))
    return per_token * targets, targets


def objective_of(nll, targets, calls=None):
    def measure(point, rows):
        if calls is not None:
            calls.append((float(point["x"][0]), rows))
        at = round(float(point["x"][0]) * (len(TS) - 1))
        return SimpleNamespace(nll=nll[at][rows], targets=targets[rows], scores=np.empty(0))

    return measure


def test_the_whole_profile_is_within_its_half_widths_as_often_as_is_claimed():
    """600 populations: fewer than 5 % may miss; that it is far fewer is Bonferroni's doing."""
    missed = stopped_early = 0
    for seed in range(600):
        nll, targets = population(seed)
        early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.06, seed=seed)
        error = np.abs(early.profile.losses - nll.sum(1) / targets.sum())
        missed += bool((error > early.half_widths).any())
        stopped_early += early.saving > 0
        assert (early.half_widths <= 0.06).all()
    assert stopped_early > 500
    assert missed <= 30


def test_the_half_width_of_one_look_is_the_textbooks():
    nll, targets = population(0, spread=0.01)
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=1.0, first=40)
    rows = early.examples
    assert len(rows) == 40 and early.saving == pytest.approx(0.9)
    looks, points = 4, len(TS)  # 40, 80, 160, 320; all 400 would be exact
    y, x = nll[2][rows], targets[rows]
    residuals = y - y.sum() / x.sum() * x
    error = np.sqrt((1 - 40 / N) * residuals.var(ddof=1) / 40) / x.mean()
    quantile = stats.t.isf(0.05 / (looks * points) / 2, 39)
    assert early.half_widths[2] == pytest.approx(quantile * error)
    assert "95% confidence" in early.guarantee


def test_a_tolerance_too_small_measures_everything_once_and_is_exact():
    nll, targets = population(1)
    calls = []
    early = early_profile(PATH, objective_of(nll, targets, calls), TS, N, tolerance=1e-9)
    np.testing.assert_allclose(early.profile.losses, nll.sum(1) / targets.sum(), rtol=1e-12)
    assert not early.half_widths.any() and early.saving == 0 and "all examples" in early.guarantee
    for t in TS:
        rows = np.concatenate([r for at, r in calls if at == t])
        assert sorted(rows) == list(range(N))


def test_one_example_and_a_first_look_larger_than_all_are_exact_at_once():
    nll, targets = population(2)
    early = early_profile(PATH, objective_of(nll[:, :1], targets[:1]), TS, 1, tolerance=0.1)
    assert early.num_evaluations == early.num_full == len(TS)
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.1, first=5000)
    assert not early.half_widths.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": 0.0}, "tolerance above 0"),
        ({"tolerance": float("nan")}, "tolerance above 0"),
        ({"confidence": 1.0}, "confidence between 0 and 1, got 1.0"),
        ({"first": 1}, "first look at 2 or more"),
        ({"num_examples": 0}, "at least 1 example"),
    ],
)
def test_settings_out_of_range(settings, message):
    nll, targets = population(0)
    chosen = {"num_examples": N, "tolerance": 0.1, **settings}
    with pytest.raises(UserError, match=message):
        early_profile(PATH, objective_of(nll, targets), TS, **chosen)
