"""Exact match of the whole answer, without regard to its spelling in Unicode, its case and its white space."""

from __future__ import annotations

import unicodedata

from mcanalysis.metrics.scores import Score


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
        output: the generated text.
        reference: the answer; punctuation and accents count.
        source: not used.

    Returns:
        0.0 or 1.0; an empty output scores 0, even against an empty reference.

    >>> score("paris", "Paris"), score("Paris.", "Paris"), score("", "")
    (1.0, 0.0, 0.0)
    """
    output = normalize(output)
    return float(bool(output) and output == normalize(reference))


def parses(output: str) -> bool:
    """Return whether the output is not empty.

    >>> parses("x"), parses(" ")
    (True, False)
    """
    return bool(output.strip())


SCORE = Score("exact_match_normalized", score, parses)
