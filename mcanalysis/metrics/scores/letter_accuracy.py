"""Accuracy on the answer letter of a multiple-choice question."""

from __future__ import annotations

import unicodedata

from mcanalysis.errors import DataError
from mcanalysis.metrics.scores import Score


def answer_letter(text: str) -> str | None:
    """Return the capital letter A–Z that `text` starts with, or None.

    White space in front is ignored. The letter must stand alone: the end of the text, or a character that is
    no letter, digit or combining mark of any script, follows it. "Because" is not B, "A选" is not A, "a" is
    not A.

    >>> answer_letter(" B. The second"), answer_letter("Because"), answer_letter("A\\nreason")
    ('B', None, 'A')
    """
    text = text.strip()
    if not "A" <= text[:1] <= "Z":
        return None
    following = text[1:2]
    if following and (following.isalnum() or unicodedata.category(following).startswith("M")):
        return None
    return text[0]


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if the output starts with the answer letter of the reference, else 0.

    Both are read by `answer_letter`: what follows the letter (a reason, the option's text) does not count.

    Args:
        reference: starts with the right letter, such as "A" or "A\\nreason".

    Returns:
        0.0 or 1.0; an output that starts with no letter scores 0.

    Raises:
        DataError: the reference starts with no answer letter.

    >>> score("B", "B"), score("Because", "B"), score("", "B")
    (1.0, 0.0, 0.0)
    """
    letter = answer_letter(reference)
    if letter is None:
        raise DataError(
            f"Expected a reference that starts with an answer letter A–Z, got {reference[:40]!r}; "
            "correct the data, or choose another score such as exact_match."
        )
    return float(answer_letter(output) == letter)


def parses(output: str) -> bool:
    """Return whether the output starts with an answer letter.

    >>> parses("C) it is"), parses("It is C")
    (True, False)
    """
    return answer_letter(output) is not None


def decided(beginning: str, reference: str) -> bool:
    """Return whether it is known if an output that begins so starts with the answer letter of the reference.

    At the first character that is no white space, if it is another; else at the one behind it, which says whether the
    letter stands alone.

    >>> decided("A", "B"), decided("B", "B"), decided("B.", "B"), decided(" \\n", "B")
    (True, False, True, False)
    """
    beginning = beginning.lstrip()
    return bool(beginning) and (len(beginning) > 1 or beginning != answer_letter(reference))


SCORE = Score("accuracy", score, parses, decided, is_exact=True)
