"""Signals of a transition (§5, §6) where they are known: spectra, angles, curvature, divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from mcanalysis.closed_forms.examples import SEEDS, adapter, draw, rotated
from mcanalysis.closed_forms.registry import closed_form
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.landscape.predicted_forgetting import predicted_forgetting
from mcanalysis.metrics.prediction_similarity import kl_divergence
from mcanalysis.metrics.representation_similarity import linear_cka
from mcanalysis.params.lora import key_a, key_b
from mcanalysis.params.point import Point
from mcanalysis.params.spectra import bures_wasserstein, effective_rank, intruder_dimensions
from mcanalysis.params.subspace_overlap import subspace_overlap


def _of_values(values: torch.Tensor, seed: int) -> Point:
    """An adapter of given singular values, its column space random by `seed`, its rows those of the identity."""
    columns = torch.linalg.qr(draw(seed, 9, len(values))).Q
    return {key_a("q"): torch.eye(len(values), 6, dtype=torch.float64), key_b("q"): columns * values}


@closed_form("6", "effective rank of ΔW with k equal singular values = k; of shares p: exp of their entropy", 1e-12)
def effective_rank_is_the_entropy() -> Iterator[float]:
    for seed in SEEDS:
        for k in (1, 2, 4):
            yield abs(effective_rank(_of_values(3 * torch.ones(k, dtype=torch.float64), seed))["q"] - k)
        values = draw(seed, 4).abs() + 0.1
        shares = (values / values.sum()).numpy()
        yield abs(effective_rank(_of_values(values, seed))["q"] - math.exp(-(shares * np.log(shares)).sum()))


@closed_form(
    "6", "Bures–Wasserstein of covariances that commute: √Σ(√pᵢ − √qᵢ)², whatever the columns and factors", 1e-7
)
def bures_wasserstein_is_hellingers() -> Iterator[float]:
    for seed in SEEDS:
        p, q = (draw(seed + s, 4).abs() + 0.1 for s in (0, 50))
        exact = float((p / p.norm() - q / q.norm()).norm())
        yield abs(bures_wasserstein(_of_values(p, seed), _of_values(5 * q, seed + 1))["q"] - exact)
        yield from bures_wasserstein(adapter(seed), rotated(adapter(seed), seed, orthogonal=False)).values()


@closed_form("6", "intruders: diag(n, …, 1) + c·1·eᵀ, c large, has one (its cosines are 1/√n); c = 0 has none", 0.0)
def one_direction_intrudes() -> Iterator[float]:
    for n in (9, 16):
        before = torch.diag(torch.arange(n, 0, -1, dtype=torch.float64))
        beside = torch.ones(n, 1, dtype=torch.float64) * torch.eye(1, n, dtype=torch.float64)
        yield abs(intruder_dimensions(before, before + 1e6 * beside, num_leading=1) - 1)
        yield float(intruder_dimensions(before, before))


@closed_form("6", "overlap of two planes that share a line, the rest at an angle φ: (1 + cos²φ)/2", 1e-12)
def planes_at_an_angle() -> Iterator[float]:
    for angle in (0.1, 0.7, 1.5):
        rows = torch.zeros(2, 2, 6, dtype=torch.float64)
        rows[:, 0, 0], rows[0, 1, 1] = 1.0, 1.0
        rows[1, 1, 1], rows[1, 1, 2] = math.cos(angle), math.sin(angle)
        a, b = ({key_a("q"): one, key_b("q"): torch.eye(9, 2, dtype=torch.float64)} for one in rows)
        yield abs(subspace_overlap(a, b, "row")["q"].overlap - (1 + math.cos(angle) ** 2) / 2)


@closed_form("5", "g·Δ + ½ΔᵀHΔ of a quadratic is what its loss rises by", 1e-12)
def quadratics_are_foretold() -> Iterator[float]:
    for seed in SEEDS:
        root, end = draw(seed, 6, 6), draw(seed + 1, 6)
        loss = HessianOperator(lambda p, root=root: (root @ p["w"] + 1).square().sum(), {"w": draw(seed + 2, 6)})
        found = predicted_forgetting(loss, {"w": end})
        yield abs(found.predicted - found.measured) / abs(found.measured)


@closed_form("6", "KL of (p, 1 − p) from (q, 1 − q) = p·log(p/q) + (1 − p)·log((1 − p)/(1 − q))", 1e-12)
def divergence_of_two_coins() -> Iterator[float]:
    for p, q in ((0.5, 0.1), (0.9, 0.8), (0.01, 0.99)):
        exact = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        yield abs(float(kl_divergence(np.log([p, 1 - p]), np.log([q, 1 - q]))) - exact)


@closed_form("6", "CKA of features turned, scaled and shifted = 1", 1e-12)
def turned_features_are_the_same() -> Iterator[float]:
    for seed in SEEDS:
        x, turn = draw(seed, 20, 5), torch.linalg.qr(draw(seed + 1, 5, 5)).Q
        yield abs(linear_cka(x, 3 * x @ turn + 2) - 1)
