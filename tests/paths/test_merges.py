"""Methods that merge models as paths: every point against NumPy on dense ΔW, ends, lengths, refusals."""

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.gauge import random_gauge
from mcanalysis.params.merging import dare
from mcanalysis.paths import Dare, Karcher, Linear, MagMax, Slerp, TaskArithmetic, Ties, get_path
from mcanalysis.paths.path_kinds import path_kind, path_kind_names

SHAPES = {"q": (5, 4), "v": (3, 6)}
ARCS, SCALED = (Slerp, Karcher), (TaskArithmetic, Ties, Dare, MagMax)
TS = (0.0, 0.2, 0.5, 0.9, 1.0)


def adapter(seed, rank=2, modules=SHAPES):
    g = torch.Generator().manual_seed(seed)
    point = {}
    for module in modules:
        rows, columns = SHAPES[module]
        point[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=g, dtype=torch.float64)
        point[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=g, dtype=torch.float64)
    return point


def dense(point):
    """ΔW by module, in NumPy."""
    found = {m: np.zeros(s) for m, s in SHAPES.items()}
    for module in SHAPES:
        if f"{module}.lora_A.weight" in point:
            B, A = (point[f"{module}.lora_{f}.weight"].double().numpy() for f in "BA")
            found[module] = B @ A
    return found


A, B = adapter(1), adapter(2, rank=3)


def slerp(t, x, y):
    """In coordinates of the plane of x and y, by a rotation."""
    u = x / np.linalg.norm(x)
    across = y - (y * u).sum() * u
    v = across / np.linalg.norm(across)
    angle = np.arctan2((y * v).sum(), (y * u).sum())
    weights = np.linalg.solve([[np.linalg.norm(x), (y * u).sum()], [0, (y * v).sum()]], np.eye(2))
    first, last = np.sin((1 - t) * angle) / np.sin(angle), np.sin(t * angle) / np.sin(angle)
    assert np.allclose(weights @ [(y * u).sum(), (y * v).sum()], [0, 1])
    return first * x + last * y


def karcher(t, x, y, steps=60):
    """The weighted mean on the sphere by gradient descent, times the weighted mean of the lengths."""
    units, weights = [z / np.linalg.norm(z) for z in (x, y)], (1 - t, t)
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = np.zeros_like(mean)
        for w, u in zip(weights, units, strict=True):
            dot = np.clip((mean * u).sum(), -1, 1)
            if dot < 1 - 1e-14:
                tangent += w * np.arccos(dot) / np.sqrt(1 - dot**2) * (u - dot * mean)
        length = np.linalg.norm(tangent)
        if length > 1e-15:
            mean = np.cos(length) * mean + np.sin(length) * tangent / length
    return ((1 - t) * np.linalg.norm(x) + t * np.linalg.norm(y)) * mean


def ties(x, y, density=0.2):
    flat = np.stack([np.concatenate([z[m].ravel() for m in SHAPES]) for z in (x, y)])
    kept = max(round(density * flat.shape[1]), 1)
    trimmed = np.where(np.abs(flat) >= np.sort(np.abs(flat), axis=1)[:, -kept][:, None], flat, 0)
    sign = np.sign(trimmed.sum(0))
    agree = (trimmed * sign > 0).sum(0)
    merged = np.where(trimmed * sign > 0, trimmed, 0).sum(0) / np.maximum(agree, 1)
    return {"q": merged[:20].reshape(5, 4), "v": merged[20:].reshape(3, 6)}


def dare_by_hand(x, y, density=0.5):
    generator = torch.Generator().manual_seed(0)
    found = {}
    for module in sorted(SHAPES):
        masks = [torch.rand(SHAPES[module], generator=generator).numpy() < density for _ in range(2)]
        found[module] = sum(np.where(k, z[module], 0) / density for k, z in zip(masks, (x, y), strict=True))
    return found


MERGED = {
    "task_arithmetic": lambda x, y: {m: x[m] + y[m] for m in SHAPES},
    "ties": ties,
    "dare": dare_by_hand,
    "magmax": lambda x, y: {m: np.where(np.abs(y[m]) >= np.abs(x[m]), y[m], x[m]) for m in SHAPES},
}


@pytest.mark.parametrize("t", TS)
def test_points_are_those_of_numpy(t):
    x, y = dense(A), dense(B)
    expected = {name: {m: t * d for m, d in f(x, y).items()} for name, f in MERGED.items()}
    expected |= {f.__name__: {m: f(t, x[m], y[m]) for m in SHAPES} for f in (slerp, karcher)}
    for name, deltas in expected.items():
        found = dense(get_path(name)(A, B)(t))
        for module in SHAPES:
            np.testing.assert_allclose(found[module], deltas[module], atol=1e-9, err_msg=name)


def test_a_model_soup_of_two_is_the_straight_path_in_delta_space():
    for t in TS:
        found = dense(Linear(A, B, space="delta")(t))
        for module in SHAPES:
            np.testing.assert_allclose(found[module], (1 - t) * dense(A)[module] + t * dense(B)[module], atol=1e-12)


