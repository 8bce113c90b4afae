"""The density of all eigenvalues of a symmetric operator, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator

from mcanalysis.errors import UserError
from mcanalysis.landscape.eigenvalues import check_operator


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """A quadrature of the spectrum: point masses `weights` (m,), summing to 1, at `nodes` (m,), of all probes together.

    The outermost nodes come close to the outermost eigenvalues. `num_coordinates` is the side n of the operator,
    `num_probes` the starting vectors, `num_products` what they took.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    num_coordinates: int
    num_probes: int
    num_products: int

    def moment(self, power: int) -> float:
        """An unbiased estimate of the trace of the operator's power, n·Σ wᵢ·θᵢ^power.

        >>> SpectralDensity(np.array([1.0, 3.0]), np.array([0.5, 0.5]), 4, 1, 2).moment(1)
        8.0
        """
        return self.num_coordinates * float(np.sum(self.weights * self.nodes**power))

    def width(self) -> float:
        """The default width of the smoothing: a hundredth of the range of the nodes (1 where they are all equal)."""
        return 0.01 * float(np.ptp(self.nodes)) or 1.0

    def grid(self, num: int = 1024) -> NDArray[np.float64]:
        """`num` equally spaced places, from four widths below the lowest node to four above the highest."""
        margin = 4 * self.width()
        return np.linspace(self.nodes.min() - margin, self.nodes.max() + margin, num)

    def density(self, at: ArrayLike, width: float | None = None) -> NDArray[np.float64]:
        """The density at some places, (k,): each mass spread as a Gaussian of standard deviation `width`.

        In units of one over the eigenvalue's; integrates to 1. The default width is `width()`: a detail narrower than
        that is not resolved.

        >>> SpectralDensity(np.array([0.0]), np.array([1.0]), 4, 1, 1).density([0.0]).round(4)
        array([0.3989])
        """
        width = self.width() if width is None else width
        if not width > 0:
            raise UserError(f"Expected a positive width, got {width}; leave it out to use a hundredth of the range.")
        apart = (np.asarray(at, dtype=np.float64)[:, None] - self.nodes) / width
        return np.exp(-0.5 * apart**2) @ self.weights / (width * math.sqrt(2 * math.pi))


def spectral_density(
    operator: LinearOperator, num_probes: int = 2, num_lanczos: int = 60, seed: int = 0
) -> SpectralDensity:
    """Return the density of the operator's eigenvalues, from `num_probes` · `num_lanczos` products.

    Stochastic Lanczos quadrature (Golub & Welsch 1969; Ubaru et al. 2017; for networks Ghorbani et al. 2019, arXiv
    1901.10159, and Yao et al. 2020, arXiv 1912.07145): each probe of random signs starts a Lanczos iteration with full
    reorthogonalisation in float64, whose tridiagonal matrix gives nodes and weights. With enough steps a node stands
    at every outlier; the bulk is resolved the better the more steps, and the noisier the fewer probes. An iteration
    whose Krylov space is exhausted stops early, and is then exact for its probe.

    Args:
        operator: symmetric, (n, n).
        num_probes: at least 1.
        num_lanczos: steps per probe, at least 1; at most n are taken.
        seed: of the probes.

    Raises:
        UserError: for numbers out of range, or what is no operator.

    >>> from scipy.sparse.linalg import aslinearoperator
    >>> density = spectral_density(aslinearoperator(np.diag([3.0, 1.0, -2.0])), num_probes=1, num_lanczos=3)
    >>> density.nodes.round(6).tolist(), density.weights.round(6).tolist()
    ([-2.0, 1.0, 3.0], [0.333333, 0.333333, 0.333333])
    """
    check_operator(operator)
    for name, value in (("num_probes", num_probes), ("num_lanczos", num_lanczos)):
        if value < 1:
            raise UserError(f"Expected {name} to be at least 1, got {value}; leave it out to use the default.")
    size = operator.shape[0]
    rng = np.random.default_rng(seed)
    nodes, weights, num_products = [], [], 0
    for _ in range(num_probes):
        diagonal, off_diagonal = _lanczos(operator, rng.choice((-1.0, 1.0), size) / math.sqrt(size), num_lanczos)
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        nodes.append(values)
        weights.append(vectors[0] ** 2 / num_probes)
        num_products += len(diagonal)
    return SpectralDensity(np.concatenate(nodes), np.concatenate(weights), size, num_probes, num_products)


def _lanczos(
    operator: LinearOperator, start: NDArray[np.float64], num_steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Diagonal (m,) and off-diagonal (m − 1,) of the tridiagonal matrix, m ≤ num_steps."""
    basis = np.empty((min(num_steps, len(start)), len(start)))
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    vector = start
    for step in range(len(basis)):
        basis[step] = vector
        product = np.asarray(operator.matvec(vector), dtype=np.float64)
        diagonal.append(float(vector @ product))
        so_far = basis[: step + 1]
        for _ in range(2):  # once is not enough (Parlett)
            product = product - so_far.T @ (so_far @ product)
        length = float(np.linalg.norm(product))
        scale = max(map(abs, [*diagonal, *off_diagonal]))
        if step + 1 == len(basis) or length <= 1e-10 * scale or length == 0.0:
            break
        off_diagonal.append(length)
        vector = product / length
    return np.array(diagonal), np.array(off_diagonal)
