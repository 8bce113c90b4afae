"""Path finders (§2) on valleys whose lowest possible barrier is known, and how much predictors differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from mcanalysis.closed_forms.examples import SEEDS, draw
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.ensemble import ensemble_along
from mcanalysis.connectivity.finders.neb import forces
from mcanalysis.params.point import Point
from mcanalysis.paths import Bezier, Curve, Linear, PolyChain

Valley = Callable[[Mapping[str, Tensor]], Tensor]


def place(u: float, v: float) -> Point:
    """A point of two layers with a weight each."""
    return {name: torch.tensor([x], dtype=torch.float64) for name, x in (("u", u), ("v", v))}


def ring(point: Mapping[str, Tensor]) -> Tensor:
    """0 on the unit circle, 20 in its middle: between (−1, 0) and (1, 0) the lowest barrier is 0."""
    return 20.0 * (torch.cat([point["u"], point["v"]]).norm() - 1.0) ** 2


def product(point: Mapping[str, Tensor]) -> Tensor:
    """0 where u·v = 1, as for scales that two layers share: between (½, 2) and (2, ½) the lowest barrier is 0."""
    return ((point["u"] * point["v"] - 1.0) ** 2).sum()


def mountain_pass(point: Mapping[str, Tensor]) -> Tensor:
    """Two valleys, (−1, 0) at 0 and (1, 0) at a loss between, joined by a pass of 1 nat at (0.3, 0.728).

    f(u) + 5(v − 0.8(1 − u²))², f a quartic with f′ ∝ (u² − 1)(u − 0.3): every path crosses u = 0.3, where the loss is
    at least f(0.3) = 1, and it is 1 on the arc alone.
    """
    u, v = point["u"], point["v"]
    height = (_quartic(u) - _quartic(-1.0)) / (_quartic(0.3) - _quartic(-1.0))
    return (height + 5.0 * (v - 0.8 * (1.0 - u**2)) ** 2).sum()


def _quartic(u):
    return u**4 / 4 - 0.1 * u**3 - u**2 / 2 + 0.3 * u


def highest(curve: Curve, valley: Valley) -> float:
    """The largest loss at 201 points of a path."""
    return max(float(valley(curve(i / 200))) for i in range(201))


def chain(start: Point, end: Point, valley: Valley, finder: str, num_steps: int) -> PolyChain:
    """A chain of 7 bends fitted by a finder."""
    return fit_curve(PolyChain(start, end, num_bends=7), valley, finder=finder, num_steps=num_steps)


@closed_form("2", "nudged elastic band over a pass: its highest point is the saddle's, 1 nat (straight: 5.1)", 1e-2)
def band_finds_the_saddle() -> Iterator[float]:
    yield abs(highest(chain(place(-1, 0), place(1, 0), mountain_pass, "neb", 700), mountain_pass) - 1.0)


@closed_form("2", "bisection over a pass: its highest point is the saddle's, 1 nat", 1e-2)
def bisection_finds_the_saddle() -> Iterator[float]:
    yield abs(highest(chain(place(-1, 0), place(1, 0), mountain_pass, "bisection", 350), mountain_pass) - 1.0)


@closed_form("2", "bisection round a ring: bends are the corners of a regular polygon (distance, radius 1)", 2e-2)
def bisection_makes_a_polygon() -> Iterator[float]:
    found = chain(place(-1, 0), place(1, 0), ring, "bisection", 700)
    side = math.copysign(1.0, float(found.bends[3]["v"]))
    corners = [(-math.cos(k * math.pi / 8), side * math.sin(k * math.pi / 8)) for k in range(1, 8)]
    for bend, (x, y) in zip(found.bends, corners, strict=True):
        yield math.hypot(float(bend["u"]) - x, float(bend["v"]) - y)


@closed_form("2", "layer-wise walk along u·v = 1, where the straight path rises to 0.32 nats: largest loss", 1e-2)
def walk_stays_in_the_valley() -> Iterator[float]:
    yield highest(chain(place(0.5, 2), place(2, 0.5), product, "layerwise", 350), product)


@closed_form("2", "Bezier curves with 2, 3 and 4 bends round a ring of 20 nats: largest loss", 5e-2)
def bezier_curves_go_round_the_ring() -> Iterator[float]:
    curves = [Bezier(place(-1, 0), place(1, 0), num_bends=k) for k in (2, 3, 4)]
    for curve in curves:
        yield highest(fit_curve(curve, ring, num_steps=400), ring)


@closed_form("2", "no force on bends at equal distances on a straight path of steepest descent, at any slopes", 1e-12)
def nothing_moves_a_band_at_rest() -> Iterator[float]:
    for seed in SEEDS:
        along, values = draw(seed, 6), draw(seed + 1, 5).tolist()
        places = [step * along for step in range(5)]
        slopes = [value * along for value in values[1:-1]]
        for force in forces(places, values, slopes):
            yield float(force.norm() / slopes[0].norm())


@closed_form("2", "mutual information: log 2 of two sure predictors that differ, 0 of two that agree", 1e-12)
def diversity_of_sure_predictors() -> Iterator[float]:
    point = {"w": torch.tensor([[1e3, -1e3]], dtype=torch.float64)}
    data = [(torch.ones(3, 1, dtype=torch.float64), torch.tensor([0, 1, 1]))]
    found = [
        ensemble_along(Linear(point, other), [0.0, 1.0], lambda at, x: x @ at["w"], data).mutual_information
        for other in ({"w": -point["w"]}, {"w": point["w"] / 2})
    ]
    yield float(abs(found[0] - math.log(2)).max())
    yield float(abs(found[1]).max())
