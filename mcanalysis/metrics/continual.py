"""The continual-learning metrics, all read off one accuracy matrix.

`R[t, i]` is the score on task i after training task t, of shape `(T + 1, T)`: row 0 is before any training,
row t after the t-th task, and column `i - 1` of the array holds task i = 1…T. A missing cell is NaN, never 0.
Scores are in [0, 1], and so the unit of every metric is a fraction of the score's range, unless it says
"ratio". A metric that needs a missing cell, or more tasks than there are, is NaN (None in
`continual_metrics`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError

__all__ = [
    "average_accuracy",
    "average_anytime_accuracy",
    "backward_transfer",
    "continual_metrics",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "learning_accuracy",
    "relative_gain",
    "stability",
    "stability_skipped",
    "with_task_identity",
]


def average_accuracy(accuracy_matrix: ArrayLike) -> float:
    """Return the mean score over all tasks after the last one: mean_i R[T, i].

    Unit: score. Range: [0, 1]. Source: Lopez-Paz & Ranzato 2017 (their ACC).

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses row T.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> average_accuracy([[0, 0], [0.5, 0], [0.25, 0.75]])
    0.5
    """
    return _mean(_checked(accuracy_matrix)[-1])


def average_anytime_accuracy(accuracy_matrix: ArrayLike) -> float:
    """Return the mean score on the tasks seen so far, averaged over the sequence: mean_t mean_{i≤t} R[t, i].

    Unit: score. Range: [0, 1]. Source: Caccia et al. 2022 ("New insights on reducing abrupt representation
    change in online continual learning"), taken at task boundaries, where it is the average incremental
    accuracy of Rebuffi et al. 2017 (iCaRL).

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses the cells with 1 ≤ i ≤ t.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> average_anytime_accuracy([[0, 0], [0.5, 0], [0.25, 0.75]])
    0.5
    """
    R = _checked(accuracy_matrix)
    return _mean(np.array([R[t, :t].mean() for t in range(1, len(R))]))


def backward_transfer(accuracy_matrix: ArrayLike) -> float:
    """Return what later training did to earlier tasks: mean_{i<T} (R[T, i] − R[i, i]).

    Unit: difference of scores. Range: [−1, 1]; negative is forgetting. Source: Lopez-Paz & Ranzato 2017
    (BWT), whose divisor is T − 1; their code divides by T, as it counts the last task's 0.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses row T and the diagonal. NaN for T = 1.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> backward_transfer([[0, 0], [0.5, 0], [0.25, 0.75]])
    -0.25
    """
    R = _checked(accuracy_matrix)
    return _mean((R[-1] - _diagonal(R))[:-1])


def forward_transfer(accuracy_matrix: ArrayLike) -> float:
    """Return what earlier training did for tasks not yet trained: mean_{i≥2} (R[i−1, i] − R[0, i]).

    Unit: difference of scores. Range: [−1, 1]. Source: Lopez-Paz & Ranzato 2017 (FWT); their baseline, a
    randomly initialised model, is here the model before any training (row 0).

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses row 0 and the cells just above the diagonal. NaN for T = 1.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> forward_transfer([[0, 0.25], [0.5, 0.5], [0.25, 0.75]])
    0.25
    """
    R = _checked(accuracy_matrix)
    return _mean(np.diagonal(R)[1:] - R[0, 1:])  # entry i of this diagonal is R[i−1, i]: row 0 comes first


def forgetting(accuracy_matrix: ArrayLike) -> float:
    """Return the fall from the best score a task ever had: mean_{i<T} (max_{1≤t<T} R[t, i] − R[T, i]).

    Unit: difference of scores. Range: [−1, 1]; negative when the last task helped. Row 0 is excluded: what
    training never taught cannot be forgotten. Source: Chaudhry et al. 2018 ("Riemannian walk for incremental
    learning"). The maximum includes t < i, as theirs does, and so all cells of rows 1…T for i < T are needed.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses rows 1…T. NaN for T = 1.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> forgetting([[1, 0], [0.5, 0], [0.25, 0.75]])
    0.25
    """
    R = _checked(accuracy_matrix)
    if R.shape[1] == 1:
        return math.nan
    return _mean((R[1:-1].max(axis=0) - R[-1])[:-1])


def learning_accuracy(accuracy_matrix: ArrayLike) -> float:
    """Return the mean score of each task right after it was trained (plasticity): mean_i R[i, i].

    Unit: score. Range: [0, 1]. Source: Riemer et al. 2019 ("Learning to learn without forgetting by
    maximizing transfer and minimizing interference", their LA).

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses the diagonal.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> learning_accuracy([[0, 0], [0.5, 0], [0.25, 0.75]])
    0.625
    """
    return _mean(_diagonal(_checked(accuracy_matrix)))


def stability(accuracy_matrix: ArrayLike) -> float:
    """Return the share of what was learned that is still there at the end: mean_{i<T} R[T, i] / R[i, i].

    Unit: ratio. Range: [0, ∞); 1 is full retention. Tasks with R[i, i] = 0 have no ratio and are skipped; how
    many is `stability_skipped`. Source: this project's method notes; a per-task ratio to the score just
    learned, in the spirit of the normalised retention of Kemker et al. 2018.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses row T and the diagonal. NaN for T = 1 and when all are
            skipped.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> stability([[0, 0], [0.5, 0], [0.25, 0.75]])
    0.5
    """
    R = _checked(accuracy_matrix)
    last, learned = R[-1, :-1], _diagonal(R)[:-1]
    counted = learned != 0
    return _mean(last[counted] / learned[counted])


def stability_skipped(accuracy_matrix: ArrayLike) -> int:
    """Return how many of the tasks i < T `stability` skips, because R[i, i] = 0.

    Unit: tasks. Range: 0…T−1. Companion of `stability`.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses the diagonal.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> stability_skipped([[0, 0], [0, 0], [0.25, 0.75]])
    1
    """
    return int(np.count_nonzero(_diagonal(_checked(accuracy_matrix))[:-1] == 0))


def intransigence(accuracy_matrix: ArrayLike, reference: ArrayLike) -> float:
    """Return what the learner fails to learn, against a reference: mean_i (R*_i − R[i, i]).

    Unit: difference of scores. Range: [−1, 1]; positive is worse than the reference. Source: Chaudhry et al.
    2018, averaged over tasks; their reference is joint training. Say which reference was used.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses the diagonal.
        reference: shape `(T,)`, R* of joint training or of one model per task.

    Raises:
        UserError: a shape does not fit.

    >>> intransigence([[0, 0], [0.5, 0], [0.25, 0.75]], reference=[0.75, 1.0])
    0.25
    """
    R = _checked(accuracy_matrix)
    return _mean(_reference(reference, R) - _diagonal(R))


def relative_gain(accuracy_matrix: ArrayLike, reference: ArrayLike) -> float:
    """Return the final score as a share of a reference: mean_i R[T, i] / R*_i.

    Unit: ratio. Range: [0, ∞); 1 equals the reference. Source: Wang et al. 2024 (InsCL), whose reference is
    one model per task; here over all T tasks and not in percent. NaN when an R*_i is 0. Say which reference
    was used.

    Args:
        accuracy_matrix: shape `(T + 1, T)`; uses row T.
        reference: shape `(T,)`, R* of joint training or of one model per task.

    Raises:
        UserError: a shape does not fit.

    >>> relative_gain([[0, 0], [0.5, 0], [0.25, 0.75]], reference=[0.5, 0.75])
    0.75
    """
    R = _checked(accuracy_matrix)
    best = _reference(reference, R)
    if (best == 0).any():
        return math.nan
    return _mean(R[-1] / best)


def with_task_identity(accuracy_matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the scores where each task is answered by what had just learned it, once it is learned: R[min(t, i), i].

    So a method is evaluated that keeps what it had after each task and is told the task of a question.

    Args:
        accuracy_matrix: shape `(T + 1, T)`.

    Returns:
        shape `(T + 1, T)`, constant below the diagonal.

    Raises:
        UserError: the shape is not `(T + 1, T)`.

    >>> with_task_identity([[0, 0], [0.5, 0], [0.25, 0.75]]).tolist()
    [[0.0, 0.0], [0.5, 0.0], [0.5, 0.75]]
    """
    R = _checked(accuracy_matrix)
    number = R.shape[1]
    return R[np.minimum.outer(np.arange(number + 1), np.arange(1, number + 1)), np.arange(number)]


def continual_metrics(accuracy_matrix: ArrayLike, reference: ArrayLike | None = None) -> dict[str, float | None]:
    """Return every metric of this module by name, with None for what is undefined.

    Undefined are: transfer, forgetting and stability of a single task; whatever needs a missing cell;
    intransigence and relative_gain without a reference. `stability_skipped` is a count (an int), None where a
    cell it needs is missing.

    Args:
        accuracy_matrix: shape `(T + 1, T)`, NaN where nothing was measured.
        reference: shape `(T,)`, R* of joint training or of one model per task, or None.

    Raises:
        UserError: a shape does not fit.

    >>> metrics = continual_metrics([[0.0], [0.5]])
    >>> metrics["average_accuracy"], metrics["forgetting"], metrics["relative_gain"]
    (0.5, None, None)
    """
    R = _checked(accuracy_matrix)
    metrics: dict[str, float | None] = {
        "average_accuracy": average_accuracy(R),
        "average_anytime_accuracy": average_anytime_accuracy(R),
        "backward_transfer": backward_transfer(R),
        "forward_transfer": forward_transfer(R),
        "forgetting": forgetting(R),
        "learning_accuracy": learning_accuracy(R),
        "stability": stability(R),
        "stability_skipped": None if np.isnan(_diagonal(R)[:-1]).any() else stability_skipped(R),
        "intransigence": None if reference is None else intransigence(R, reference),
        "relative_gain": None if reference is None else relative_gain(R, reference),
    }
    return {name: None if value is None or math.isnan(value) else value for name, value in metrics.items()}


def _checked(accuracy_matrix: ArrayLike) -> NDArray[np.float64]:
    R = np.asarray(accuracy_matrix, dtype=np.float64)
    if R.ndim != 2 or R.shape[1] < 1 or R.shape[0] != R.shape[1] + 1:
        raise UserError(
            f"Expected an accuracy matrix of shape (T + 1, T), row 0 before any training, got {R.shape}; "
            "add the missing rows, as NaN where nothing was measured."
        )
    return R


def _reference(reference: ArrayLike, R: NDArray[np.float64]) -> NDArray[np.float64]:
    best = np.asarray(reference, dtype=np.float64)
    if best.shape != R.shape[1:]:
        raise UserError(
            f"Expected a reference of shape {R.shape[1:]}, one score per task, got {best.shape}; give one "
            "per column of the accuracy matrix."
        )
    return best


def _diagonal(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """R[i, i] for i = 1…T: the score of each task right after it was trained."""
    return np.diagonal(R[1:])


def _mean(cells: NDArray[np.float64]) -> float:
    """The mean, NaN when a cell is missing or there is none."""
    return float(cells.mean()) if len(cells) else math.nan
