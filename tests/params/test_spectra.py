"""Effective rank, covariances and intruders from factors, against dense matrices in NumPy and SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.spectra import bures_wasserstein, effective_rank, intruder_dimensions


def adapter(seed, rank=3, out=7, inn=6, name="q"):
    g = torch.Generator().manual_seed(seed)
    shapes = {f"{name}.lora_A.weight": (rank, inn), f"{name}.lora_B.weight": (out, rank)}
    return {key: torch.randn(*shape, generator=g, dtype=torch.float64) for key, shape in shapes.items()}


def dense(point, name="q"):
    return (point[f"{name}.lora_B.weight"] @ point[f"{name}.lora_A.weight"]).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_effective_rank_is_that_of_the_dense_singular_values(seed):
    values = np.linalg.svd(dense(adapter(seed)), compute_uv=False)[:3]
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(adapter(seed))["q"] == pytest.approx(expected, abs=1e-12)
    assert 1 <= expected <= 3


@pytest.mark.parametrize("seed", range(3))
def test_bures_wasserstein_is_that_of_square_roots_of_matrices(seed):
    a, b = adapter(seed), adapter(seed + 9, rank=2)
    P, Q = (d.T @ d / np.linalg.norm(d) ** 2 for d in map(dense, (a, b)))
    root = np.real(sqrtm(P))
    squared = np.trace(P) + np.trace(Q) - 2 * np.real(np.trace(sqrtm(root @ Q @ root)))
    assert bures_wasserstein(a, b)["q"] == pytest.approx(math.sqrt(squared), abs=1e-6)
    assert bures_wasserstein(b, a)["q"] == pytest.approx(bures_wasserstein(a, b)["q"], abs=1e-9)
    R = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 3 * torch.eye(3)
    turned = {
        "q.lora_A.weight": torch.linalg.solve(R, a["q.lora_A.weight"]),
        "q.lora_B.weight": -2 * a["q.lora_B.weight"] @ R,
    }
    assert bures_wasserstein(turned, b)["q"] == pytest.approx(bures_wasserstein(a, b)["q"], abs=1e-9)
    assert bures_wasserstein(a, turned)["q"] == pytest.approx(0, abs=1e-5)


def test_an_adapter_of_zeros_and_one_of_other_modules_have_none():
    zero = {name: torch.zeros_like(tensor) for name, tensor in adapter(0).items()}
    assert math.isnan(effective_rank(zero)["q"]) and math.isnan(bures_wasserstein(adapter(0), zero)["q"])
    found = bures_wasserstein(adapter(0), adapter(0, name="v"))
    assert set(found) == {"q", "v"} and all(map(math.isnan, found.values()))
    with pytest.raises(PointMismatchError):
        bures_wasserstein(adapter(0), adapter(0, inn=5))


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_intruders_are_those_counted_by_hand(threshold):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(12, 8))
    after = before + 20 * np.outer(rng.normal(size=12), rng.normal(size=8))
    old, new = (np.linalg.svd(w)[0][:, :8] for w in (before, after))
    by_hand = sum(max(abs(old[:, i] @ new[:, j]) for i in range(8)) < threshold for j in range(5))
    found = intruder_dimensions(torch.tensor(before), torch.tensor(after), 5, threshold)
    assert found == by_hand and intruder_dimensions(torch.tensor(before), torch.tensor(-3 * before)) == 0
    with pytest.raises(UserError, match="two matrices of one shape"):
        intruder_dimensions(torch.tensor(before), torch.tensor(after.T))
