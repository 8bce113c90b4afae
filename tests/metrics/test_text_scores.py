"""Text scores against hand-made cases, brute force and published golden values."""

import itertools
import subprocess
import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.metrics import SCORES, Score, get_score
from mcanalysis.metrics.scores import number_accuracy, rouge_l, sari

NAMES = [
    "accuracy", "edit_similarity", "exact_match", "exact_match_normalized", "final_number_accuracy", "letter_anywhere",
    "number_accuracy", "rouge_l", "sari",
]  # fmt: skip
GOOD_REFERENCE = {"accuracy": "A", "letter_anywhere": "A", "number_accuracy": "7", "final_number_accuracy": "7"}
NEED = {  # what a reference of these scores must be
    "accuracy": st.sampled_from("ABCD"),
    "letter_anywhere": st.sampled_from("ABCD"),
    "final_number_accuracy": st.integers().map(str),
    "number_accuracy": st.text(max_size=30).filter(lambda text: "####" not in text),
}


def per_example(name, output, reference, source="a source text"):
    return get_score(name).per_example(output, reference, source)


# Registry


def test_every_file_is_registered_under_its_name():
    assert sorted(SCORES) == NAMES
    assert all(isinstance(score, Score) and score.name == name for name, score in SCORES.items())


def test_an_unknown_name_is_refused_with_a_hint():
    with pytest.raises(UnknownNameError, match=r"Unknown score 'rogue_l'. Did you mean 'rouge_l'\?"):
        get_score("rogue_l")


