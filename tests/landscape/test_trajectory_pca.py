"""Trajectory PCA against NumPy's SVD of flattened points."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.landscape.slices import Slice
from mcanalysis.landscape.trajectory_pca import fit_trajectory_pca
from mcanalysis.params import AlignedSpace, content_hash, delta_weights, flatten, ranks

seeds = st.integers(0, 2**31)
SHAPES = {"layer.weight": (3, 4), "layer.bias": (3,)}


def walk(seed, number, dtype=torch.float64):
    """A random walk with a drift, plain."""
    g = torch.Generator().manual_seed(seed)
    here = {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in SHAPES.items()}
    points = []
    for _ in range(number):
        here = {n: t + 0.3 * torch.randn(t.shape, generator=g, dtype=torch.float64) + 0.1 for n, t in here.items()}
        points.append({n: t.to(dtype) for n, t in here.items()})
    return points


def adapters(seed, number, rank=2, dims=(7, 5)):
    g = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((rank, dims[1]), (dims[0], rank)))
    points = []
    for _ in range(number):
        A, B = (t + 0.2 * torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (A, B))
        points.append({"q.lora_A.weight": A, "q.lora_B.weight": B})
    return points


def vectors(space, points):
    if space == "delta":
        return np.stack([delta_weights(p)["q"].numpy().ravel() for p in points])
    if space == "aligned":
        *others, last = points
        last, *others = AlignedSpace().embed([last, *others])
        return np.stack([flatten(p).numpy() for p in [*others, last]])
    return np.stack([flatten(p).numpy() for p in points])


def oracle(rows, num_components, center):
    """Coordinates, directions and shares from the SVD of the differences."""
    M = rows - (rows[-1] if center == "last" else rows.mean(0))
    U, S, Vh = np.linalg.svd(M, full_matrices=False)
    coordinates = U * S
    signs = np.sign(coordinates[np.abs(coordinates).argmax(0), range(len(S))])
    return (
        (coordinates * signs)[:, :num_components],
        (Vh * signs[:, None])[:num_components],
        (S**2 / (S**2).sum())[:num_components],
    )


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
@given(seeds)
@settings(max_examples=10, deadline=None)
def test_adapters_match_the_svd_of_flat_vectors(space, center, seed):
    points = adapters(seed, 6)
    pca = fit_trajectory_pca(points, 2, center=center, space=space)
    coordinates, directions, shares = oracle(vectors(space, points), 2, center)
    np.testing.assert_allclose(pca.explained_variance_ratio, shares, atol=1e-10)
    np.testing.assert_allclose(pca.coordinates, coordinates, atol=1e-7)
    for mine, theirs in zip(pca.directions, directions, strict=True):
        flat = delta_weights(mine)["q"].numpy().ravel() if space == "delta" else flatten(mine).numpy()
        np.testing.assert_allclose(flat, theirs, atol=1e-7)


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize("number", [3, 16, 17, 50])
def test_plain_points_match_the_svd_of_flat_vectors(center, number):
    points = walk(number, number)
    pca = fit_trajectory_pca(points, 2, center=center)
    coordinates, directions, shares = oracle(vectors("factor", points), 2, center)
    np.testing.assert_allclose(pca.explained_variance_ratio, shares, atol=1e-12)
    np.testing.assert_allclose(pca.coordinates, coordinates, atol=1e-10)
    for mine, theirs in zip(pca.directions, directions, strict=True):
        np.testing.assert_allclose(flatten(mine).numpy(), theirs, atol=1e-10)
    centre = points[-1] if center == "last" else {n: torch.stack([p[n] for p in points]).mean(0) for n in SHAPES}
    np.testing.assert_allclose(flatten(pca.origin).numpy(), flatten(centre).numpy(), atol=1e-13)


def test_the_last_point_is_the_origin_bit_for_bit():
    points = walk(0, 5)
    assert content_hash(fit_trajectory_pca(points).origin) == content_hash(points[-1])


@pytest.mark.parametrize("center", ["last", "mean"])
@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_as_many_components_as_dimensions_give_the_trajectory_back(space, center):
    points = adapters(3, 4)
    pca = fit_trajectory_pca(points, 3, center=center, space=space)
    assert pca.explained_variance_ratio.sum() == pytest.approx(1.0, abs=1e-12)
    for point, row in zip(points, pca.coordinates, strict=True):
        *foot, distance = pca.project(point)
        np.testing.assert_allclose(foot, row, atol=1e-9)
        assert distance <= 1e-9


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_projection_is_that_of_least_squares(space):
    points = adapters(3, 8)
    pca = fit_trajectory_pca(points[:6], 2, space=space)
    rows = vectors(space, [*points[6:], *points[:6]])
    _, directions, _ = oracle(rows[2:], 2, "last")
    for point, row in zip(points[6:], rows, strict=False):
        foot = directions @ (row - rows[-1])
        distance = np.linalg.norm(row - rows[-1] - foot @ directions)
        np.testing.assert_allclose(pca.project(point), [*foot, distance], atol=1e-8)


@pytest.mark.parametrize("space", ["factor", "delta", "aligned"])
def test_directions_span_a_slice_in_units_of_distance(space):
    points = adapters(1, 7)
    pca = fit_trajectory_pca(points, 2, space=space)
    sheet = Slice(pca.origin, *pca.directions, space=pca.space)
    assert sheet.lengths == (pytest.approx(1.0, abs=1e-9), pytest.approx(1.0, abs=1e-9))
    if space != "aligned":  # placing balances, and a point of the slice is not balanced
        np.testing.assert_allclose(pca.project(sheet(0.3, -0.2)), [0.3, -0.2, 0.0], atol=1e-8)


def test_delta_does_not_see_the_gauge():
    points = adapters(2, 5)
    g = torch.Generator().manual_seed(1)
    turned = []
    for point in points:
        R = torch.randn(2, 2, generator=g, dtype=torch.float64) + 2 * torch.eye(2)
        turned.append({n: torch.linalg.solve(R, t) if "lora_A" in n else t @ R for n, t in point.items()})
    one, other = (fit_trajectory_pca(p, space="delta") for p in (points, turned))
    np.testing.assert_allclose(one.coordinates, other.coordinates, atol=1e-9)
    np.testing.assert_allclose(one.explained_variance_ratio, other.explained_variance_ratio, atol=1e-10)


def test_long_delta_trajectories_have_directions_of_no_more_than_full_rank():
    points = adapters(0, 40)
    pca = fit_trajectory_pca(points, 2, space="delta")
    assert all(max(ranks(d).values()) <= 5 for d in pca.directions)
    coordinates, directions, _ = oracle(vectors("delta", points), 2, "last")
    np.testing.assert_allclose(pca.coordinates, coordinates, atol=1e-8)
    for mine, theirs in zip(pca.directions, directions, strict=True):
        np.testing.assert_allclose(delta_weights(mine)["q"].numpy().ravel(), theirs, atol=1e-8)


def test_points_are_read_in_blocks_and_not_kept():
    class Lazy(Sequence):
        """Makes points on access and counts how many are alive."""

        alive = most = 0

        def __init__(self, points):
            self.points = points

        def __len__(self):
            return len(self.points)

        def __getitem__(self, index):
            point = {n: t.clone() for n, t in self.points[index].items()}
            Lazy.alive += 1
            Lazy.most = max(Lazy.most, Lazy.alive)
            weakref.finalize(point["layer.weight"], Lazy.gone)
            return point

        @staticmethod
        def gone():
            Lazy.alive -= 1

    points = walk(0, 120)
    pca = fit_trajectory_pca(Lazy(points), 2)
    np.testing.assert_allclose(pca.coordinates, fit_trajectory_pca(points, 2).coordinates, atol=1e-12)
    assert Lazy.most <= 50


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_points_give_float32_directions_close_to_the_exact_ones(dtype):
    points = walk(0, 6, dtype)
    pca = fit_trajectory_pca(points, 2)
    _, directions, _ = oracle(np.stack([flatten(p).double().numpy() for p in points]), 2, "last")
    for mine, theirs in zip(pca.directions, directions, strict=True):
        assert {t.dtype for t in mine.values()} == {torch.float32}
        np.testing.assert_allclose(flatten(mine).numpy(), theirs, atol=1e-6)


def test_bad_input_is_refused_in_one_line():
    points = walk(0, 4)
    broken = [*points[:2], {n: t * float("nan") for n, t in points[2].items()}, points[3]]
    line = [{"w": torch.tensor([float(t), 0.0])} for t in range(4)]
    cases = [
        (lambda: fit_trajectory_pca(points, 4), "Expected 1 to 3 components of a trajectory of 4 points, got 4"),
        (lambda: fit_trajectory_pca(points, 0), "got 0"),
        (lambda: fit_trajectory_pca(points, 2, center="first"), "'last' or 'mean', got 'first'"),
        (lambda: fit_trajectory_pca(broken), "at 1 of 4, first at index 2"),
        (lambda: fit_trajectory_pca(line), "moves in 2 dimensions or more, got 1"),
        (lambda: fit_trajectory_pca([line[0]] * 3, 1), "moves in 1 dimensions or more, got 0"),
        (lambda: fit_trajectory_pca(points, space="detla"), "Did you mean 'delta'"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(PointMismatchError, match=r"differences? in all"):
        fit_trajectory_pca([*line, points[0]])
