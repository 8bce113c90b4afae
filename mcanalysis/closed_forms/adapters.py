"""LoRA algebra (§1): sums, norms, truncation and files, against dense matrices in NumPy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator

import numpy as np

from mcanalysis.closed_forms.examples import (
    SEEDS,
    SHAPES,
    TS,
    adapter,
    dense,
    num_different_bits,
    relative,
    rotated,
)
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.models.adapter_files import absorb_scaling, load_adapter, save_adapter
from mcanalysis.params.gauge import random_gauge
from mcanalysis.params.lora import delta_distance, delta_dot, delta_norm, delta_weights, key_a, key_b
from mcanalysis.params.low_rank import balance, concatenate, truncate
from mcanalysis.params.merging import dare
from mcanalysis.paths import Linear


@closed_form("1", "concatenated factors: ΔW = Σ wᵢ·sᵢ·BᵢAᵢ for ranks 1, 3, 2, scalings α/r and α/√r", 1e-12)
def concatenation_is_the_weighted_sum() -> Iterator[float]:
    for seed in SEEDS:
        raw = [adapter(seed, 1), adapter(seed + 10, 3), adapter(seed + 20, 2)]
        scalings = [16.0 / 1, 8.0 / math.sqrt(3), 5.0 / 2]
        weights = [0.3, -1.5, 2.2]
        points = [absorb_scaling(p, dict.fromkeys(SHAPES, s)) for p, s in zip(raw, scalings, strict=True)]
        exact = np.sum([w * s * dense(p) for w, s, p in zip(weights, scalings, raw, strict=True)], axis=0)
        yield relative(dense(concatenate(points, weights)), exact)


@closed_form("1", "two equal adapters at ½, ½ give the adapter back", 1e-15)
def equal_halves_give_the_adapter_back() -> Iterator[float]:
    yield from (relative(dense(concatenate([p, p], [0.5, 0.5])), dense(p)) for p in map(adapter, SEEDS))


@closed_form("1", "norm, distance and inner product of ΔW from the factors = those of dense matrices", 1e-12)
def norms_come_from_the_factors() -> Iterator[float]:
    for seed in SEEDS:
        p, q = adapter(seed, 2), adapter(seed + 10, 3)
        P, Q = dense(p), dense(q)
        scale = float(np.linalg.norm(P) + np.linalg.norm(Q))
        yield abs(delta_norm(p) - float(np.linalg.norm(P))) / scale
        yield abs(delta_distance(p, q) - float(np.linalg.norm(P - Q))) / scale
        yield abs(delta_dot(p, q) - float(P @ Q)) / scale**2


@closed_form("1", "balanced factors: same ΔW, BᵀB = AAᵀ = the singular values", 1e-12)
def balancing_keeps_delta() -> Iterator[float]:
    for seed in SEEDS:
        p = adapter(seed)
        q = balance(p)
        yield relative(dense(q), dense(p))
        for module, D in delta_weights(p).items():
            A, B = q[key_a(module)].numpy(), q[key_b(module)].numpy()
            S = np.linalg.svd(D.numpy(), compute_uv=False)[: len(A)]
            yield relative(B.T @ B, np.diag(S))
            yield relative(A @ A.T, np.diag(S))


@closed_form("1", "SVD truncation to rank k: ‖ΔW − ΔW_k‖/‖ΔW‖ = √(Σ_{i>k} σᵢ² / Σ σᵢ²) (Eckart–Young)", 1e-12)
def truncation_loses_the_tail() -> Iterator[float]:
    for seed in SEEDS:
        p = concatenate([adapter(seed), adapter(seed + 10, 2)], [0.4, 0.6])
        sigma = [np.linalg.svd(D.numpy(), compute_uv=False) for D in delta_weights(p).values()]
        for rank in (1, 2, 4):
            smaller, stated = truncate(p, rank)
            exact = math.sqrt(sum((s[rank:] ** 2).sum() for s in sigma) / sum((s**2).sum() for s in sigma))
            made = relative(dense(smaller), dense(p))
            yield abs(stated - exact)
            yield abs(made - exact)


@closed_form("1", "(BR, R⁻¹A) is the same adapter for any invertible R", 1e-12)
def gauge_freedom_does_not_change_delta() -> Iterator[float]:
    yield from (relative(dense(rotated(adapter(s), s, orthogonal=False)), dense(adapter(s))) for s in SEEDS)


@closed_form("1", "random gauge (BR, R⁻¹A), R = U·diag(exp(z/2))·Vᵀ: ΔW stays", 1e-12)
def random_gauge_keeps_delta() -> Iterator[float]:
    for seed in SEEDS:
        yield relative(dense(random_gauge(adapter(seed), seed)), dense(adapter(seed)))


@closed_form("1", "factor path to (BR, R⁻¹A) − ΔW line = −t(1−t)·(BR−B₁)(R⁻¹A−A₁)", 1e-12)
def gauge_moves_the_inside_alone() -> Iterator[float]:
    for seed in SEEDS:
        a, b = adapter(seed), random_gauge(adapter(seed + 10), seed)
        apart = dense({name: b[name] - a[name] for name in a})
        for t in TS:
            line = (1 - t) * dense(a) + t * dense(adapter(seed + 10))
            yield relative(dense(Linear(a, b)(t)), line - t * (1 - t) * apart)


@closed_form(
    "2", "DARE keeps each entry with probability d, over d: the mean over 4000 draws is ΔW (in errors / 5)", 1.0
)
def dare_keeps_the_mean() -> Iterator[float]:
    p, density, draws = {n: x for n, x in adapter(0).items() if ".v." in n}, 0.25, 4000
    exact = delta_weights(p)["layers.0.v"].numpy()
    total = sum(delta_weights(dare([p], density, seed=s))["layers.0.v"].numpy() for s in range(draws))
    error = np.abs(exact) * math.sqrt((1 / density - 1) / draws)
    yield float((np.abs(total / draws - exact) / error).max()) / 5


@closed_form("1", "an adapter saved for PEFT reads back bit for bit (entries that differ)", 0.0)
def files_keep_every_bit() -> Iterator[float]:
    for seed in SEEDS:
        p = concatenate([adapter(seed), adapter(seed + 10, 2)], [0.4, 0.6])
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(p, folder, "base")
            yield num_different_bits(load_adapter(folder).point, p)
