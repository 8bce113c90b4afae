"""Where a score says that it is decided, against the scores of all that may follow."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.metrics import SCORES, get_score
from mcanalysis.metrics.scores import Score, never

WHOLE = ["edit_similarity", "final_number_accuracy", "rouge_l", "sari"]  # they read the end

# Pieces of outputs that make a rule wrong if it is, and references that such outputs may meet.
PIECES = {
    "accuracy": ["A", "B", "b", "Ab", " ", "\n", ".", ")", "\u0301", "选", "é", "1", "_", "'"],
    "letter_anywhere": [
        *"ABCI.,:()*_'-+#/&{}ao1 \n\t、和或）是选\u0301", "  ", "**", "答案", "不是", "\\boxed", "U.S.",
        "and ", " or ", "or", " is", " was ", "because ", "cat", "The ", "answer", " not ", "not", "best option",
    ],
    "number_accuracy": [*"0123459.,-+eE \nx_fFß", "\u2212", "12", "000", "riday"],
    "exact_match": ["a", "b", "ab", " ", "\n", "\u3000", "A", "\x1c"],
    "exact_match_normalized": [
        *"aei \nßsIiİΣςéﬁαᾳŉΐÅ=≠가각", "SS", "fi", "\u0301", "\u0323", "\u0307", "\u0345", "\u0338", "\u0340", "\u212a",
        "\u1100", "\u1161", "\u11a8", "\u09c7", "\u09be", "\u09cb",
    ],
}  # fmt: skip
NUMBERS = ["0", "1", "2", "12", "-12", "0.5", ".5", "1,234", "1200", "1e3", "1.5e-3", "1e-7", "-0", "2.9999999"]
NUMBERS += ["100000", "1e999", "123450000000000000000000", "friday", "FRIDAY", "5 kg", "", "ss"]
REFERENCES = {
    "accuracy": st.sampled_from(["A", "B", "B\nreason", " A."]),
    "letter_anywhere": st.sampled_from(["A", "B", "C", "I", "(B)"]),
    "number_accuracy": st.sampled_from(NUMBERS),
}


def outputs(name):
    return st.lists(st.sampled_from(PIECES[name]), max_size=8)


def check(name, output, reference, following=()):
    """The scores of `output`, of all its longer beginnings and of what follows are one from where it is decided."""
    score = get_score(name)
    for end in range(len(output) + 1):
        if score.decided(output[:end], reference):
            longer = {output[:later] for later in range(end, len(output) + 1)}
            longer |= {output[:end] + more for more in following}
            values = {text: score.per_example(text, reference) for text in longer}
            assert len(set(values.values())) == 1, (output[:end], reference, values)


def test_every_score_is_looked_at():
    assert sorted([*PIECES, *WHOLE]) == sorted(SCORES)
    assert Score("own", lambda output, reference, source="": 0.0, bool).decided is never


@pytest.mark.parametrize("name", WHOLE)
def test_scores_that_read_the_end_are_never_decided(name):
    assert SCORES[name].decided is never
    assert not any(never(text, "7") for text in ("", "7", "seven is 7.\n#### 7\n"))


@pytest.mark.parametrize("name", PIECES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_nothing_that_follows_changes_a_score_that_is_decided(name, data):
    pieces = data.draw(outputs(name))
    # an output that may be right, or any
    reference = data.draw(REFERENCES.get(name, st.one_of(outputs(name), st.just(pieces[:3])).map("".join)))
    following = data.draw(st.lists(outputs(name).map("".join), max_size=6))
    check(name, "".join(pieces), reference, following)


@pytest.mark.parametrize("name", PIECES)
@given(output=st.text(max_size=12), following=st.lists(st.text(max_size=6), max_size=3), data=st.data())
@settings(max_examples=100, deadline=None)
def test_nothing_that_follows_changes_it_in_any_script(name, output, following, data):
    reference = data.draw(REFERENCES.get(name, st.one_of(st.text(max_size=6), st.just(output[:6]))))
    check(name, output, reference, following)


@pytest.mark.parametrize("reference", ["1", "19", "-9", "1.9", "1900", "0.19", "2"])
def test_every_short_number_with_every_short_ending(reference):
    endings = ["".join(p) for n in range(3) for p in product("19.,e- x", repeat=n)]
    score = get_score("number_accuracy")
    for beginning in ("".join(p) for n in range(4) for p in product("19.,e-", repeat=n)):
        if score.decided(beginning, reference):
            assert len({score.per_example(beginning + ending, reference) for ending in endings}) == 1, beginning


@pytest.mark.parametrize(
    ("name", "output", "reference", "decided"),
    [
        ("accuracy", "Because of that", "B", "Be"),
        ("accuracy", " The answer", "B", " T"),
        ("accuracy", "B\n\nExplanation", "B", "B\n"),
        ("accuracy", "A", "B", "A"),  # whatever follows, it is not B
        ("accuracy", "B", "B", None),
        ("letter_anywhere", "B. The second option is right", "B", "B. T"),
        ("letter_anywhere", "**B** (the second)", "B", "**B** ("),
        ("letter_anywhere", "A and B", "B", None),
        ("letter_anywhere", "A) and B", "A", None),  # a list states nothing
        ("letter_anywhere", "A) or", "A", None),
        ("letter_anywhere", "A cat. The answer is B. So", "B", None),  # a later answer may follow
        ("number_accuracy", "12\n\nThere are", "12", "12\n"),
        ("number_accuracy", "The answer is 12 frogs", "12", "The answer is 12 "),
        ("number_accuracy", "15", "12", "15"),  # no digits behind it make it 12
        ("number_accuracy", "1,234.5 km", "1234.5", "1,234.5 "),
        ("number_accuracy", "3", "-3", "3"),
        ("number_accuracy", "1", "0.9999999", None),  # 0.9999999 is as good as 1
        ("number_accuracy", "Sunday", "Friday", "S"),
        ("number_accuracy", "friday evening", "Friday", "friday e"),
        ("exact_match", "yes, it is", "yes", "yes,"),
        ("exact_match", "\n no", "yes", "\n n"),
        ("exact_match", "anything", "", ""),
        ("exact_match_normalized", "Londinium", "Paris", "Lo"),
        ("exact_match_normalized", "paris  and", "Paris", "paris  an"),
        ("exact_match_normalized", "Pari\u0301s", "Pari", "Pari\u0301s"),
    ],
)  # fmt: skip
def test_where_a_score_is_decided(name, output, reference, decided):
    score = get_score(name)
    beginnings = [output[:end] for end in range(len(output) + 1)]
    assert next((text for text in beginnings if score.decided(text, reference)), None) == decided
