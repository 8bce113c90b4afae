"""Linear centred kernel alignment (CKA): how alike two representations of the same examples are.

CKA(X, Y) = HSIC(X, Y) / √(HSIC(X, X) · HSIC(Y, Y)) with linear kernels (Kornblith et al. 2019, arXiv 1905.00414). It
does not see rotations, reflections, shifts and a common scale of the features; the widths of X and Y may differ.

With few examples and many features the usual (biased) estimate of HSIC is far above zero even for independent
features, and CKA close to 1 says little. The default is therefore the unbiased estimate, HSIC₁ of Song et al. 2012
(JMLR 13), averaged over batches before the ratio is taken (Nguyen et al. 2021, arXiv 2010.15327): memory does not grow
with the number of examples. The ratio of unbiased estimates is not itself confined to [0, 1]; around 0 it can be
negative, and it is exactly 1 for equal representations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mcanalysis.errors import UserError

__all__ = ["CKA", "linear_cka", "linear_hsic"]

Array = NDArray[np.float64]
SMALLEST_BATCH = {True: 4, False: 2}  # examples that the unbiased and the biased estimate are defined for


class CKA:
    """Linear CKA of two representations, fed batch by batch; keep one object per layer.

    Batches should be random draws: HSIC within a batch of like examples (sorted by length, say) is that of a narrower
    distribution. With one batch the value is that of the whole data; with several, batches weigh by their size.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 5))
    >>> rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    >>> cka = CKA()
    >>> for rows in (slice(0, 30), slice(30, 60)):
    ...     cka.update(x[rows], 3 * x[rows] @ rotation + 1)
    >>> round(cka.value(), 9), cka.num_examples
    (1.0, 60)
    """

    def __init__(self, unbiased: bool = True) -> None:
        self.unbiased = unbiased
        self.num_examples = 0
        self._sums = np.zeros(3)  # of HSIC(X, Y), HSIC(X, X), HSIC(Y, Y), each times the size of its batch
        self._squares = np.zeros((3, 3))  # of the jackknife's covariance, times the size squared
        self._has_error = unbiased
        self._scales: list[int | None] = [None, None]  # powers of two that bring both to the size of 1

    def update(self, x: ArrayLike, y: ArrayLike) -> None:
        """Add a batch.

        Args:
            x: shape `(examples, …)`; all further axes are features.
            y: shape `(examples, …)`, of the same examples in the same order.

        Raises:
            UserError: the two have not the same number of examples, or the batch has fewer than 4 (biased: 2).
        """
        K, L = _grams(x, y, self.unbiased, self._scales)
        size = len(K)
        pairs = ((K, L), (K, K), (L, L))
        self.num_examples += size
        if not self.unbiased:
            self._sums += size * np.array([_biased(*pair) for pair in pairs])
            return
        self._sums += size * np.array([_unbiased(*pair) for pair in pairs])
        if size > SMALLEST_BATCH[True]:
            left_out = np.stack([_unbiased_without_each(*pair) for pair in pairs])
            apart = left_out - left_out.mean(axis=1, keepdims=True)
            self._squares += size**2 * (size - 1) / size * (apart @ apart.T)
        else:
            self._has_error = False

    def value(self) -> float:
        """Return CKA; NaN where a representation does not vary (its HSIC is not positive).

        Biased: in [0, 1]. Unbiased: at most about 1, around 0 for independent representations.

        Raises:
            UserError: no batch was given.
        """
        xy, xx, yy = self._means()
        return float(xy / math.sqrt(xx * yy)) if xx > 0 and yy > 0 else math.nan

    def standard_error(self) -> float:
        """Return the standard error of `value` over examples; NaN for the biased form and where a batch has 4 examples.

        The three HSIC are jackknifed (each example left out once, Arvesen 1969), and the ratio is linearised around
        them, so that nothing is kept of the examples.
        """
        xy, xx, yy = self._means()
        if not (self._has_error and xx > 0 and yy > 0):
            return math.nan
        ratio = xy / math.sqrt(xx * yy)
        slope = np.array([1 / math.sqrt(xx * yy), -ratio / (2 * xx), -ratio / (2 * yy)])
        variance = slope @ self._squares @ slope / self.num_examples**2
        return math.sqrt(max(float(variance), 0.0))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return `value` ∓ z · `standard_error`, z being the normal quantile; NaN where that error is.

        It covers the choice of examples, not the randomness of training.
        """
        half = float(stats.norm.ppf((1 + confidence) / 2)) * self.standard_error()
        return self.value() - half, self.value() + half

    def _means(self) -> Array:
        if not self.num_examples:
            raise UserError("Expected at least one batch, got none; call update(x, y) first.")
        return self._sums / self.num_examples


