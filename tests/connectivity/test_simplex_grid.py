"""The simplex table of a quadratic against its closed form, and the choice of its best point."""

import numpy as np
import pandas as pd
import pytest
import torch

from mcanalysis.connectivity.simplex_grid import best_of_simplex, simplex_profile, simplex_weights
from mcanalysis.errors import UserError
from mcanalysis.paths import Simplex


def corners(k=3, dim=4):
    generator = torch.Generator().manual_seed(k)
    return [{"w": torch.randn(dim, generator=generator, dtype=torch.float64)} for _ in range(k)]


def test_a_quadratic_lies_below_the_mean_of_its_corners_by_its_spread():
    """½‖Σwᵢθᵢ‖² = Σwᵢ·½‖θᵢ‖² − ½Σ_{i<j} wᵢwⱼ‖θᵢ−θⱼ‖²: the parallel axis theorem."""
    minima = corners()
    simplex = Simplex(*minima)
    weights = simplex_weights(simplex, 21)
    table = simplex_profile(simplex, {"half": lambda p: float(0.5 * p["w"].square().sum())}, weights)
    theta = np.stack([m["w"].numpy() for m in minima])
    for row in table.itertuples():
        w = np.array([row.w1, row.w2, row.w3])
        gaps = ((theta[:, None] - theta[None]) ** 2).sum(-1)
        expected = w @ (0.5 * (theta**2).sum(1)) - 0.25 * w @ gaps @ w
        assert row.loss == pytest.approx(expected, rel=1e-10)
    assert list(table.columns) == ["w1", "w2", "w3", "task", "loss"]


@pytest.mark.parametrize(("k", "num_points", "on_edge"), [(3, 21, 6), (3, 20, 5), (4, 21, 4), (2, 21, 21), (3, 2, 2)])
def test_the_grid_is_the_finest_that_fits_and_holds_the_centroid(k, num_points, on_edge):
    weights = np.array(simplex_weights(Simplex(*corners(k)), num_points))
    assert np.allclose(weights.sum(1), 1) and weights.min() >= 0
    assert np.isclose(weights, 1 / k, atol=1e-12).all(axis=1).sum() == 1
    assert sum((weights[:, 0] + weights[:, 1]) == 1.0) == on_edge + (k == 2 and on_edge % 2 == 0)


def test_the_best_point_is_chosen_on_eval_and_judged_on_test():
    rows = []
    scores = {
        "eval": {"A": [1.0, 0.0, 0.9], "B": [0.0, 0.8, 0.6]},
        "test": {"A": [0.9, 0.1, 0.3], "B": [0.1, 0.9, 0.2]},
    }
    for split, of_split in scores.items():
        for task, values in of_split.items():
            for w, score in zip(([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]), values, strict=True):
                rows.append({"w1": w[0], "w2": w[1], "split": split, "task": task, "score": score})
    found = best_of_simplex(pd.DataFrame(rows))
    assert (found["w1"], found["w2"]) == (0.5, 0.5)
    assert found["mean_score"] == pytest.approx(0.25) and found["best_corner"] == pytest.approx(0.5)
    assert found["gain"] == pytest.approx(-0.25) and (found["worst_task"], found["worst_score"]) == ("B", 0.2)


def test_bad_input_is_refused():
    simplex = Simplex(*corners())
    with pytest.raises(UserError, match="at least one objective"):
        simplex_profile(simplex, {}, [(1.0, 0.0, 0.0)])
    with pytest.raises(UserError, match="sum to one"):
        simplex_profile(simplex, {"l": lambda p: 0.0}, [(1.0, 0.5, 0.0)])


def test_a_score_that_is_no_number_makes_no_gain():
    """Of two tasks one is NaN at the best point: neither its mean nor its worst score is known."""
    rows = [
        {"w1": w, "w2": 1 - w, "split": split, "task": task, "score": score}
        for w, on_eval, on_test in ((1.0, 0.5, 0.5), (0.0, 0.4, 0.5), (0.5, 0.9, 0.9))
        for split, score in (("eval", on_eval), ("test", on_test))
        for task in "ab"
    ]
    table = pd.DataFrame(rows)
    assert best_of_simplex(table)["gain"] == pytest.approx(0.4)
    table.loc[(table.split == "test") & (table.w1 == 0.5) & (table.task == "b"), "score"] = np.nan
    found = best_of_simplex(table)
    assert np.isnan([found["mean_score"], found["gain"], found["worst_score"]]).all() and found["worst_task"] == ""
