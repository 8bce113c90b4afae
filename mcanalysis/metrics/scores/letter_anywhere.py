"""Accuracy on the letter that a chat model's answer states, wherever it stands."""

from __future__ import annotations

import re

from mcanalysis.errors import DataError
from mcanalysis.metrics.scores import Score

# A letter or digit of a script that is written with spaces: Chinese and Japanese characters do not belong to "B".
_W = r"[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
# A–Z that is no part of a word, of "T-shirt", "it's", "U.S.", "C++", "A/C" left to the lists, nor an accented letter.
_ALONE = rf"(?<!{_W})(?<!{_W}[-'’])(?<![A-Z]\.)([A-Z])(?!{_W}|[\u0300-\u036f]|[-'’]{_W}|\.[A-Z](?!{_W})|[+#])"
_OPENING = r"(?:[\s*_`\"'“”‘’(\[{<$（【「《:：]|\\[a-z]+(?=\{))*"  # brackets, quotes, Markdown, \boxed{
_SENTENCE = re.compile(r"(?:\A|[.!?\n])[\s*_`\"'“”‘’]*\Z")
# "A" at the start of a sentence before a word in small letters is an article, except before these.
_ARTICLE = re.compile(r"\s+(?!(?:is|was|and|or|but|because|since|as|would|seems|looks)\b)[a-z]")
_PRONOUN = re.compile(r"\s+(?!(?:is|was)\b)[a-z]")
_PROSE = re.compile(r"[ \t]+[a-z]")
_NEGATED = re.compile(
    r"(?:\b(?:not|isn['’]t|never|neither|nor)|不是|不选|不選|并非|而非)\s*[*(（\"'“]*\Z", re.IGNORECASE
)
_CANDIDATE = re.compile(_ALONE)
_START = re.compile(rf"\A{_OPENING}{_ALONE}")
_CUE = re.compile(
    rf"(?:(?i:\b(?:answer|(?:correct|right|best|final|my)\s+(?:option|choice|letter))\b"
    rf"(?:\s*(?:is|was|would\s+be|must\s+be|should\s+be)\b)?(?:\s*[:：])?(?:\s*(?:option|choice|letter)\b)?)"
    rf"|(?:答案|选择|選擇|选|選)(?:应该|應該|应|應)?(?:是|为|為)?){_OPENING}{_ALONE}"
)
_CLOSING = r"[\s*_)\]）】.]*"
_LIST = re.compile(rf"{_CLOSING}(?:,|/|&|、|和|或|\band\b|\bor\b)\s*(?:or\s+|and\s+)?{_OPENING}{_ALONE}")
# Behind a letter at the start: no more of its word, no word in small letters, and no list ("a", "o": "and", "or").
_SETTLED = re.compile(rf"(?=...)(?!\s*[a-z])(?!\s*\Z){_CLOSING}(?![\s*_)\]）】.]|\Z|[,/&、和或ao])", re.DOTALL)


def stated_letter(text: str) -> str | None:
    """Return the capital letter A–Z that `text` states as its answer, or None.

    Only letters that stand alone count: no part of a word, a contraction, a compound with a hyphen, an abbreviation
    ("Because", "I'm", "B-cell", "U.S."). Chinese and Japanese characters may touch them ("选B项"). Of these, in order:

    1. The one the text starts with, brackets, quotes and Markdown aside, if no word in small letters follows: "(B)",
       "**B**", "B. The second", and "B" on a line of its own before more text.
    2. The one behind the last cue, "answer", "correct choice", "best option" and the like, with or without "is" and a
       colon, or "答案", "选", "选择": "The answer is B", "D is wrong, the answer is B", "答案：B".
    3. The one the text starts with, whatever follows: "B is better than C".
    4. The only one there is, if all that are left agree: "I think C", "so it must be C, yes, C".

    Left out are "I" before a word in small letters, "A" as an article (it begins a sentence, and a word in small
    letters follows that is not "is", "and", "because" or the like), and what a negation stands right before: "not B but
    C" states C. A letter that 1 to 3 would take and that begins a list ("B and C", "A, B") states nothing, nor do two
    letters under 4. Where only an article is left it is A after all, as for `accuracy`: "A cat" is A, but "A cat is B"
    is B.

    >>> [stated_letter(text) for text in ("(B)", "**B**", "The answer is B.", "答案：B", "A cat is B", "not B but C")]
    ['B', 'B', 'B', 'B', 'B', 'C']
    >>> [stated_letter(text) for text in ("B or C", "Because", "It is not B", "")]
    [None, None, None, None]
    """
    text = text.strip()
    first = _START.match(text)
    starts = [first] if first and _counts(text, first) else []
    free = [match for match in starts if not _PROSE.match(text, match.end())]
    cues = [cue for cue in _CUE.finditer(text) if _counts(text, cue)]
    chosen = next(iter([*free, *cues[-1:], *starts]), None)
    if chosen is not None:
        return None if _LIST.match(text, chosen.end()) else chosen[1]
    alone = list(_CANDIDATE.finditer(text))
    left = {match[1] for match in alone if _counts(text, match)}
    if left:
        return left.pop() if len(left) == 1 else None
    return "A" if any(_is_article(text, match) for match in alone) else None


def score(output: str, reference: str, source: str = "") -> float:
    """Return 1 if the output states the answer letter of the reference, else 0.

    Both are read by `stated_letter`. For outputs of chat models; `accuracy`, which wants the letter first, is the rule
    for models that were trained to give it, and never takes a letter out of a sentence.

    Args:
        reference: states the right letter, such as "B", "(B)" or "B\\nreason".

    Returns:
        0.0 or 1.0; an output that states no letter scores 0.

    Raises:
        DataError: the reference states no letter.

    >>> score("The answer is (B).", "B"), score("Because", "B"), score("B or C", "B")
    (1.0, 0.0, 0.0)
    """
    letter = stated_letter(reference)
    if letter is None:
        raise DataError(
            f"Expected a reference that states an answer letter A–Z, got {reference[:40]!r}; correct the data, or "
            "choose another score such as exact_match."
        )
    return float(stated_letter(output) == letter)


def parses(output: str) -> bool:
    """Return whether the output states an answer letter.

    >>> parses("It is C"), parses("C or D")
    (True, False)
    """
    return stated_letter(output) is not None


def decided(beginning: str, reference: str) -> bool:
    """Return whether the letter that an output states is known by how it begins.

    It is where `stated_letter` takes the letter that the text starts with whatever follows (its rule 1): with no word
    in small letters behind it, and no list begun. Else a later letter may be the one.

    >>> [decided(text, "B") for text in ("(B) The", "**B**: x", "B", "B.", "B or", "B is", "The answer is B. So")]
    [True, True, False, False, False, False, False]
    """
    beginning = beginning.lstrip()
    first = _START.match(beginning)
    return first is not None and _counts(beginning, first) and bool(_SETTLED.match(beginning, first.end()))


def _counts(text: str, match: re.Match[str]) -> bool:
    """Whether a letter that stands alone is no article, no pronoun and not negated."""
    start, end = match.span(1)
    is_pronoun = match[1] == "I" and _PRONOUN.match(text, end)
    return not (_is_article(text, match) or is_pronoun or _NEGATED.search(text, 0, start))


def _is_article(text: str, match: re.Match[str]) -> bool:
    start, end = match.span(1)
    return match[1] == "A" and bool(_ARTICLE.match(text, end) and _SENTENCE.search(text, 0, start))


SCORE = Score("letter_anywhere", score, parses, decided, is_exact=True)
