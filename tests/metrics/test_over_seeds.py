"""The interval over seeds against SciPy's own, and how often it holds the truth."""

import numpy as np
import pytest
from scipy import stats

from mcanalysis.errors import UserError
from mcanalysis.metrics.over_seeds import student_interval


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_it_is_the_interval_of_the_t_test(n):
    values = np.random.default_rng(n).normal(3, 2, n)
    mean, low, high = student_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), expected.low, expected.high))


def test_it_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = np.array([student_interval(values)[1:] for values in rng.normal(1.0, 3.0, (4000, 3))])
    assert ((found[:, 0] <= 1) & (found[:, 1] >= 1)).mean() == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval():
    mean, low, high = student_interval([0.25])
    assert mean == 0.25 and np.isnan(low) and np.isnan(high)
    assert np.isnan(student_interval([1.0, np.nan])).all()


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one per seed"):
        student_interval([])
    with pytest.raises(UserError, match="confidence"):
        student_interval([1.0, 2.0], confidence=95)
