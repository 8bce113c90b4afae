"""Barriers against closed forms, and what a barrier must never do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcanalysis.errors import UserError
from mcanalysis.metrics import (
    balanced_score,
    chord_barrier,
    chord_dip,
    interpolation_gain,
    max_barrier,
    mean_barrier,
    t_star,
)

BARRIERS = [chord_barrier, mean_barrier, max_barrier, chord_dip]
TS = np.linspace(0, 1, 21)
curves = hnp.arrays(np.float64, 21, elements=st.floats(-100, 100, width=32))


def quadratic(seed, dim=4):
    """A quadratic loss along a line, and dᵀHd."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    H = root @ root.T
    start, end, best = rng.normal(size=(3, dim))
    points = (1 - TS)[:, None] * start + TS[:, None] * end - best
    d = end - start
    return 0.5 * np.einsum("ti,ij,tj->t", points, H, points), d @ H @ d


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic_dips_below_its_chord_by_an_eighth_of_its_curvature(seed):
    losses, curvature = quadratic(seed)
    assert chord_dip(TS, losses) == pytest.approx(curvature / 8, rel=1e-9)  # ½·t(1−t)·dᵀHd at t = ½
    assert chord_barrier(TS, losses) == pytest.approx(0, abs=1e-12 * curvature)
    assert max_barrier(TS, losses) == 0  # a convex function is highest at an end
    assert mean_barrier(TS, losses) == pytest.approx(abs(losses[-1] - losses[0]) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_an_upside_down_quadratic_has_the_barrier_that_the_quadratic_has_as_dip(seed):
    losses, curvature = quadratic(seed)
    assert chord_barrier(TS, -losses) == pytest.approx(curvature / 8, rel=1e-9)
    assert chord_barrier(TS, losses, higher_is_better=True) == pytest.approx(curvature / 8, rel=1e-9)
    assert chord_dip(TS, losses, higher_is_better=True) == pytest.approx(0, abs=1e-12 * curvature)


def test_the_three_barriers_part_where_the_ends_differ():
    ts, losses = [0, 0.25, 1], [0.0, 2.0, 4.0]  # a task forgotten along the way
    assert chord_barrier(ts, losses) == 1.0
    assert mean_barrier(ts, losses) == 2.0
    assert max_barrier(ts, losses) == 0.0


@given(curves)
def test_lower_bounds_hold_for_every_curve(values):
    assert chord_barrier(TS, values) >= 0
    assert max_barrier(TS, values) >= 0
    assert chord_dip(TS, values) >= 0
    assert mean_barrier(TS, values) >= abs(values[-1] - values[0]) / 2 - 1e-12
    assert max_barrier(TS, values) <= chord_barrier(TS, values) + 1e-12


@given(curves, st.floats(-10, 10), st.floats(-10, 10))
def test_chord_measures_ignore_an_added_line(values, offset, slope):
    for measure in (chord_barrier, chord_dip):
        assert measure(TS, values + offset + slope * TS) == pytest.approx(measure(TS, values), abs=1e-10)


@given(curves)
def test_reversing_the_path_changes_nothing(values):
    for measure in BARRIERS:
        assert measure(TS, values[::-1]) == pytest.approx(measure(TS, values), abs=1e-10)


@given(st.floats(-1e6, 1e6))
def test_a_constant_curve_has_no_barrier_at_all(level):
    for measure in BARRIERS:
        assert measure(TS, np.full(21, level)) == 0


def test_points_need_not_be_evenly_spaced_and_two_are_enough():
    assert chord_barrier([0, 0.9, 1], [0.0, 1.0, 1.0]) == pytest.approx(0.1)
    assert chord_barrier([0, 1], [3.0, 7.0]) == 0


@pytest.mark.parametrize("measure", BARRIERS)
def test_leading_axes_are_kept(measure):
    values = np.random.default_rng(0).normal(size=(3, 4, 21))
    got = measure(TS, values)
    assert got.shape == (3, 4)
    assert got[1, 2] == measure(TS, values[1, 2])


@pytest.mark.parametrize("measure", BARRIERS)
@pytest.mark.parametrize("where", [0, 7, 20])
def test_nan_stays_nan_in_its_own_curve_only(measure, where):
    values = np.ones((2, 21))
    values[0, where] = np.nan
    assert np.isnan(measure(TS, values)).tolist() == [True, False]


@pytest.mark.parametrize("measure", [chord_barrier, mean_barrier, max_barrier])
def test_an_infinite_loss_is_an_infinite_barrier(measure):
    assert measure([0, 0.5, 1], [1.0, np.inf, 1.0]) == np.inf
    assert np.isnan(measure([0, 0.5, 1], [np.inf, 1.0, 1.0]))


@pytest.mark.parametrize("measure", BARRIERS)
@pytest.mark.parametrize(
    ("ts", "values"),
    [
        ([0], [1.0]),
        ([], []),
        ([[0, 1]], [1.0, 2.0]),
        ([0, 0.5], [1.0, 2.0]),
        ([0.1, 1], [1.0, 2.0]),
        ([1, 0.5, 0], [1.0, 2.0, 3.0]),
        ([0, 0.7, 0.3, 1], [1.0, 2.0, 3.0, 4.0]),
        ([0, 0.5, 0.5, 1], [1.0, 2.0, 3.0, 4.0]),
        ([0, np.nan, 1], [1.0, 2.0, 3.0]),
        ([0, 0.5, 1], [1.0, 2.0]),
        ([0, 1], 1.0),
    ],
)
def test_bad_input_is_refused_in_one_line(measure, ts, values):
    with pytest.raises(UserError, match=r"Expected .*, got .*; [a-z]+ .*\.") as error:
        measure(ts, values)
    assert "\n" not in str(error.value)


def test_t_star_is_strictly_between_the_ends():
    assert t_star([0, 0.25, 0.5, 1], [0.9, 0.2, 0.3, 0.95]) == 0.5


def test_ties_go_to_the_middle_then_to_the_smaller_t():
    ts = np.linspace(0, 1, 11)
    scores = np.full(11, 0.5)
    assert t_star(ts, scores) == 0.5
    scores[5] = 0.0
    assert t_star(ts, scores) == 0.4
    scores = scores + 1e-15 * (ts == 0.9)  # rounding is no victory
    assert t_star(ts, scores) == 0.4


def test_t_star_of_a_missing_score_is_missing():
    assert np.isnan(t_star([0, 0.5, 1], [0.1, np.nan, 0.2]))
    assert t_star([0, 0.5, 1], [np.nan, 0.3, np.nan]) == 0.5
    assert np.isnan(interpolation_gain([0, 0.5, 1], [0.1, 0.2, 0.3], np.nan))


def test_t_star_wants_one_curve_and_an_inner_point():
    with pytest.raises(UserError, match="0 < t < 1"):
        t_star([0, 1], [0.1, 0.2])
    with pytest.raises(UserError, match="one curve"):
        t_star([0, 0.5, 1], np.ones((2, 3)))


def test_the_gain_compares_with_the_better_end_and_can_be_negative():
    scores = np.array([[0.5, 0.75, 0.25], [0.5, 0.25, 0.75], [np.nan, 0.5, 0.5]])
    gains = interpolation_gain([0, 0.5, 1], scores, t_star=0.5)
    np.testing.assert_array_equal(gains, [0.25, -0.5, np.nan])


def test_the_gain_wants_a_measured_t():
    ts = np.linspace(0, 1, 11)
    assert interpolation_gain(ts, ts, t_star=0.1 + 0.2) == pytest.approx(-0.7)  # 0.30000000000000004
    with pytest.raises(UserError, match=r"one of the 11 measured ts, got 0\.33"):
        interpolation_gain(ts, ts, t_star=0.33)


def test_balanced_score_weighs_the_new_task_as_much_as_all_old_ones():
    old = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    assert balanced_score(old, np.array([1.0, 0.0])).tolist() == [0.75, 0.5]
    with pytest.raises(UserError):
        balanced_score(np.empty((0, 2)), np.ones(2))
    with pytest.raises(UserError):
        balanced_score(old, np.ones(3))
