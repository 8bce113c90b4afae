"""Answers that turn: tables by hand, McNemar against SciPy, the correction against simulated guessing."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from mcanalysis.errors import UserError
from mcanalysis.metrics.flips import answer_counts, corrected_share, guess_rate, mcnemar
from mcanalysis.metrics.format_share import score_change


def test_counts_by_hand():
    start, end = np.array([1, 1, 1, 0, 0, np.nan]), np.array([0, 1, 1, 0, 1, 1])
    between = np.array([[1, 1, 0, 1, 0, 1], [1, np.nan, 0, 0, 0, 0]])
    found = answer_counts(start, between, end)
    assert found.shape == (2, 2, 2, 2)
    expected = np.zeros((2, 2, 2, 2), dtype=int)
    for a, b, c in ((1, 1, 0), (1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1)):
        expected[0, a, b, c] += 1
    for a, b, c in ((1, 1, 0), (1, 0, 1), (0, 0, 0), (0, 0, 1)):  # one more is not known
        expected[1, a, b, c] += 1
    assert (found == expected).all()
    assert answer_counts([1, 0]).tolist() == [1, 1]


def test_graded_scores_are_refused():
    with pytest.raises(UserError, match=r"got 0\.4; .*exact score"):
        answer_counts([1, 0.4], [0, 0])


def test_mcnemar_is_scipys_binomial_test():
    pairs = [(lost, gained) for lost, gained in product(range(0, 40, 3), repeat=2) if lost + gained]
    lost, gained = np.array(pairs).T
    assert mcnemar(lost, gained) == pytest.approx([binomtest(a, a + b, 0.5).pvalue for a, b in pairs], rel=1e-12)
    assert mcnemar(0, 0) == 1


def observed(known, rates):
    """The table that guessing with these chances makes of a table of known ones: every case written out."""
    table = np.zeros(known.shape)
    for states in np.ndindex(*known.shape):
        for answers in np.ndindex(*known.shape):
            chances = [1.0 * a if k else (c if a else 1 - c) for k, a, c in zip(states, answers, rates, strict=True)]
            table[answers] += known[states] * np.prod(chances)
    return table


@pytest.mark.parametrize("num_points", [2, 3])
def test_the_correction_undoes_guessing(num_points):
    known = np.random.default_rng(num_points).integers(50, 300, (2,) * num_points).astype(float)
    table = observed(known, [0.25] * num_points)
    for states in np.ndindex(*known.shape):
        share, _ = corrected_share(table, states, 0.25)
        assert share == pytest.approx(known[states] / known.sum(), abs=1e-12)
        plain, error = corrected_share(known, states, 0.0)
        p, n = known[states] / known.sum(), known.sum()
        assert plain == pytest.approx(p) and error == pytest.approx(np.sqrt(p * (1 - p) / (n - 1)))


def test_a_point_below_chance_does_not_guess_more_than_it_scores():
    known = np.array([[60.0, 40.0], [0.0, 0.0]])  # the first knows nothing and writes no answer
    table = observed(known, [0.0, 0.25])
    share, _ = corrected_share(table, (0, 1), 0.25)
    assert share == pytest.approx(0.4) and corrected_share(table, (1, 0), 0.25)[0] == pytest.approx(0)


def test_pure_guessing_has_a_mean_of_zero_and_the_error_that_repeats_have():
    rng = np.random.default_rng(0)
    known = rng.random((2, 3000, 200)) < 0.5
    known[1] = known[0]  # nothing is forgotten
    answers = known | (rng.random(known.shape) < 0.25)
    counts = answer_counts(answers[0], answers[1])
    share, error = corrected_share(counts, (1, 0), 0.25)
    assert abs(share.mean()) < 4 * share.std() / np.sqrt(len(share))
    assert error.mean() == pytest.approx(share.std(), rel=0.05)
    assert (counts[:, 1, 0] / 200).mean() > 0.08, "as counted, a tenth was lost"


@pytest.mark.parametrize("known", [0.0, 0.5])
def test_a_mean_of_small_samples_in_which_nothing_is_lost_is_nothing(known):
    """50 questions at c = 1/3: as many known at both points, and the others guessed at each by itself."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        knows = rng.random(50) < known
        answers = [(knows | (rng.random(50) < 1 / 3)).astype(float) for _ in range(2)]
        found.append(corrected_share(answer_counts(*answers), (1, 0), 1 / 3)[0])
    assert abs(np.mean(found)) < 0.012  # with the smaller of c and the share right 0.04 where nothing is known


def test_shares_that_nothing_is_known_of():
    for counts, rate in ((np.zeros((2, 2)), 0.25), ([[1, 0], [0, 1]], np.nan), ([[0, 0], [0, 3]], 1.0)):
        assert np.isnan(corrected_share(counts, (1, 0), rate)[0])
    assert np.isnan(corrected_share([[0, 0], [1, 0]], (1, 0), 0.0)[1]), "one example has no spread"


def test_guess_rate_is_the_mean_over_pairs_of_different_examples():
    answers = ["A", "A", "B", "C", "C", "C"]
    pairs = [a == b for i, a in enumerate(answers) for j, b in enumerate(answers) if i != j]
    assert guess_rate(answers, lambda output, reference: float(output == reference)) == pytest.approx(np.mean(pairs))
    assert guess_rate([str(i) for i in range(300)], lambda a, b: float(a == b)) == 0
    assert np.isnan(guess_rate(["A"], lambda a, b: 1.0))


def test_format_and_skill_add_up_to_the_change():
    p, s, p0, s0 = np.random.default_rng(1).random((4, 50))
    found = score_change(p, s, p0, s0)
    assert found.by_format + found.by_skill == pytest.approx(p * s - p0 * s0)
    assert (score_change(p, s, p, s0).by_format == 0).all() and (score_change(p, s, p0, s).by_skill == 0).all()
    assert score_change(0.0, np.nan, 0.5, 0.8) == pytest.approx((-0.4, 0.0))
    assert score_change(0.0, np.nan, 0.0, np.nan) == (0, 0)
