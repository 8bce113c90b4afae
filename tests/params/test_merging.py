"""Merging against dense NumPy."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_weights, ranks
from mcanalysis.params.merging import average, orthonormal_rows, task_arithmetic, ties, with_one_rank


def adapter(seed, rank=2):
    g = torch.Generator().manual_seed(seed)
    shapes = {"q": (5, 4), "v": (3, 6)}
    point = {}
    for module, (rows, columns) in shapes.items():
        point[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=g, dtype=torch.float64)
        point[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=g, dtype=torch.float64)
    return point


def dense(point):
    return {k: v.double().numpy() for k, v in delta_weights(point).items()}


POINTS = [adapter(1), adapter(2), adapter(3, rank=3)]


def test_average_and_arithmetic_are_those_of_the_updates():
    for module in ("q", "v"):
        deltas = np.stack([dense(p)[module] for p in POINTS])
        np.testing.assert_allclose(dense(average(POINTS))[module], deltas.mean(0), atol=1e-12)
        np.testing.assert_allclose(dense(task_arithmetic(POINTS, 0.3))[module], 0.3 * deltas.sum(0), atol=1e-12)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_trim_elect_and_disjoint_mean(density):
    flat = np.stack([np.concatenate([dense(p)[m].ravel() for m in ("q", "v")]) for p in POINTS])
    kept = max(round(density * flat.shape[1]), 1)
    trimmed = np.zeros_like(flat)
    for i, row in enumerate(flat):
        largest = np.argsort(-np.abs(row))[:kept]
        trimmed[i, largest] = row[largest]
    sign = np.sign(trimmed.sum(0))
    expected = np.zeros(flat.shape[1])
    for j in range(flat.shape[1]):
        values = [x for x in trimmed[:, j] if x * sign[j] > 0]
        expected[j] = 1.5 * np.mean(values) if values else 0.0
    merged = dense(ties(POINTS, density, scale=1.5))
    found = np.concatenate([merged[m].ravel() for m in ("q", "v")])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_one_rank_changes_nothing_but_the_rank():
    merged = ties(POINTS, 0.5)
    padded = with_one_rank(merged)
    assert len(set(ranks(padded).values())) == 1
    for module, delta in dense(merged).items():
        np.testing.assert_allclose(dense(padded)[module], delta, atol=1e-12)


def test_orthonormal_rows_span_what_they_did():
    A = adapter(4)["q.lora_A.weight"]
    Q = orthonormal_rows(A)
    np.testing.assert_allclose(Q @ Q.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(A @ Q.T @ Q, A, atol=1e-12)
    R = (A @ Q.T).T  # upper triangular, its diagonal positive
    assert abs(R[1, 0]) < 1e-12 and R[0, 0] > 0 and R[1, 1] > 0
    torch.testing.assert_close(orthonormal_rows(Q), Q)


def test_impossible_merges_are_named():
    with pytest.raises(UserError, match="one or more adapters"):
        ties([], 0.5)
    with pytest.raises(UserError, match="density"):
        ties(POINTS, 0.0)
    with pytest.raises(UserError, match="width 2, got 3"):
        orthonormal_rows(torch.ones(3, 2))
