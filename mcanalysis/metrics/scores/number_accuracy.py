"""Accuracy on a numeric answer."""

from __future__ import annotations

import math
import re

from mcanalysis.errors import DataError
from mcanalysis.metrics.scores import Score
from mcanalysis.metrics.scores.exact_match import decided as has_left
from mcanalysis.metrics.scores.exact_match import parses  # a word can be an answer, too

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
# A number that the end of the text may have cut; its sign, and the digits that it begins with whatever follows.
_OPEN = re.compile(r"([-+\u2212]?)([0-9]*(?:\.[0-9]*)?)(?:,[0-9]{0,3})*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]*)?\Z")


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
        reference: a number, now and then a word.

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


def decided(beginning: str, reference: str) -> bool:
    """Return whether it is known if an output that begins so gives the number of the reference.

    The first number is complete, or whatever follows it cannot become that of the reference. Where the reference is
    no number, the output has left it.

    >>> decided("7 ", "7"), decided("7", "7"), decided("1", "7"), decided("1", "12"), decided("It is", "7")
    (True, False, True, False, False)
    """
    reference = reference.strip()
    if not _NUMBER.fullmatch(reference):
        return has_left(beginning.casefold(), reference.casefold())
    match = _NUMBER.search(beginning)
    if match is None:
        return False
    cut = _OPEN.match(beginning, match.start())
    return cut is None or not _may_become(cut[1], cut[2], _value(reference))


def _may_become(sign: str, digits: str, number: float) -> bool:
    """Whether a number that begins with this sign and these digits may be within `TOLERANCE` of `number`; or True.

    With d the digits as a whole number it lies between d and d + 1 times a power of ten, since decimals, thousands and
    an exponent may follow.
    """
    if not math.isfinite(number):
        return False
    size, leading = abs(number), digits.replace(".", "").lstrip("0")[:15]
    if size < 10 * TOLERANCE or not leading:
        return True
    if (number < 0) != (sign in ("-", "\u2212")):
        return False
    low, slack = int(leading), 2 * TOLERANCE + 1e-9 * size
    power = math.floor(math.log10(size / low))
    return any(
        float(f"{low}e{k}") - slack <= size <= float(f"{low + 1}e{k}") + slack for k in (power - 1, power, power + 1)
    )


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("\u2212", "-"))


SCORE = Score("number_accuracy", score, parses, decided, is_exact=True)
