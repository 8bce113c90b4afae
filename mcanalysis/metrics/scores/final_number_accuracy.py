"""Accuracy on the result of a worked solution."""

from __future__ import annotations

import re

from mcanalysis.errors import DataError
from mcanalysis.metrics.scores import Score
from mcanalysis.metrics.scores.number_accuracy import MARK, first_number, last_number, same_number

_ANSWER_IS = re.compile(r"\banswer\s+is\b", re.IGNORECASE)


def final_number(text: str) -> float | None:
    """Return the number that `text` ends up with, or None where it holds no number.

    It is the first number behind the last "####"; without one there, the first number behind the last "answer is";
    without that, the last number of all. Numbers are read as `first_number` reads them.

    Sources: "####" is the mark of GSM8K (Cobbe et al. 2021), whose own evaluation takes the number behind the first one
    and nothing else; the last number is what `flexible-extract` of the lm-evaluation-harness takes; "the answer is"
    ends the solutions of chain-of-thought prompts (Wei et al. 2022).

    >>> final_number("2 + 3 = 5\\n#### 5"), final_number("The answer is 5, not 6."), final_number("so 2 + 3 makes 5")
    (5.0, 5.0, 5.0)
    """
    marks = [text.rpartition(MARK)[2]] if MARK in text else []
    marks += [text[match.end() :] for match in list(_ANSWER_IS.finditer(text))[-1:]]
    return next((n for part in marks if (n := first_number(part)) is not None), last_number(text))


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if output and reference end up with the same number, else 0.

    Both are read by `final_number` and must lie within 1e-6 of each other, absolute.

    Args:
        reference: a worked solution, or a number.

    Returns:
        0.0 or 1.0; an output without a number scores 0.

    Raises:
        DataError: the reference holds no number.

    >>> score("3 apples and 2 make 5.", "3 + 2 = 5\\n#### 5"), score("5 apples less 2 are 3", "#### 5")
    (1.0, 0.0)
    """
    number = final_number(reference)
    if number is None:
        raise DataError(
            f"Expected a reference that holds a number, got {reference[:40]!r}; correct the data, or choose another "
            "score such as number_accuracy, which takes words too."
        )
    return float(same_number(final_number(output), number))


def parses(output: str) -> bool:
    """Return whether the output holds a number.

    >>> parses("so it is 7"), parses("Friday")
    (True, False)
    """
    return last_number(output) is not None


SCORE = Score("final_number_accuracy", score, parses, is_exact=True)
