"""The basin radius of a loss, taken as a score exp(−loss), against the distance at which a quadratic has risen."""

import math

import numpy as np
import pytest
import torch

from mcanalysis.landscape.basin_radius import basin_radius, radius_of


def test_a_rise_of_the_loss_is_a_share_of_its_exponential():
    point = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
    curvatures = np.array([0.5, 3.0, 10.0])

    def score(p):
        return math.exp(-1.0 - float((curvatures * (p["w"] - point["w"]).numpy() ** 2).sum() / 2))

    for seed in range(3):
        d = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        exact = math.sqrt(2 * 0.2 * float(d @ d) / float(curvatures @ d.numpy() ** 2)) / float(point["w"].norm())
        steps = [exact * (1 + 1e-5 * i) for i in (-1.5, -0.5, 0.5, 1.5)]
        found = basin_radius(score, point, {"w": d}, steps, keep=math.exp(-0.2))
        assert found.value == pytest.approx(exact, rel=1e-8)


def test_nan_counts_as_lost():
    point = {"w": torch.tensor([3.0, 4.0])}
    far = basin_radius(lambda p: 1.0 if float((p["w"] - point["w"]).norm()) < 2.0 else math.nan, point, point)
    assert (far.last_held, far.first_lost) == (0.35, 0.5)


@pytest.mark.parametrize(("top", "kept"), [(0.8, 0.72), (0.4, 0.36), (0.2, 0.18)])
def test_a_score_that_is_exactly_what_is_to_be_kept_is_kept(top, kept):
    """0.9 · 0.8 is 0.7200000000000001 in floating point."""
    assert radius_of([0.5, 1.0, 2.0], [kept] * 3, top, 0.9) == (math.inf, 2.0, math.inf)
    assert radius_of([0.5, 1.0], [kept - 0.01], top, 0.9).first_lost == 0.5
