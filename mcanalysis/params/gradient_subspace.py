"""The space in which a layer's gradients of earlier tasks lie, and what is left free of it (DualGPM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcanalysis.errors import UserError

_ROUNDING = 1e-12  # parts of the energy that are no energy


@dataclass(frozen=True)
class GradientSubspace:
    """The directions of a layer's inputs that earlier tasks used, as an orthonormal basis of them or of the rest.

    The gradient of y = W·x is a sum of outer products with x, so its rows lie in the span of the inputs, and a change
    of W whose rows are orthogonal to the inputs of a task does not change what the layer gives for them.

    Whichever is smaller is kept, what is used or what is free (the "dual" of DualGPM, as InfLoRA uses it, Liang & Li
    2024, arXiv 2404.00228); it makes no difference to the results.

    `basis`: shape (width, k), float32, orthonormal columns. `holds_free`: whether they span what is free.

    >>> space = GradientSubspace.empty(3).extended(torch.diag(torch.tensor([0.0, 2.0, 1.0])), threshold=0.75)
    >>> space.num_used  # 2² of 2² + 1² is 0.8
    1
    >>> space.leading(torch.eye(3) + torch.diag(torch.tensor([0.0, 9.0, 1.0])), 1).abs()
    tensor([[0., 0., 1.]])
    """

    basis: Tensor
    holds_free: bool = False

    @classmethod
    def empty(cls, width: int, device: torch.device | None = None) -> GradientSubspace:
        """Nothing used yet."""
        return cls(torch.zeros(width, 0, device=device))

    @property
    def num_used(self) -> int:
        """The dimension of what is used."""
        width, number = self.basis.shape
        return width - number if self.holds_free else number

    def leading(self, covariance: Tensor, number: int) -> Tensor:
        """The leading left singular vectors of the covariance's projection onto what is free, as rows.

        Args:
            covariance: shape (width, width), symmetric, non-negative.
            number: how many.

        Returns:
            shape (number, width), float32: rows that are orthonormal and orthogonal to what is used, also where the
            projection has fewer singular values above 0; zeros where fewer directions are free than asked for.
        """
        directions, _ = self._spectrum(covariance)
        rows = directions.T[:number].float()
        return torch.cat([rows, rows.new_zeros(number - len(rows), rows.shape[1])])

    def projected(self, rows: Tensor) -> Tensor:
        """The rows' parts in what is free, in their dtype; zeros where nothing is free.

        Args:
            rows: shape (number, width).

        >>> GradientSubspace(torch.tensor([[0.0], [1.0]])).projected(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 0.]])
        """
        free = self._free()
        return (rows.double() @ free @ free.T).to(rows.dtype)

    def extended(self, covariance: Tensor, threshold: float) -> GradientSubspace:
        """With the fewest more directions used that hold `threshold` of the energy of the covariance.

        The energy is ‖C‖², the sum of the squared singular values of the covariance (so of the fourth powers of
        activations); the part ‖M·Mᵀ·C‖² of what was used already counts.

        Args:
            covariance: as for `leading`.
            threshold: in (0, 1]; 1 means all that is not rounding.
        """
        if not 0 < threshold <= 1:
            raise UserError(f"Expected a threshold in (0, 1], got {threshold}; choose the share of the energy to keep.")
        total = float(covariance.double().square().sum())
        directions, energies = self._spectrum(covariance)
        if not total or not len(energies):
            return self
        parts = energies / total
        before = 1 - parts.sum() + parts.cumsum(0) - parts  # what is held before each direction is added
        added = int((before < threshold - _ROUNDING).sum())
        width = len(self.basis)
        if self.holds_free or 2 * (self.num_used + added) > width:
            return GradientSubspace(directions[:, added:].float().contiguous(), holds_free=True)
        return GradientSubspace(torch.cat([self.basis, directions[:, :added].float()], dim=1))

    def _spectrum(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Left singular vectors, as columns, and squared singular values, falling, of FᵀC, F a basis of what is free.

        In the coordinates of what is free, so that the vectors of singular values of 0 are orthogonal to what is used,
        too; that of the projection in all coordinates would be arbitrary. In float64.
        """
        free = self._free()
        projected = free.T @ covariance.double()
        energies, vectors = torch.linalg.eigh(projected @ projected.T)
        return free @ vectors.flip(1), energies.flip(0).clamp(min=0)

    def _free(self) -> Tensor:
        """An orthonormal basis of what is free, float64, shape (width, free dimensions)."""
        basis = self.basis.double()
        if self.holds_free:
            return torch.linalg.qr(basis).Q  # float32 is orthonormal to 1e-7 only
        return torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
