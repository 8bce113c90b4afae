"""CKA and HSIC against their definitions written out, and against what they should not see."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcanalysis.errors import UserError
from mcanalysis.metrics.representation_similarity import CKA, linear_cka, linear_hsic


def features(seed, n, width):
    return np.random.default_rng(seed).normal(size=(n, width))


def related(seed, n, widths=(7, 4), noise=1.0):
    """Two representations that share part of their variance, with means far from zero."""
    x = features(seed, n, widths[0]) * np.linspace(3, 0.2, widths[0])
    y = x @ features(seed + 1, widths[0], widths[1]) + noise * features(seed + 2, n, widths[1])
    return x + 5, y - 20


def rotation(seed, width):
    return np.linalg.qr(features(seed, width, width))[0]


def biased_by_hand(x, y):
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features: equation (5) of Kornblith et al. 2019."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def u_statistic(x, y):
    """HSIC as the mean over all ordered quadruples of distinct examples: its definition, O(n⁴)."""
    K, L = x @ x.T, y @ y.T
    values = [
        K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q]
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return np.mean(values)


def test_biased_cka_is_kornblith_s_formula():
    x, y = related(0, 50)
    assert linear_cka(x, y, unbiased=False) == pytest.approx(biased_by_hand(x, y), rel=1e-12)
    images = x.reshape(50, 7, 1)
    assert linear_cka(images, y, unbiased=False) == pytest.approx(biased_by_hand(x, y), rel=1e-12)


def test_biased_hsic_is_the_trace_formula():
    x, y = related(1, 20)
    H = np.eye(20) - 1 / 20
    assert linear_hsic(x, y, unbiased=False) == pytest.approx(np.trace(x @ x.T @ H @ y @ y.T @ H) / 19**2, rel=1e-11)


@pytest.mark.parametrize("n", [4, 5, 8])
def test_unbiased_hsic_is_the_u_statistic(n):
    x, y = related(2, n)
    assert linear_hsic(x, y) == pytest.approx(u_statistic(x, y), rel=1e-9)
    assert linear_hsic(x, x) == pytest.approx(u_statistic(x, x), rel=1e-9)


def test_unbiased_cka_is_the_ratio_of_u_statistics():
    x, y = related(3, 8)
    expected = u_statistic(x, y) / math.sqrt(u_statistic(x, x) * u_statistic(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


def test_unbiased_hsic_has_the_squared_covariance_as_expectation():
    values = [linear_hsic(*np.random.default_rng(s).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 12).T[:, :, None])
              for s in range(4000)]  # fmt: skip
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - 0.36) < 4 * error < 0.1


def test_independent_features_have_no_unbiased_cka_where_the_biased_one_is_high():
    pairs = [(features(2 * s, 40, 200), features(2 * s + 1, 40, 200)) for s in range(20)]
    assert np.mean([linear_cka(x, y, unbiased=False) for x, y in pairs]) > 0.7
    assert abs(np.mean([linear_cka(x, y) for x, y in pairs])) < 0.03


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(5, 30), st.booleans(), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_rotation_scale_and_shift_are_not_seen_and_order_of_arguments_neither(seed, n, unbiased, scale, shift):
    x, y = related(seed, n, noise=0.5)
    value = linear_cka(x, y, unbiased)
    moved = scale * x @ rotation(seed, 7) + shift
    if math.isnan(value):  # HSIC of very few examples can be negative
        return
    assert linear_cka(moved, y, unbiased) == pytest.approx(value, rel=1e-6, abs=1e-9)
    assert linear_cka(y, x, unbiased) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert linear_cka(x, moved, unbiased) == pytest.approx(1.0, abs=1e-6)


def test_an_invertible_map_that_is_no_rotation_is_seen():
    x = features(0, 60, 5)
    assert linear_cka(x, x * np.array([10, 1, 1, 1, 1])) < 0.9


def test_batches_average_hsic_before_the_ratio():
    x, y = related(4, 30)
    parts = [slice(0, 12), slice(12, 22), slice(22, 30)]
    cka = CKA()
    for rows in parts:
        cka.update(x[rows], y[rows])
    xy, xx, yy = (
        np.average([linear_hsic(a[rows], b[rows]) for rows in parts], weights=[12, 10, 8])
        for a, b in ((x, y), (x, x), (y, y))
    )
    assert cka.value() == pytest.approx(xy / math.sqrt(xx * yy), rel=1e-12)
    assert cka.num_examples == 30
    assert abs(cka.value() - np.mean([linear_cka(x[rows], y[rows]) for rows in parts])) > 1e-4


def test_many_small_batches_agree_with_the_whole_data_only_without_bias():
    x, y = related(5, 4000, widths=(20, 20), noise=8.0)
    whole = linear_cka(x, y)
    small = {unbiased: CKA(unbiased) for unbiased in (True, False)}
    for rows in np.arange(4000).reshape(-1, 10):
        for cka in small.values():
            cka.update(x[rows], y[rows])
    assert small[True].value() == pytest.approx(whole, abs=0.02)
    assert small[False].value() > whole + 0.1


def test_nothing_of_the_examples_is_kept():
    cka = CKA()
    sizes = []
    for seed in range(3):
        cka.update(*related(seed, 20))
        sizes.append(sum(np.size(v) for v in vars(cka).values()))
    assert len(set(sizes)) == 1 and sizes[0] < 20


@pytest.mark.parametrize("sizes", [[30], [14, 9, 7]])
def test_standard_error_is_the_linearised_jackknife_by_brute_force(sizes):
    x, y = related(6, sum(sizes))
    cka, covariance, means = CKA(), np.zeros((3, 3)), np.zeros(3)
    for start, n in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        a, b = x[start : start + n], y[start : start + n]
        cka.update(a, b)
        triple = [[linear_hsic(p, q) for p, q in ((c, d), (c, c), (d, d))] for c, d in
                  [(a, b), *((np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(n))]]  # fmt: skip
        without = np.array(triple[1:])
        apart = without - without.mean(0)
        covariance += (n / sum(sizes)) ** 2 * (n - 1) / n * apart.T @ apart
        means += n / sum(sizes) * np.array(triple[0])
    step = 1e-6 * means
    ratio = lambda m: m[0] / math.sqrt(m[1] * m[2])  # noqa: E731
    slope = np.array([(ratio(means + e) - ratio(means - e)) / (2 * e.sum()) for e in np.diag(step)])
    assert cka.standard_error() == pytest.approx(math.sqrt(slope @ covariance @ slope), rel=1e-6)


def test_standard_error_is_how_far_values_scatter():
    values, errors, inside = [], [], []
    x, y = related(20_000, 4000, noise=3.0)
    truth = linear_cka(x, y)
    for rows in np.random.default_rng(0).permutation(4000)[:3960].reshape(-1, 60):
        cka = CKA()
        cka.update(x[rows], y[rows])
        values.append(cka.value())
        errors.append(cka.standard_error())
        low, high = cka.interval()
        inside.append(low < truth < high)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)
    assert np.mean(inside) > 0.85


def test_a_representation_that_does_not_vary_has_no_cka():
    x = features(0, 10, 3)
    assert math.isnan(linear_cka(x, np.ones((10, 2)), unbiased=False))
    cka = CKA()
    cka.update(np.zeros((10, 2)), x)
    assert math.isnan(cka.value()) and math.isnan(cka.standard_error())


def test_equal_representations_have_cka_one_and_no_error():
    cka = CKA()
    cka.update(features(0, 9, 30), features(0, 9, 30))
    assert cka.value() == pytest.approx(1.0, abs=1e-12) and cka.standard_error() < 1e-7
    four = CKA()
    four.update(*related(0, 4))
    assert math.isnan(four.standard_error())
    biased = CKA(unbiased=False)
    biased.update(*related(0, 9))
    assert math.isnan(biased.standard_error())


def test_bad_input_is_named():
    with pytest.raises(UserError, match="at least 4 examples in a batch for unbiased CKA, got 3"):
        linear_cka(features(0, 3, 2), features(1, 3, 2))
    with pytest.raises(UserError, match="at least 2 examples"):
        linear_cka(features(0, 1, 2), features(1, 1, 2), unbiased=False)
    with pytest.raises(UserError, match="got 5 and 6 rows"):
        linear_hsic(features(0, 5, 2), features(1, 6, 2))
    with pytest.raises(UserError, match="at least one batch"):
        CKA().value()
    with pytest.raises(UserError, match="got one number"):
        linear_cka(1.0, 2.0)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -1e30, 1e-30])
def test_constant_representations_have_no_similarity(value, unbiased):
    """Whatever their mean is rounded by."""
    for n in (10, 37, 50):
        constant, other = np.full((n, 5), value), np.random.default_rng(0).standard_normal((n, 3))
        assert np.isnan(linear_cka(constant, constant, unbiased)) and np.isnan(linear_cka(constant, other, unbiased))
        varying = constant + np.linspace(0, abs(value) * 1e-6, n)[:, None]  # which is no rounding
        assert linear_cka(varying, varying, unbiased) == pytest.approx(1.0)
