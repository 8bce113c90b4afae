"""Intervals of means, contrasts and maxima against the formulas written out in NumPy, and by their coverage."""

import numpy as np
import pytest
from scipy import stats

from mcanalysis.connectivity.profile import Profile
from mcanalysis.coverage.populations import TS, losses, of_size, scores
from mcanalysis.errors import UserError
from mcanalysis.metrics import (
    Estimate,
    Sample,
    barrier_interval,
    chord_barrier,
    gain_interval,
    mean_barrier,
    mean_interval,
    resampled_means,
    t_star_interval,
    weighted,
)
from mcanalysis.metrics.barriers import BY_NAME
from mcanalysis.metrics.bootstrap import percentile_interval
from mcanalysis.metrics.front import hypervolume, hypervolume_intervals
from mcanalysis.metrics.intervals import contrast_intervals, maximum_interval

THREE = [0.0, 0.5, 1.0]
SLACK = 0.04  # two standard errors of a coverage of 0.93 in 160 samples


def skewed(n, points=3, seed=0):
    """Per-example sums and numbers of tokens, with long tails and a common part at all points."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, n)
    return (rng.lognormal(0, 0.7, n) + 0.3 * rng.lognormal(0, 0.5, (points, n))) * lengths, lengths


def ends_by_hand(influence, quantile):
    """How far below and above a mean its interval reaches: Student's t with 1.5 times Johnson's term."""
    error = np.sqrt((influence**2).sum())
    skewness = (influence**3).sum() / error**3
    wider = 1.5 * abs(skewness) * (2 * quantile**2 + 1) / 6
    return error * (quantile + wider * (skewness < 0)), error * (quantile + wider * (skewness > 0))


def test_the_interval_of_a_ratio_is_students_with_johnsons_term():
    nll, lengths = skewed(80)
    found = mean_interval(Estimate.of(Sample(nll, lengths)))
    for i, values in enumerate(nll):
        mean = values.sum() / lengths.sum()
        influence = np.sqrt(80 / 79) * (values - mean * lengths) / lengths.sum()
        below, above = ends_by_hand(influence, stats.t.isf(0.025, 79))
        assert found.low[i] == pytest.approx(mean - below, rel=1e-12)
        assert found.high[i] == pytest.approx(mean + above, rel=1e-12)
    assert not found.few_events.any()


def test_the_interval_of_a_mean_over_tasks_adds_up_their_influences():
    (a, m), (b, n) = skewed(60, seed=1), skewed(90, seed=2)
    found = mean_interval(weighted([(0.5, Estimate.of(Sample(a, m))), (0.5, Estimate.of(Sample(b, n)))]))
    parts = []
    for values, lengths in ((a[1], m), (b[1], n)):
        own = values - values.sum() / lengths.sum() * lengths
        parts.append(0.5 * own / lengths.sum() * np.sqrt(len(own) / (len(own) - 1)))
    influence = np.concatenate(parts)
    mean = 0.5 * (a[1].sum() / m.sum() + b[1].sum() / n.sum())
    assert found.high[1] == pytest.approx(mean + ends_by_hand(influence, stats.t.isf(0.025, 59))[1], rel=1e-12)


def test_the_ends_of_a_barrier_are_those_of_its_highest_band_and_its_highest_point():
    nll, lengths = skewed(200, points=5)
    nll[2] += 0.3 * lengths
    ts = np.linspace(0, 1, 5)
    low, high, few = barrier_interval("chord_barrier", ts, Estimate.of(Sample(nll, lengths)))
    means = nll.sum(1) / lengths.sum()
    influence = np.sqrt(200 / 199) * (nll - means[:, None] * lengths) / lengths.sum()
    chord = np.eye(5) - np.outer(1 - ts, np.eye(5)[0]) - np.outer(ts, np.eye(5)[4])  # rows: contrasts
    heights, own = chord @ means, chord @ influence
    errors = np.sqrt((own**2).sum(1))
    apart = (resampled_means(nll, lengths, num_resamples=1000) - means) @ chord.T
    inner = slice(1, 4)
    ratios = apart[:, inner] / errors[inner]
    student = stats.t.isf(0.025, 199)
    largest = np.maximum(np.concatenate([ratios.max(1), (-ratios).max(1)]), 0)
    critical = max(np.quantile(largest, 0.975) * student / stats.norm.isf(0.025), student)
    lows = [heights[i] - ends_by_hand(own[i], critical)[0] for i in (1, 2, 3)]
    highs = [heights[i] + ends_by_hand(own[i], student)[1] for i in (1, 2, 3)]
    assert low == pytest.approx(max(0, *lows), rel=1e-9) and high == pytest.approx(max(0, *highs), rel=1e-9)
    assert low < chord_barrier(ts, means) < high and not few


def test_every_barrier_has_its_own_least_value_and_its_interval_holds_the_estimate():
    rng = np.random.default_rng(3)
    for trial in range(30):
        estimate = Estimate.of(Sample(rng.normal(size=(7, 60))), seed=trial)
        ts = np.linspace(0, 1, 7)
        for name in ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip"):
            low, high, _ = barrier_interval(name, ts, estimate)
            assert 0 <= low <= BY_NAME[name](ts, estimate.point) <= high


def test_the_mean_barrier_is_at_least_half_of_what_the_ends_differ_by():
    values = np.random.default_rng(4).normal(size=(3, 100)) * 0.1 + np.array([[0.0], [0.0], [4.0]])
    low, high, _ = barrier_interval("mean_barrier", THREE, Estimate.of(Sample(values)))
    assert 1.9 < low < mean_barrier(THREE, values.mean(1)) < high < 2.1


def test_an_example_without_a_number_leaves_no_number():
    values = np.random.default_rng(5).normal(size=(3, 60))
    values[1, 7] = np.nan
    estimate = Estimate.of(Sample(values))
    for name in ("chord_barrier", "mean_barrier", "max_barrier", "chord_dip"):
        low, high, few = barrier_interval(name, THREE, estimate)
        assert np.isnan(low) and np.isnan(high) and few
    found = mean_interval(estimate)
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [False, True, False]
    assert np.isnan(t_star_interval(THREE, estimate)).all()
    assert np.isnan(gain_interval(THREE, estimate, 0.5).low)
    assert np.isnan(Profile(np.array(THREE), values.mean(1), values, np.ones(60)).chord_barrier_interval()).all()


def test_an_infinite_loss_is_an_infinite_barrier_and_no_dip():
    values = np.random.default_rng(6).normal(size=(5, 60))
    values[2, 3] = np.inf
    estimate, ts = Estimate.of(Sample(values)), np.linspace(0, 1, 5)
    assert barrier_interval("chord_barrier", ts, estimate)[:2] == (np.inf, np.inf)
    low, high, _ = barrier_interval("chord_dip", ts, estimate)
    assert np.isfinite([low, high]).all()


def test_one_example_has_no_interval():
    low, high, few = mean_interval(Estimate.of(Sample([[1.0], [2.0]])))
    assert np.isnan(low).all() and np.isnan(high).all() and few.all()


@pytest.mark.parametrize(("n", "wrong", "flagged"), [(200, 0, True), (200, 3, True), (200, 40, False), (40, 20, True)])
def test_few_events_and_few_examples_are_flagged(n, wrong, flagged):
    right = np.ones((3, n))
    right[1, :wrong] = 0.0
    low, high, few = barrier_interval(
        "chord_barrier", THREE, Estimate.of(Sample(right), is_score=True), higher_is_better=True
    )
    assert bool(few) == flagged and low <= wrong / n <= high
    if wrong == 0:
        quantile = stats.t.isf(0.025, n - 1)
        assert high == pytest.approx(quantile**2 / n), "Wilson's interval of no event"


def test_tied_losses_have_no_width_and_are_flagged():
    low, high, few = barrier_interval("chord_barrier", THREE, Estimate.of(Sample(np.ones((3, 100)))))
    assert (low, high, bool(few)) == (0.0, 0.0, True)


def test_a_profile_warns_where_its_interval_promises_nothing(caplog):
    values = np.random.default_rng(7).normal(size=(3, 20)) + 5
    Profile(np.array(THREE), values.mean(1), values, np.ones(20)).chord_barrier_interval()
    assert "under 50 examples" in caplog.text


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UserError, match="confidence"):
        mean_interval(Estimate.of(Sample(np.ones((1, 3)))), 95)


def covered(interval, truth):
    return interval.low - 1e-12 <= truth <= interval.high + 1e-12


@pytest.mark.parametrize("make", [losses, scores])
@pytest.mark.parametrize("kind", ["smooth", "rough"])
def test_where_there_is_no_barrier_the_interval_says_so_and_percentiles_do_not(make, kind):
    population, rng = make(kind, 0.0), np.random.default_rng(8)
    held = old = 0
    for _ in range(160):
        estimate = Estimate.of(population.draw(100, rng), is_score=population.is_score)
        held += covered(barrier_interval("chord_barrier", TS, estimate, higher_is_better=population.is_score), 0.0)
        draws = chord_barrier(TS, estimate.resampled, higher_is_better=population.is_score)
        old += percentile_interval(draws)[0] <= 1e-12
    assert held / 160 >= 0.93 - SLACK
    assert kind == "smooth" or old / 160 < 0.3, "the interval of version 0.1"


def test_a_barrier_of_three_standard_errors_is_seen_at_most_twice_as_wide():
    seen = held = 0
    widths = np.zeros(2)
    population, rng = of_size(losses, "smooth", 3.0, 100), np.random.default_rng(9)
    truth = float(chord_barrier(TS, population.truth))
    for _ in range(120):
        estimate = Estimate.of(population.draw(100, rng))
        found = barrier_interval("chord_barrier", TS, estimate)
        low, high = percentile_interval(chord_barrier(TS, estimate.resampled))
        seen, held = seen + (found.low > 0), held + covered(found, truth)
        widths += found.high - found.low, high - low
    assert seen / 120 >= 0.7 and held / 120 >= 0.93 - SLACK and widths[0] <= 2 * widths[1]


def test_a_gain_of_tied_ends_and_a_front_are_held():
    population, rng = scores("tied", 0.0), np.random.default_rng(10)
    gains = volumes = 0
    volume = float(hypervolume(population.truth, population.truth))
    for _ in range(120):
        a, b = (Estimate.of(population.draw(100, rng), is_score=True, seed=i) for i in range(2))
        gains += covered(gain_interval(TS, weighted([(0.5, a), (0.5, b)]), 0.5), 0.0)
        volumes += covered(hypervolume_intervals(a, b)[0], volume)
    assert gains / 120 >= 0.93 - SLACK and volumes / 120 >= 0.93 - SLACK


def test_a_contrast_chosen_by_its_size_is_held():
    rng, held = np.random.default_rng(11), 0
    for _ in range(150):
        estimate = Estimate.of(Sample(rng.normal(size=(9, 80))))
        far = int(np.argmax(np.abs(estimate.point)))
        held += covered(contrast_intervals(estimate, lambda v: v).at(far), 0.0)
    assert held / 150 >= 0.93 - SLACK


def test_a_band_counts_the_change_that_a_rare_score_may_hide_in_its_critical_value_too():
    right = np.ones((2, 200))
    right[0, :60], right[1, 60:62] = 0.0, 0.0
    found = contrast_intervals(Estimate.of(Sample(right), is_score=True), lambda v: v)
    influence = np.sqrt(200 / 199) * (right - right.mean(1, keepdims=True)) / 200
    errors, unit = np.sqrt((influence**2).sum(1)), np.abs(influence).max()
    apart = np.abs(resampled_means(right, num_resamples=1000) - right.mean(1))
    ratios = apart / np.sqrt(errors**2 + np.array([0.0, unit]) * apart)  # what reaches a resample, of either point
    critical = np.quantile(ratios.max(1), 0.95) * stats.t.isf(0.025, 199) / stats.norm.isf(0.025)
    half = critical**2 * unit / 2
    reach = half + np.sqrt((critical * errors[1]) ** 2 + half**2)
    assert found.high[1] - 0.99 == pytest.approx(reach, rel=1e-9) and found.high[1] - 0.99 < 0.037
    assert found.high[0] - 0.7 == pytest.approx(ends_by_hand(influence[0], critical)[1], rel=1e-9)


def test_t_star_is_among_those_that_may_be_best():
    rng, held = np.random.default_rng(12), 0
    truth = 0.5 + 0.3 * TS * (1 - TS)
    for _ in range(20):
        right = (rng.random(300) < truth[:, None]).astype(float)
        low, high = t_star_interval(TS, Estimate.of(Sample(right), is_score=True))
        held += low <= 0.5 <= high
    assert held >= 18
    certain = np.where(np.isclose(TS, 0.25), 1.0, 0.0)[:, None] * np.ones(60)
    assert t_star_interval(TS, Estimate.of(Sample(certain), is_score=True)) == (0.25, 0.25)


def test_the_maximum_of_smaller_ones_needs_both():
    values = np.random.default_rng(13).normal(size=(4, 400)) * 0.1 + np.array([[0.0], [3.0], [1.0], [2.0]])
    found = maximum_interval(Estimate.of(Sample(values)), lambda v: np.stack([v[..., :2], v[..., 2:]], axis=-1))
    assert covered(found, 2.0) and found.high - found.low < 0.05  # max(min(0, 1), min(3, 2))


def test_no_end_of_a_mean_lies_outside_what_the_mean_can_be():
    none_right, all_right = np.zeros(50), np.ones(50)
    few_losses = np.zeros(50)
    few_losses[0] = 5.0
    scores = mean_interval(Estimate.of(Sample([none_right, all_right]), is_score=True), least=0.0)
    assert scores.low[0] == 0 and 0 < scores.high[0] < 0.15  # unseen changes may be
    assert 0.85 < scores.low[1] < 1 == scores.high[1]
    losses = Estimate.of(Sample(few_losses))
    assert mean_interval(losses).low[0] < 0 == mean_interval(losses, least=0.0).low[0]
    assert mean_interval(losses, least=0.0).high[0] == mean_interval(losses).high[0]


def test_a_rare_fall_beside_a_dip_is_not_called_impossible():
    """Two points where many answers turn right, one where a share falls: that one has the barrier, seen or not."""
    ts, n, p, rng = [0, 0.25, 0.5, 0.75, 1], 100, 0.01, np.random.default_rng(0)
    held = 0
    for _ in range(100):
        end = rng.random(n) < 0.6
        better, worse = end | (rng.random(n) < 0.5), end & ~(rng.random(n) < p / 0.6)
        sample = Sample(np.stack([end, better, better, worse, end]).astype(float))
        found = barrier_interval("chord_barrier", ts, Estimate.of(sample, is_score=True), higher_is_better=True)
        assert found.high > 0
        held += found.low <= p <= found.high
    assert held >= 95


def test_of_losses_a_maximum_that_rests_on_few_examples_is_flagged():
    ts, n, rng = [0, 0.25, 0.5, 0.75, 1], 200, np.random.default_rng(0)
    values = np.tile(rng.normal(2.0, 0.1, n), (5, 1))
    values[1:3] -= rng.uniform(0.5, 4.0, (2, n))  # a dip of all
    values[3] += rng.normal(0.0, 1e-4, n)
    values[3, :2] += 3.0  # and a bump of two
    assert barrier_interval("chord_barrier", ts, Estimate.of(Sample(values))).few_events
    values[3, :100] += 3.0
    assert not barrier_interval("chord_barrier", ts, Estimate.of(Sample(values))).few_events


def test_a_small_task_without_a_mistake_in_sight_is_not_taken_for_one_without_any():
    """½ of a mean is a task of 50 answers, 98 % right: half of the samples see one mistake or none."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        samples = (Sample((rng.random((1, n)) < p).astype(float)) for n, p in ((2000, 0.7), (50, 0.98)))
        found = mean_interval(weighted([(0.5, Estimate.of(sample, is_score=True)) for sample in samples]))
        held += found.low[0] <= 0.84 <= found.high[0]
    assert held >= 190
    equal = [Estimate.of(Sample((rng.random((1, 500)) < 0.7).astype(float)), is_score=True) for _ in range(2)]
    low, high, _ = mean_interval(weighted([(0.5, e) for e in equal]))  # nothing is rare: as wide as ever
    error = np.sqrt(sum((0.5 * e.influence**2 * 0.5).sum() for e in equal))
    assert high[0] - low[0] == pytest.approx(2 * stats.t.ppf(0.975, 499) * error, rel=0.03)  # and skewness