def test_ends_are_the_minima_or_the_base():
    for kind in ARCS:
        path = kind(A, B)
        assert kind.joins_minima
        for t, end in ((0, A), (1, B)):
            assert all(np.array_equal(dense(path(t))[m], dense(path.anchors[t])[m]) for m in SHAPES)
            assert all(np.allclose(dense(path(t))[m], dense(end)[m], atol=1e-12) for m in SHAPES)
    for kind in SCALED:
        assert not kind.joins_minima and not any(d.any() for d in dense(kind(A, B)(0)).values())


@pytest.mark.parametrize("kind", [*ARCS, *SCALED])
def test_other_factors_other_targets_and_other_precisions(kind):
    turned = kind(random_gauge(A, 0), random_gauge(B, 1))
    partly = kind(A, adapter(2, 3, ("q",)))
    for t in (0.3, 1.0):
        for module in SHAPES:
            np.testing.assert_allclose(dense(turned(t))[module], dense(kind(A, B)(t))[module], atol=1e-9)
            assert np.isfinite(dense(partly(t))[module]).all()
    mixed = kind({n: x.float() for n, x in A.items()}, B)(0.4)
    assert {x.dtype for x in mixed.values()} == {torch.float64}
    low = kind(*({n: x.to(torch.bfloat16) for n, x in p.items()} for p in (A, B)))(0.4)
    assert {x.dtype for x in low.values()} == {torch.float32}


@pytest.mark.parametrize("kind", [*ARCS, *SCALED])
def test_lengths_are_those_of_a_polygon_of_points(kind):
    path = kind(A, B)
    points = [dense(path(t)) for t in np.linspace(0, 1, 201)]
    steps = [np.sqrt(sum(np.square(q[m] - p[m]).sum() for m in SHAPES)) for p, q in zip(points, points[1:])]  # noqa: B905, RUF007
    assert path.length(space="delta") == pytest.approx(sum(steps), rel=1e-9)
    assert float(path.arc_lengths([0.5])[0]) == pytest.approx(sum(steps[:100]), rel=1e-9)


def test_plain_points_of_one_direction_and_opposite_ones_are_joined_straight():
    """A Karcher mean with nothing, too, which mergekit leaves out of the directions; slerp sees a right angle there."""
    w = {"w": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    others = [{"w": f * w["w"]} for f in (2.0, -1.0, 0.0)]
    for kind in ARCS:
        for other in others:
            straight = 0.75 if kind is Karcher or other["w"].any() else float(np.cos(np.pi / 8))
            assert torch.allclose(kind(w, other)(0.25)["w"], straight * w["w"] + 0.25 * other["w"])
        profile = mc.profile(
            kind(w, {"w": torch.tensor([4.0, -3.0], dtype=torch.float64)}), lambda p: float(p["w"].norm())
        )
        np.testing.assert_allclose(profile.losses, 5.0)
        assert profile.summary()["length"] == pytest.approx(5 * np.pi / 2, rel=1e-4)


def test_dare_without_dropping_is_the_sum_and_half_of_it_has_gone_with_density_a_half():
    whole = dense(dare([A, B], density=1.0))
    assert all(np.allclose(whole[m], dense(A)[m] + dense(B)[m]) for m in SHAPES)
    wide = {"q.lora_A.weight": torch.ones(1, 100), "q.lora_B.weight": torch.ones(100, 1)}
    entries = (lambda p: p["q.lora_B.weight"] @ p["q.lora_A.weight"])(dare([wide], density=0.5))
    assert set(entries.flatten().tolist()) == {0.0, 2.0} and abs(float(entries.mean()) - 1) < 0.05


def test_refusals():
    for kind in (*ARCS, *SCALED):
        with pytest.raises(UserError, match="space='delta'"):
            kind(A, B, space="factor")
        with pytest.raises(UserError, match=r"Expected t in \[0, 1\]"):
            kind(A, B)(1.2)
        assert kind(A, B, extrapolate=True)(1.2)
        wrong = {n: x.T if "q" in n else x for n, x in A.items()}
        with pytest.raises((PointMismatchError, UserError)):
            kind(A, {**wrong, "q.lora_A.weight": wrong["q.lora_B.weight"], "q.lora_B.weight": wrong["q.lora_A.weight"]})
    for kind in ARCS:
        with pytest.raises(UserError, match="weights each tensor by itself"):
            kind(A, B).weights(0.5)
    with pytest.raises(PointMismatchError):
        Ties({"w": torch.ones(2)}, {"w": torch.zeros(2)})
    with pytest.raises(UserError, match="choose ties-delta"):
        path_kind("ties-factor")
    assert "slerp-delta" in path_kind_names() and "slerp-aligned" not in path_kind_names()
    for density in (0.0, 1.5):
        with pytest.raises(UserError, match="density"):
            dare([A], density)
    with pytest.raises(UserError, match="one or more"):
        dare([], 0.5)
