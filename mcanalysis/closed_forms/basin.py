"""Basins whose radius, and simplices whose good share, are known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from mcanalysis.closed_forms.examples import SEEDS, adapter, draw
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.connectivity.connected_volume import connected_volume, simplex_samples
from mcanalysis.landscape.basin_radius import basin_radius, towards, worst_direction
from mcanalysis.metrics.instability import median_with_interval
from mcanalysis.params.spaces import get_space


@closed_form("4", "the basin of 1 − ½(θ−θ*)ᵀH(θ−θ*) has radius √(2(1−τ)·‖d‖²/dᵀHd)/‖θ*‖ along d", 1e-6)
def radius_of_a_quadratic() -> Iterator[float]:
    """With steps 1e-6 (relative) apart around the radius, between which the score is all but linear."""
    for seed in SEEDS:
        factor, minimum, d = draw(seed, 6, 6), draw(seed + 50, 6), draw(seed + 90, 6)
        H = factor @ factor.T + torch.eye(6, dtype=factor.dtype)

        def score(point, H=H, minimum=minimum) -> float:
            away = point["w"] - minimum
            return float(1.0 - 0.5 * away @ H @ away)

        exact = float((2 * 0.1 * (d @ d) / (d @ H @ d)).sqrt() / minimum.norm())
        steps = [exact * (1 + 1e-6 * i) for i in (-1.5, -0.5, 0.5, 1.5)]
        yield abs(basin_radius(score, {"w": minimum}, {"w": d}, steps).value / exact - 1)


@closed_form("4", "in a valley the radius along its floor is ∞, and across it √(2(1−τ)/h)/‖θ*‖", 1e-6)
def radius_of_a_valley() -> Iterator[float]:
    h, minimum = 3.0, {"w": torch.tensor([2.0, 0.0], dtype=torch.float64)}  # the floor is the first axis

    def loss(point):
        return 0.5 * h * point["w"][1] ** 2

    def score(point):
        return 1.0 - float(loss(point))

    floor = towards(minimum, {"w": torch.tensor([5.0, 0.0], dtype=torch.float64)})
    yield 0.0 if math.isinf(basin_radius(score, minimum, floor).value) else 1.0
    across = {"w": torch.tensor([0.0, 1.0], dtype=torch.float64)}
    exact = math.sqrt(0.2 / h) / 2.0
    steps = [exact * (1 + 1e-6 * i) for i in (-1.5, -0.5, 0.5, 1.5)]
    yield abs(basin_radius(score, minimum, across, steps).value / exact - 1)


@closed_form("4", "on a slope g the worst direction in the box ε(|θ|+1) is sign(g)·ε(|θ|+1)", 1e-12)
def worst_direction_of_a_slope() -> Iterator[float]:
    for seed in SEEDS:
        slope, theta = draw(seed, 12), draw(seed + 30, 12)
        found = worst_direction(lambda p, g=slope: g @ p["w"], {"w": theta}, epsilon=0.1)["w"]
        yield float((found - slope.sign() * 0.1 * (theta.abs() + 1)).abs().max())


@closed_form("4", "a step of 1 towards another adapter is as long as ΔW itself, whatever the ranks", 1e-10)
def steps_are_relative() -> Iterator[float]:
    space = get_space("delta")
    for seed in SEEDS:
        one, other = adapter(seed), adapter(seed + 20, rank=2)
        asked = []

        def flat(point, asked=asked) -> float:
            asked.append(point)
            return 1.0

        basin_radius(flat, one, towards(one, other), steps=(0.5, 1.0))
        length = space.distance(one, [], [])
        for point, step in zip(asked, (0.0, 0.5, 1.0), strict=True):
            yield abs(space.distance(point, [one], [1.0]) / length - step)


@closed_form("3", "the share of a simplex of k corners where w₁ ≤ c is 1 − (1−c)^(k−1), inside its interval", 0.0)
def share_under_a_linear_constraint() -> Iterator[float]:
    for k in range(3, 9):
        for c in (0.1, 0.3):
            share = connected_volume(-simplex_samples(k, 40_000, seed=k)[:, 0], threshold=-c, confidence=1 - 1e-6)
            exact = 1 - (1 - c) ** (k - 1)
            yield 0.0 if share.low <= exact <= share.high else 1.0


@closed_form("3", "the interval of a median covers it in at least 95 % of samples, by the binomial distribution", 0.0)
def coverage_of_a_median() -> Iterator[float]:
    """Of n continuous values the true median lies below the j-th smallest where fewer than j of them are below it."""
    for n in range(6, 40):
        low = int(median_with_interval(list(range(1, n + 1))).low)
        beyond = sum(math.comb(n, i) for i in range(low)) / 2**n
        yield max(0.0, 2 * beyond - 0.05)
        yield float(np.clip(0.05 - 2 * (beyond + math.comb(n, low) / 2**n), 0.0, None))  # and no wider than needed
