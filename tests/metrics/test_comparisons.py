"""Comparisons of strategies against SciPy's t tests, mean squares and steps written out, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mcanalysis.errors import UserError
from mcanalysis.metrics.comparisons import crossed_mean, holm, mean_ranks, rank_sets, student_intervals, student_p

NAN = float("nan")


def test_of_one_order_it_is_scipys_paired_t_test_over_seeds_and_of_one_seed_over_orders():
    a, b = [0.9, 0.8, 0.95, 0.7], [0.7, 0.75, 0.6, 0.72]
    expected = stats.ttest_rel(a, b)
    gaps = np.subtract(a, b)
    for values in (gaps[:, None], gaps[None]):
        found = crossed_mean(values)
        assert float(found[2]) == 3
        assert student_p(*found) == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        assert student_intervals(*found) == pytest.approx((interval.low, interval.high))


def test_of_seeds_and_orders_the_variance_is_that_of_both_mean_squares():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    mean, error, degrees = crossed_mean(values)
    for i, grid in enumerate(values):
        of_seeds = 4 * np.var(grid.mean(axis=1), ddof=1)  # mean squares of the two-way analysis of variance
        of_orders = 3 * np.var(grid.mean(axis=0), ddof=1)
        assert mean[i] == pytest.approx(grid.mean())
        assert error[i] ** 2 == pytest.approx((of_seeds + of_orders) / 12)
    assert degrees.tolist() == [2, 2]


def test_missing_pairs_are_left_out():
    values = np.array([[1.0, 2.0, NAN], [4.0, NAN, 3.0], [0.0, 1.0, 2.0], [NAN, NAN, NAN]])
    mean, error, degrees = crossed_mean(values)
    centre = 13 / 7
    by_seed = [(1 - centre) + (2 - centre), (4 - centre) + (3 - centre), (0 - centre) + (1 - centre) + (2 - centre)]
    by_order = [5 - 3 * centre, 3 - 2 * centre, 5 - 2 * centre]
    variance = 1.5 * (np.sum(np.square(by_seed)) + np.sum(np.square(by_order))) / 7**2
    assert (float(mean), float(error), float(degrees)) == pytest.approx((centre, np.sqrt(variance), 2))
    assert [float(v) for v in crossed_mean(values[:, :1])] == pytest.approx(
        [5 / 3, np.std([1, 4, 0], ddof=1) / 3**0.5, 2]
    )


def test_what_does_not_show_how_it_varies_has_no_interval():
    one, same, rounding, none = [[0.2]], [[0.2], [0.2], [0.2]], [[0.9 - 0.7], [0.8 - 0.6]], [[NAN], [NAN]]
    for values, mean in ((one, 0.2), (same, 0.2), (rounding, 0.2), (np.zeros((3, 3)), 0.0), (none, NAN)):
        found = crossed_mean(values)
        assert float(found[0]) == pytest.approx(mean, nan_ok=True) and np.isnan(found[1])
        assert np.isnan(student_p(*found)) and np.isnan(student_intervals(*found)).all()


def test_intervals_that_hold_together_are_bonferronis():
    mean, error, degrees = np.array([0.1, -0.2, NAN]), np.array([0.05, 0.1, NAN]), np.array([2.0, 8.0, NAN])
    low, high = student_intervals(mean, error, degrees, 0.9, together=3)
    for i in range(2):
        assert (low[i], high[i]) == pytest.approx(stats.t.interval(1 - 0.1 / 3, degrees[i], mean[i], error[i]))
    assert np.isnan(low[2]) and np.isnan(high[2])
    with pytest.raises(UserError, match=r"\(0, 1\), got 95"):
        student_intervals(mean, error, degrees, 95)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_his_steps_reject(p_values, alpha):
    rejected = set()
    for step, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] * (len(p_values) - step) > alpha:
            break
        rejected.add(i)
    assert set(np.flatnonzero(holm(p_values) <= alpha)) == rejected


def test_holm_counts_a_test_that_was_not_possible():
    assert holm([0.02, NAN, 0.01]) == pytest.approx([0.04, NAN, 0.03], nan_ok=True)
    assert holm([]).shape == (0,)


def test_ranks_that_tests_leave_open():
    scores = np.array([0.9, 0.88, 0.5, 0.1])
    gaps = np.subtract.outer(scores, scores)
    low, high = rank_sets(gaps, np.full((4, 4), 0.01), np.full((4, 4), 5.0))
    assert low.tolist() == [1, 1, 3, 4] and high.tolist() == [2, 2, 3, 4]  # 0.02 is two standard errors: open
    low, high = rank_sets(np.zeros((3, 3)), np.full((3, 3), 0.01), np.full((3, 3), 5.0))
    assert low.tolist() == [1, 1, 1] and high.tolist() == [3, 3, 3]
    low, high = rank_sets(gaps, np.full((4, 4), NAN), np.full((4, 4), NAN))
    assert low.tolist() == [1] * 4 and high.tolist() == [4] * 4
    # twelve one-sided tests: the smallest p counts if p · 12 ≤ 0.05
    t = stats.t.isf(0.05 / 12, 5)
    for factor, expected in ((0.99, [1, 1]), (1.01, [1, 2])):
        pair = np.zeros((4, 4))
        pair[0, 1], pair[1, 0] = factor * t, -factor * t
        assert rank_sets(pair, np.ones((4, 4)), np.full((4, 4), 5.0))[0][:2].tolist() == expected


def test_mean_ranks_are_scipys():
    scores = np.random.default_rng(1).integers(0, 4, size=(5, 30)) / 4  # many ties
    expected = stats.rankdata(-scores, axis=0).mean(axis=1)
    assert mean_ranks(scores) == pytest.approx(expected)
    assert mean_ranks(np.c_[scores, np.full(5, NAN)]) == pytest.approx(expected)
    assert np.isnan(mean_ranks(np.full((2, 3), NAN))).all()


def drawn(rng, number, strategies, seeds, orders, sds):
    """Scores of shape (number, strategies, seeds, orders): each strategy has effects of its own of seed, order, run."""
    shapes = [(seeds, 1), (1, orders), (seeds, orders)]
    return sum(sd * rng.normal(size=(number, strategies, *shape)) for sd, shape in zip(sds, shapes, strict=True))


def test_with_shared_order_effects_a_true_null_is_seldom_rejected_where_a_t_test_over_pairs_rejects_often():
    """Five strategies alike but for what orders do to each: any of four comparisons, at 0.05, in 2,000 studies."""
    scores = drawn(np.random.default_rng(2), 2000, 5, 3, 3, (0.2, 1.0, 0.5))
    gaps = scores[:, 1:] - scores[:, :1]
    adjusted = np.array([holm(p) for p in student_p(*crossed_mean(gaps))])
    assert (adjusted.min(axis=1) <= 0.05).mean() <= 0.05
    pooled = stats.ttest_1samp(gaps.reshape(2000, 4, 9), 0, axis=-1).pvalue
    assert (np.sort(pooled)[:, 0] <= 0.05 / 4).mean() > 0.2


def test_rank_sets_hold_together_and_find_what_is_far_apart():
    means = np.array([3.0, 3.0, 0.0, -8.0])
    scores = means[:, None, None] + drawn(np.random.default_rng(3), 400, 4, 5, 5, (0.1, 0.3, 0.3))
    low, high = np.transpose([rank_sets(*crossed_mean(one[:, None] - one[None])) for one in scores], (1, 0, 2))
    held = (low <= [1, 1, 3, 4]) & (high >= [2, 2, 3, 4])  # two that are equal have the ranks 1 and 2
    assert held.all(axis=1).mean() >= 0.95
    assert (low[:, 3] == 4).mean() > 0.9 and (high[:, 0] < 4).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seeds, orders", [(2, 2), (3, 3), (5, 2), (3, 8)])
@pytest.mark.parametrize("sds", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0.3, 0), (0, 1, 1), (0, 0, 1)])
@pytest.mark.parametrize("together", [1, 25])
def test_intervals_over_seeds_and_orders_hold_whatever_is_shared(seeds, orders, sds, together):
    """40,000 studies; four standard errors of the simulation are allowed."""
    values = drawn(np.random.default_rng(4), 40_000, 1, seeds, orders, (sds[0], sds[1], sds[2] + 1e-3))[:, 0]
    low, high = student_intervals(*crossed_mean(values), together=together)
    risk = 0.05 / together
    missed = ((low > 0) | (high < 0)).mean()
    assert missed <= risk + 4 * np.sqrt(risk / 40_000)


@pytest.mark.slow
@pytest.mark.parametrize("sds", [(1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 1, 1)])
@pytest.mark.parametrize("missing", [[(0, 0)], [(0, 0), (1, 2)]])
def test_intervals_hold_where_runs_are_missing(missing, sds):
    values = drawn(np.random.default_rng(5), 40_000, 1, 3, 3, (sds[0], sds[1], sds[2] + 1e-3))[:, 0]
    for seed, order in missing:
        values[:, seed, order] = NAN
    low, high = student_intervals(*crossed_mean(values))
    assert ((low > 0) | (high < 0)).mean() <= 0.05 + 4 * np.sqrt(0.05 / 40_000)
