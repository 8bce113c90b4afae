"""Which answers no model can give: the tokenizer changes them, the limit of generation cuts them, or they are empty.

What a model writes that does everything right is the answer's own tokens, read back. Where even that scores less than
the answer does against itself, the score says something about the data's form and nothing about the model. Losses are
right all the same: they are taken over the tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.end_tokens import end_ids, text_until
from mcanalysis.tasks.task import Example, Task

logger = logging.getLogger(__name__)

SHARE = 0.95
"""An answer is out of reach where its tokens, read back, score below this share of what it scores itself. A score of 0
or 1 has nothing between; one of long texts loses a few hundredths to a last word that is cut off."""

NORMALIZED = "exact_match_normalized"


@dataclass(frozen=True)
class Reach:
    """How many answers of a split are out of reach, by cause, and what is left for a model that does everything right.

    `empty` ones score 0 against themselves; `cut` ones would be given back whole with `longest` new tokens;
    `changed` ones the tokenizer does not give back. `score`, in [0, 1]: the mean score of the answers' own tokens.
    `normalized`: whether the score `exact_match_normalized` takes all `changed` ones for right.
    """

    num_examples: int
    empty: int = 0
    cut: int = 0
    changed: int = 0
    longest: int = 0
    score: float = 1.0
    normalized: bool = False

    @property
    def unreachable(self) -> int:
        """How many answers are out of reach."""
        return self.empty + self.cut + self.changed


def reach(task: Task, examples: Sequence[Example], encoded: Sequence[EncodedExample], tokenizer: Any) -> Reach:
    """Score every answer's tokens, cut to the task's limit and decoded, against the answer, with the task's score.

    The rule is `SHARE`, and an answer that scores 0 against itself is out of reach. `encoded` are the examples' tokens
    in order, as `encode_all` gives them. What is given back letter for letter counts as 1 in the mean.
    """
    score, ends = get_score(task.score), end_ids(tokenizer)
    counts, longest, total, normalized = {"empty": 0, "cut": 0, "changed": 0}, 0, 0.0, True
    for example, of_example in zip(examples, encoded, strict=True):
        answer, ids = example.answer, of_example.answer_ids
        source = task.source(example.prompt)
        given, uncut = (text_until(tokenizer, part, ends) for part in (ids[: task.max_new_tokens], ids))
        if given == answer and score.parses(answer):  # nearly all of them
            total += 1
            continue
        try:
            own, of_given, of_uncut = (score.per_example(text, answer, source) for text in (answer, given, uncut))
        except UserError:  # a reference that the score cannot read; it is refused where it is scored
            continue
        total += of_given
        if own == 0:
            counts["empty"] += 1
        elif of_uncut < SHARE * own:
            counts["changed"] += 1
            normalized &= get_score(NORMALIZED).per_example(given, answer) == 1
        elif of_given < SHARE * own:
            counts["cut"] += 1
            longest = max(longest, len(ids) - 1)  # an end token need not be written
    normalized &= counts["changed"] > 0
    return Reach(len(examples), **counts, longest=longest, score=total / len(examples), normalized=normalized)


def warn_of_unreachable(task: Task, split: str, found: Reach) -> None:
    """Say in one line, once for each finding, how many answers are out of reach, why, and what to do."""
    if not found.unreachable:
        return
    reasons = []
    if found.cut:
        reasons.append(
            f"{found.cut} longer than the limit of {task.max_new_tokens}, raise --max-new-tokens to {found.longest}"
        )
    if found.changed:
        remedy = f"choose the score {NORMALIZED}" if found.normalized else "choose another score"
        reasons.append(f"{found.changed} that the tokenizer does not give back as they are written, {remedy}")
    if found.empty:
        reasons.append(f"{found.empty} empty for the score {task.score}, remove them")
    which = "all" if found.unreachable == found.num_examples else str(found.unreachable)
    line = (
        f"{task.name}, {split} split: {which} of {found.num_examples} answers cannot be scored right, whatever the "
        f"model: {'; '.join(reasons)}. At best {task.score} is about {found.score:.2g}; losses are right"
    )
    if line not in _warned:
        _warned.add(line)
        logger.warning("%s", line)


_warned: set[str] = set()  # objectives are made anew in many places
