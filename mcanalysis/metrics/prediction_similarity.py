"""How differently two models predict on the same examples: churn of answers, divergences of distributions.

Distributions are given as log-probabilities over the last axis, in nats. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax

from mcanalysis.errors import UserError

__all__ = ["answers_differ", "churn", "js_divergence", "kl_divergence", "log_probabilities", "symmetric_kl"]

Array = NDArray[np.float64]


def answers_differ(a: Sequence[Any], b: Sequence[Any]) -> Array:
    """Return, per example, 1 where the two answers differ and 0 where they are equal, shape `(examples,)`.

    Args:
        a: answers of one model (texts, labels, anything that compares).
        b: answers of the other to the same examples, in the same order.

    Raises:
        UserError: the numbers of answers differ, or there is none.

    >>> answers_differ(["A", "B", "C"], ["A", "C", "C"]).tolist()
    [0.0, 1.0, 0.0]
    """
    if len(a) != len(b) or not len(a):
        raise UserError(
            f"Expected answers of both models to the same examples, got {len(a)} and {len(b)}; let both answer all."
        )
    return np.array([float(first != second) for first, second in zip(a, b, strict=True)])


def churn(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Return the share of examples that are answered differently, in [0, 1] (Milani Fard et al. 2016, NeurIPS).

    Right or wrong does not matter: two models of equal accuracy can have a high churn. Raises `UserError` as
    `answers_differ` does.

    >>> churn(["A", "B", "C", "D"], ["A", "C", "C", "D"])
    0.25
    """
    return float(answers_differ(a, b).mean())


def log_probabilities(logits: ArrayLike) -> Array:
    """Return log softmax over the last axis, in float64.

    >>> np.exp(log_probabilities([0.0, np.log(3.0)])).round(6).tolist()
    [0.25, 0.75]
    """
    return log_softmax(np.asarray(logits, dtype=np.float64), axis=-1)


def kl_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """Return KL(p‖q) = Σ p·(log p − log q) over the last axis, in nats, ≥ 0; infinite where q is 0 and p is not.

    Args:
        log_p: shape `(…, classes)`, log-probabilities; −∞ is a probability of 0.
        log_q: the same shape.

    Raises:
        UserError: the shapes differ.

    >>> kl_divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75])).round(6).item()
    0.143841
    """
    p, q = _pair(log_p, log_q)
    with np.errstate(invalid="ignore"):
        terms = np.exp(p) * (p - q)
    # Rounding can leave a sum of −1e-17 for equal distributions.
    return np.maximum(np.where(np.isneginf(p), 0.0, terms).sum(axis=-1), 0.0)


def symmetric_kl(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """Return ½(KL(p‖q) + KL(q‖p)) over the last axis, in nats, ≥ 0 (half of Jeffreys's divergence).

    Raises `UserError` as `kl_divergence` does.

    >>> a, b = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    >>> bool(symmetric_kl(a, b) == symmetric_kl(b, a))
    True
    """
    return (kl_divergence(log_p, log_q) + kl_divergence(log_q, log_p)) / 2


def js_divergence(log_p: ArrayLike, log_q: ArrayLike) -> Array:
    """Return the Jensen–Shannon divergence ½KL(p‖m) + ½KL(q‖m), m = ½(p + q), in nats, in [0, ln 2] (Lin 1991).

    Finite even where the two have no class in common. Raises `UserError` as `kl_divergence` does.

    >>> float(js_divergence([0.0, -np.inf], [-np.inf, 0.0]) / np.log(2))
    1.0
    """
    p, q = _pair(log_p, log_q)
    m = np.logaddexp(p, q) - np.log(2.0)
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


def _pair(log_p: ArrayLike, log_q: ArrayLike) -> tuple[Array, Array]:
    p, q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if p.shape != q.shape or p.ndim == 0:
        raise UserError(
            f"Expected two arrays of log-probabilities of one shape (…, classes), got {p.shape} and {q.shape}; "
            "compare the same positions under the same vocabulary."
        )
    return p, q
