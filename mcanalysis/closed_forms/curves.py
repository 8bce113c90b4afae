"""Paths (§2) and quadratics (§7): weights, knots, lengths, the best bend, chords, barriers and their attribution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from mcanalysis.closed_forms.examples import (
    SEEDS,
    SHAPES,
    TS,
    adapter,
    dense,
    draw,
    flat,
    num_different_bits,
    relative,
    vector,
)
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.connectivity.attribution import WHOLE, attribute
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.connectivity.profile import profile
from mcanalysis.params.groups import by_module
from mcanalysis.params.lora import delta_weights
from mcanalysis.params.point import Point, interpolate
from mcanalysis.paths import (
    Bezier,
    Dare,
    Karcher,
    Linear,
    MagMax,
    PolyChain,
    SegmentedBezier,
    Simplex,
    Slerp,
    TaskArithmetic,
    Ties,
)

_SIZE = 12


class _Quadratic:
    """½(θ−θ*)ᵀH(θ−θ*) of a plain point, H positive definite."""

    def __init__(self, seed: int) -> None:
        root = draw(seed, _SIZE, _SIZE)
        self.H = root @ root.T / _SIZE + torch.eye(_SIZE, dtype=root.dtype)
        self.target = vector(seed + 50)

    def __call__(self, point: Mapping[str, Tensor]) -> Tensor:
        gap = torch.cat([(point[n] - self.target[n]).reshape(-1) for n in sorted(point)])
        return 0.5 * gap @ self.H @ gap

    def curvature(self, a: Point, b: Point) -> float:
        """dᵀHd, d = b − a, in NumPy."""
        d = flat(b) - flat(a)
        return float(d @ self.H.numpy() @ d)


@closed_form("7", "quadratic: L(t) − chord(t) = −½t(1−t)·dᵀHd, relative to dᵀHd", 1e-12)
def quadratic_and_its_chord() -> Iterator[float]:
    for seed in SEEDS:
        loss, a, b = _Quadratic(seed), vector(seed + 1), vector(seed + 2)
        curvature = loss.curvature(a, b)
        losses = profile(Linear(a, b), lambda p, loss=loss: float(loss(p)), list(TS)).losses
        off = losses - ((1 - TS) * losses[0] + TS * losses[-1])
        yield float(np.abs(off + 0.5 * TS * (1 - TS) * curvature).max()) / curvature


@closed_form("3", "quadratic: chord dip = ⅛dᵀHd, and chord barrier of −L the same (t = ½ on the grid)", 1e-12)
def dip_and_barrier_of_a_quadratic() -> Iterator[float]:
    for seed in SEEDS:
        loss, a, b = _Quadratic(seed), vector(seed + 1), vector(seed + 2)
        exact = loss.curvature(a, b) / 8
        dip = profile(Linear(a, b), lambda p, loss=loss: float(loss(p)), list(TS)).chord_dip()
        barrier = profile(Linear(a, b), lambda p, loss=loss: -float(loss(p)), list(TS)).chord_barrier()
        yield abs(dip - exact) / exact
        yield abs(barrier - exact) / exact


@closed_form("7", "quadratic: at the bend 2.5θ* − 0.75(θ₀+θ₁) the gradient of the mean over t is 0", 1e-12)
def best_bend_is_stationary() -> Iterator[float]:
    nodes, masses = np.polynomial.legendre.leggauss(5)  # exact for the degree 4 of a quadratic along the curve
    for seed in SEEDS:
        loss, a, b = _Quadratic(seed), vector(seed + 1), vector(seed + 2)
        best = {n: (2.5 * loss.target[n] - 0.75 * (a[n] + b[n])).requires_grad_(True) for n in a}
        curve = Bezier(a, b, bends=[best])
        terms = [m / 2 * loss(curve((1 + x) / 2)) for x, m in zip(nodes, masses, strict=True)]
        gradients = torch.autograd.grad(torch.stack(terms).sum(), list(best.values()))
        yield max(float(g.abs().max()) for g in gradients) / float(loss.H.norm())


@closed_form("7", "quadratic: fit_curve finds that bend (600 Adam steps, distance relative to its norm)", 5e-3)
def best_bend_is_found() -> Iterator[float]:
    loss, a, b = _Quadratic(0), vector(1), vector(2)
    fitted = fit_curve(Bezier(a, b), loss, num_steps=600, learning_rate=0.3, ts_per_step=16)
    best = 2.5 * flat(loss.target) - 0.75 * (flat(a) + flat(b))
    yield relative(flat(fitted.bends[0]), best)


@closed_form("2", "curve fitting leaves the ends alone, bit for bit (entries that differ)", 0.0)
def fitting_leaves_the_ends_alone() -> Iterator[float]:
    a, b = vector(1), vector(2)
    kept = [{n: x.clone() for n, x in p.items()} for p in (a, b)]
    for curve in (Bezier(a, b, num_bends=2), PolyChain(a, b, num_bends=2)):
        fitted = fit_curve(curve, _Quadratic(0), num_steps=20, learning_rate=0.3)
        ends = (a, b, fitted(0.0), fitted(1.0))
        yield from (num_different_bits(p, k) for p, k in zip(ends, kept * 2, strict=True))


@closed_form("2", "weights sum to 1 and their derivatives to 0 on every path", 1e-12)
def weights_sum_to_one() -> Iterator[float]:
    a, b, c = vector(0), vector(1), vector(2)
    paths = [Linear(a, b), Bezier(a, b, num_bends=4), PolyChain(a, b, num_bends=3), SegmentedBezier(a, b, c)]
    yield from (
        max(abs(float(p.weights(t).sum()) - 1.0), abs(float(p.weight_derivatives(t).sum())))
        for p, t in itertools.product(paths, TS)
    )


@closed_form("2", "Bezier with 3 bends = de Casteljau's repeated interpolation", 1e-12)
def bezier_is_de_casteljau() -> Iterator[float]:
    for seed in SEEDS:
        points = [vector(seed + k) for k in range(5)]
        curve = Bezier(points[0], points[-1], bends=points[1:-1])
        for t in TS:
            level = points
            while len(level) > 1:
                level = [interpolate(p, q, t) for p, q in itertools.pairwise(level)]
            yield relative(flat(curve(t)), flat(level[0]))


@closed_form("2", "derivative of a Bezier curve = derivative of its polynomial in NumPy", 1e-12)
def derivative_is_that_of_the_polynomial() -> Iterator[float]:
    for seed in SEEDS:
        points = [vector(seed + k) for k in range(4)]
        curve = Bezier(points[0], points[-1], bends=points[1:-1])
        p0, p1, p2, p3 = map(flat, points)
        powers = np.array([p0, 3 * (p1 - p0), 3 * (p0 - 2 * p1 + p2), p3 - 3 * p2 + 3 * p1 - p0])
        for t in TS:
            exact = powers[1] + 2 * t * powers[2] + 3 * t * t * powers[3]
            yield relative(flat(curve.derivative(t)), exact)


@closed_form("2", "chain and segmented Bezier pass through their knots bit for bit (entries that differ)", 0.0)
def knots_are_bit_exact() -> Iterator[float]:
    points = [vector(k) for k in range(5)]
    chain = PolyChain(points[0], points[-1], bends=points[1:-1])
    bent = SegmentedBezier(*points, num_bends=1)
    yield from (
        num_different_bits(path(t), p) for path in (chain, bent) for t, p in zip(path.knots, points, strict=True)
    )


@closed_form("2", "simplex of three adapters in delta: ΔW = Σ wᵢ·ΔWᵢ", 1e-12)
def simplex_is_the_barycentric_sum() -> Iterator[float]:
    minima = [adapter(0, 1), adapter(1, 3), adapter(2, 2)]
    simplex = Simplex(*minima, space="delta")
    weights = [[1.0, 0.0, 0.0], [0.0, 0.25, 0.75], [1 / 3, 1 / 3, 1 / 3], [0.125, 0.5, 0.375]]
    yield from (
        relative(dense(simplex(w)), np.sum([x * dense(m) for x, m in zip(w, minima, strict=True)], axis=0))
        for w in weights
    )


@closed_form("2", "arc length of the parabola y = 1 − x², x in [−1, 1]: √5 + ½·asinh 2 (polygon of 4001 points)", 1e-7)
def length_of_a_parabola() -> Iterator[float]:
    a, bend, b = ({"x": torch.tensor(xy, dtype=torch.float64)} for xy in ([-1.0, 0.0], [0.0, 2.0], [1.0, 0.0]))
    curve = Bezier(a, b, bends=[bend])
    exact = math.sqrt(5) + math.asinh(2) / 2
    yield abs(curve.length(num=4001) - exact) / exact


@closed_form(
    "2", "SLERP and Karcher mean of two = the great circle in NumPy, in ΔW; length of SLERP's quarter circle", 1e-7
)
def merges_on_the_sphere() -> Iterator[float]:
    for seed in SEEDS:
        a, b = ({n: x for n, x in adapter(s, rank).items() if ".v." in n} for s, rank in ((seed, 2), (seed + 10, 3)))
        x, y = (delta_weights(p)["layers.0.v"].numpy().ravel() for p in (a, b))
        of_x, of_y = np.linalg.norm(x), np.linalg.norm(y)
        across = y / of_y - (x @ y) / (of_x * of_y) * x / of_x  # the direction at a right angle to x
        angle, across = math.acos(x @ y / (of_x * of_y)), across / np.linalg.norm(across)
        for t in TS:
            turned = math.cos(t * angle) * x / of_x + math.sin(t * angle) * across
            mean = ((1 - t) * of_x + t * of_y) * turned
            arc = (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)
            for path, exact in ((Karcher(a, b), mean), (Slerp(a, b), arc)):
                yield relative(delta_weights(path(t))["layers.0.v"].numpy().ravel(), exact)
    quarter = Slerp(*({"x": torch.tensor(xy, dtype=torch.float64)} for xy in ([2.0, 0.0], [0.0, 2.0])))
    yield abs(quarter.length(num=4001) / math.pi - 1)


@closed_form("2", "task arithmetic, TIES, DARE and MagMax as paths: ΔW(t) = t·ΔW(1), the base at 0", 1e-12)
def scaled_merges_are_lines_from_the_base() -> Iterator[float]:
    a, b = adapter(0, 2), adapter(1, 3)
    paths = [kind(a, b) for kind in (TaskArithmetic, Ties, Dare, MagMax)]
    for path, t in itertools.product(paths, TS):
        whole = dense(path(1.0))
        yield float(np.linalg.norm(dense(path(t)) - t * whole) / np.linalg.norm(whole))


@closed_form("2", "length of a straight path = distance of its ends; of a delta path, ‖ΔW₂−ΔW₁‖", 1e-12)
def length_of_straight_paths() -> Iterator[float]:
    for seed in SEEDS:
        a, b = vector(seed), vector(seed + 10)
        exact = float(np.linalg.norm(flat(b) - flat(a)))
        yield abs(Linear(a, b).length() - exact) / exact
        p, q = adapter(seed), adapter(seed + 10, 2)
        exact = float(np.linalg.norm(dense(q) - dense(p)))
        yield abs(Linear(p, q, space="delta").length() - exact) / exact


@closed_form("3", "separable loss: contributions of the modules add up to the whole curve, either end held", 1e-12)
def contributions_add_up() -> Iterator[float]:
    for seed, space, hold in itertools.product(SEEDS, ("factor", "delta", "aligned"), ("start", "end")):
        a, b = adapter(seed), adapter(seed + 10)
        table = attribute(Linear(a, b, space=space), _separable(seed), by_module(a), hold, TS)  # type: ignore[arg-type]
        scale = float(table.loss.abs().max())
        for column in ("loss_change", "loss_above_chord"):
            by_group = table.pivot(index="t", columns="group", values=column)
            missing = by_group.drop(columns=WHOLE).sum(axis=1) - by_group[WHOLE]
            yield float(missing.abs().max()) / scale


def _separable(seed: int) -> Callable[[Mapping[str, Tensor]], float]:
    """Σ over modules of tr(ΔWᵀ·H·ΔW), H symmetric and indefinite: some modules have barriers, some dips."""
    forms = {}
    for number, (module, (out, _)) in enumerate(SHAPES.items()):
        root = draw(seed + 100 * number, out, out)
        forms[module] = root + root.T
    return lambda point: sum(float((D * (forms[m] @ D)).sum()) for m, D in delta_weights(point).items())
