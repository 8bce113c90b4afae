"""Rank correlations over runs against SciPy and by hand; what is predicted of a run does not see it."""

import math

import numpy as np
import pytest
from scipy import stats

from mcanalysis.errors import UserError
from mcanalysis.metrics.clustered_ranks import clustered_ratio, clustered_spearman, leave_one_run_out, num_needed


def clustered(seed, num_runs=8, size=7, slope=1.0, of_run=1.0):
    rng = np.random.default_rng(seed)
    runs = np.repeat(np.arange(num_runs), size)
    x = rng.normal(size=num_runs * size) + of_run * rng.normal(size=num_runs)[runs]
    y = slope * x + rng.normal(size=len(x)) + of_run * rng.normal(size=num_runs)[runs]
    return x, y, runs


def test_rho_is_scipys_and_its_error_the_jackknife_over_runs():
    x, y, runs = clustered(0)
    x[3] = y[3] = x[4]  # ties
    found = clustered_spearman(x, y, runs)
    assert found.rho == pytest.approx(stats.spearmanr(x, y)[0]) and (found.n, found.num_runs) == (56, 8)
    z = np.arctanh([stats.spearmanr(x[runs != g], y[runs != g])[0] for g in range(8)])
    error = math.sqrt(7 / 8 * ((z - z.mean()) ** 2).sum())
    t = stats.t(7)
    assert found.p == pytest.approx(2 * t.sf(abs(math.atanh(found.rho)) / error))
    ends = np.tanh(math.atanh(found.rho) + np.array([-1, 1]) * t.ppf(0.975) * error)
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    with_gaps = clustered_spearman([*x, math.nan, 1.0], [*y, 1.0, math.nan], [*runs, 0, 99])
    assert with_gaps == pytest.approx(found)


def test_within_strata_what_lies_between_them_is_out_of_it():
    x, y, runs = clustered(1, slope=-1.0, of_run=0.0)
    strata = np.where(runs < 4, "a", "b")
    apart = np.where(runs < 4, 0.0, 100.0)
    assert clustered_spearman(x + apart, y + apart, runs).rho > 0.4
    within = clustered_spearman(x + apart, y + apart, runs, strata)
    assert within == pytest.approx(clustered_spearman(x, y, runs, strata)) and within.high < 0
    ranks = [np.concatenate([stats.rankdata(v[strata == s]) for s in "ab"]) for v in (x, y)]
    assert within.rho == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_intervals_over_runs_cover_no_correlation_where_transitions_of_a_run_are_alike():
    covered = sum(
        found.low <= 0 <= found.high
        for found in (clustered_spearman(*clustered(seed, 10, 5, slope=0.0)) for seed in range(80))
    )
    assert 70 <= covered <= 80  # 76 of 80 expected, standard error 2


def test_too_few_runs_and_constant_sides_have_no_interval():
    two = clustered_spearman([1, 2, 3, 4], [2, 1, 4, 3], [0, 0, 1, 1])
    assert two.rho == pytest.approx(0.6) and math.isnan(two.p) and math.isnan(two.low)
    assert math.isnan(clustered_spearman([1, 1, 1, 1], [1, 2, 3, 4], [0, 1, 2, 3]).rho)
    assert math.isnan(clustered_spearman([], [], []).rho)
    sure = clustered_spearman(range(9), range(9), np.repeat([0, 1, 2], 3))
    assert sure.rho == pytest.approx(1) and math.isnan(sure.p)


def test_the_number_needed_is_that_of_fishers_z():
    for rho, tests in ((0.6, 1), (0.5, 22), (-0.3, 4)):
        n = num_needed(rho, tests)
        z = stats.norm.isf(0.025 / tests)
        assert abs(math.atanh(rho)) / math.sqrt(1.06 / (n - 3)) >= z
        assert abs(math.atanh(rho)) / math.sqrt(1.06 / (n - 4)) < z
    for wrong in ((0.0, 1), (1.0, 1), (0.5, 0)):
        with pytest.raises(UserError, match="between 0 and 1"):
            num_needed(*wrong)


def test_a_run_is_predicted_from_the_others_alone():
    x, y, runs = clustered(2, slope=3.0, of_run=0.0)
    signals = np.stack([x, -x, np.random.default_rng(0).normal(size=len(x))], axis=1)
    guess, mean = leave_one_run_out(signals[:, :2], y, runs)
    assert 1 - ((y - guess) ** 2).sum() / ((y - mean) ** 2).sum() > 0.7
    assert mean[runs == 3] == pytest.approx(y[runs != 3].mean())
    changed = np.where(runs == 3, 1e3 * y, y)
    assert leave_one_run_out(signals, changed, runs)[0][runs == 3] == pytest.approx(
        leave_one_run_out(signals, y, runs)[0][runs == 3]
    )
    one = leave_one_run_out(signals[:, :1], y, runs)[0][runs == 0]  # by hand, of one signal
    others, here = x[runs != 0], x[runs == 0]
    places = [np.mean([(others < v).sum(), (others <= v).sum()]) / len(others) - 0.5 for v in (*others, *here)]
    line = stats.linregress(places[: len(others)], y[runs != 0])
    assert one == pytest.approx(line.intercept + line.slope * np.array(places[len(others) :]))


def test_what_is_unknown_counts_as_the_middle_and_one_run_predicts_nothing():
    signals = np.array([[math.nan], [math.nan], [math.nan], [math.nan]])
    guess, mean = leave_one_run_out(signals, [0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert guess.tolist() == mean.tolist() == [2.5, 2.5, 0.5, 0.5]
    with pytest.raises(UserError, match="at least two runs"):
        leave_one_run_out([[1.0], [2.0]], [0.0, 1.0], [0, 0])


def test_a_ratio_over_runs_of_one_size_is_a_t_test_of_their_means():
    part = np.random.default_rng(0).normal(0.3, 1.0, size=(8, 5))
    runs = np.repeat(np.arange(8), 5)
    found = clustered_ratio(part.ravel(), np.ones(40), runs)
    test = stats.ttest_1samp(part.mean(axis=1), 0.0)
    interval = test.confidence_interval(0.95)
    assert tuple(found) == pytest.approx((part.mean(), interval.low, interval.high, test.pvalue, 8))


def test_a_ratio_over_uneven_runs_is_scipys_jackknife():
    rng = np.random.default_rng(2)
    runs = rng.integers(0, 6, size=50)
    part, whole = rng.normal(size=50), rng.random(50)
    sums = [np.array([of[runs == g].sum() for g in range(6)]) for of in (part, whole)]
    without = np.array([np.delete(sums[0], g).sum() / np.delete(sums[1], g).sum() for g in range(6)])
    half = stats.t.ppf(0.975, 5) * np.sqrt(5 * without.var())
    found = clustered_ratio(part, whole, runs)
    assert (found.value, found.high - found.value) == pytest.approx((part.sum() / whole.sum(), half))
    holed = clustered_ratio(np.r_[part, np.nan, 1.0], np.r_[whole, 1.0, np.nan], np.r_[runs, 0, 7])
    assert holed == pytest.approx(found)


def test_a_ratio_that_cannot_vary_has_no_interval():
    for part, whole, runs in (
        ([], [], []),
        ([1.0], [1.0], [0]),
        ([1.0, 1.0], [1.0, 1.0], [0, 1]),
        ([0, 1], [0, 1], [0, 1]),
    ):
        found = clustered_ratio(part, whole, runs)
        assert np.isnan([found.low, found.high, found.p]).all() and found.num_runs == len(set(runs))
