"""Bootstrap intervals against sampling theory, and pairing."""

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.metrics import (
    Sample,
    balanced_score,
    bootstrap_interval,
    chord_barrier,
    interpolation_gain,
    paired_difference_interval,
    percentile_interval,
    resampled_means,
)
from mcanalysis.metrics import bootstrap as bootstrap_module

TS = np.linspace(0, 1, 5)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(lambda m: m, rng.normal(3.0, 2.0, size=80), num_resamples=400, seed=trial)
        hits += low <= 3.0 <= high
    assert 0.91 <= hits / 400 <= 0.975


def test_the_spread_of_resampled_means_is_the_standard_error():
    values = np.random.default_rng(1).normal(size=500)
    means = resampled_means(values, num_resamples=4000)
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    assert means.std() == pytest.approx(values.std() / np.sqrt(500), rel=0.05)


def test_a_resample_is_the_mean_over_drawn_examples():
    values = 10.0 ** np.arange(5)  # the digits of a sum tell which examples were drawn
    sums = np.rint(resampled_means(values, num_resamples=50) * 5).astype(int)
    for total in sums:
        assert sum(int(digit) for digit in str(total)) == 5


def test_a_loss_is_total_nats_over_total_targets():
    nll, targets = np.array([1.0, 30.0, 2.0]), np.array([1, 10, 4])
    points = np.stack([nll, targets.astype(float)])
    means = resampled_means(points, targets, num_resamples=200)
    assert Sample(points, targets).mean().tolist() == [33 / 15, 1.0]
    np.testing.assert_allclose(means[:, 1], 1.0, rtol=1e-12)  # targets over targets, whatever was drawn
    possible = {
        round((i * 1 + j * 30 + k * 2) / (i + 10 * j + 4 * k), 9)
        for i in range(4)
        for j in range(4)
        for k in range(4)
        if i + j + k == 3
    }
    assert {round(mean, 9) for mean in means[:, 0]} <= possible


def test_all_points_of_a_curve_use_the_same_examples():
    base = np.random.default_rng(2).normal(size=200)
    means = resampled_means(np.stack([base, base + 1, 2 * base]), num_resamples=100)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0, rtol=1e-12)
    np.testing.assert_allclose(means[:, 2], 2 * means[:, 0], atol=1e-12)


def test_pairing_makes_a_noisy_but_flat_barrier_certain():
    noise = np.random.default_rng(3).normal(scale=10, size=300)
    shape = np.array([0.0, 1.0, 2.0, 1.0, 0.0])
    low, high = bootstrap_interval(lambda c: chord_barrier(TS, c), shape[:, None] + noise)
    assert low == pytest.approx(2.0) and high == pytest.approx(2.0)


def test_tasks_are_resampled_independently():
    values = np.random.default_rng(4).normal(size=400)
    seen = []

    def spread(first, second):
        seen.append(np.corrcoef(first, second)[0, 1])
        return first - second

    low, high = bootstrap_interval(spread, values, values, num_resamples=2000)
    assert abs(seen[0]) < 0.1
    expected = np.sqrt(2) * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(2 * expected, rel=0.1)


def test_a_gain_over_several_tasks_at_a_fixed_t_star():
    rng = np.random.default_rng(5)
    right = rng.random((3, 3, 500)) < np.array([[0.9, 0.8, 0.2], [0.8, 0.8, 0.4], [0.1, 0.7, 0.9]])[..., None]

    def gain(old_1, old_2, new):
        return interpolation_gain([0, 0.5, 1], balanced_score(np.stack([old_1, old_2]), new), t_star=0.5)

    samples = [Sample(task.astype(float)) for task in right]
    estimate = gain(*(sample.mean() for sample in samples))
    low, high = bootstrap_interval(gain, *samples)
    assert low < estimate < high
    assert estimate == pytest.approx(0.15, abs=0.05) and 0.02 < high - low < 0.15


def test_one_seed_one_answer_and_another_seed_another():
    values = np.random.default_rng(6).normal(size=50)
    first, again, other = (resampled_means(values, rng=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(resampled_means(np.stack([values, values]))[:, 1], first)


def test_small_blocks_draw_the_same_distribution(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "_BLOCK", 100)
    values = np.random.default_rng(7).normal(size=30)
    means = resampled_means(values, num_resamples=1001)
    assert means.shape == (1001,) and np.unique(means).size > 900


def test_nan_is_never_dropped():
    values = np.ones((2, 10))
    values[1, 3] = np.nan
    means = resampled_means(values, num_resamples=20)
    assert np.isnan(means[:, 1]).all() and (means[:, 0] == 1).all()
    low, high = bootstrap_interval(lambda m: m, values)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True]
    assert np.isnan(paired_difference_interval(values[0], values[1])).all()


def test_an_infinite_example_makes_the_resamples_infinite_that_draw_it():
    values = np.ones((3, 10))
    values[1, 3], values[2] = np.inf, np.inf
    means = resampled_means(values)
    assert np.isinf(means[:, 1]).mean() == pytest.approx(1 - 0.9**10, abs=0.05)
    assert set(means[:, 1]) == {1.0, np.inf}
    low, high = bootstrap_interval(lambda m: m, values)
    assert low.tolist() == [1, 1, np.inf] and high.tolist() == [1, np.inf, np.inf]
    low, high = bootstrap_interval(lambda m: chord_barrier([0, 0.5, 1], m), values[[0, 2, 0]])
    assert low == high == np.inf
    assert np.isnan(resampled_means([np.inf, np.nan])).all()


def test_an_example_without_targets_makes_no_number_of_its_own():
    assert np.isnan(resampled_means([0.0], [0.0], num_resamples=3)).all()
    assert np.isnan(Sample([0.0], [0.0]).mean())


def test_percentiles_of_a_known_sample():
    low, high = percentile_interval(np.stack([np.arange(1001.0), np.full(1001, 7.0)], axis=1), 0.95)
    np.testing.assert_allclose(low, [25, 7])
    np.testing.assert_allclose(high, [975, 7])


def test_the_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(8)
    a = rng.normal(scale=5, size=400)
    b = a - 0.5 + rng.normal(scale=0.1, size=400)
    difference, low, high = paired_difference_interval(a, b)
    assert difference == pytest.approx(a.mean() - b.mean())
    assert low < difference < high and high - low < 0.03


def test_the_paired_difference_of_losses_is_per_token():
    difference, low, high = paired_difference_interval([2.0, 6.0], [1.0, 3.0], denominators=[1, 3])
    assert (difference, low, high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: resampled_means(np.empty((3, 0))),
        lambda: resampled_means(1.0),
        lambda: resampled_means(np.ones((2, 2, 2))),
        lambda: resampled_means(np.ones((2, 3)), np.ones(2)),
        lambda: resampled_means(np.ones(2), [1, -1]),
        lambda: resampled_means(np.ones(3), num_resamples=0),
        lambda: percentile_interval([]),
        lambda: percentile_interval(np.ones(3), confidence=95),
        lambda: percentile_interval(np.ones(3), confidence=0),
        lambda: bootstrap_interval(lambda: 0),
        lambda: bootstrap_interval(lambda m: m.mean(), np.ones(3)),
        lambda: paired_difference_interval([1.0, 2.0], [1.0]),
    ],
)
def test_bad_input_is_refused_in_one_line(call):
    with pytest.raises(UserError, match=r"^Expected .*got .*; ") as error:
        call()
    assert "\n" not in str(error.value)
