"""Edit similarity of code."""

from __future__ import annotations

import re

from mcanalysis.metrics.scores import Score

# What CodeXGLUE puts in place of rare literals; a string's quotes stay outside the mask.
_RARE = {"<NUM_LIT>": "0", "<STR_LIT>": "", "<CHAR_LIT>": ""}
_FREQUENT = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def unmask(code: str) -> str:
    """Return code with its masked literals written out, stripped of outer white space.

    `<STR_LIT:x>` and `<NUM_LIT:x>` become x, `<NUM_LIT>` becomes 0 and `<STR_LIT>` nothing: the quotes of a
    string stand outside its mask, so none are added. A literal ends at the first ">".

    >>> unmask('f ( "<STR_LIT:utf-8>" , <NUM_LIT:10> , <NUM_LIT> , "<STR_LIT>" )')
    'f ( "utf-8" , 10 , 0 , "" )'
    """
    for mask, literal in _RARE.items():
        code = code.replace(mask, literal)
    return _FREQUENT.sub(r"\1", code).strip()


def score(output: str, reference: str, source: str = "") -> float:
    """Return how few insertions and deletions of characters turn the output into the reference.

    With L the length of the longest common subsequence of characters: 2L / (characters of the output +
    characters of the reference), after `unmask` of both. Source: CodeXGLUE (Lu et al. 2021), whose evaluation
    TRACE follows. They take `fuzz.ratio` of `fuzzywuzzy`, rounded to whole per cent; this is that of
    `rapidfuzz`, unrounded. Where `fuzzywuzzy` falls back on `difflib` it can miss the longest common
    subsequence and give less.

    Args:
        reference: the next line.

    Returns:
        A float in [0, 1]; 0 when either is empty after `unmask`.

    >>> score("return a", "return b"), score("x = <NUM_LIT:1>", "x = 1"), score("", "pass")
    (0.875, 1.0, 0.0)
    """
    from rapidfuzz.distance import Indel  # only when code is scored

    output, reference = unmask(output), unmask(reference)
    return Indel.normalized_similarity(output, reference) if output and reference else 0.0


def parses(output: str) -> bool:
    """Return whether the output is not empty after `unmask`.

    >>> parses("pass"), parses(" ")
    (True, False)
    """
    return bool(unmask(output))


SCORE = Score("edit_similarity", score, parses)
