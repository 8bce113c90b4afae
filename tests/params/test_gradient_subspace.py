"""The used and the free directions, against NumPy's SVD."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params.gradient_subspace import GradientSubspace


def covariance(seed, width=12, rank=5):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, width, generator=g, dtype=torch.float64
    )
    return x.T @ x / 40


def test_the_first_directions_are_those_of_the_covariance():
    C = covariance(1)
    U, S, _ = np.linalg.svd(C.numpy())
    rows = GradientSubspace.empty(12).leading(C, 3).double().numpy()
    np.testing.assert_allclose(np.abs(np.sum(rows.T * U[:, :3], axis=0)), 1, atol=1e-5)
    used = GradientSubspace.empty(12).extended(C, 0.95)
    energy = np.cumsum(S**2) / np.sum(S**2)
    assert used.num_used == int(np.searchsorted(energy, 0.95)) + 1


@pytest.mark.parametrize("threshold", [0.9, 0.999, 1.0])
def test_new_directions_are_free_of_the_old_ones_also_when_most_is_used(threshold):
    space, seen = GradientSubspace.empty(12), []
    for seed in range(4):
        C = covariance(seed, rank=3)
        rows = space.leading(C, 4).double()
        for old in seen if threshold == 1.0 else ():
            assert float((rows @ old).abs().max()) < 1e-3 * float(old.abs().max())
        norms = rows.norm(dim=1)
        assert all(abs(n - 1) < 1e-5 or n == 0 for n in norms.tolist())
        before = space.num_used
        space = space.extended(C, threshold)
        assert space.num_used >= before
        seen.append(C)
    if threshold == 1.0:
        assert space.num_used == 12 and space.holds_free


def test_a_threshold_out_of_range_is_named():
    with pytest.raises(UserError, match="threshold"):
        GradientSubspace.empty(3).extended(torch.eye(3), 0.0)
