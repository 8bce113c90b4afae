"""ROUGE-L F1 for any language."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from mcanalysis.metrics.scores import Score

# Scripts written without spaces between words: each character is a token of its own.
_UNSPACED = (
    (0x3005, 0x3007),  # 々 〆 〇
    (0x3041, 0x30FF),  # Hiragana and Katakana
    (0x31F0, 0x31FF),  # Katakana extensions
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9F),  # Katakana, half width
    (0x20000, 0x323AF),  # Han, extensions B and later
)


def tokenize(text: str) -> list[str]:
    """Return the lower-cased words of `text`, with each Chinese or Japanese character as a word of its own.

    A word is a run of letters, digits and combining marks of any script, after composing accents (NFC); all
    else separates, the underscore too. Korean is written with spaces and is split at them. On ASCII text this
    equals the default tokeniser of `rouge_score` without stemming.

    >>> tokenize("Größe_2: 你好, it's")
    ['größe', '2', '你', '好', 'it', 's']
    """
    spaced: list[str] = []
    for character in unicodedata.normalize("NFC", text.lower()):
        if unicodedata.category(character)[0] not in "LNM":
            spaced.append(" ")
        elif _is_unspaced(character):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    return "".join(spaced).split()


def score(output: str, reference: str, source: str = "") -> float:
    """Return the F1 of precision and recall of the longest common subsequence of tokens.

    With L the length of that subsequence: P = L / tokens of the output, R = L / tokens of the reference, F1 =
    2PR / (P + R), of the whole text as one sequence. Source: Lin 2004 ("ROUGE: a package for automatic
    evaluation of summaries"), computed by `rouge_score` on the tokens of `tokenize`, without stemming.

    Args:
        reference: the summary it is compared with.

    Returns:
        A float in [0, 1]; 0 when either has no token.

    >>> score("The cat sat.", "the cat sat down here now")
    0.6666666666666666
    """
    return float(_scorer().score(reference, output)["rougeL"].fmeasure)


def parses(output: str) -> bool:
    """Return whether the output has at least one token.

    >>> parses("ok"), parses("?!")
    (True, False)
    """
    return bool(tokenize(output))


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return code >= 0x3005 and any(low <= code <= high for low, high in _UNSPACED)


class _Tokenizer:
    """What `rouge_score` asks of a tokeniser."""

    def tokenize(self, text: str) -> list[str]:
        return tokenize(text)


@functools.cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # takes half a second: it imports nltk

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Tokenizer())


SCORE = Score("rouge_l", score, parses)
