"""The same outputs scored by us, by TRACE and by LLMCL: the tables of docs/scores.md are made here.

The rules of the others are written down here in our own words, from their repositories (TRACE at 462e39f, LLMCL at
a9dae12) and from the packages they call (`rouge` 1.0.1, `rouge_score` as `evaluate` calls it).
"""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from mcanalysis.metrics import backward_transfer, get_score
from mcanalysis.metrics.scores.letter_anywhere import stated_letter
from mcanalysis.metrics.scores.sari import sari
from mcanalysis.tasks import get_task

PAGE = Path(__file__).parents[2] / "docs" / "scores.md"


def ours(name):
    return lambda output, reference: get_score(name).per_example(output, reference)


# TRACE: the whole text, letter for letter (of ScienceQA the first character); nothing for an empty text.


def trace_accuracy(output, reference):
    return float(output != "" and output == reference)


def trace_first_character(output, reference):
    return float(output[:1] != "" and output[:1] == reference[:1])


# LLMCL: the first of A to D anywhere, in a word too; the first run of digits, as text, without its sign.


def llmcl_letter(output, reference):
    first = [re.search("[A-D]", text) for text in (output, reference)]
    return float(all(first) and first[0].group() == first[1].group())


def llmcl_number(output, reference):
    first = [re.search(r"\d+\.?\d*", text) for text in (output, reference)]
    return float(all(first) and first[0].group() == first[1].group())


# ROUGE-L.


def common_subsequence(x, y):
    """A longest common subsequence of two lists, by the plain recursion over lengths."""
    best = [[[] for _ in range(len(y) + 1)] for _ in range(len(x) + 1)]
    for i, j in product(range(len(x)), range(len(y))):
        longer = max(best[i][j + 1], best[i + 1][j], key=len)
        best[i + 1][j + 1] = best[i][j] + [x[i]] if x[i] == y[j] else longer
    return best[-1][-1]


def trace_rouge(output, reference):
    """`rouge`: sentences end at any point, words at spaces, case counts, and each distinct word counts once."""
    if not output or not reference:
        return 0.0
    sentences = [[part.split() for part in text.split(".") if part] for text in (output, reference)]
    distinct = [{word for sentence in of_text for word in sentence} for of_text in sentences]
    common = {w for a, b in product(*sentences) for w in common_subsequence(a, b)}
    precision, recall = (len(common) / len(words) for words in distinct)
    return 2 * precision * recall / (precision + recall + 1e-8)


def llmcl_rouge(output, reference):
    """`rouge_score`, by way of `evaluate`: what is no ASCII letter or digit is dropped, all Chinese with it."""
    return RougeScorer(["rougeL"]).score(reference, output)["rougeL"].fmeasure


LETTERS = [
    ("B", "B"), ("B.", "B"), (" B\n", "B"), ("(B)", "B"), ("**B**", "B"), ("The answer is B", "B"), ("答案：B", "B"),
    ("B because of that", "B"), ("Because of that", "B"), ("A cat is B", "B"), ("I think C", "C"), ("not B but C", "C"),
    ("B or C", "B"), ("Dogs bark, so B", "B"), ("E", "E"),
]  # fmt: skip
NUMBERS = [
    ("5", "5"), ("5.0", "5"), (" 5\n", "5"), ("1,234", "1234"), ("-3", "3"), ("5 kg", "5"), ("The answer is 5", "5"),
    ("3 + 2 = 5", "5"), ("3 + 2 = 5\n#### 5", "5"), ("friday", "Friday"),
]  # fmt: skip
SUMMARIES = [
    ("the council met", "the council met"), ("The Council met.", "the council met"),
    ("the cat and the dog and the cat", "the cat and the dog"), ("b a. d c", "a b c d"),
    ("猫坐在垫子上", "猫坐在地上"), ("größe zählt", "grösse zählt"),
]  # fmt: skip


def shown(value):
    return f"{value:.2f}".removesuffix("0").removesuffix(".0")


def table(head, pairs, scores):
    rows = [f"| output | reference | {' | '.join(head)} |", "|---" * (2 + len(head)) + "|"]
    for output, reference in pairs:
        texts = [text.replace("\n", "⏎") for text in (output, reference)]
        cells = [f"`{texts[0]}`" if texts[0] == texts[0].strip() else f"`{texts[0]} `", f"`{texts[1]}`"]
        rows.append(f"| {' | '.join([*cells, *(shown(score(output, reference)) for score in scores)])} |")
    return "\n".join(rows)


def letters():
    head = ["`accuracy`", "`letter_anywhere`", "TRACE", "TRACE, ScienceQA", "LLMCL"]
    scores = (ours("accuracy"), ours("letter_anywhere"), trace_accuracy, trace_first_character, llmcl_letter)
    return table(head, LETTERS, scores)


