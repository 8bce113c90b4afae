"""How much of a change of a score is format, and how much is skill: answers that cannot be read, and wrong ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ScoreChange", "score_change"]


class ScoreChange(NamedTuple):
    """Two parts of a change, of one shape, that add up to it."""

    by_format: NDArray[np.float64]
    by_skill: NDArray[np.float64]


def score_change(
    parsable: ArrayLike, skill: ArrayLike, parsable_before: ArrayLike, skill_before: ArrayLike
) -> ScoreChange:
    """Split the change of a score, which is parsable · skill, into what each factor's change makes of it.

    Each part is the change of one factor times the mean of the other (Shapley's value of two): p·s − p₀·s₀ =
    (p − p₀)·½(s + s₀) + (s − s₀)·½(p + p₀), exactly, whichever came first.

    Args:
        parsable: share of the outputs that can be read, in [0, 1], of any shape.
        skill: mean score of these, in [0, 1]; NaN where there are none, and then taken as it is at the other point, so
            that all of the change is format.
        parsable_before: the same before, of a shape that goes with it.
        skill_before: the same before.

    >>> change = score_change(0.5, 0.5, 1.0, 1.0)
    >>> float(change.by_format), float(change.by_skill)
    (-0.375, -0.375)
    """
    p, s, p0, s0 = (np.asarray(x, dtype=np.float64) for x in (parsable, skill, parsable_before, skill_before))
    s, s0 = np.where(np.isnan(s), s0, s), np.where(np.isnan(s0), s, s0)
    s, s0 = np.nan_to_num(s), np.nan_to_num(s0)  # no answer at either point can be read
    return ScoreChange((p - p0) * (s + s0) / 2, (s - s0) * (p + p0) / 2)
