"""The adaptive search against closed forms and dense grids, and what its bound promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.connectivity.adaptive import Refinement, adaptive_profile
from mcanalysis.connectivity.profile import profile
from mcanalysis.errors import UserError
from mcanalysis.metrics import chord_barrier, chord_dip, max_barrier, mean_barrier
from mcanalysis.paths import Linear, PolyChain

LINE = Linear({"t": torch.zeros(1, dtype=torch.float64)}, {"t": torch.ones(1, dtype=torch.float64)})
DENSE = np.linspace(0, 1, 20001)
MEASURES = {
    "chord_barrier": chord_barrier, "mean_barrier": mean_barrier, "max_barrier": max_barrier, "chord_dip": chord_dip,
}  # fmt: skip


def along(function):
    return lambda point: float(function(float(point["t"])))


def two_bumps(t):
    return 2.0 * np.exp(-(((t - 0.27) / 0.08) ** 2)) + 2.02 * np.exp(-(((t - 0.71) / 0.06) ** 2)) + t


BUMPS_CURVATURE = 2.02 * 2 / 0.06**2  # the largest |f''| is at the top of the narrower bump


def points_of_a_grid(curvature, tolerance):
    """How many points of equal spacing give the same guarantee: K·h²/8 ≤ tolerance."""
    return 1 + math.ceil(math.sqrt(curvature / (8 * tolerance)))


@pytest.mark.parametrize("tolerance", [0.3, 0.03, 0.003])
def test_a_quadratic_barrier_is_found_to_the_tolerance(tolerance):
    found, search = adaptive_profile(LINE, along(lambda t: 10 * t * (1 - t) + 3 * t), tolerance, max_points=500)
    assert search.converged
    assert found.chord_barrier() == pytest.approx(2.5, abs=tolerance)
    assert found.max_barrier() == pytest.approx(max_barrier(DENSE, 10 * DENSE * (1 - DENSE) + 3 * DENSE), abs=tolerance)


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("known", [True, False])
def test_two_bumps_take_fewer_points_than_a_grid_of_the_same_guarantee(tolerance, known):
    curvature = BUMPS_CURVATURE if known else None
    found, search = adaptive_profile(LINE, along(two_bumps), tolerance, 2000, curvature=curvature)
    assert search.converged
    for name in ("chord_barrier", "mean_barrier", "max_barrier"):
        missed = float(MEASURES[name](DENSE, two_bumps(DENSE))) - getattr(found, name)()
        assert -1e-9 <= missed <= tolerance
    assert len(found.ts) < 0.75 * points_of_a_grid(BUMPS_CURVATURE, tolerance)


@given(
    st.lists(st.floats(-1, 1), min_size=1, max_size=4),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.floats(-2, 2),
)
@settings(max_examples=25, deadline=None)
def test_with_a_true_curvature_the_bound_always_holds(sines, cosines, slope):
    """Trigonometric polynomials: |f''| ≤ Σ (2πk)²·(|aₖ| + |bₖ|)."""

    def function(t):
        waves = [(a, b, 2 * np.pi * k) for k, (a, b) in enumerate(zip(sines, cosines, strict=False), start=1)]
        return slope * t + sum(a * np.sin(w * t) + b * np.cos(w * t) for a, b, w in waves)

    curvature = sum(
        (2 * np.pi * k) ** 2 * (abs(a) + abs(b)) for k, (a, b) in enumerate(zip(sines, cosines, strict=False), 1)
    )
    barriers = tuple(MEASURES)
    found, search = adaptive_profile(LINE, along(function), 0.05, 17, barriers=barriers, curvature=curvature)
    for name, measure in MEASURES.items():
        missed = float(measure(DENSE, function(DENSE))) - getattr(found, name)()
        assert -1e-9 <= missed <= search.remaining + 1e-9, name


def test_a_curve_and_its_mirror_image_need_the_same_points():
    for barriers in (("chord_barrier",), ("chord_dip",)):
        sign = 1 if barriers == ("chord_barrier",) else -1
        found, _ = adaptive_profile(LINE, along(lambda t, s=sign: s * two_bumps(t)), 0.01, barriers=barriers)
        assert (
            found.ts.tolist()
            == adaptive_profile(LINE, along(two_bumps), 0.01, barriers=("chord_barrier",))[0].ts.tolist()
        )


def test_a_straight_loss_needs_the_first_points_only():
    found, search = adaptive_profile(LINE, along(lambda t: 2 - t), 1e-6)
    assert found.ts.tolist() == [0, 0.25, 0.5, 0.75, 1] and search.remaining == 0


def test_a_kink_at_a_knot_is_no_curvature():
    bend = {"t": torch.tensor([3.0], dtype=torch.float64)}
    chain = PolyChain(LINE(0), LINE(1), bends=[bend])
    found, search = adaptive_profile(chain, along(lambda x: x), 1e-6)
    assert search.converged and len(found.ts) == 5
    assert found.chord_barrier() == pytest.approx(2.5)
    _, blind = adaptive_profile(chain, along(lambda x: x), 1e-6, knots=(0.0, 1.0))
    assert not blind.converged


@pytest.mark.parametrize("max_points", [2, 3, 7, 8])
def test_no_more_than_max_points_and_it_says_what_is_left(max_points):
    found, search = adaptive_profile(LINE, along(two_bumps), 1e-9, max_points)
    assert len(found.ts) == max_points and not search.converged
    assert {0.0, 1.0} <= set(found.ts)
    if max_points < 3:
        assert search.remaining == np.inf


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_search_which_has_not_converged(value, caplog):
    found, search = adaptive_profile(LINE, along(lambda t: value if t == 0.5 else t), 0.1)
    assert len(found.ts) == 5 and search.next() is None
    assert not np.isfinite(found.chord_barrier())
    assert not search.converged and np.isnan(search.remaining) and search.undefined == (0.5,)
    (record,) = caplog.records
    assert "not finite at t = 0.5" in record.getMessage()


def test_a_curve_that_is_not_finite_does_not_end_the_search_of_another():
    search = Refinement(0.01, 200)
    while (t := search.next()) is not None:
        search.tell(t, [np.nan if t == 0.5 else t, two_bumps(t)])
    values = np.array([search.measured[t][1] for t in sorted(search.measured)])
    assert max_barrier(sorted(search.measured), values) == pytest.approx(max_barrier(DENSE, two_bumps(DENSE)), abs=0.01)
    assert not search.converged


def test_the_points_of_a_coarse_tolerance_are_among_those_of_a_fine_one():
    coarse, fine = (set(adaptive_profile(LINE, along(two_bumps), tol, 999)[0].ts) for tol in (0.1, 0.001))
    assert coarse < fine


def test_several_curves_are_searched_at_once():
    search = Refinement(0.01, 200)
    while (t := search.next()) is not None:
        search.tell(t, [two_bumps(t), 5 * t * (1 - t), -t])
    values = np.stack([search.measured[t] for t in sorted(search.measured)], axis=1)
    assert search.converged
    assert max_barrier(sorted(search.measured), values[0]) == pytest.approx(
        max_barrier(DENSE, two_bumps(DENSE)), abs=0.01
    )
    assert chord_barrier(sorted(search.measured), values[1]) == pytest.approx(1.25, abs=0.01)


def test_it_measures_what_a_grid_measures():
    found, _ = adaptive_profile(LINE, along(two_bumps), 0.05)
    again = profile(LINE, along(two_bumps), found.ts)
    assert np.array_equal(found.losses, again.losses) and np.array_equal(found.arc_lengths, again.arc_lengths)


@pytest.mark.parametrize(("tolerance", "max_points"), [(0.0, 10), (-1.0, 10), (float("nan"), 10), (0.1, 1)])
def test_numbers_out_of_range_are_refused(tolerance, max_points):
    with pytest.raises(UserError, match="Expected"):
        adaptive_profile(LINE, along(two_bumps), tolerance, max_points)
