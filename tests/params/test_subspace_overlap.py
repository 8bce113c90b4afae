"""Principal angles against SciPy on the dense ΔW."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.lora import delta_weights
from mcanalysis.params.subspace_overlap import SIDES, subspace_overlap

OUT, IN = 9, 7


def adapter(seed, rank=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((rank, IN), (OUT, rank)))
    return {"m.q.lora_A.weight": A.to(dtype), "m.q.lora_B.weight": B.to(dtype)}


def oracle(a, b, side):
    dense = [delta_weights(p)["m.q"].double().numpy() for p in (a, b)]
    return np.sort(subspace_angles(*(d if side == "column" else d.T for d in dense)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 4), st.integers(1, 4), st.sampled_from(SIDES))
def test_angles_are_those_of_the_dense_changes(seed, rank_a, rank_b, side):
    a, b = adapter(seed, rank_a), adapter(seed + 1, rank_b)
    found = subspace_overlap(a, b, side)["m.q"]
    # Where the subspaces must meet (4 + 4 directions of 7) the angle is 0, and SciPy's has the root of the rounding.
    np.testing.assert_allclose(found.angles, oracle(a, b, side), atol=1e-7)
    assert (found.rank_a, found.rank_b) == (rank_a, rank_b)
    assert found.dimension == (OUT if side == "column" else IN)
    np.testing.assert_allclose(subspace_overlap(b, a, side)["m.q"].angles, found.angles, atol=1e-9)


def test_the_two_sides_are_not_mixed_up():
    a, b = adapter(0), adapter(1)
    b["m.q.lora_A.weight"] = a["m.q.lora_A.weight"].clone()  # both read the same directions
    assert subspace_overlap(a, b, "row")["m.q"].angles.max() < 1e-12
    assert subspace_overlap(a, b, "column")["m.q"].angles.max() > 0.3


@pytest.mark.parametrize("side", SIDES)
def test_the_split_into_factors_and_the_scale_do_not_matter(side):
    a, b = adapter(2), adapter(3)
    R = torch.tensor([[2.0, 1.0], [-1.0, 300.0]], dtype=torch.float64)
    other = {"m.q.lora_A.weight": torch.linalg.solve(R, b["m.q.lora_A.weight"]) * 1e-3}
    other["m.q.lora_B.weight"] = b["m.q.lora_B.weight"] @ R
    np.testing.assert_allclose(
        subspace_overlap(a, other, side)["m.q"].angles, subspace_overlap(a, b, side)["m.q"].angles, atol=1e-9
    )
    assert subspace_overlap(b, other, side)["m.q"].overlap == pytest.approx(1.0)


def test_small_angles_keep_their_digits():
    a = {"m.q.lora_A.weight": torch.eye(1, IN, dtype=torch.float64), "m.q.lora_B.weight": torch.eye(OUT, 1).double()}
    tilted = a["m.q.lora_B.weight"].clone()
    tilted[1] = 1e-9  # arccos would give 0
    found = subspace_overlap(a, {**a, "m.q.lora_B.weight": tilted}, "column")["m.q"]
    assert found.angles[0] == pytest.approx(1e-9, rel=1e-6)


def test_directions_at_rounding_level_are_left_out():
    a, b = adapter(4, 3), adapter(5, 3)
    # ΔW of rank 2 in factors of rank 3, with the noise that float32 leaves.
    A = b["m.q.lora_A.weight"].clone()
    A[2] = A[0] + 1e-8 * A[2]
    low = {**b, "m.q.lora_A.weight": A}
    found = subspace_overlap(a, low)["m.q"]
    assert (found.rank_a, found.rank_b, len(found.angles)) == (3, 2, 2)
    assert subspace_overlap(a, low, tolerance=1e-12)["m.q"].rank_b == 3
    rounded = {name: tensor.float() for name, tensor in adapter(6, 3).items()}
    assert subspace_overlap(rounded, rounded)["m.q"].rank_a == 3


def test_zero_change_has_no_angles():
    a = adapter(0)
    fresh = {**a, "m.q.lora_B.weight": torch.zeros(OUT, 2, dtype=torch.float64)}
    for pair in ((a, fresh), (fresh, a), (fresh, fresh)):
        found = subspace_overlap(*pair)["m.q"]
        assert len(found.angles) == 0 and np.isnan(found.overlap) and np.isnan(found.random_overlap)
    elsewhere = {"m.v.lora_A.weight": torch.ones(1, 3), "m.v.lora_B.weight": torch.ones(2, 1)}
    assert {m: len(o.angles) for m, o in subspace_overlap(a, elsewhere).items()} == {"m.q": 0, "m.v": 0}


def test_overlap_is_the_mean_squared_cosine_and_has_its_random_expectation():
    a, b = adapter(7, 2), adapter(8, 3)
    U = [np.linalg.svd(delta_weights(p)["m.q"].numpy())[0][:, :r] for p, r in ((a, 2), (b, 3))]
    found = subspace_overlap(a, b)["m.q"]
    assert found.overlap == pytest.approx(np.sum((U[0].T @ U[1]) ** 2) / 2)
    draws = [subspace_overlap(adapter(2 * s, 2), adapter(2 * s + 1, 3))["m.q"].overlap for s in range(600)]
    assert found.random_overlap == pytest.approx(3 / OUT)
    assert np.mean(draws) == pytest.approx(3 / OUT, abs=4 * np.std(draws) / 600**0.5)


def test_bad_input_is_named():
    a = adapter(0)
    with pytest.raises(UserError, match="column or row, got 'left'"):
        subspace_overlap(a, a, "left")
    with pytest.raises(UserError, match="tolerance"):
        subspace_overlap(a, a, tolerance=1.5)
    with pytest.raises(UserError, match=r"finite weights, got NaN or infinity in 'm\.q\.lora_B\.weight'"):
        subspace_overlap(a, {**a, "m.q.lora_B.weight": a["m.q.lora_B.weight"] * torch.nan})
    with pytest.raises(PointMismatchError, match="only LoRA factors"):
        subspace_overlap(a, {"weight": torch.zeros(2, 2)})
    other = {"m.q.lora_A.weight": torch.ones(1, 3), "m.q.lora_B.weight": torch.ones(OUT, 1)}
    with pytest.raises(PointMismatchError, match="same base model"):
        subspace_overlap(a, other)