def numbers():
    head = ["`number_accuracy`", "`final_number_accuracy`", "TRACE", "LLMCL"]

    def final(output, reference):
        has_number = any(c.isdigit() for c in reference)
        return ours("final_number_accuracy")(output, reference) if has_number else float("nan")

    return table(head, NUMBERS, (ours("number_accuracy"), final, trace_accuracy, llmcl_number)).replace(
        "nan", "refused"
    )


def rouge():
    return table(
        ["`rouge_l`", "TRACE (`rouge`)", "LLMCL (`rouge_score`)"],
        SUMMARIES,
        (ours("rouge_l"), trace_rouge, llmcl_rouge),
    )


PROMPT = "Provide a simplified version of the following paragraph in German.\n\nParagraph:\n{}\n\nSimplification:\n"
PARAGRAPH = "Der Bundesrat hat am Mittwoch neue Massnahmen beschlossen."


def simplification():
    rows = ["| output | `sari` (the paragraph) | TRACE, LLMCL (the whole prompt) |", "|---|---|---|"]
    reference = "Der Bundesrat hat neue Regeln beschlossen."
    for output in (reference, PARAGRAPH, "Neue Regeln."):
        theirs = sari(PROMPT.format(PARAGRAPH), output, [reference])
        own = get_score("sari").per_example(output, reference, get_task("20Minuten").source(PROMPT.format(PARAGRAPH)))
        rows.append(f"| `{output}` | {shown(own)} | {shown(theirs)} |")
    return "\n".join(rows)


MATRIX = np.array([[0.2, 0.2, 0.2], [0.9, 0.2, 0.2], [0.6, 0.8, 0.2], [0.5, 0.6, 0.7]])


def transfer():
    fell = [MATRIX[3, i] - MATRIX[i + 1, i] for i in range(3)]
    assert backward_transfer(MATRIX) == pytest.approx(sum(fell) / 2)
    return f"| {shown(sum(fell) / 2)} | {shown(sum(fell) / 3)} |"


@pytest.mark.parametrize("made", [letters, numbers, rouge, simplification, transfer])
def test_the_page_shows_what_the_rules_give(made):
    assert made() in PAGE.read_text(encoding="utf-8"), f"put this into docs/scores.md:\n{made()}"


def test_the_page_states_the_limits_of_our_tasks():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("FOMC", "ScienceQA", "NumGLUE-cm", "Py150", "MeetingBank", "20Minuten"):
        assert re.search(rf"{name}[^|.]*? {get_task(name).max_new_tokens}\b", text), name


# What `letter_anywhere` must not read into a text: hard cases, each with the letter a reader would give.


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B)", "B"), ("[B]", "B"), ('"B"', "B"), ("**B**", "B"), ("B.", "B"), ("B) the second", "B"), ("`B`", "B"),
        ("Answer: B", "B"), ("**Answer:** B", "B"), ("The answer is (B).", "B"),
        ("The correct answer is **option B**", "B"),
        ("Answer: $\\boxed{B}$", "B"), ("答案：B", "B"), ("答案是B。", "B"), ("选择B项", "B"), ("应选B。", "B"),
        ("正确答案为：B", "B"),
        ("A cat is B", "B"), ("A dog has four legs. So it is D", "D"), ("A is correct", "A"),
        ("A because of that", "A"),
        ("I think C", "C"), ("I'm sure it's C", "C"), ("I", "I"), ("not B but C", "C"),
        ("The answer is not B, it is C", "C"),
        ("D is wrong; the answer is C", "C"), ("B\nThe answer is C", "B"), ("选B，不选C", "B"), ("不是B，是C", "C"),
        ("The answer is A. No, the answer is B.", "B"), ("The answer is A because B is wrong", "A"),
        ("Because", None), ("B or C", None), ("A and B are both right", None), ("A, B", None),
        ("The answer is A, B", None),
        ("B/C", None), ("It is not B", None), ("the correct answer isn't B", None), ("Neither A nor B", None),
        ("Option B is right, option C is not", None), ("选项B正确，选项C错误", None), ("B-cell therapy", None),
        ("U.S. law", None), ("C++ is a language", None), ("b", None), ("", None), ("BB", None), ("Ångström", None),
        # Read wrongly, and said so in the docs: an article that is all there is, a wrong letter that comes first.
        ("A cat is not B", "A"), ("D is wrong, C is right", "D"), ("Vitamin C", "C"),
    ],
)  # fmt: skip
def test_the_letter_that_a_text_states(text, letter):
    assert stated_letter(text) == letter


def test_a_reference_without_a_letter_is_refused():
    from mcanalysis.errors import DataError

    with pytest.raises(DataError, match="Expected a reference that states an answer letter A–Z, got 'yes'"):
        ours("letter_anywhere")("B", "yes")
