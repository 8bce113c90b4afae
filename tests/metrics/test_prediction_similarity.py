"""Divergences against SciPy, and the identities that define them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax
from scipy.stats import entropy

from mcanalysis.errors import UserError
from mcanalysis.metrics.prediction_similarity import (
    answers_differ,
    churn,
    js_divergence,
    kl_divergence,
    log_probabilities,
    symmetric_kl,
)


def pair(seed, shape=(6, 11), spread=3.0):
    rng = np.random.default_rng(seed)
    return [log_softmax(spread * rng.normal(size=shape), axis=-1) for _ in range(2)]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 20))
def test_divergences_are_scipy_s(seed, spread):
    p, q = pair(seed, spread=spread)
    rows = list(zip(np.exp(p), np.exp(q), strict=True))
    np.testing.assert_allclose(kl_divergence(p, q), [entropy(a, b) for a, b in rows], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(
        symmetric_kl(p, q), [(entropy(a, b) + entropy(b, a)) / 2 for a, b in rows], rtol=1e-8, atol=1e-12
    )
    np.testing.assert_allclose(js_divergence(p, q), [jensenshannon(a, b) ** 2 for a, b in rows], rtol=1e-6, atol=1e-12)
    assert (js_divergence(p, q) <= np.log(2) + 1e-12).all() and (kl_divergence(p, q) >= 0).all()


def test_equal_distributions_are_exactly_zero_apart():
    p, _ = pair(0)
    assert (kl_divergence(p, p) == 0).all() and (js_divergence(p, p) <= 1e-15).all()


def test_direction_matters_for_kl_only():
    p, q = pair(1)
    assert np.abs(kl_divergence(p, q) - kl_divergence(q, p)).max() > 0.1
    np.testing.assert_array_equal(symmetric_kl(p, q), symmetric_kl(q, p))
    np.testing.assert_allclose(js_divergence(p, q), js_divergence(q, p))


def test_classes_of_probability_zero():
    p, q = np.log([[0.5, 0.5, 1e-300], [1.0, 1e-300, 1e-300]]), np.array([[0.0, -np.inf, -np.inf]] * 2)
    assert kl_divergence(q, p)[0] == pytest.approx(np.log(2))  # 0 · log 0 counts nothing
    assert np.isinf(kl_divergence(p, q)[0])
    assert js_divergence([0.0, -np.inf], [-np.inf, 0.0]) == pytest.approx(np.log(2))
    assert kl_divergence([0.0, -np.inf], [0.0, -np.inf]) == 0


def test_logits_of_float32_are_normalised_in_float64():
    logits = np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32) * 30 + 200
    found = log_probabilities(logits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-12)


def test_churn_counts_answers_not_scores():
    assert churn(["A", "B"], ["B", "A"]) == 1.0
    assert churn(["A", "B", "C"], ("A", "B", "D")) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(answers_differ(["A", "B", "C"], ("A", "B", "D")), [0, 0, 1])


def test_bad_input_is_named():
    for a, b in ((["A"], ["A", "B"]), ([], [])):
        with pytest.raises(UserError, match=r"got \d and \d"):
            churn(a, b)
    with pytest.raises(UserError, match=r"got \(2, 3\) and \(2, 4\)"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 4)))
