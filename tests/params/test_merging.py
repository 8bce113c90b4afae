"""Merging against dense NumPy."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_weights, ranks
from mcanalysis.params.merging import average, magmax, orthonormal_rows, task_arithmetic, ties, with_one_rank
from mcanalysis.params.projected_sum import projected_sum


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


def test_magmax_takes_the_largest_change_of_each_weight():
    merged = dense(magmax(POINTS, scale=0.5))
    for module, found in merged.items():
        stack = np.stack([dense(p)[module] for p in POINTS])
        expected = np.empty_like(found)
        for place in np.ndindex(found.shape):
            expected[place] = 0.5 * max(stack[(slice(None), *place)], key=abs)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_of_two_equal_changes_magmax_takes_the_later_one():
    def row(value):
        return {"q.lora_A.weight": torch.tensor([[value]]), "q.lora_B.weight": torch.ones(1, 1)}

    assert dense(magmax([row(-2.0), row(2.0)]))["q"] == [[2.0]] and dense(magmax([row(2.0), row(-2.0)]))["q"] == [[-2]]


def in_other_factors(point):
    """The same ΔW by other factors, of a rank that is too large."""
    R = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]], dtype=torch.float64)
    other = {}
    for module in ("q", "v"):
        A, B = point[f"{module}.lora_A.weight"], point[f"{module}.lora_B.weight"]
        other[f"{module}.lora_A.weight"] = torch.linalg.pinv(R) @ A
        other[f"{module}.lora_B.weight"] = B @ R
    return other


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_a_projected_sum_is_that_of_the_dense_matrices(alpha):
    total, new = average(POINTS[:2]), POINTS[2]  # of rank 4 in 5 × 4 and, by chance of shape, 3 in 3 × 6
    found = dense(projected_sum(total, new, alpha))
    for module, S in dense(total).items():
        T = dense(new)[module]
        U, s, Vh = np.linalg.svd(S, full_matrices=False)
        leading = sum(part <= alpha + 1e-9 for part in np.cumsum(s) / s.sum())
        expected = S + T
        for i in range(len(s)):
            for j in range(len(s)):
                if i == j or (i < leading and j < leading):
                    expected = expected - (U[:, i] @ T @ Vh[j]) * np.outer(U[:, i], Vh[j])
        np.testing.assert_allclose(found[module], expected, atol=1e-12)
        if alpha == 1.0:  # nothing is left of T among the directions of S
            assert abs(U.T @ (found[module] - S) @ Vh.T).max() < 1e-12


def test_a_projected_sum_depends_on_the_updates_alone_and_keeps_the_rank_low():
    total, new = POINTS[0], POINTS[1]
    found = projected_sum(total, new, 0.5)
    assert set(ranks(found).values()) == {4}
    again = dense(projected_sum(in_other_factors(total), in_other_factors(new), 0.5))
    for module, delta in dense(found).items():
        np.testing.assert_allclose(again[module], delta, atol=1e-10)
    nothing = {k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in total.items()}
    for module, delta in dense(projected_sum(nothing, new, 0.5)).items():
        np.testing.assert_allclose(delta, dense(new)[module], atol=1e-12)


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
    with pytest.raises(UserError, match="one or more adapters"):
        magmax([])
    with pytest.raises(UserError, match="alpha"):
        projected_sum(POINTS[0], POINTS[1], 1.5)
    with pytest.raises(UserError, match="width 2, got 3"):
        orthonormal_rows(torch.ones(3, 2))
