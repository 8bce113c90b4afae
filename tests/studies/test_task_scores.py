"""Standard errors against NumPy's, and stages by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mcanalysis.studies.task_scores import most_common_score, score_words, standard_error, task_scores
from mcanalysis.tasks.task import Example


def run_of(matrix, num_test=None):
    """A run of tasks A and B with four test answers each, three of them of one kind in A."""
    tests = {"A": "xxxy", "B": "xyzw"}
    kind = SimpleNamespace(score="exact_match")
    data = {t: SimpleNamespace(task=kind, splits={"test": [Example("?", a) for a in tests[t]]}) for t in "AB"}
    table = pd.DataFrame(matrix, columns=["after", "A", "B"])
    return SimpleNamespace(
        strategy="er", seed=3, config={"num_test": num_test}, tasks=data, task_names=["A", "B"],
        metrics_by_learner={"fast": {}}, accuracy_matrix_of=lambda learner: table,
    )  # fmt: skip


def test_stages_shares_and_errors_are_those_by_hand():
    table = task_scores([run_of([[0, 0.25, 0.0], [1, 0.75, 0.0], [2, 0.5, 1.0]])]).set_index("task")
    assert table.loc["A", ["most_common", "base", "learned", "end"]].tolist() == [0.75, 0.25, 0.75, 0.5]
    assert table.loc["B", ["most_common", "base", "learned", "end"]].tolist() == [0.25, 0.0, 1.0, 1.0]
    answers = np.array([1, 1, 0, 0])
    assert table.loc["A", "end_se"] == pytest.approx(answers.std() / np.sqrt(len(answers)))
    assert table.loc["B", "end_se"] == 0


def test_only_the_examples_that_were_scored_count():
    table = task_scores([run_of([[0, 0.5, 0.5], [1, 0.5, 0.5], [2, 0.5, 0.5]], num_test=2)])
    assert table.num_examples.tolist() == [2, 2] and table.most_common.tolist() == [1.0, 0.5]


def test_the_most_common_answer_is_what_its_score_takes_for_the_same():
    """Four texts, two letters: whole texts are a quarter each, the letter B is half of them."""
    letters = tuple(Example(f"{i}?", a) for i, a in enumerate(("B) left", "B. right", "A) up", "C: down")))
    assert most_common_score("accuracy", letters) == 0.5
    assert most_common_score("exact_match", letters) == 0.25
    graded = tuple(Example("?", a) for a in ("one two", "one two", "three"))
    assert most_common_score("rouge_l", graded) == pytest.approx(2 / 3)
    assert np.isnan(most_common_score("", letters))


def test_joint_training_has_learned_all_at_the_end_and_individual_has_no_end():
    joint = task_scores([run_of([[0, 0.0, 0.0], [2, 0.5, 0.75]])])
    assert joint.learned.tolist() == joint.end.tolist() == [0.5, 0.75]
    alone = task_scores([run_of([[0, 0.0, 0.0], [1, 0.5, np.nan], [2, np.nan, 0.75]])])
    assert alone.learned.tolist() == [0.5, 0.75] and np.isnan(alone.end[0]) and np.isnan(alone.end_se[0])
    rows = list(score_words(alone))[1]
    assert rows[1][-2:] == ["0.50 ± 0.25", "–"]


def test_the_error_bounds_that_of_any_values_between_0_and_1():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.beta(*rng.uniform(0.1, 3, 2), size=40)
        assert values.std() / np.sqrt(40) <= standard_error(values.mean(), 40) + 1e-12
