"""Edit similarity against values computed by hand, brute force, and CodeXGLUE's way of unmasking."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcanalysis.metrics import get_score
from mcanalysis.metrics.scores.edit_similarity import parses, score, unmask


@pytest.mark.parametrize(
    ("output", "reference", "value"),
    [
        ("abc", "abc", 1.0),
        ("abc", "xyz", 0.0),
        ("abcd", "abc", 6 / 7),  # one character too many
        ("kitten", "sitting", 8 / 13),  # common: i t t n
        ("x = 1", "y = 1", 8 / 10),  # a replacement is a deletion and an insertion
        ("ba", "ab", 2 / 4),
        ("Abc", "abc", 4 / 6),  # case counts
        ("a  b", "a b", 6 / 7),  # so does inner white space
        (" abc\n", "abc ", 1.0),  # but not the outer
        ("打印", "打开", 2 / 4),
        ("abcde xyz", "xyz abcde", 10 / 18),  # common: abcde; "abcde" and "xyz" cross
    ],
)
def test_values_computed_by_hand(output, reference, value):
    assert score(output, reference) == pytest.approx(value, abs=1e-12)
    assert score(reference, output) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("masked", "code"),
    [
        ('print ( "<STR_LIT:hello>" )', 'print ( "hello" )'),  # the quotes stand outside the mask
        ("x = <NUM_LIT:10>", "x = 10"),
        ("c = '<CHAR_LIT:c>'", "c = 'c'"),
        ("x = <NUM_LIT> + <NUM_LIT>", "x = 0 + 0"),
        ('x = "<STR_LIT>"', 'x = ""'),
        ("x = '<CHAR_LIT>'", "x = ''"),
        ("<NUM_LIT:1> , <NUM_LIT:2> , <NUM_LIT:1>", "1 , 2 , 1"),
        ('"""<STR_LIT:two\nlines>"""', '"""two\nlines"""'),
        ("<STR_LIT:>", ""),
        ('"<STR_LIT:中文>"', '"中文"'),
        (r"<STR_LIT:\1 \g<0>", r"\1 \g<0"),  # a literal is no replacement pattern
        ("<NUM_LIT:1", "<NUM_LIT:1"),  # a mask that is not closed stays
        ("a < b > c", "a < b > c"),
    ],
)
def test_masked_literals_are_written_out(masked, code):
    assert unmask(masked) == code
    if code:
        assert score(masked, code) == score(code, masked) == 1


@pytest.mark.parametrize("output", ["", " \n", "<STR_LIT>", "<STR_LIT:>"])
def test_nothing_written_scores_0(output):
    assert not parses(output)
    for reference in ("", "pass", output):
        assert score(output, reference) == 0
    assert score("pass", output) == 0


def common_length(a, b):
    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + longest(i + 1, j + 1) if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


words = st.text(alphabet="ab中(", min_size=1, max_size=9)


@given(words, words)
def test_it_is_twice_the_longest_common_subsequence_over_both_lengths(output, reference):
    expected = 2 * common_length(output, reference) / (len(output) + len(reference))
    assert get_score("edit_similarity").per_example(output, reference) == pytest.approx(expected, abs=1e-12)
