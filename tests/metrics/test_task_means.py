"""Means over the tasks of a transition against sums written out, and their intervals against variances that add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mcanalysis.errors import UserError
from mcanalysis.metrics import Estimate, Sample, balanced_score, mean_interval
from mcanalysis.metrics.task_means import MEANS, role, tasks_behind, with_means

CURVES = {"A": [1.0, 2.0, 6.0], "B": [3.0, 0.0, 0.0], "C": [0.0, 10.0, 1.0], "general": [50.0, 50.0, 50.0]}


def test_old_tasks_share_one_half_of_the_mean():
    found = with_means(CURVES, ["A", "B"], "C")
    assert list(found) == [*CURVES, *MEANS]
    assert found["mean_old"].tolist() == [2.0, 1.0, 3.0]
    assert found["mean"].tolist() == [1.0, 5.5, 2.0]
    assert all(found[name].tolist() == values for name, values in CURVES.items())
    assert list(CURVES) == ["A", "B", "C", "general"]  # the caller's mapping is not touched


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_mean_is_the_balanced_score(num_old, seed):
    *old, new = np.random.default_rng(seed).normal(size=(num_old + 1, 4))
    names = [f"task {i}" for i in range(num_old)]
    found = with_means(dict(zip([*names, "new"], [*old, new], strict=True)), names, "new")
    np.testing.assert_allclose(found["mean"], balanced_score(old, new), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(found["mean_old"], sum(old) / num_old, rtol=1e-14, atol=1e-14)


def test_values_have_any_shape():
    grid = np.arange(6.0).reshape(2, 3)
    assert with_means({"A": grid, "B": grid + 2}, ["A"], "B")["mean"].tolist() == (grid + 1).tolist()


def test_without_old_tasks_there_is_no_mean_and_without_a_new_one_only_theirs():
    assert list(with_means({"A": 1.0}, [], "A")) == ["A"]
    assert {n: float(v) for n, v in with_means({"A": 1.0, "B": 2.0}, ["A", "B"]).items()} == {
        "A": 1.0, "B": 2.0, "mean_old": 1.5,
    }  # fmt: skip


def test_nothing_that_is_not_finite_is_left_out():
    nan, inf = np.nan, np.inf
    found = with_means({"A": [nan, inf, 1, inf], "B": [1, 1, 1, -inf], "C": [1, 1, inf, 1]}, ["A", "B"], "C")
    np.testing.assert_array_equal(found["mean_old"], [nan, inf, 1, nan])
    np.testing.assert_array_equal(found["mean"], [nan, inf, inf, nan])


def test_intervals_of_means_come_from_variances_that_add_up():
    """Of values without skewness, the interval is Student's with the degrees of freedom of the smallest task."""
    sizes = {"A": 60, "B": 100, "C": 140}
    samples = {name: np.tile([-1.0, 1.0], n // 2) * (1 + i) + i for i, (name, n) in enumerate(sizes.items())}
    found = with_means({name: Estimate.of(Sample(values)) for name, values in samples.items()}, ["A", "B"], "C")
    variance = {name: values.var(ddof=1) / len(values) for name, values in samples.items()}
    t = stats.t.isf(0.025, 59)
    for name, mean, error in (
        ("mean_old", 0.5, np.sqrt(variance["A"] / 4 + variance["B"] / 4)),
        ("mean", 1.25, np.sqrt(variance["A"] / 16 + variance["B"] / 16 + variance["C"] / 4)),
    ):
        interval = mean_interval(found[name])
        assert found[name].point.tolist() == [mean]
        assert interval.low[0] == pytest.approx(mean - t * error, rel=1e-12)
        assert interval.high[0] == pytest.approx(mean + t * error, rel=1e-12)
        assert not interval.few_events[0]


@pytest.mark.parametrize("kind", [lambda v: v, lambda v: Estimate.of(Sample(v))], ids=["values", "estimates"])
def test_refusals(kind):
    one, two = kind([[1.0, 2.0]]), kind([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(UserError, match="values of A, B, C, got none of B, C;"):
        with_means({"A": one}, ["A", "B"], "C")
    with pytest.raises(UserError, match="each task once"):
        with_means({"A": one}, ["A"], "A")
    with pytest.raises(UserError, match="same points"):
        with_means({"A": one, "B": two}, ["A"], "B")


def test_roles_and_what_stands_behind_a_row():
    old, new = ["A", "B"], "C"
    names = ["A", "B", "C", "mean_old", "mean", "general"]
    assert [role(n, old, new) for n in names] == ["old", "old", "new", "mean", "mean", "general"]
    assert [tasks_behind(n, old, new) for n in names] == [["A"], ["B"], ["C"], old, ["A", "B", "C"], ["general"]]
    assert role("A", [], "A") == "new"
