"""The rows of profiles.csv and barriers.csv: means, S̄, t* on eval and gain on test, contract columns."""

import numpy as np
import pandas as pd
import pytest

from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.studies.connectivity.tables import transition_rows

TS = grid(5)
LABELS = {
    "strategy": "sequential", "learner": "fast", "seed": 0, "space": "factor", "path": "linear",
    "start": "2-B", "end": "3-C",
}  # fmt: skip
CONTRACT_PROFILES = [
    "strategy",
    "learner",
    "seed",
    "space",
    "path",
    "start",
    "end",
    "t",
    "task",
    "split",
    "loss",
    "score",
    "num_examples",
    "num_targets",
]
QUANTITIES = ["chord_barrier", "mean_barrier", "max_barrier", "chord_dip", "interpolation_gain", "t_star"]


def made(scores, losses, examples=40):
    """A profile whose mean score and loss at each point are the given ones."""
    scores, losses = np.asarray(scores, float), np.asarray(losses, float)
    cut = np.round(scores * examples).astype(int)
    example_scores = (np.arange(examples)[None, :] < cut[:, None]).astype(float)
    targets = np.full(examples, 2)
    nll = np.repeat(losses[:, None] * 2, examples, axis=1)
    return Profile(TS, losses, nll, targets, example_scores.mean(1), example_scores)


@pytest.fixture
def rows():
    old = {"A": made([1, 1, 0.5, 0, 0], [0, 0, 1, 3, 4]), "B": made([1, 0.5, 0.5, 0.5, 0], [0, 1, 1, 1, 2])}
    on_test = {**old, "C": made([0, 0.25, 1, 1, 1], [4, 2, 0, 0, 0])}
    on_eval = {**old, "C": made([0, 1, 0.5, 0.5, 1], [4, 0, 1, 1, 0])}  # eval prefers t = 0.25, test t = 0.5
    deviation = np.zeros(5)
    found = transition_rows({"eval": on_eval, "test": on_test}, ["A", "B"], "C", LABELS, deviation)
    return pd.DataFrame(found[0]), pd.DataFrame(found[1])


def test_columns_are_the_contract(rows):
    profiles, barriers = rows
    assert set(CONTRACT_PROFILES) <= set(profiles.columns)
    expected = {f"{q}{end}" for q in QUANTITIES for end in ("", "_low", "_high")}
    assert expected | set(LABELS) | {"task", "role", "split", "quantity", "few_events"} == set(barriers.columns)
    roles = {name: table.set_index("task").role.to_dict() for name, table in (("p", profiles), ("b", barriers))}
    assert roles["p"] == roles["b"] and roles["p"]["mean"] == roles["p"]["mean_old"] == "mean"
    assert set(profiles.task) == {"A", "B", "C", "mean_old", "mean"}
    assert set(barriers.split) == {"test"}


def test_means_weigh_old_tasks_together_as_much_as_the_new_one(rows):
    profiles, _ = rows
    at = profiles[(profiles.split == "test") & (profiles.t == 0.25)].set_index("task")
    assert at.score["mean_old"] == pytest.approx((1 + 0.5) / 2)
    assert at.score["mean"] == pytest.approx(((1 + 0.5) / 2 + 0.25) / 2)
    assert at.loss["mean"] == pytest.approx(((0 + 1) / 2 + 2) / 2)
    assert at.num_examples["mean_old"] == 80 and at.num_targets["C"] == 80


def test_t_star_is_chosen_on_eval_and_the_gain_taken_on_test(rows):
    _, barriers = rows
    row = barriers[(barriers.task == "mean") & (barriers.quantity == "score")].iloc[0]
    assert row.t_star == 0.25
    on_test = [(1 + 0) / 2, ((1 + 0.5) / 2 + 0.25) / 2, None, None, (0 + 1) / 2]
    assert row.interpolation_gain == pytest.approx(on_test[1] - max(on_test[0], on_test[4]))
    others = barriers[(barriers.task != "mean") | (barriers.quantity != "score")]
    assert others.interpolation_gain.isna().all()


def test_barriers_of_the_means_come_from_the_mean_curves(rows):
    _, barriers = rows
    loss = barriers[barriers.quantity == "loss"].set_index("task")
    assert loss.chord_barrier["mean_old"] == pytest.approx(max(np.array([0, 0.5, 1, 2, 3]) - (TS * 3)), abs=1e-12)
    assert (loss.chord_barrier_low <= loss.chord_barrier + 1e-12).all()
    assert (loss.chord_barrier_high >= loss.chord_barrier - 1e-12).all()


def test_without_old_tasks_or_eval_there_is_no_gain():
    found = transition_rows({"test": {"C": made([0, 0, 1, 1, 1], [4, 2, 0, 0, 0])}}, [], "C", LABELS, np.zeros(5))
    barriers = pd.DataFrame(found[1])
    assert set(barriers.task) == {"C"}
    assert barriers.interpolation_gain.isna().all()
