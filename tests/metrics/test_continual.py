"""Continual-learning metrics against loops over their formulas, and what is undefined."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mcanalysis.errors import UserError
from mcanalysis.metrics import (
    average_accuracy,
    average_anytime_accuracy,
    backward_transfer,
    continual_metrics,
    forgetting,
    forward_transfer,
    intransigence,
    learning_accuracy,
    relative_gain,
    stability,
    stability_skipped,
)

# Worked by hand: T = 3; columns are tasks 1, 2, 3.
R = np.array(
    [
        [0.30, 0.20, 0.10],
        [0.80, 0.30, 0.10],
        [0.60, 0.90, 0.40],
        [0.40, 0.70, 0.50],
    ]
)
BY_HAND = {
    "average_accuracy": (0.4 + 0.7 + 0.5) / 3,
    "average_anytime_accuracy": (0.8 + (0.6 + 0.9) / 2 + (0.4 + 0.7 + 0.5) / 3) / 3,
    "backward_transfer": ((0.4 - 0.8) + (0.7 - 0.9)) / 2,
    "forward_transfer": ((0.3 - 0.2) + (0.4 - 0.1)) / 2,
    "forgetting": ((0.8 - 0.4) + (0.9 - 0.7)) / 2,
    "learning_accuracy": (0.8 + 0.9 + 0.5) / 3,
    "stability": (0.4 / 0.8 + 0.7 / 0.9) / 2,
    "stability_skipped": 0,
    "intransigence": ((0.9 - 0.8) + (0.9 - 0.9) + (0.8 - 0.5)) / 3,
    "relative_gain": (0.4 / 0.9 + 0.7 / 0.9 + 0.5 / 0.8) / 3,
}
REFERENCE = [0.9, 0.9, 0.8]


def matrices(min_tasks=2):
    return st.integers(min_tasks, 6).flatmap(
        lambda T: hnp.arrays(np.float64, (T + 1, T), elements=st.floats(0, 1, width=32))
    )


def test_a_matrix_worked_by_hand():
    got = continual_metrics(R, REFERENCE)
    assert got == pytest.approx(BY_HAND)
    assert list(got) == list(BY_HAND)


@given(matrices())
def test_every_metric_is_the_loop_over_its_formula(matrix):
    T = matrix.shape[1]
    score = {(t, i): matrix[t, i - 1] for t in range(T + 1) for i in range(1, T + 1)}  # 1-based, as written
    earlier = range(1, T)
    fall = [max(score[t, i] for t in range(1, T)) - score[T, i] for i in earlier]
    assert forgetting(matrix) == pytest.approx(sum(fall) / (T - 1))
    change = [score[T, i] - score[i, i] for i in earlier]
    assert backward_transfer(matrix) == pytest.approx(sum(change) / (T - 1))
    ahead = [score[i - 1, i] - score[0, i] for i in range(2, T + 1)]
    assert forward_transfer(matrix) == pytest.approx(sum(ahead) / (T - 1))
    anytime = sum(sum(score[t, i] for i in range(1, t + 1)) / t for t in range(1, T + 1)) / T
    assert average_anytime_accuracy(matrix) == pytest.approx(anytime)
    assert learning_accuracy(matrix) == pytest.approx(sum(score[i, i] for i in range(1, T + 1)) / T)
    assert average_accuracy(matrix) == pytest.approx(sum(score[T, i] for i in range(1, T + 1)) / T)
    kept = [score[T, i] / score[i, i] for i in earlier if score[i, i] != 0]
    assert stability_skipped(matrix) == T - 1 - len(kept)
    assert stability(matrix) == pytest.approx(sum(kept) / len(kept) if kept else np.nan, nan_ok=True)


@given(matrices())
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12  # the best score is at least the diagonal


def test_row_0_does_not_count_as_something_learned():
    lucky = R.copy()
    lucky[0] = 1.0
    assert forgetting(lucky) == pytest.approx(BY_HAND["forgetting"])


def test_one_task_has_nothing_to_forget_or_transfer():
    got = continual_metrics([[0.1], [0.6]], [0.75])
    undefined = {"backward_transfer", "forward_transfer", "forgetting", "stability"}
    assert {name for name, value in got.items() if value is None} == undefined
    assert got["average_accuracy"] == got["average_anytime_accuracy"] == got["learning_accuracy"] == 0.6
    assert got["intransigence"] == pytest.approx(0.15) and got["relative_gain"] == pytest.approx(0.8)
    assert got["stability_skipped"] == 0


def test_without_a_reference_its_metrics_are_none():
    got = continual_metrics(R)
    assert got["intransigence"] is None and got["relative_gain"] is None
    assert list(got) == list(BY_HAND)


def test_joint_training_fills_the_first_and_last_row_only():
    joint = R.copy()
    joint[1:-1] = np.nan
    defined = {name for name, value in continual_metrics(joint, REFERENCE).items() if value is not None}
    assert defined == {"average_accuracy", "relative_gain"}


def test_one_adapter_per_task_fills_row_0_and_the_diagonal_only():
    individual = np.full((4, 3), np.nan)
    individual[0] = R[0]
    individual[[1, 2, 3], [0, 1, 2]] = [0.8, 0.9, 0.5]
    got = continual_metrics(individual, REFERENCE)
    defined = {name for name, value in got.items() if value is not None}
    assert defined == {"learning_accuracy", "intransigence", "stability_skipped"}


def test_an_unneeded_missing_cell_does_no_harm_and_a_needed_one_is_never_0():
    missing = R.copy()
    missing[0, 0] = np.nan  # no formula reads R[0, 1]
    assert continual_metrics(missing, REFERENCE) == pytest.approx(BY_HAND)
    missing[3, 1] = np.nan
    got = continual_metrics(missing, REFERENCE)
    assert got["average_accuracy"] is None and got["forgetting"] is None and got["stability"] is None
    assert got["learning_accuracy"] == pytest.approx(BY_HAND["learning_accuracy"])


def test_stability_skips_and_counts_tasks_never_learned():
    unlearned = R.copy()
    unlearned[1, 0] = 0.0
    assert stability(unlearned) == pytest.approx(0.7 / 0.9)
    assert stability_skipped(unlearned) == 1
    unlearned[2, 1] = 0.0
    got = continual_metrics(unlearned)
    assert got["stability"] is None and got["stability_skipped"] == 2


def test_a_reference_of_0_has_no_ratio():
    assert np.isnan(relative_gain(R, [0.0, 0.5, 0.5]))
    assert continual_metrics(R, [0.0, 0.5, 0.5])["relative_gain"] is None
    assert continual_metrics(R, [np.nan, 0.5, 0.5])["intransigence"] is None


def test_the_result_is_plain_json():
    assert json.loads(json.dumps(continual_metrics(R, REFERENCE), allow_nan=False)) == pytest.approx(BY_HAND)


@pytest.mark.parametrize("shape", [(3, 3), (3,), (1, 0), (2, 2, 2), (5, 3)])
def test_a_matrix_of_another_shape_is_refused(shape):
    for metric in (average_accuracy, forgetting, stability_skipped, continual_metrics):
        with pytest.raises(UserError, match=r"Expected an accuracy matrix .*, got .*; [a-z]+ .*\."):
            metric(np.zeros(shape))


def test_a_reference_of_another_length_is_refused():
    for metric in (intransigence, relative_gain, continual_metrics):
        with pytest.raises(UserError, match=r"Expected a reference .*, got \(2,\); give one per column"):
            metric(R, [0.5, 0.5])
