"""Which answers turn wrong and which turn right between points, and how many of them knowledge alone would turn.

Two points of one accuracy may answer different questions right. What turns wrong (1→0) is what was forgotten, what
turns right (0→1) what was gained (Harmon et al. 2025, arXiv 2510.17776, who count both per sample); their difference is
all that an accuracy shows. Whoever guesses turns answers as well. The correction takes that paper's model of an
answer: at each point a question is known, and answered right, or not known, and guessed right with probability c,
independently from point to point. The observed table of right and wrong at k points is then the table of known and
unknown with each axis multiplied by

    wrong   [1 − c  0]   unknown
    right   [  c    1]   known

so that the inverse of these matrices, axis by axis, gives the unknown table back without bias: of two points, known at
the first alone is p₁₀/(1 − c) − c·p₀₀/(1 − c)². (The paper takes what guessing adds from the two accuracies, which
needs independence of what is known at the points as well; the joint table does not.) A point may be worse than
guessing, because what it writes is no answer at all; a guess of it is right with at most the probability of a right
answer, so that c is there the share of right answers. Guesses that repeat from point to point, as those of near points
do, turn fewer answers than independent ones: a corrected share is then too low, and below 0 where nothing but such
guesses is left. Means of many are to be taken of what is at least 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from mcanalysis.errors import UserError

__all__ = ["answer_counts", "corrected_share", "guess_rate", "mcnemar"]

_MOST_ANSWERS = 200  # different ones that are compared each with each


def answer_counts(*scores: ArrayLike) -> NDArray[np.int64]:
    """Return how many examples are wrong (0) or right (1) at each of k points: the joint table.

    Args:
        scores: one per point, 0 or 1, of shapes that broadcast to (..., examples). An example that is NaN at any of the
            points is not counted.

    Returns:
        (..., 2, …, 2), an axis per point, in order.

    Raises:
        UserError: for scores that are neither 0 nor 1: graded ones, of which no threshold is natural.

    >>> answer_counts([1, 1, 0, 0], [1, 0, 0, 0]).tolist()  # one stays right, one is lost, two stay wrong
    [[2, 0], [1, 1]]
    """
    arrays = np.broadcast_arrays(*(np.asarray(s, dtype=np.float64) for s in scores))
    graded = [value for a in arrays for value in a[~(np.isin(a, (0.0, 1.0)) | np.isnan(a))].tolist()]
    if graded:
        raise UserError(
            f"Expected scores of 0 or 1, got {graded[0]:g}; count answers of an exact score, such as exact_match: of "
            "graded ones nobody can say where they turn right."
        )
    counts = [
        np.logical_and.reduce([a == value for a, value in zip(arrays, values, strict=True)]).sum(axis=-1)
        for values in product((0, 1), repeat=len(arrays))
    ]
    # NaN equals neither, so that its example is in no cell
    return np.stack(counts, axis=-1).reshape(*arrays[0].shape[:-1], *(2,) * len(arrays))


def corrected_share(
    counts: ArrayLike, known: Sequence[int], guess_rate: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which share of the examples is known at some points and unknown at the others, and its standard error.

    Args:
        counts: (..., 2, …, 2), from `answer_counts`.
        known: per point 1 (known) or 0 (unknown): (1, 0) is what was forgotten between two, (0, 1, 0) what only the
            second of three knows.
        guess_rate: c, the chance that a guess is right, in [0, 1]; 0 gives the plain shares. At a point whose share of
            right answers lies below it by more than two standard errors of guessing that share takes its place: there
            not even a guess is written. Nearer ones are taken for chance, whose lower half would raise what is known.

    Returns:
        Two arrays (...): shares, NaN where no example was counted, where c is NaN, and where all is right and every
        guess would be; their standard errors over examples with the guess rates held fixed, NaN for fewer than two.

    >>> share, error = corrected_share([[30, 10], [20, 40]], (1, 0), 0.25)
    >>> round(float(share), 4), round(float(error), 4)  # 0.2 / 0.75 − 0.25 · 0.3 / 0.75²
    (0.1333, 0.0633)
    """
    counts = np.asarray(counts, dtype=np.float64)
    num_points = len(known)
    first = counts.ndim - num_points
    axes = tuple(range(first, counts.ndim))
    number = counts.sum(axis=axes)
    weights = np.ones(counts.shape)  # what an example in each cell adds: the share is their mean
    with np.errstate(invalid="ignore", divide="ignore"):
        for axis, is_known in zip(axes, known, strict=True):
            right = counts.take(1, axis).sum(axis=tuple(range(first, counts.ndim - 1))) / number
            chance = 2 * np.sqrt(guess_rate * (1 - guess_rate) / number)
            rate = np.where(right < guess_rate - chance, right, guess_rate)
            wrong = np.where(rate < 1, 1.0 - rate, np.nan)
            row = (-rate / wrong, np.ones(number.shape)) if is_known else (1.0 / wrong, np.zeros(number.shape))
            shape = [2 if i == axis else 1 for i in axes]
            weights = weights * np.stack(row, axis=-1).reshape(*number.shape, *shape)
        share = (counts * weights).sum(axis=axes) / number
        spread = np.maximum((counts * weights**2).sum(axis=axes) / number - share**2, 0.0)
        return share, np.sqrt(spread / np.where(number > 1, number - 1, np.nan))


def mcnemar(lost: ArrayLike, gained: ArrayLike) -> NDArray[np.float64]:
    """Return the p-value of McNemar's exact test (1947): could two points be right equally often?

    Of the examples that turned, as many would turn either way: the two-sided binomial test of `lost` among
    `lost` + `gained` at ½. Guessing turns as many either way, too, so that the test needs no correction for it.

    Args:
        lost: counts of any shape.
        gained: counts of a shape that goes with it.

    Returns:
        In (0, 1]; 1 where nothing turned.

    >>> mcnemar([8, 0, 3], [1, 0, 3]).round(4).tolist()
    [0.0391, 1.0, 1.0]
    """
    lost, gained = np.asarray(lost, dtype=np.int64), np.asarray(gained, dtype=np.int64)
    return np.minimum(1.0, 2.0 * bdtr(np.minimum(lost, gained).astype(np.float64), lost + gained, 0.5))


def guess_rate(answers: Sequence[str], score: Callable[[str, str], float]) -> float:
    """Return the chance that the right answer of another example, drawn at random, is right: Σ over pairs i ≠ j.

    It is what guessing gives to one who knows how often each answer occurs, without bias from the number of examples
    (Simpson 1949): 1/k for k answers that are equally frequent, 0 where no two are alike.

    Args:
        answers: of at least two examples. Of more than 200 different ones the first 200 examples are taken.
        score: `(output, reference) -> float`, the task's own.

    Returns:
        In [0, 1]; NaN for fewer than two answers.

    >>> guess_rate(["A", "A", "B", "B"], lambda output, reference: float(output == reference))
    0.3333333333333333
    """
    if len(set(answers)) > _MOST_ANSWERS:
        answers = answers[:_MOST_ANSWERS]
    counts, number = Counter(answers), len(answers)
    if number < 2:
        return float("nan")
    pairs = ((a, b, n * (counts[b] - (a == b))) for a, n in counts.items() for b in counts)
    return sum(weight * score(a, b) for a, b, weight in pairs if weight) / (number * (number - 1))
