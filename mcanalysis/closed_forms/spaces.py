"""The three spaces (§1, §7): what is straight in which, ends, reversal, and the freedom that `aligned` takes out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from mcanalysis.closed_forms.examples import (
    SEEDS,
    SHAPES,
    TS,
    adapter,
    dense,
    flat,
    num_different_bits,
    relative,
    rotated,
    vector,
)
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.params.lora import delta_weights, factor_delta_deviation, key_a, key_b
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import AlignedSpace
from mcanalysis.paths import Bezier, Linear, Path

SPACES = ("factor", "delta", "aligned")


def _pairs(rank_a: int = 3, rank_b: int = 3) -> list[tuple[Point, Point]]:
    return [(adapter(seed, rank_a), adapter(seed + 10, rank_b)) for seed in SEEDS]


def _off_the_line(a: Point, b: Point, t: float) -> np.ndarray:
    """−t(1−t)·(B₂−B₁)(A₂−A₁) of all modules, in NumPy."""
    blocks = []
    for m in SHAPES:
        dA, dB = (b[key(m)].numpy() - a[key(m)].numpy() for key in (key_a, key_b))
        blocks.append((-t * (1 - t) * dB @ dA).ravel())
    return np.concatenate(blocks)


@closed_form("1", "factor path − ΔW line = −t(1−t)(B₂−B₁)(A₂−A₁), relative to ‖ΔW₂−ΔW₁‖", 1e-12)
def factor_path_leaves_the_line_by_the_known_term() -> Iterator[float]:
    for a, b in _pairs():
        line = Linear(a, b)
        scale = float(np.linalg.norm(dense(b) - dense(a)))
        for t in TS:
            off = dense(line(t)) - ((1 - t) * dense(a) + t * dense(b))
            yield float(np.linalg.norm(off - _off_the_line(a, b, t))) / scale


@closed_form("1", "reported factor–delta deviation = t(1−t)‖(B₂−B₁)(A₂−A₁)‖ / ‖ΔW₂−ΔW₁‖", 1e-12)
def deviation_is_the_norm_of_that_term() -> Iterator[float]:
    for a, b in _pairs():
        scale = np.linalg.norm(dense(b) - dense(a))
        exact = np.array([np.linalg.norm(_off_the_line(a, b, t)) for t in TS]) / scale
        yield float(np.abs(factor_delta_deviation(a, b, TS) - exact).max())


@closed_form("1", "the factor path is a quadratic Bezier curve in ΔW with bend ½(B₁A₂ + B₂A₁)", 1e-12)
def factor_path_is_a_quadratic_bezier_in_delta() -> Iterator[float]:
    for a, b in _pairs():
        mixed = [(a[key_b(m)] @ b[key_a(m)] + b[key_b(m)] @ a[key_a(m)]).numpy().ravel() / 2 for m in SHAPES]
        first, bend, last = ({"w": torch.from_numpy(x)} for x in (dense(a), np.concatenate(mixed), dense(b)))
        curve = Bezier(first, last, bends=[bend])
        yield from (relative(dense(Linear(a, b)(t)), curve(t)["w"].numpy()) for t in TS)


@closed_form("1", "delta path: ΔW(t) = (1−t)ΔW₁ + tΔW₂, for ranks 2 and 3", 1e-12)
def delta_path_is_straight_in_the_weights() -> Iterator[float]:
    for a, b in _pairs(2, 3):
        line = Linear(a, b, space="delta")
        yield from (relative(dense(line(t)), (1 - t) * dense(a) + t * dense(b)) for t in TS)


@closed_form("1", "delta path: rank of ΔW(t) at most r₁ + r₂ (σ beyond it, relative to the largest)", 1e-12)
def delta_path_has_the_rank_of_both() -> Iterator[float]:
    for a, b in _pairs(2, 1):
        middle = Linear(a, b, space="delta")(0.4)
        for m, D in delta_weights(middle).items():
            if middle[key_a(m)].shape[0] != 3:
                yield float("inf")
                return
            sigma = np.linalg.svd(D.numpy(), compute_uv=False)
            yield float(sigma[3] / sigma[0])


@closed_form("1", "ends of factor paths, and of delta paths of plain points, bit for bit (entries that differ)", 0.0)
def ends_are_bit_exact() -> Iterator[float]:
    plain = [(vector(seed), vector(seed + 10)) for seed in SEEDS]
    paths: list[Path] = [Linear(a, b) for a, b in _pairs()]
    paths += [Linear(a, b, space="delta") for a, b in plain]
    paths += [Bezier(a, b, num_bends=2) for a, b in plain]
    for path, (a, b) in zip(paths, [*_pairs(), *plain, *plain], strict=True):
        yield num_different_bits(path(0.0), a)
        yield num_different_bits(path(1.0), b)


@closed_form("1", "ends of delta and aligned paths of adapters have their ΔW", 1e-12)
def ends_have_their_delta() -> Iterator[float]:
    for space, (a, b) in itertools.product(("delta", "aligned"), _pairs(2, 3)):
        line = Linear(a, b, space=space)
        yield relative(dense(line(0.0)), dense(a))
        yield relative(dense(line(1.0)), dense(b))


@closed_form("1", "reversal: ΔW of (a → b at t) = that of (b → a at 1 − t), in all three spaces", 1e-12)
def paths_can_be_reversed() -> Iterator[float]:
    for space, (a, b) in itertools.product(SPACES, _pairs()):
        there, back = Linear(a, b, space=space), Linear(b, a, space=space)
        yield from (relative(dense(back(1 - t)), dense(there(t))) for t in TS)


@closed_form("1", "affine invariance for plain vectors: M·path(a, b) + c = path(M·a + c, M·b + c)", 1e-12)
def affine_maps_commute_with_paths() -> Iterator[float]:
    for seed in SEEDS:
        M = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).standard_normal((6, 6)))).Q * 2.5
        c = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(6))
        a, m, b = (torch.from_numpy(np.random.default_rng(seed + k).standard_normal(6)) for k in (2, 3, 4))

        def mapped(x: torch.Tensor, M: torch.Tensor = M, c: torch.Tensor = c) -> Point:
            return {"w": M @ x + c}

        pairs: list[tuple[Path, Path]] = [
            (Linear({"w": a}, {"w": b}), Linear(mapped(a), mapped(b))),
            (Bezier({"w": a}, {"w": b}, bends=[{"w": m}]), Bezier(mapped(a), mapped(b), bends=[mapped(m)])),
        ]
        for path, image in pairs:
            yield from (relative(mapped(path(t)["w"])["w"].numpy(), image(t)["w"].numpy()) for t in TS)


@closed_form("7", "two equal adapters: a constant ΔW along the path, in all three spaces", 1e-12)
def equal_adapters_give_a_constant_path() -> Iterator[float]:
    for space, seed in itertools.product(SPACES, SEEDS):
        line = Linear(adapter(seed), adapter(seed), space=space)
        yield from (relative(dense(line(t)), dense(adapter(seed))) for t in TS)


@closed_form("7", "aligned undoes any orthogonal R: the anchors of (a, (BR, RᵀA)) are those of (a, b)", 1e-6)
def aligned_undoes_a_rotation() -> Iterator[float]:
    for seed, (a, b) in enumerate(_pairs()):
        known, turned = (AlignedSpace().embed([a, x])[1] for x in (b, rotated(b, seed)))
        yield relative(flat(turned), flat(known))


@closed_form("7", "aligned undoes any invertible R: (BR, R⁻¹A) of the same adapter gives a constant path", 1e-6)
def aligned_undoes_any_change_of_factors() -> Iterator[float]:
    for seed in SEEDS:
        a = adapter(seed)
        line = Linear(a, rotated(a, seed, orthogonal=False), space="aligned")
        yield from (relative(dense(line(t)), dense(a)) for t in TS)


@closed_form("7", "Procrustes: ‖B₂R−B₁‖² + ‖RᵀA₂−A₁‖² = sum of squares − 2·(nuclear norm of B₂ᵀB₁ + A₂A₁ᵀ)", 1e-12)
def alignment_reaches_the_least_distance() -> Iterator[float]:
    for a, b in _pairs():
        first, second = AlignedSpace().embed([a, b])
        alone = AlignedSpace().embed([b])[0]  # balanced and not turned
        for m in SHAPES:
            A1, B1 = first[key_a(m)].numpy(), first[key_b(m)].numpy()
            A2, B2 = second[key_a(m)].numpy(), second[key_b(m)].numpy()
            A, B = alone[key_a(m)].numpy(), alone[key_b(m)].numpy()
            squares = sum(float((x**2).sum()) for x in (A1, B1, A, B))
            least = squares - 2 * np.linalg.svd(B.T @ B1 + A @ A1.T, compute_uv=False).sum()
            reached = float(((B2 - B1) ** 2).sum() + ((A2 - A1) ** 2).sum())
            yield abs(reached - least) / squares