def test_importing_the_metrics_imports_nothing_heavy():
    code = (
        "import sys, mcanalysis.metrics as m; assert m.SCORES;"
        "print([n for n in ('torch', 'transformers', 'peft', 'nltk', 'rouge_score', 'rapidfuzz',"
        " 'matplotlib', 'scipy')"
        " if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["", " ", "\n\t"])
def test_an_empty_output_scores_0_and_does_not_parse(name, output):
    assert per_example(name, output, GOOD_REFERENCE.get(name, "x")) == 0
    assert not get_score(name).parses(output)


@pytest.mark.parametrize("name", NAMES)
@given(output=st.text(max_size=30), data=st.data())
@settings(max_examples=60)
def test_scores_lie_in_0_to_1_and_what_does_not_parse_scores_0(name, output, data):
    reference = data.draw(NEED.get(name, st.one_of(st.text(max_size=30), st.just(output))))
    value = per_example(name, output, reference)
    assert isinstance(value, float) and 0 <= value <= 1
    assert get_score(name).parses(output) or value == 0


# Letters


@pytest.mark.parametrize(
    "output",
    [
        "B",
        " B\n",
        "B.",
        "B)",
        "B: the second",
        "B\nbecause",
        "B because",
        "B。第二",
        "B、",
        "B，因为",
        "B_",
        "B's",
    ],
)
def test_the_letter_at_the_start_counts(output):
    assert per_example("accuracy", output, "B") == 1


@pytest.mark.parametrize(
    "output",
    [
        "Because",
        "Because B",
        "b",
        "A",
        "The answer is B",
        "(B)",
        "BC",
        "B2",
        "B选项",
        "Bé",
        "B\u0301",
        "Ｂ",
        ".B",
    ],
)
def test_because_is_not_b(output):
    assert per_example("accuracy", output, "B") == 0


def test_only_the_letter_of_the_reference_counts():
    assert per_example("accuracy", "A\nfor another reason", "A\nreason") == 1
    assert per_example("accuracy", "B\nreason", "A\nreason") == 0


def test_letters_that_parse():
    parses = get_score("accuracy").parses
    assert [parses(text) for text in ["A", "Z.", "Because", "1", "ok", "我"]] == [True, True] + [False] * 4


@pytest.mark.parametrize("reference", ["", "because", "Because", "1"])
def test_a_reference_without_a_letter_is_refused(reference):
    with pytest.raises(UserError, match="Expected a reference that starts with an answer letter"):
        per_example("accuracy", "A", reference)


# Numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5),
        ("-5", -5),
        ("+5", 5),
        ("\u22125", -5),
        ("5.", 5),
        ("0.25", 0.25),
        (".5", 0.5),
        ("-.5", -0.5),
        ("1,234", 1234),
        ("1,234,567.5", 1234567.5),
        ("1,23", 1),
        ("1,2345", 1),
        ("1234,567", 1234),
        ("1, 2, 3", 1),
        ("1e3", 1000),
        ("2e", 2),
        ("3-4", 3),
        ("COVID-19", 19),
        ("x = -2", -2),
        ("($-3)", -3),
        ("$5", 5),
        ("5kg", 5),
        ("50%", 50),
        ("The answer is 12.\nNot 13.", 12),
        ("答案是42。", 42),
        ("答案是-42。", -42),
        ("Friday", None),
        ("", None),
        ("-", None),
        ("...", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_the_first_number_of_a_text(text, number):
    assert number_accuracy.first_number(text) == number


def test_numbers_agree_within_a_millionth():
    assert per_example("number_accuracy", "0.333333", "0.3333333333") == 1
    assert per_example("number_accuracy", "1.000001", "1") == 1
    assert per_example("number_accuracy", "1.0000011", "1") == 0
    assert per_example("number_accuracy", "1000000.00001", "1000000") == 0  # absolute, not relative
    assert per_example("number_accuracy", "1e999", "1e999") == 0


def test_only_the_first_number_counts():
    assert per_example("number_accuracy", "7 or 8", "8") == 0
    assert per_example("number_accuracy", "about 8.0 litres", " 8 ") == 1
    assert per_example("number_accuracy", "eight", "8") == 0


def test_a_word_is_matched_whole_and_without_case():
    assert per_example("number_accuracy", " FRIDAY\n", "Friday") == 1
    assert per_example("number_accuracy", "Friday.", "Friday") == 0
    assert per_example("number_accuracy", "Friday 13", "Friday") == 0
    assert per_example("number_accuracy", "5 KG", "5 kg") == 1
    assert per_example("number_accuracy", "5", "5 kg") == 0


@given(st.floats(-1e9, 1e9), st.sampled_from(["{}", "It is {}.", "{} metres", "= {}\nso"]))
def test_every_way_python_prints_a_number_is_read_back(number, frame):
    for printed in (repr(number), f"{number:.3f}", f"{number:,.3f}", f"{number:e}"):
        assert number_accuracy.first_number(frame.format(printed)) == float(printed.replace(",", ""))


# Exact match


def test_exact_match_strips_the_outside_only():
    assert per_example("exact_match", " a  b\n", "a  b ") == 1
    assert per_example("exact_match", "a b", "a  b") == 0
    assert per_example("exact_match", "A", "a") == 0
    assert per_example("exact_match", "", "") == 0


# ROUGE-L


def lcs_length(a, b):
    """Longest common subsequence from its recursive definition."""

    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


@given(st.lists(st.sampled_from(["ein", "Größe", "你", "c"]), min_size=1, max_size=10), st.data())
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(output, data):
    reference = data.draw(st.lists(st.sampled_from(["ein", "Größe", "你", "d"]), min_size=1, max_size=10))
    common = lcs_length(tuple(output), tuple(reference))
    expected = 2 * common / (len(output) + len(reference))
    assert per_example("rouge_l", " ".join(output), " ".join(reference)) == pytest.approx(expected)


@given(st.text(st.characters(max_codepoint=127), max_size=40))
def test_on_ascii_the_tokens_are_those_of_rouge_score(text):
    assert rouge_l.tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Die Größe, ÜBER alles!", ["die", "größe", "über", "alles"]),
        ("U\u0308ber", ["über"]),
        ("我爱GPT4，真的", ["我", "爱", "gpt4", "真", "的"]),
        ("カタカナ", ["カ", "タ", "カ", "ナ"]),
        ("안녕 세상", ["안녕", "세상"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("Привет-мир_2", ["привет", "мир", "2"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
        ("?!", []),
    ],
)
def test_tokens_of_other_scripts(text, tokens):
    assert rouge_l.tokenize(text) == tokens


def test_rouge_l_sees_more_than_ascii():
    assert per_example("rouge_l", "今天天气好", "今天天气很好") == pytest.approx(10 / 11)
    assert per_example("rouge_l", "Über", "aber") == 0
    assert per_example("rouge_l", "?!", "?!") == 0


# SARI


# Numbers of Hugging Face's `sari` / 100; the first is the example it publishes.
GOLDEN = [
    (
        "About 95 species are currently accepted.",
        "About 95 you now get in.",
        [
            "About 95 species are currently known.",
            "About 95 species are now accepted.",
            "95 species are now accepted.",
        ],
        0.26953601953601954,
    ),
    (
        "Der Bundesrat hat am Mittwoch, dem 3. Mai, die Maßnahmen verlängert.",
        "Die Regierung hat die Maßnahmen verlängert.",
        ["Der Bundesrat verlängert die Maßnahmen."],
        0.39191919191919194,
    ),
    (
        "Rund 1,5 Mio. Menschen (20 %) leben dort.",
        "Viele Menschen leben dort.",
        ["Viele Menschen leben dort.", "Dort leben 1,5 Mio. Menschen."],
        0.65145850737956,
    ),
    (
        "the cat the dog the end",
        "the cat sat",
        ["the cat sat"],
        0.9861111111111112,
    ),  # "the": 3 in the source, 1 kept
    ("A short one.", "A short one.", ["A short one."], 1.0),
    ("one two three", "four", ["five"], 0.9166666666666666),
]


@pytest.mark.parametrize(("source", "output", "references", "golden"), GOLDEN)
def test_sari_golden_values(source, output, references, golden):
    assert sari.sari(source, output, references) == pytest.approx(golden, abs=1e-15)
    if len(references) == 1:
        assert per_example("sari", output, references[0], source) == pytest.approx(golden, abs=1e-15)


distinct_words = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=8, unique=True).map(" ".join)


@given(distinct_words, distinct_words)
def test_sari_of_the_reference_itself_is_1(source, reference):
    assert per_example("sari", reference, reference, source) == 1


@given(distinct_words, distinct_words, distinct_words, st.integers(1, 3))
def test_sari_repeating_a_reference_changes_nothing(source, output, reference, times):
    once, often = (sari.sari(source, output, [reference] * n) for n in (1, times))
    assert often == pytest.approx(once)


def test_sari_does_not_depend_on_the_order_of_references():
    source, output, references, golden = GOLDEN[0]
    for order in itertools.permutations(references):
        assert sari.sari(source, output, order) == pytest.approx(golden, abs=1e-15)


def test_sari_by_hand_for_one_word():
    # n = 1: "a" rightly kept (1), "b" rightly deleted (1), "c" added where "d" was wanted (0).
    # n = 2: nothing to keep (0/0 = 1), "a b" rightly deleted (1), "a c" added where "a d" was wanted (0).
    # n = 3, 4: no n-grams at all, 0/0 = 1 three times.
    assert sari.sari("a b", "a c", ["a d"]) == pytest.approx((2 + 2 + 3 + 3) / 12)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 1,234.5 - or 3-4.", ["it's", "1,234.5", "-", "or", "3", "-", "4", "."]),
        ("a,b (c)/d", ["a", ",", "b", "(", "c", ")", "/", "d"]),
        ("well-known", ["well-known"]),
        ("&quot;x&quot; &amp; y", ['"', "x", '"', "&", "y"]),
        ("end-\nless\nline", ["endless", "line"]),
        ("..5", [".", ".5"]),
        ("„Über“", ["„über“"]),
    ],
)
def test_sari_tokens_follow_13a(text, tokens):
    assert sari.tokenize(text) == tokens


def test_sari_needs_a_source_and_a_reference():
    with pytest.raises(UserError, match="Expected the source text"):
        get_score("sari").per_example("an output", "a reference")
    for references in ([], "one string"):
        with pytest.raises(UserError, match="Expected a non-empty list of references"):
            sari.sari("source", "output", references)
