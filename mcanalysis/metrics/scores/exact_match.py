"""Exact match of the whole answer."""

from __future__ import annotations

from mcanalysis.metrics.scores import Score


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if the output equals the reference, both stripped of outer white space, else 0.

    Args:
        reference: the answer; case and inner white space count.

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


def decided(beginning: str, reference: str) -> bool:
    """Return whether no output that begins so equals the reference, white space outside aside.

    It has left the reference, or goes on behind it, or the reference is empty, which nothing equals.

    >>> decided("yes, a", "yes"), decided("Y", "yes"), decided(" ye", "yes"), decided("yes ", "yes")
    (True, True, False, False)
    """
    beginning, reference = beginning.lstrip(), reference.strip()
    common = min(len(beginning), len(reference))
    return not reference or beginning[:common] != reference[:common] or bool(beginning[common:].strip())


SCORE = Score("exact_match", score, parses, decided, is_exact=True)
