"""How much of its general ability a model keeps: what it does on tasks that were never trained, against the base.

Retention is 1 at the base, at most 1 everywhere, and 0 where nothing is left. For text without a score it is the ratio
of the geometric means of the tokens' probabilities, min(1, exp(L_base − L)), that is the base's perplexity over the
model's; for a task with a score min(1, score / score_base). What a model does *better* than its base is no retention of
the base's ability, hence the cap: a gain on one general task does not hide a loss on another. A task on which the base
scores 0 has nothing to keep: its retention is NaN, at every point alike, and the mean over tasks leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.metrics.intervals import Estimate, Interval, mean_interval, weighted

__all__ = ["loss_retention", "mean_retention", "retention_estimate", "retention_interval", "score_retention"]


def loss_retention(loss: ArrayLike, base_loss: ArrayLike) -> NDArray[np.float64]:
    """Return min(1, exp(L_base − L)): which share of the base's probability per token is left.

    Args:
        loss: any shape, nats per target token.
        base_loss: the base's on the same tokens, of a shape that goes with it.

    Returns:
        In [0, 1]; 0 for an infinite loss, NaN for a NaN one.

    >>> loss_retention([1.0, 1.0 + np.log(2), 0.5], 1.0).round(3).tolist()
    [1.0, 0.5, 1.0]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.exp(np.asarray(base_loss, dtype=np.float64) - np.asarray(loss, dtype=np.float64))
    return np.minimum(ratio, 1.0)


def score_retention(score: ArrayLike, base_score: ArrayLike) -> NDArray[np.float64]:
    """Return min(1, score / score_base): which share of the base's score is left.

    Args:
        score: any shape, in [0, 1].
        base_score: the base's on the same examples, of a shape that goes with it.

    Returns:
        In [0, 1]; NaN where the base scores 0.

    >>> score_retention([0.2, 0.6, 0.9], 0.8).round(3).tolist()
    [0.25, 0.75, 1.0]
    """
    base = np.asarray(base_score, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(score, dtype=np.float64) / base
    return np.where(base > 0, np.minimum(ratio, 1.0), np.nan)[()]


def retention_estimate(estimate: Estimate, *, is_score: bool) -> Estimate:
    """Return the retention at each point from the means at these points and, as the last one, at the base.

    All are of the same examples, drawn together: what is hard is hard for the base as well. How much each example moves
    the ratio is taken to first order (the delta method), and where it is cut at 1 as at a ratio of 1.

    Args:
        estimate: losses, or scores if `is_score`, at the n points and at the base: n + 1.

    Returns:
        An estimate of n points.

    >>> from mcanalysis.metrics.bootstrap import Sample
    >>> losses = Estimate.of(Sample([[2.0, 4.0], [1.0, 3.0]], [2, 2]))
    >>> retention_estimate(losses, is_score=False).point.round(4).tolist()
    [0.6065]
    """
    kept = score_retention if is_score else loss_retention
    point = kept(estimate.point[:-1], estimate.point[-1])
    of_points, of_base = estimate.influence[:, :-1], estimate.influence[:, [-1]]
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = (of_points - point * of_base) / estimate.point[-1] if is_score else point * (of_base - of_points)
    return Estimate(
        point, moved, lambda: kept(estimate.resampled[:, :-1], estimate.resampled[:, [-1]]), estimate.smallest, np.nan
    )


def mean_retention(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the mean over tasks, each weighing the same; None where no task has a retention.

    Tasks on which the base scores 0 have none, wherever they are measured, and are left out.
    """
    known = [estimate for estimate in estimates if not np.isnan(estimate.point).all()]
    return weighted([(1 / len(known), estimate) for estimate in known]) if known else None


def retention_interval(estimate: Estimate) -> Interval:
    """Return the 95 % intervals over examples of retentions, (points,), in [0, 1]."""
    found = mean_interval(estimate, least=0.0)
    return found._replace(low=np.minimum(found.low, 1.0), high=np.minimum(found.high, 1.0))
