"""Exact match of the whole answer, without regard to its spelling in Unicode, its case and its white space."""

from __future__ import annotations

import unicodedata

from mcanalysis.metrics.scores import Score
from mcanalysis.metrics.scores.exact_match import parses


def normalize(text: str) -> str:
    """Return the text case-folded in composed form (NFC), with runs of white space as one space and none outside.

    Case folding is Unicode's ("ß" becomes "ss"). NFC is applied again after it, because folding may decompose.

    >>> normalize("  Cafe\\u0301  STRASSE") == normalize("café straße")
    True
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if output and reference are alike after `normalize`, else 0.

    For tokenizers that lower-case or compose their input, with which `exact_match` can be out of every model's reach.

    Args:
        reference: the answer; punctuation and accents count.

    Returns:
        0.0 or 1.0; an empty output scores 0, even against an empty reference.

    >>> score("paris", "Paris"), score("Paris.", "Paris"), score("", "")
    (1.0, 0.0, 0.0)
    """
    output = normalize(output)
    return float(bool(output) and output == normalize(reference))


def decided(beginning: str, reference: str) -> bool:
    """Return whether no output that begins so equals the reference after `normalize`.

    Its last character that is no combining mark is left out, with the marks behind it: more of them may come, and be
    composed with it.

    >>> decided("Lond", "Paris"), decided("parís", "Paris"), decided("Pari", "Paris"), decided("Paris. It", "Paris")
    (True, True, False, True)
    """
    reference = normalize(reference)
    composed = unicodedata.normalize("NFC", beginning)
    last = max((i for i, character in enumerate(composed) if not unicodedata.combining(character)), default=0)
    return not reference or not reference.startswith(normalize(composed[:last]))


SCORE = Score("exact_match_normalized", score, parses, decided, is_exact=True)
