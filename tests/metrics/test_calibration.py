"""Calibration error and Brier score against loops that spell out their definitions."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from mcanalysis.errors import UserError
from mcanalysis.metrics.calibration import brier_scores, expected_calibration_error, reliability_bins


def ece_by_loops(confidences, correct, num_bins):
    total = 0.0
    for m in range(num_bins):
        inside = [i for i, p in enumerate(confidences) if m / num_bins < p <= (m + 1) / num_bins or (m == 0 and p == 0)]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_ece_is_the_sum_over_bins(num_bins):
    rng = np.random.default_rng(num_bins)
    confidences, correct = rng.random(300), rng.random(300) < 0.6
    expected = ece_by_loops(confidences.tolist(), correct.tolist(), num_bins)
    assert expected_calibration_error(confidences, correct, num_bins) == pytest.approx(expected, rel=1e-12)


def test_edges_belong_to_the_lower_bin_and_zero_to_the_first():
    bins = reliability_bins([0.0, 0.25, 0.2500001, 0.5, 1.0], [1, 1, 0, 0, 1], num_bins=4)
    assert bins.counts.tolist() == [2, 2, 0, 1]
    assert bins.accuracy[:2].tolist() == [1.0, 0.0] and np.isnan(bins.accuracy[2])


def test_ece_of_honest_predictions_goes_to_zero_and_of_overconfident_ones_to_their_excess():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, 200_000)
    assert expected_calibration_error(p, rng.random(len(p)) < p) < 0.01
    assert expected_calibration_error(np.full(200_000, 0.9), rng.random(200_000) < 0.6) == pytest.approx(0.3, abs=0.01)


def test_brier_is_the_squared_distance_from_the_one_hot_label():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(5), 50)
    labels = rng.integers(5, size=50)
    expected = ((p - np.eye(5)[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(brier_scores(p, labels), expected, rtol=1e-12)
    two = rng.dirichlet(np.ones(2), 50)
    truth = rng.integers(2, size=50)
    assert brier_scores(two, truth).mean() == pytest.approx(2 * brier_score_loss(truth, two[:, 1]))


@pytest.mark.parametrize(
    ("confidences", "correct", "num_bins"),
    [([0.5], [True, False], 15), ([], [], 15), ([0.5], [True], 0), ([1.5], [True], 15), ([float("nan")], [True], 15)],
)
def test_what_is_no_prediction_is_refused(confidences, correct, num_bins):
    with pytest.raises(UserError, match="Expected"):
        expected_calibration_error(confidences, correct, num_bins)


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(UserError, match="labels below 2"):
        brier_scores([[0.5, 0.5]], [2])
    with pytest.raises(UserError, match="one row"):
        brier_scores([[0.5, 0.5]], [0, 1])


@pytest.mark.parametrize("num_bins", [10, 15, 20, 25, 43, 50, 100])
def test_a_confidence_at_an_edge_is_in_the_bin_below_it(num_bins):
    """(k/M, (k+1)/M]: p = k/M, as it is divided, is the last of bin k."""
    edges = np.arange(1, num_bins + 1) / num_bins
    assert reliability_bins(edges, np.ones(num_bins), num_bins).counts.tolist() == [1] * num_bins


def test_nan_is_neither_right_nor_wrong():
    with pytest.raises(UserError, match="right or wrong for each prediction, got NaN for 1"):
        expected_calibration_error([0.5, 0.9], [float("nan"), 1.0])
