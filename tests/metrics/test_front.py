"""The front against brute force, its area against counting cells and drawing points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import UserError
from mcanalysis.metrics.bootstrap import Sample
from mcanalysis.metrics.front import hypervolume, hypervolume_intervals, hypervolume_of_three, non_dominated
from mcanalysis.metrics.intervals import Estimate

CELLS = 20
scores = st.integers(0, CELLS).map(lambda n: n / CELLS)
fronts = st.lists(st.tuples(scores, scores), min_size=1, max_size=12)


@given(fronts)
@settings(max_examples=60, deadline=None)
def test_area_is_the_number_of_dominated_cells(points):
    x, y = np.array(points).T
    cells = (np.arange(CELLS) + 0.5) / CELLS
    covered = np.zeros((CELLS, CELLS), dtype=bool)
    for a, b in points:
        covered |= (cells[:, None] < a) & (cells[None, :] < b)
    assert hypervolume(x, y) == pytest.approx(covered.sum() / CELLS**2, abs=1e-12)


def test_area_is_the_share_of_random_points_that_are_dominated():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 15))
    drawn = rng.random((200_000, 2))
    dominated = ((drawn[:, None, 0] < x) & (drawn[:, None, 1] < y)).any(axis=1)
    assert hypervolume(x, y) == pytest.approx(dominated.mean(), abs=4 * dominated.std() / len(drawn) ** 0.5)


@given(fronts, st.tuples(scores, scores))
@settings(max_examples=40, deadline=None)
def test_a_dominated_point_adds_nothing_and_order_does_not_matter(points, extra):
    x, y = np.array(points).T
    more = hypervolume(np.append(x, extra[0]), np.append(y, extra[1]))
    covered = any(extra[0] <= a and extra[1] <= b for a, b in points)
    assert more == pytest.approx(hypervolume(x, y), abs=1e-12) if covered else more >= hypervolume(x, y) - 1e-12
    assert hypervolume(x[::-1], y[::-1]) == pytest.approx(hypervolume(x, y), abs=1e-12)
    on_front = non_dominated(x, y)
    assert hypervolume(x[on_front], y[on_front]) == pytest.approx(hypervolume(x, y), abs=1e-12)


@given(fronts)
@settings(max_examples=40, deadline=None)
def test_the_front_by_definition(points):
    x, y = np.array(points).T
    for (a, b), kept in zip(points, non_dominated(x, y), strict=True):
        beaten = any((c >= a and d >= b) and (c > a or d > b) for c, d in points)
        assert kept == (not beaten)


def test_many_fronts_at_once_and_another_reference():
    rng = np.random.default_rng(1)
    x, y = rng.random((2, 7, 5))
    assert hypervolume(x, y).tolist() == pytest.approx([float(hypervolume(a, b)) for a, b in zip(x, y, strict=True)])
    assert hypervolume([0.5], [0.9], reference=(0.25, 0.4)) == pytest.approx(0.25 * 0.5)
    assert hypervolume([0.2, 0.5], [1.0, 0.3], reference=(0.3, 0.4)) == 0.0


def test_nan_is_never_dropped():
    assert np.isnan(hypervolume([1.0, np.nan], [0.5, 0.5]))
    assert non_dominated([1.0, np.nan, 0.5], [0.5, 1.0, 0.6]).tolist() == [True, False, True]


def test_shapes_that_do_not_fit_are_refused():
    for call in (hypervolume, non_dominated):
        with pytest.raises(UserError, match="one shape"):
            call([1.0, 2.0], [1.0])
        with pytest.raises(UserError, match="n ≥ 1"):
            call([], [])


@given(st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_volume_is_the_number_of_dominated_cells(points):
    cells = (np.arange(CELLS) + 0.5) / CELLS
    covered = np.zeros((CELLS, CELLS, CELLS), dtype=bool)
    for a, b, c in points:
        covered |= (cells[:, None, None] < a) & (cells[None, :, None] < b) & (cells < c)
    x, y, z = np.array(points).T
    assert hypervolume_of_three(x, y, z) == pytest.approx(covered.sum() / CELLS**3, abs=1e-12)
    assert hypervolume_of_three(z, x, y) == pytest.approx(covered.sum() / CELLS**3, abs=1e-12)


def test_volume_is_the_share_of_random_points_that_are_dominated():
    rng = np.random.default_rng(2)
    x, y, z = rng.random((3, 15))
    drawn = rng.random((100_000, 3))
    dominated = ((drawn[:, None, 0] < x) & (drawn[:, None, 1] < y) & (drawn[:, None, 2] < z)).any(axis=1)
    assert hypervolume_of_three(x, y, z) == pytest.approx(dominated.mean(), abs=4 * dominated.std() / len(drawn) ** 0.5)


def test_volumes_in_closed_form():
    assert hypervolume_of_three([0.5], [0.4], [0.3]) == pytest.approx(0.06)
    # three slabs, each of 1 × 1 × h: 1 − (1 − h)³ by inclusion and exclusion
    h = 0.25
    assert hypervolume_of_three([1, 1, h], [1, h, 1], [h, 1, 1]) == pytest.approx(1 - (1 - h) ** 3)
    rng = np.random.default_rng(3)
    x, y = rng.random((2, 4, 7))
    assert hypervolume_of_three(x, y, np.ones((4, 7))) == pytest.approx(hypervolume(x, y))  # many at once
    assert hypervolume_of_three([0.5], [0.9], [0.5], reference=(0.25, 0.4, 0.3)) == pytest.approx(0.25 * 0.5 * 0.2)
    assert np.isnan(hypervolume_of_three([1.0, 0.5], [0.5, 0.5], [np.nan, 1.0]))
    with pytest.raises(UserError, match="got \\(1,\\)"):
        hypervolume_of_three([1.0, 2.0], [1.0, 2.0], [1.0])


def test_intervals_of_volumes_are_those_of_areas_where_nothing_is_lost():
    rng = np.random.default_rng(4)
    old, new, whole = (Estimate.of(Sample(v)) for v in (*rng.random((2, 5, 60)), np.ones((5, 60))))
    for two, three in zip(hypervolume_intervals(old, new), hypervolume_intervals(old, new, whole), strict=True):
        assert (two.low, two.high) == pytest.approx((three.low, three.high))
