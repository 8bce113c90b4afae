"""Accuracy on a numeric answer."""

from __future__ import annotations

import re

from mcanalysis.errors import DataError
from mcanalysis.metrics.scores import Score

TOLERANCE = 1e-6
"""Largest absolute difference that still counts as the same number (the project's method notes, §3)."""

MARK = "####"
"""What GSM8K puts before the result of a worked solution."""

_NUMBER = re.compile(
    r"""
    (?: (?<![A-Za-z0-9_.]) [-+\u2212] )?   # a sign, but not the hyphen of "COVID-19"
    (?: [0-9]{1,3} (?: ,[0-9]{3} )+ (?![0-9])          # 1,234,567
      | [0-9]+ )
    (?: \.[0-9]+ )?
    (?: [eE] [-+]? [0-9]+ (?![A-Za-z0-9_]) )?
    | (?: (?<![A-Za-z0-9_.]) [-+\u2212] )? (?<![A-Za-z0-9_.]) \.[0-9]+   # .5
    """,
    re.VERBOSE,
)


def first_number(text: str) -> float | None:
    """Return the first number written in `text`, or None.

    A number has ASCII digits, an optional sign, decimals after a point, an exponent, and thousands separated
    by commas. "1,234" is 1234, but "1,23" and "1,2345" are 1 followed by something else. A "-" right behind
    an ASCII letter, digit or point is a hyphen, not a sign: "COVID-19" gives 19. Units around a number do not
    matter ("$5", "5kg").

    >>> first_number("about -1,234.5 kg"), first_number("COVID-19"), first_number("Friday")
    (-1234.5, 19.0, None)
    """
    match = _NUMBER.search(text)
    return _value(match.group()) if match else None


def last_number(text: str) -> float | None:
    """Return the last number written in `text`, read as `first_number` reads it, or None.

    >>> last_number("2 + 3 = 5."), last_number("-1,234"), last_number("Friday")
    (5.0, -1234.0, None)
    """
    matches = _NUMBER.findall(text)
    return _value(matches[-1]) if matches else None


def same_number(number: float | None, other: float | None) -> bool:
    """Return whether both are numbers and lie within `TOLERANCE` of each other.

    >>> same_number(1.0, 1.0000001), same_number(None, 1.0)
    (True, False)
    """
    # 1e-6 itself is within, also where binary fractions put the difference a hair above it.
    return number is not None and other is not None and abs(number - other) <= TOLERANCE * (1 + 1e-9)


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if the output gives the number of the reference, else 0.

    If the whole reference is a number, the first number in the output must lie within 1e-6 of it, absolute.
    If it is not ("Friday", "5 kg"), the output must equal it, stripped and without regard to case. Worked solutions,
    whose result stands behind "####", are for `final_number_accuracy`: here they would be compared letter for letter,
    and the first number of a solution is seldom its result.

    Args:
        output: the generated text.
        reference: a number, now and then a word.
        source: not used.

    Returns:
        0.0 or 1.0; an empty output, or one without a number where the reference is one, scores 0.

    Raises:
        DataError: the reference holds "####", the mark before the result of a worked solution.

    >>> score("The answer is 1,234.", "1234"), score("-3", "3"), score(" friday", "Friday")
    (1.0, 0.0, 1.0)
    """
    reference = reference.strip()
    if MARK in reference:
        raise DataError(
            f"Expected a number, got a worked solution with its result behind {MARK} ({reference[:40]!r}…); choose the "
            "score final_number_accuracy."
        )
    if _NUMBER.fullmatch(reference):
        return float(same_number(first_number(output), _value(reference)))
    return float(bool(output.strip()) and output.strip().casefold() == reference.casefold())


def parses(output: str) -> bool:
    """Return whether the output is not empty: a word can be an answer too.

    >>> parses("7"), parses("Friday"), parses(" ")
    (True, True, False)
    """
    return bool(output.strip())


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("\u2212", "-"))


SCORE = Score("number_accuracy", score, parses)
