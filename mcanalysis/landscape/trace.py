"""The trace of an operator from products with random vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.landscape.eigenvalues import check_operator


@dataclass(frozen=True)
class Trace:
    """An unbiased estimate, its standard error, and the products with the operator that it took."""

    value: float
    standard_error: float
    num_products: int


def trace(operator: LinearOperator, num_samples: int = 30, method: str = "hutchinson", seed: int = 0) -> Trace:
    """Return an unbiased estimate of the trace from `num_samples` products with vectors of random signs.

    `hutchinson` (Hutchinson 1990) averages zᵀHz over as many z; its error comes from the off-diagonal entries.
    `hutch++` (Meyer et al. 2021, arXiv 2010.09649, algorithm 1) spends a third of the products on finding a subspace
    that holds the largest eigenvalues, takes its trace exactly, and estimates the rest: better where a few eigenvalues
    dominate. The standard error is that of the mean over the samples of what is estimated; it falls with the square
    root of their number.

    Args:
        operator: symmetric, (n, n).
        num_samples: products to spend, at least 2 (`hutchinson`) or 6 (`hutch++`, rounded down to a multiple of 3).
        method: "hutchinson" or "hutch++".
        seed: of the vectors.

    Raises:
        UserError: for too few samples, or what is no operator.
        UnknownNameError: for another method.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> trace(aslinearoperator(np.diag([3.0, 1.0, -2.0])), num_samples=2)  # exact: nothing is off the diagonal
    Trace(value=2.0, standard_error=0.0, num_products=2)
    """
    check_operator(operator)
    fewest = {"hutchinson": 2, "hutch++": 6}
    if method not in fewest:
        raise UnknownNameError("method for the trace", str(method), fewest)
    if num_samples < fewest[method]:
        raise UserError(
            f"Expected at least {fewest[method]} samples for {method}, got {num_samples}; raise num_samples."
        )
    size = operator.shape[0]
    rng = np.random.default_rng(seed)
    if method == "hutchinson":
        mean, error = _mean_of_forms(operator, _signs(rng, size, num_samples))
        return Trace(mean, error, num_samples)
    third = num_samples // 3
    width = min(third, size)
    basis, _ = np.linalg.qr(_products(operator, _signs(rng, size, width)))
    exact = float(np.sum(basis * _products(operator, basis)))
    probes = _signs(rng, size, third)
    probes -= basis @ (basis.T @ probes)
    mean, error = _mean_of_forms(operator, probes)
    return Trace(exact + mean, error, 2 * width + third)


def _signs(rng: np.random.Generator, size: int, number: int) -> NDArray[np.float64]:
    """Columns of ±1, shape (size, number), drawn one after another."""
    return np.stack([rng.choice((-1.0, 1.0), size) for _ in range(number)], axis=1)


def _products(operator: LinearOperator, columns: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([operator.matvec(column) for column in columns.T], axis=1)


def _mean_of_forms(operator: LinearOperator, columns: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of zᵀHz over the columns, and its standard error."""
    forms = np.array([column @ operator.matvec(column) for column in columns.T])
    return float(forms.mean()), float(forms.std(ddof=1) / math.sqrt(len(forms)))
