"""Barriers, intervals, continual-learning metrics and text scores: pure functions on arrays and strings."""

from mcanalysis.metrics.barriers import (
    balanced_score,
    chord_barrier,
    chord_dip,
    interpolation_gain,
    max_barrier,
    mean_barrier,
    t_star,
)
from mcanalysis.metrics.bootstrap import (
    Sample,
    bootstrap_interval,
    paired_difference_interval,
    percentile_interval,
    resampled_means,
)
from mcanalysis.metrics.continual import (
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
from mcanalysis.metrics.scores import SCORES, Score, get_score

__all__ = [
    "SCORES",
    "Sample",
    "Score",
    "average_accuracy",
    "average_anytime_accuracy",
    "backward_transfer",
    "balanced_score",
    "bootstrap_interval",
    "chord_barrier",
    "chord_dip",
    "continual_metrics",
    "forgetting",
    "forward_transfer",
    "get_score",
    "interpolation_gain",
    "intransigence",
    "learning_accuracy",
    "max_barrier",
    "mean_barrier",
    "paired_difference_interval",
    "percentile_interval",
    "relative_gain",
    "resampled_means",
    "stability",
    "stability_skipped",
    "t_star",
]
