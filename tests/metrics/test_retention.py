"""What is kept of general ability, by hand; its interval against resampling by hand and by how often it holds."""

import numpy as np
import pytest

from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.intervals import Estimate
from mcanalysis.metrics.retention import (
    loss_retention,
    mean_retention,
    retention_estimate,
    retention_interval,
    score_retention,
)


def test_text_keeps_the_ratio_of_the_tokens_probabilities():
    rng = np.random.default_rng(0)
    base, now = rng.uniform(0.2, 0.9, 40), rng.uniform(0.05, 0.6, 40)  # of each token
    geometric = np.exp(np.log(now).mean()) / np.exp(np.log(base).mean())
    assert loss_retention(-np.log(now).mean(), -np.log(base).mean()) == pytest.approx(geometric)
    assert loss_retention([0.5, 1.0, np.inf, np.nan], 1.0).tolist() == pytest.approx([1, 1, 0, np.nan], nan_ok=True)


def test_scores_keep_their_ratio_and_nothing_is_kept_of_nothing():
    assert score_retention([0.0, 0.3, 0.6, 0.9], 0.6).tolist() == pytest.approx([0, 0.5, 1, 1])
    assert np.isnan(score_retention([0.0, 0.5], 0.0)).all()


@pytest.mark.parametrize("is_score", [False, True])
def test_the_spread_is_that_of_the_ratio_of_examples_drawn_together(is_score):
    rng = np.random.default_rng(1)
    hard = rng.uniform(0.2, 0.8, 200)
    values = np.stack([np.clip(hard * 0.7 + rng.normal(0, 0.05, 200), 0, 1), hard])  # a point, and the base
    if not is_score:
        values = np.stack([2 * hard + rng.normal(0.6, 0.2, 200), 2 * hard])
    sizes = None if is_score else rng.integers(1, 6, 200)
    sums = values if is_score else values * sizes
    found = retention_estimate(Estimate.of(Sample(sums, sizes), is_score=is_score), is_score=is_score)

    weights = np.ones(200) if sizes is None else sizes
    drawn = rng.integers(0, 200, (4000, 200))
    means = [(row * weights)[drawn].sum(1) / weights[drawn].sum(1) for row in values]
    ratios = means[0] / means[1] if is_score else np.exp(means[1] - means[0])
    assert found.point[0] == pytest.approx(ratios.mean(), abs=4e-3)
    error = np.sqrt((found.influence[:, 0] ** 2).sum())
    assert error == pytest.approx(ratios.std(), rel=0.1)
    assert found.resampled.std() == pytest.approx(ratios.std(), rel=0.15)
    low, high, _ = retention_interval(found)
    assert (low[0], high[0]) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)


def test_intervals_hold_and_stay_between_0_and_1():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(200):
        base = rng.gamma(4, 0.3, 100)
        sample = Sample(np.stack([base + rng.gamma(2, 0.2, 100), base]))  # 0.4 nats more: exp(−0.4) is kept
        low, high, _ = retention_interval(retention_estimate(Estimate.of(sample), is_score=False))
        assert 0 <= low[0] <= high[0] <= 1
        inside += low[0] <= np.exp(-0.4) <= high[0]
    assert inside >= 182


def test_the_mean_leaves_out_tasks_that_the_base_cannot_do():
    def kept(scores):
        return retention_estimate(Estimate.of(Sample(np.array(scores, float)), is_score=True), is_score=True)

    half, all_, none = kept([[1, 0], [1, 1]]), kept([[1, 1], [1, 1]]), kept([[1, 1], [0, 0]])
    assert np.isnan(none.point).all()
    assert mean_retention([half, all_, none]).point.tolist() == [0.75]
    assert mean_retention([none]) is None and mean_retention([]) is None
