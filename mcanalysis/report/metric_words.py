"""What each metric of a sequence of tasks says, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Words(NamedTuple):
    """`better`: which way is better; `undefined`: why there may be no value."""

    title: str
    says: str
    better: str
    undefined: str = "needs at least two tasks, learned one after another"


_AGAINST_REFERENCE = "needs a joint or individual run of the same seed: python analyses/compare.py has it in its table"

METRICS: Mapping[str, Words] = {
    "average_accuracy": Words("Average accuracy", "Mean score over all tasks at the end.", "higher"),
    "backward_transfer": Words(
        "Backward transfer",
        "How the scores of earlier tasks changed between learning them and the end; below 0 is forgetting.",
        "higher",
    ),
    "forgetting": Words(
        "Forgetting", "Fall from the best score each earlier task ever had to its score at the end.", "lower"
    ),
    "learning_accuracy": Words(
        "Learning accuracy", "Mean score of each task right after it was learned (plasticity).", "higher"
    ),
    "average_anytime_accuracy": Words(
        "Average anytime accuracy", "Mean score on the tasks seen so far, averaged over the sequence.", "higher"
    ),
    "forward_transfer": Words(
        "Forward transfer", "What earlier tasks did for a task before it was learned, against the base model.", "higher"
    ),
    "stability": Words(
        "Stability", "Share of what was learned that is still there at the end, as a mean of ratios.", "higher"
    ),
    "stability_skipped": Words(
        "Tasks left out of stability", "Tasks whose score right after learning was 0, so that no ratio exists.", ""
    ),
    "intransigence": Words(
        "Intransigence", "How far learning fell short of a reference model.", "lower", _AGAINST_REFERENCE
    ),
    "relative_gain": Words(
        "Relative gain", "Mean ratio of the final scores to those of a reference model.", "higher", _AGAINST_REFERENCE
    ),
}
