"""What may lie between two points: bounds against the worst curves there are, interpolants against polynomials."""

import numpy as np
import pytest

from mcanalysis.connectivity.between_points import PLACES, Node, highest_proven, interpolated

T = np.linspace(0.2, 0.6, 20001)


def line(a, b):
    return a + (b - a) * (T - 0.2) / 0.4


@pytest.mark.parametrize(("left", "right", "first", "last"), [(1.0, 1.2, 0.3, 0.9), (0.0, -0.4, -1.0, 1.0)])
def test_the_bounds_are_those_of_the_worst_curves(left, right, first, last):
    a, b = Node(0.2, left), Node(0.6, right)
    steep = np.minimum(left + 3 * (T - 0.2), right + 3 * (0.6 - T)) - line(first, last)
    bent = line(left, right) + 4 * (T - 0.2) * (0.6 - T) - line(first, last)
    assert highest_proven(a, b, (first, last), curvature=8.0) == pytest.approx(bent.max(), abs=1e-6)
    found = highest_proven(a, b, (first, last), lipschitz=3.0)
    assert steep.max() - 1e-9 <= found <= steep.max() + 3 * 0.4 / 32
    both = highest_proven(a, b, (first, last), curvature=8.0, lipschitz=3.0)
    assert np.minimum(steep, bent).max() - 1e-9 <= both <= min(bent.max(), found) + 1e-9
    assert highest_proven(a, b, (first, last)) == np.inf


def test_slopes_sharpen_a_curvature_bound_and_it_still_holds():
    valley = lambda t: 10 * (t - 0.4) ** 2  # noqa: E731
    nodes = [Node(t, valley(t), 20 * (t - 0.4)) for t in (0.2, 0.6)]
    bare = [Node(node.t, node.value) for node in nodes]
    with_slopes = highest_proven(*nodes, (0.0, 0.0), curvature=20.0)
    assert valley(T).max() - 1e-12 <= with_slopes < 0.41
    assert highest_proven(*bare, (0.0, 0.0), curvature=20.0) == pytest.approx(0.8)


def test_the_interpolant_is_exact_for_cubics_and_its_error_is_that_of_fewer_points():
    cubic = np.polynomial.Polynomial([1.0, -2.0, 3.0, 4.0])
    nodes = [Node(t, float(cubic(t))) for t in (0.0, 0.1, 0.4, 0.5, 1.0)]
    values, error = interpolated(nodes, 1)
    assert values == pytest.approx(cubic(0.1 + 0.3 * PLACES), abs=1e-12)
    assert error[[0, -1]] == pytest.approx(0.0, abs=1e-12)
    assert error.max() > 0.01


def test_slopes_take_the_place_of_points():
    cubic = np.polynomial.Polynomial([1.0, -2.0, 3.0, 4.0])
    nodes = [Node(t, float(cubic(t)), float(cubic.deriv()(t))) for t in (0.0, 1.0)]
    values, _ = interpolated(nodes, 0)
    assert values == pytest.approx(cubic(PLACES), abs=1e-12)


def test_a_corner_between_points_is_allowed_for():
    tent = lambda t: min(t / 0.45, (1 - t) / 0.55)  # noqa: E731
    nodes = [Node(t, tent(t)) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    values, error = interpolated(nodes, 1)
    assert (values + error).max() >= 1.0 - 1e-12


def test_two_points_tell_nothing_between_them():
    assert np.isinf(interpolated([Node(0.0, 1.0), Node(1.0, 1.0)], 0)[1]).all()
