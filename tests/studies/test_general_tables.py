"""Rows of role general, and the third axis of the front, by hand."""

import numpy as np
import pandas as pd
import pytest

from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.metrics.front import hypervolume_of_three
from mcanalysis.report.contents import general_rows as report_rows
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.connectivity.general_tables import GeneralTasks, general_barriers, general_rows
from mcanalysis.studies.connectivity.path_tables import front_rows
from mcanalysis.studies.connectivity.tables import transition_rows

TS = grid(5)
LABELS = {
    "strategy": "er", "learner": "fast", "seed": 0, "space": "factor", "path": "linear", "start": "1-A", "end": "2-B",
}  # fmt: skip
EXAMPLES = 60


def measured(loss, score=None, rng=None):
    """A measurement of that mean loss (2 targets an example, or some more) and, of a task with one, that score."""
    targets = np.full(EXAMPLES, 2) if rng is None else rng.integers(1, 5, EXAMPLES)
    nll = targets * (loss + (0 if rng is None else rng.normal(0, 0.1, EXAMPLES)))
    scores = None if score is None else (np.arange(EXAMPLES) < round(score * EXAMPLES)).astype(float)
    return Measurement.of(nll, targets, scores)


def profile(losses, scores=None):
    scores = [None] * 5 if scores is None else scores
    return Profile.of(TS, [measured(x, s) for x, s in zip(losses, scores, strict=True)])


OLD, NEW = (profile([1, 1, 1, 1, 1], s) for s in ([1, 0.9, 0.5, 0.4, 0.1], [0, 0.6, 0.5, 0.9, 1]))
LOSSES, SCORES = [1.0, 1.2, 1.8, 1.5, 2.0], [0.5, 0.8, 0.4, 0.2, 0.1]


@pytest.fixture
def general():
    profiles = {"text": profile(LOSSES), "facts": profile([2, 2, 3, 3, 3], SCORES), "lost": profile([1] * 5, [0.5] * 5)}
    base = {"text": measured(1.2), "facts": measured(2.0, 0.6), "lost": measured(1.0, 0.0)}
    return GeneralTasks(profiles, base)


def test_rows_by_hand(general):
    profiles = pd.DataFrame(general_rows(general, LABELS, np.zeros(5), {"text": 0, "facts": 2, "lost": 0}))
    barriers = pd.DataFrame(general_barriers(general, LABELS))
    trained = [
        pd.DataFrame(t) for t in transition_rows({"test": {"A": OLD, "B": NEW}}, ["A"], "B", LABELS, np.zeros(5))
    ]
    assert set(profiles.role) == set(barriers.role) == {"general"} and set(profiles.split) == {"test"}
    retention = {"retention", "retention_low", "retention_high"}
    assert set(profiles) - retention == {*trained[0], "num_cut"} and set(barriers) == set(trained[1])
    kept = {name: rows.retention.to_numpy() for name, rows in profiles.groupby("task")}
    assert kept["text"] == pytest.approx(np.minimum(1, np.exp(1.2 - np.array(LOSSES))))
    assert kept["facts"] == pytest.approx(np.minimum(1, np.array(SCORES) / 0.6), abs=1e-6)
    assert np.isnan(kept["lost"]).all()
    assert profiles[profiles.task == "text"].score.isna().all()
    assert profiles[profiles.task == "facts"].score.tolist() == pytest.approx(SCORES)
    assert set(profiles[profiles.task == "facts"].num_cut) == {2} and set(profiles.num_examples) == {EXAMPLES}
    known = profiles[profiles.retention.notna()]
    assert ((known.retention_low <= known.retention) & (known.retention <= known.retention_high)).all()
    assert barriers[barriers.task == "text"].quantity.tolist() == ["loss"]
    assert barriers[barriers.task == "facts"].quantity.tolist() == ["loss", "score"]
    (of_text,) = barriers[barriers.task == "text"].chord_barrier
    assert of_text == pytest.approx(max(np.array(LOSSES) - np.linspace(1.0, 2.0, 5)))


def test_the_third_axis_of_the_front_is_the_mean_over_tasks_that_have_one(general):
    third = (np.minimum(1, np.exp(1.2 - np.array(LOSSES))) + np.minimum(1, np.array(SCORES) / 0.6)) / 2
    rows = pd.DataFrame(front_rows({"eval": {"A": OLD, "B": NEW}, "test": {"A": OLD, "B": NEW}}, ["A"], "B", LABELS,
                                   general.axis))  # fmt: skip
    on_test = rows[rows.split == "test"]
    assert on_test.general.to_numpy() == pytest.approx(third, abs=1e-6)
    assert rows[rows.split == "eval"].general.isna().all()
    volume = hypervolume_of_three(on_test.stability, on_test.plasticity, third)
    ends = hypervolume_of_three([1, 0.1], [0, 1], third[[0, -1]])
    row = on_test.iloc[0]
    assert row.hypervolume_general == pytest.approx(volume, abs=1e-6) and volume < row.hypervolume
    assert row.hypervolume_general_gain == pytest.approx(volume - ends, abs=1e-6)
    assert row.hypervolume_general_low <= volume <= row.hypervolume_general_high
    without = pd.DataFrame(front_rows({"test": {"A": OLD, "B": NEW}}, ["A"], "B", LABELS))
    assert not [name for name in without if "general" in name]


def test_retention_is_paired_with_the_base():
    """The same hard examples for both: the interval is far narrower than that of the loss."""
    rng = np.random.default_rng(0)
    hard = rng.normal(2, 0.6, EXAMPLES)
    targets = np.full(EXAMPLES, 3)
    at = [Measurement.of(targets * (hard + apart), targets) for apart in (0.0, 0.1, 0.3, 0.2, 0.5)]
    general = GeneralTasks({"text": Profile.of(TS, at)}, {"text": Measurement.of(targets * hard, targets)})
    rows = pd.DataFrame(general_rows(general, LABELS, np.zeros(5), {"text": 0}))
    assert rows.retention.tolist() == pytest.approx(np.exp([0, -0.1, -0.3, -0.2, -0.5]))
    assert (rows.retention_high - rows.retention_low).max() < 1e-6 < 0.2 < (rows.loss_high - rows.loss_low).min()


def test_the_report_shows_stages_and_the_table_of_version_0_1():
    table = pd.DataFrame(
        [
            {"after": k, "learner": "fast", "task": task, "loss": 1.0 + k, "score": score, "retention": kept}
            for k, kept in ((0, 1.0), (1, 0.5))
            for task, score in (("text", np.nan), ("facts", 0.5 * kept))
        ]
    )
    assert report_rows(table) == [
        ["task", "learner", "what", "base", "after 1"],
        ["text", "fast", "loss, nats per token", "1.00", "2.00"],
        ["text", "fast", "retention", "1.00", "0.50"],
        ["facts", "fast", "score", "0.50", "0.25"],
        ["facts", "fast", "retention", "1.00", "0.50"],
    ]
    former = pd.DataFrame({"task": ["facts"], "base": [0.25], "fast": [0.5]})
    assert report_rows(former) == [["task", "base", "fast"], ["facts", "0.25", "0.5"]]
