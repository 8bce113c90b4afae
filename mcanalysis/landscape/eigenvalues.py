"""The largest and the smallest eigenvalues of a symmetric operator, by Lanczos iterations."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh

from mcanalysis.errors import UnknownNameError, UserError

logger = logging.getLogger(__name__)

_ASYMMETRY = 5.0  # times the promised residual: more than rounding in low precision adds
_ENDS = {"top": ("LA", 1), "bottom": ("SA", 1), "both": ("BE", 2)}  # ARPACK's name, and for how many ends


class NotConvergedError(UserError):
    """Lanczos was stopped before all eigenvalues were found to the tolerance."""


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """Eigenvalues and how good they are.

    `values` (k,), descending; `vectors` (n, k), unit columns (`HessianOperator.as_point` makes a point of one);
    `residuals` (k,): ‖Hv − λv‖, within which of `values[i]` an exact eigenvalue of a symmetric H lies (where they are
    far above what was asked for, H is none, which is warned of); `num_products`: products with the operator that were
    spent, those for the residuals included.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    residuals: NDArray[np.float64]
    num_products: int


def check_operator(operator: Any) -> None:
    """Raise `UserError` for what is no linear operator.

    >>> check_operator(LinearOperator((2, 2), matvec=lambda x: x))
    """
    if not callable(getattr(operator, "matvec", None)):
        raise UserError(
            f"Expected a linear operator, got a {type(operator).__name__}; make one of a loss with "
            "mc.HessianOperator(losses, point), of a matrix with scipy.sparse.linalg.aslinearoperator."
        )


def eigenvalues(
    operator: LinearOperator,
    num: int = 10,
    which: str = "top",
    tolerance: float = 0.01,
    seed: int = 0,
    max_restarts: int = 100,
) -> Eigenvalues:
    """Return the `num` largest eigenvalues ("top"), smallest ("bottom"), or as many of each ("both").

    Implicitly restarted Lanczos in float64 (`scipy.sparse.linalg.eigsh`, Lehoucq et al. 1998) from a seeded start; both
    ends come from one iteration, in fewer products than one after the other. Where eigenvalues are closer than the
    tolerance, one of them may be passed over for the next; one of multiplicity above one may be found fewer times.

    Args:
        operator: symmetric, (n, n), such as `HessianOperator`.
        num: at least 1; n must be larger than all that are asked for.
        which: "top", "bottom" or "both".
        tolerance: largest residual relative to the eigenvalue, hence a bound of its relative error; positive. 0.01 is
            what the reports need; errors are far smaller where eigenvalues are well apart.
        seed: of the starting vector.
        max_restarts: of Lanczos, after which it gives up.

    Raises:
        UserError: for numbers out of range, or what is no operator.
        NotConvergedError: if not all eigenvalues have converged after `max_restarts`, as the smallest ones of a matrix
            without negative ones, where nothing is small relative to 0.
        UnknownNameError: for another `which`.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> eigenvalues(aslinearoperator(np.diag([4.0, -1.0, 2.0, 0.5])), num=2).values.round(6).tolist()
    [4.0, 2.0]
    """
    check_operator(operator)
    if which not in _ENDS:
        raise UnknownNameError("end of the spectrum", str(which), _ENDS)
    size = operator.shape[0]
    end, num_ends = _ENDS[which]
    wanted = num * num_ends
    if num < 1:
        raise UserError(f"Expected at least 1 eigenvalue, got {num}; raise num.")
    if wanted >= size:
        raise UserError(
            f"Expected fewer eigenvalues than the {size} coordinates of the point, got {wanted}; lower num."
        )
    if not tolerance > 0:
        raise UserError(f"Expected a positive tolerance, got {tolerance}; choose 0.01 for one percent.")
    counted = _Counted(operator)
    start = np.random.default_rng(seed).standard_normal(size)
    width = min(size, max(2 * wanted + 1, 20 * num_ends))  # of the Krylov space: ARPACK's usual one per end
    try:
        values, vectors = eigsh(
            counted,
            wanted,
            which=end,
            tol=tolerance,  # type: ignore
            v0=start,
            ncv=width,
            maxiter=max_restarts,
        )
    except ArpackNoConvergence as error:
        raise NotConvergedError(
            f"Expected {wanted} eigenvalues ({which}) within {tolerance:g} of themselves, got "
            f"{len(error.eigenvalues)} after {counted.num_products} products; ask for fewer, or raise the "
            "tolerance or max_restarts."
        ) from None
    except ArpackError as error:
        if counted.matvec(start).any():
            raise UserError(
                f"Expected an operator that Lanczos can iterate, got from ARPACK: {error}; choose another seed."
            ) from None
        # Only the zero matrix takes a random vector to 0, and ARPACK cannot start there.
        return Eigenvalues(np.zeros(wanted), np.eye(size, wanted), np.zeros(wanted), counted.num_products)
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    residuals = [float(np.linalg.norm(counted.matvec(v) - x * v)) for x, v in zip(values, vectors.T, strict=True)]
    if max(residuals) > _ASYMMETRY * max(tolerance, 0.01) * float(np.abs(values).max()):
        logger.warning(
            "Residuals of eigenvalues are up to %.2g where Lanczos promises %.2g: the products are not those of a "
            "symmetric matrix, or are hardly more than rounding (float64 tells), and the eigenvalues may be wrong.",
            max(residuals),
            tolerance * float(np.abs(values).max()),
        )
    return Eigenvalues(values, vectors, np.array(residuals), counted.num_products)


class _Counted(LinearOperator):
    """The same operator in float64, counting its products."""

    def __init__(self, operator: LinearOperator) -> None:
        self._operator = operator
        self.num_products = 0
        super().__init__(np.dtype(np.float64), operator.shape)

    def _matvec(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        self.num_products += 1
        return np.asarray(self._operator.matvec(x), dtype=np.float64)