def linear_cka(x: ArrayLike, y: ArrayLike, unbiased: bool = True) -> float:
    """Return the linear CKA of two representations of the same examples, all at once.

    Args:
        x: shape `(examples, …)`; all further axes are features.
        y: shape `(examples, …)`.
        unbiased: use HSIC₁ (needs 4 examples), else the biased estimate of Kornblith et al. (needs 2).

    Raises:
        UserError: the two have not the same number of examples, or there are too few.

    >>> x = np.arange(8.0).reshape(4, 2) ** 2
    >>> linear_cka(x, x), round(linear_cka(x, -2 * x[:, ::-1], unbiased=False), 12)
    (1.0, 1.0)
    """
    cka = CKA(unbiased)
    cka.update(x, y)
    return cka.value()


def linear_hsic(x: ArrayLike, y: ArrayLike, unbiased: bool = True) -> float:
    """Return the Hilbert-Schmidt independence criterion with linear kernels, ‖cov(X, Y)‖² in expectation.

    Unbiased: HSIC₁ of Song et al. 2012, which has this expectation exactly and can be negative. Biased: tr(KHLH)/(n−1)²
    of Gretton et al. 2005. In the unit of X² · Y². Raises `UserError` as `linear_cka` does.

    >>> linear_hsic([[0.0], [1.0], [2.0]], [[0.0], [2.0], [4.0]], unbiased=False)  # (covariance of 2)²
    4.0
    """
    K, L = _grams(x, y, unbiased)
    return _unbiased(K, L) if unbiased else _biased(K, L)


def _grams(x: ArrayLike, y: ArrayLike, unbiased: bool, scales: list[int | None] | None = None) -> tuple[Array, Array]:
    """The two Gram matrices of centred features; without their diagonals for the unbiased estimate.

    With `scales` (CKA has no unit) features are divided by a power of two, which loses nothing and keeps the fourth
    powers of very large and very small ones finite; a scale is set by the first batch that varies.
    """
    features = [_features(values) for values in (x, y)]
    sizes = [len(values) for values in features]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"Expected representations of the same examples, got {sizes[0]} and {sizes[1]} rows; run both points on "
            "the same batch."
        )
    least = SMALLEST_BATCH[unbiased]
    if sizes[0] < least:
        raise UserError(
            f"Expected at least {least} examples in a batch for {'un' if unbiased else ''}biased CKA, got {sizes[0]}; "
            "use more examples or larger batches."
        )
    # Shifts change neither estimate, but a large mean would cost digits.
    centred = [_centred(values) for values in features]
    if scales is not None:
        for i, values in enumerate(centred):
            largest = float(np.abs(values).max(initial=0.0))
            if scales[i] is None and 0 < largest < np.inf:
                scales[i] = math.frexp(largest)[1]
            centred[i] = np.ldexp(values, -(scales[i] or 0))
    grams = [values @ values.T for values in centred]
    if unbiased:
        for gram in grams:
            np.fill_diagonal(gram, 0.0)
    return grams[0], grams[1]


def _centred(values: Array) -> Array:
    """Features minus their means; of a constant one 0, and not what its mean is rounded by."""
    with np.errstate(over="ignore", invalid="ignore"):  # ∞ and NaN stay what they are
        found = values - values.mean(axis=0)
        rounding = len(values) * np.finfo(np.float64).eps * np.abs(values).max(axis=0, initial=0.0)
        return np.where(np.abs(found).max(axis=0, initial=0.0) <= rounding, 0.0 * found, found)


def _features(values: Any) -> Array:
    if hasattr(values, "detach"):  # a tensor of any precision, with or without a gradient
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0:
        raise UserError("Expected representations of shape (examples, features), got one number; pass a batch.")
    return array.reshape(len(array), -1)


def _biased(K: Array, L: Array) -> float:
    """tr(KHLH)/(n−1)²; the features are centred, so that HKH = K."""
    return float((K * L).sum()) / (len(K) - 1) ** 2


def _unbiased(K: Array, L: Array) -> float:
    """HSIC₁ (Song et al. 2012, equation 5) of Gram matrices with zero diagonals."""
    k, l = K.sum(axis=1), L.sum(axis=1)  # noqa: E741
    return float(_hsic_1((K * L).sum(), k.sum(), l.sum(), k @ l, len(K)))


def _unbiased_without_each(K: Array, L: Array) -> Array:
    """HSIC₁ without each example in turn, shape (n,), all in O(n²)."""
    k, l = K.sum(axis=1), L.sum(axis=1)  # noqa: E741
    of_each = (K * L).sum(axis=1)
    products = k @ l - K @ l - L @ k + of_each - k * l
    return _hsic_1(of_each.sum() - 2 * of_each, k.sum() - 2 * k, l.sum() - 2 * l, products, len(K) - 1)


def _hsic_1(trace: Any, sum_k: Any, sum_l: Any, product: Any, n: int) -> Any:
    """From tr(KL), 1ᵀK1, 1ᵀL1 and 1ᵀKL1."""
    return (trace + sum_k * sum_l / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))
