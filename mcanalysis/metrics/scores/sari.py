"""SARI: did a simplification keep, delete and add the right words?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from mcanalysis.errors import UserError
from mcanalysis.metrics.scores import Score

MAX_ORDER = 4
"""n-grams of 1 to 4 tokens, as in Xu et al. 2016."""

_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# ASCII symbols that always stand alone; the apostrophe never does, and . , - depend on digits.
_SYMBOL = re.compile(r"""[!"#$%&()*+/:;<=>?@\[\\\]^_`{|}~]""")
_MARK_AFTER_NON_DIGIT = re.compile(r"([^0-9])([.,])")
_MARK_BEFORE_NON_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])-")


def tokenize(text: str) -> list[str]:
    """Return lower-cased tokens with punctuation split off, by the rules of NIST mteval-v13a ("13a").

    Lower-case; a hyphen at a line's end joins the lines; `&quot; &amp; &lt; &gt;` become characters; ASCII
    symbols stand alone; "." and "," do unless between two digits; "-" does behind a digit; white space
    separates the rest. Letters outside ASCII are left as they are, so Chinese is not split.

    >>> tokenize("Über 1,5 Mio. (ca. 20-30 %)")
    ['über', '1,5', 'mio', '.', '(', 'ca', '.', '20', '-', '30', '%', ')']
    """
    text = text.lower().replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = _SYMBOL.sub(r" \g<0> ", f" {text} ")
    text = _MARK_AFTER_NON_DIGIT.sub(r"\1 \2 ", text)
    text = _MARK_BEFORE_NON_DIGIT.sub(r" \1 \2", text)
    text = _DASH_AFTER_DIGIT.sub(r"\1 - ", text)
    return text.split()


def sari(source: str, output: str, references: Sequence[str]) -> float:
    """Return the SARI of one output against one or more references.

    For each n = 1…4 the n-grams of source, output and references are compared: F1 of the n-grams kept,
    precision of the ones deleted, F1 of the ones added; SARI is the mean of the three, each first averaged
    over n. Source: Xu et al. 2016 ("Optimizing statistical machine translation for text simplification"). The
    numbers are those of Hugging Face's `sari` divided by 100:

    - Tokens: `tokenize` (lower-cased, 13a).
    - Kept and deleted n-grams count with multiplicity, those of source and output times the number of
      references; added ones count as a set. Precisions of kept and deleted are means over distinct n-grams,
      the recall of kept is over occurrences.
    - 0/0 = 1: where there is nothing to keep, delete or add, and nothing was, that part is 1. F1 is 0 when
      precision and recall both are 0.
    - An output that equals the reference and not the source gives 1, unless an n-gram is *less often* in it
      than in the source and yet still there: the published deletion rule gives such an n-gram part credit
      only.

    Args:
        source: the sentence or paragraph to simplify, without the instruction.
        output: the generated simplification.
        references: one or more good simplifications.

    Returns:
        A float in [0, 1]; 0 for an output without tokens.

    Raises:
        UserError: the source is empty, or there is no reference.

    >>> sari("About 95 species are currently accepted.", "About 95 you now get in.",
    ...      ["About 95 species are currently known.", "About 95 species are now accepted.",
    ...       "95 species are now accepted."])
    0.2695360195360195
    """
    if not references or isinstance(references, str):
        raise UserError(f"Expected a non-empty list of references for sari, got {references!r}; pass [reference].")
    source_tokens, output_tokens = tokenize(source), tokenize(output)
    reference_tokens = [tokenize(reference) for reference in references]
    if not source_tokens:
        raise UserError(
            "Expected the source text that was simplified for sari, got an empty one; pass source=, or "
            "choose a score that needs none, such as rouge_l."
        )
    if not output_tokens:
        return 0.0
    total = Fraction(0)
    for n in range(1, MAX_ORDER + 1):
        in_references = sum((_ngrams(tokens, n) for tokens in reference_tokens), Counter())
        in_source = _times(_ngrams(source_tokens, n), len(references))
        in_output = _times(_ngrams(output_tokens, n), len(references))
        total += _keep_f1(in_source, in_output, in_references)
        total += _delete_precision(in_source, in_output, in_references)
        total += _add_f1(set(in_source), set(in_output), set(in_references))
    return float(total / (3 * MAX_ORDER))


def score(output: str, reference: str, source: str = "") -> float:
    """Return the SARI of the output against a single reference.

    Args:
        output: the generated simplification.
        reference: the simplification it is compared with.
        source: the paragraph that was simplified, without the instruction; needed.

    Returns:
        A float in [0, 1], as `sari` gives it; 0 for an output without tokens.

    Raises:
        UserError: the source is empty.

    >>> score("The cat sat.", "The cat sat.", source="The feline was seated.")
    1.0
    """
    return sari(source, output, [reference])


def parses(output: str) -> bool:
    """Return whether the output has at least one token.

    >>> parses("ok"), parses(" ")
    (True, False)
    """
    return bool(tokenize(output))


def _ngrams(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _times(counts: Counter[tuple[str, ...]], factor: int) -> Counter[tuple[str, ...]]:
    return Counter({gram: factor * count for gram, count in counts.items()})


def _keep_f1(source: Counter, output: Counter, references: Counter) -> Fraction:
    kept, to_keep = source & output, source & references
    rightly = kept & references
    precision = _ratio(sum((Fraction(count, kept[gram]) for gram, count in rightly.items()), Fraction(0)), len(kept))
    return _f1(precision, _ratio(rightly.total(), to_keep.total()))


def _delete_precision(source: Counter, output: Counter, references: Counter) -> Fraction:
    deleted = source - output
    rightly = deleted - references
    return _ratio(sum((Fraction(count, deleted[gram]) for gram, count in rightly.items()), Fraction(0)), len(deleted))


def _add_f1(source: set, output: set, references: set) -> Fraction:
    added, to_add = output - source, references - source
    rightly = len(added & references)
    return _f1(_ratio(rightly, len(added)), _ratio(rightly, len(to_add)))


def _ratio(part: int | Fraction, total: int) -> Fraction:
    return Fraction(part) / total if total else Fraction(1)


def _f1(precision: Fraction, recall: Fraction) -> Fraction:
    return 2 * precision * recall / (precision + recall) if precision + recall else Fraction(0)


SCORE = Score("sari", score, parses)
