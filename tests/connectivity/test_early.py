"""First looks at paths against populations whose losses are known."""

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
    """200 populations: fewer than 5 % may miss; that it is far fewer is Bonferroni's doing."""
    missed = stopped_early = 0
    for seed in range(200):
        nll, targets = population(seed)
        early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.06, seed=seed)
        error = np.abs(early.profile.losses - nll.sum(1) / targets.sum())
        missed += bool((error > early.half_widths).any())
        stopped_early += early.saving > 0
        assert (early.half_widths <= 0.06).all()
    assert stopped_early > 150
    assert missed <= 10


def test_the_half_width_of_one_look_is_the_textbooks():
    nll, targets = population(0, spread=0.01)
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=1.0, first=50)
    rows = early.examples
    assert len(rows) == 50 and early.saving == pytest.approx(0.875)
    samples, points = 3, len(TS)  # 50, 100, 200; all 400 would be exact
    y, x = nll[2][rows], targets[rows]
    residuals = y - y.sum() / x.sum() * x
    error = np.sqrt((1 - 50 / N) * residuals.var(ddof=1) / 50) / x.mean()
    quantile = stats.t.isf(0.05 / (samples * points) / 2, 49)
    skewness = abs(stats.skew(residuals)) / np.sqrt(50)  # of the mean
    wider = 1.5 * skewness * (2 * quantile**2 + 1) / 6  # Johnson 1978, half as large again
    assert early.half_widths[2] == pytest.approx((quantile + wider) * error, rel=1e-9)
    assert "95% confidence" in early.guarantee and "not a guarantee" in early.guarantee and not early.guaranteed
    assert early.unseen == pytest.approx(1 - 0.05 ** (1 / 50)), "none of 50 is of a kind that makes up this share"


def test_a_first_sample_without_variance_says_nothing():
    """One of 1,000 has a loss of 20 nats: samples without it are constant, and are no reason to stop."""
    targets = np.ones(1000, dtype=int)
    nll = np.ones((len(TS), 1000))
    nll[:, 7] = 20.0
    early = early_profile(PATH, objective_of(nll, targets), TS, 1000, tolerance=0.001, first=8)
    assert early.is_exact and early.guaranteed and "all examples were measured" in early.guarantee
    np.testing.assert_allclose(early.profile.losses, 1.019, rtol=1e-12)
    assert (
        "all examples"
        not in early_profile(PATH, objective_of(*population(0)), TS, N, tolerance=1.0, first=50).guarantee.split(":")[0]
    )


def test_a_known_largest_loss_makes_it_a_guarantee():
    """20 nats in 0.5 % of examples: the estimate misses them in many samples, the Bernstein bound in fewer than 5 %."""
    size, missed, saved = 20_000, 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        nll = np.where(rng.random(size) < 0.005, 20.0, rng.uniform(0.5, 1.5, size))[None].repeat(2, axis=0)
        targets = np.ones(size, dtype=int)

        def measure(point, rows, nll=nll, targets=targets):
            return SimpleNamespace(nll=nll[0][rows], targets=targets[rows], scores=np.empty(0))

        early = early_profile(PATH, measure, [0, 1], size, tolerance=0.2, seed=seed, largest=20.0)
        assert (
            early.guaranteed
            and "no example's number of targets times the largest loss of one passes 20" in early.guarantee
        )
        missed += bool((np.abs(early.profile.losses - nll.mean()) > early.half_widths).any())
        saved += early.saving > 0
    assert missed <= 2 and saved == 40


def test_rare_large_losses_are_named_as_what_the_estimate_does_not_cover():
    nll, targets = population(3)
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.5, first=64)
    assert not early.guaranteed and early.saving > 0
    assert f"up to {early.unseen:.2g} of all may be unlike them" in early.guarantee


def test_a_loss_that_is_not_a_number_is_said_by_its_t():
    nll, targets = population(4)
    nll[2] = np.nan
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.06)
    assert np.isnan(early.half_widths).tolist() == np.isnan(early.profile.losses).tolist() == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert "not finite, on all examples too: the loss at t = 0.5" in early.guarantee
    nll[:] = np.nan
    early = early_profile(PATH, objective_of(nll, targets), TS, N, tolerance=0.06)
    assert early.saving > 0 and early.guarantee.startswith("nothing is claimed")


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
        ({"first": 1}, "first sample of 2 or more"),
        ({"num_examples": 0}, "at least 1 example"),
        ({"largest": 0.0}, "largest loss of an example above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    nll, targets = population(0)
    chosen = {"num_examples": N, "tolerance": 0.1, **settings}
    with pytest.raises(UserError, match=message):
        early_profile(PATH, objective_of(nll, targets), TS, **chosen)


def test_a_long_answer_that_was_not_seen_breaks_no_guarantee():
    """One answer of 100 targets among 1,999 of one: each example loses 2 nats, and what is bounded is not that."""
    size = 2000
    for seed in range(20):
        targets = np.ones(size, dtype=int)
        targets[seed] = 100
        nll = np.full(size, 2.0)
        truth = nll.sum() / targets.sum()

        def measure(point, rows, nll=nll, targets=targets):
            return SimpleNamespace(nll=nll[rows], targets=targets[rows], scores=np.empty(0))

        early = early_profile(PATH, measure, [0, 1], size, tolerance=0.07, seed=seed, largest=200.0)
        assert early.guaranteed and abs(early.profile.losses[0] - truth) <= early.half_widths[0] + 1e-12
    with pytest.raises(UserError, match=r"got 2 where it is at least 200; raise it"):
        early_profile(PATH, measure, [0, 1], size, tolerance=1e-6, largest=2.0)
