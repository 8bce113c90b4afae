"""Exact match of the whole answer."""

from __future__ import annotations

from mcanalysis.metrics.scores import Score


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if the output equals the reference, both stripped of outer white space, else 0.

    Args:
        output: the generated text.
        reference: the answer; case and inner white space count.
        source: not used.

    Returns:
        0.0 or 1.0; an empty output scores 0, even against an empty reference.

    >>> score(" yes\\n", "yes"), score("Yes", "yes"), score("", "")
    (1.0, 0.0, 0.0)
    """
    output = output.strip()
    return float(bool(output) and output == reference.strip())


def parses(output: str) -> bool:
    """Return whether the output is not empty.

    >>> parses("x"), parses(" ")
    (True, False)
    """
    return bool(output.strip())


SCORE = Score("exact_match", score, parses)
