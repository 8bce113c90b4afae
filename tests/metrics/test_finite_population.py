"""Totals from a part of a population: the order is a weighted draw, intervals hold, and end in the total itself."""

import itertools
import math

import numpy as np
import pytest

from mcanalysis.metrics.finite_population import bounded_total, drawing_order, regression_total


def test_the_order_is_a_draw_in_proportion_to_size_without_replacement():
    sizes = np.array([1.0, 2.0, 5.0])
    found = [tuple(drawing_order(sizes, seed)) for seed in range(4000)]
    for order in itertools.permutations(range(3)):
        left, expected = sizes.sum(), 1.0
        for unit in order:
            expected *= sizes[unit] / left
            left -= sizes[unit]
        share = np.mean([one == order for one in found])
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / 4000))


POPULATIONS = {
    "a few of many": lambda rng: (rng.random(400) < 0.03).astype(float),
    "half": lambda rng: (rng.random(400) < 0.5).astype(float),
    "graded": lambda rng: rng.beta(0.3, 2.0, 400),
    "all alike": lambda rng: np.full(400, 0.7),
}


@pytest.mark.parametrize("kind", POPULATIONS)
@pytest.mark.parametrize("n", [30, 200])
def test_bounded_intervals_miss_no_more_often_than_stated(kind, n):
    rng = np.random.default_rng(0)
    values = POPULATIONS[kind](rng)
    sizes = 0.5 + rng.random(400)
    missed = 0
    for seed in range(200):
        order = drawing_order(sizes, seed)
        found = bounded_total(values[order[:n]], sizes, order, np.zeros(400), np.ones(400), risk=0.1)
        missed += not found.low <= values.sum() <= found.high
        assert found.low <= found.estimate <= found.high
    assert missed / 200 <= 0.1


def test_bounded_intervals_know_how_much_the_rest_can_add():
    """Against counting: with 5 of 6 drawn the total is between what was seen and one more."""
    order = np.arange(6)
    found = bounded_total([1.0, 0.0, 1.0, 1.0, 0.0], np.ones(6), order, np.zeros(6), np.ones(6), risk=1e-6)
    assert (found.low, found.high) == pytest.approx((3.0, 4.0), abs=1e-9)


def test_control_variates_shorten_what_the_values_alone_would_give():
    rng = np.random.default_rng(1)
    control = rng.gamma(2.0, 1.0, 2000)
    values = 3 * control + 0.1 * rng.normal(size=2000)
    order = drawing_order(np.ones(2000), 0)
    first = values[order[:200]]
    alone = regression_total(first, np.ones((2000, 1)), np.ones(2000), order, 0.05)
    beside = regression_total(first, np.stack([np.ones(2000), control], axis=1), np.ones(2000), order, 0.05)
    assert beside.high - beside.low < 0.1 * (alone.high - alone.low)
    assert beside.low < values.sum() < beside.high


def test_without_controls_the_width_is_that_of_simple_random_sampling():
    """Cochran 1977, theorem 2.2: the variance of the estimated total is N(N−n)·s²/n."""
    rng = np.random.default_rng(2)
    N, n = 1000, 250
    values = rng.normal(size=N)
    order = drawing_order(np.ones(N), 3)
    found = regression_total(values[order[:n]], np.ones((N, 1)), np.ones(N), order, 0.05)
    half = 1.97 * math.sqrt(N * (N - n) / n) * values[order[:n]].std(ddof=1)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)
    assert found.estimate == pytest.approx(N * values[order[:n]].mean(), abs=half / 2)


def test_regression_intervals_hold_about_as_often_as_stated():
    rng = np.random.default_rng(4)
    control = rng.gamma(1.5, 1.0, 500)
    values = control * (1 + rng.normal(size=500)) + rng.normal(size=500)
    sizes = 0.5 + 0.5 * control / control.mean()
    held = 0
    for seed in range(300):
        order = drawing_order(sizes, seed)
        controls = np.stack([np.ones(500), control], axis=1)
        found = regression_total(values[order[:100]], controls, sizes, order, 0.05)
        held += found.low <= values.sum() <= found.high
    assert held / 300 >= 0.93


@pytest.mark.parametrize("total", [bounded_total, regression_total])
def test_all_drawn_is_exact(total):
    rng = np.random.default_rng(5)
    values = rng.random(80)
    order = drawing_order(np.ones(80), 0)
    more = (np.zeros(80), np.ones(80)) if total is bounded_total else ()
    where = (np.ones(80), order, *more) if total is bounded_total else (np.ones((80, 1)), np.ones(80), order)
    found = total(values[order], *where, 0.05)
    assert found.low == found.high == found.estimate == pytest.approx(math.fsum(values), rel=1e-14)


def test_a_sample_that_does_not_vary_says_nothing_of_unbounded_values():
    order = np.arange(300)
    found = regression_total(np.zeros(100), np.ones((300, 1)), np.ones(300), order, 0.05)
    assert found.high == np.inf
