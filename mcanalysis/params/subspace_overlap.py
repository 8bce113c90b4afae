"""Where two adapters write and read: principal angles between column and row spaces of their ΔW, per module.

The column space of ΔW (out, in) is what the adapter can add to a layer's output, the row space the directions of the
input that it reacts to. Both come from the factors; no matrix of shape (out, in) is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, key_b, module_names, share_modules
from mcanalysis.params.low_rank import balance
from mcanalysis.params.point import as_double, check_distinct

__all__ = ["SIDES", "TOLERANCE", "SubspaceOverlap", "subspace_overlap"]

Side = Literal["column", "row"]
SIDES: tuple[Side, ...] = ("column", "row")
TOLERANCE = 1e-6  # relative to the largest singular value; factors saved as float32 carry rounding of 1e-7


class SubspaceOverlap(NamedTuple):
    """`angles` (min(rank_a, rank_b),): in radians, ascending, in [0, π/2]; empty where an adapter has ΔW = 0.

    `rank_a`, `rank_b`: numerical ranks of ΔW; `dimension`: of the space that both live in.
    """

    angles: NDArray[np.float64]
    rank_a: int
    rank_b: int
    dimension: int

    @property
    def overlap(self) -> float:
        """Mean of cos² of the angles, in [0, 1]; 1 where one space holds the other, NaN without angles.

        φ = ‖UₐᵀU_b‖²/min(rank_a, rank_b) of Hu et al. 2022 (arXiv 2106.09685, section 7.2).
        """
        return float(np.mean(np.cos(self.angles) ** 2)) if len(self.angles) else float("nan")

    @property
    def random_overlap(self) -> float:
        """The expectation of `overlap` for two independent, uniformly random spaces of these ranks, NaN without angles.

        E‖UₐᵀU_b‖² = rank_a·rank_b/dimension, hence max(rank_a, rank_b)/dimension.
        """
        return max(self.rank_a, self.rank_b) / self.dimension if len(self.angles) else float("nan")


@torch.no_grad()
def subspace_overlap(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], side: Side = "column", tolerance: float = TOLERANCE
) -> dict[str, SubspaceOverlap]:
    """Return the principal angles between the column (or row) spaces of two adapters' ΔW, per module.

    Singular values of ΔW up to `tolerance` times the largest are taken for rounding and their directions left out
    (Björck and Golub 1973 for the angles, by `scipy.linalg.subspace_angles`). Ranks and targets of the adapters may
    differ; a module that one of them lacks, or where its ΔW is 0, has no angles. The result does not depend on how ΔW
    is split into factors.

    Raises:
        PointMismatchError: a point is not a LoRA point, or a module has other dimensions in the two.
        UserError: an unknown side, a tolerance outside [0, 1), or a weight that is not finite.

    >>> a = {"q.lora_A.weight": torch.tensor([[1.0, 0.0]]), "q.lora_B.weight": torch.tensor([[1.0], [0.0]])}
    >>> b = {"q.lora_A.weight": torch.tensor([[2.0, 0.0]]), "q.lora_B.weight": torch.tensor([[1.0], [1.0]])}
    >>> [np.rad2deg(subspace_overlap(a, b, side)["q"].angles).round(6).tolist() for side in SIDES]
    [[45.0], [0.0]]
    """
    if side not in SIDES:
        raise UserError(f"Expected the side to be column or row, got {side!r}; choose one of the two.")
    if not 0 <= tolerance < 1:
        raise UserError(f"Expected a tolerance in [0, 1), got {tolerance}; leave it out to use {TOLERANCE}.")
    check_distinct([a, b])
    bases = [_bases(point, side, tolerance) for point in share_modules([a, b])]
    overlaps = {}
    for module, first in bases[0].items():
        second = bases[1][module]
        ranks = first.shape[1], second.shape[1]
        angles = np.sort(subspace_angles(first, second)) if min(ranks) else np.empty(0)
        overlaps[module] = SubspaceOverlap(angles, *ranks, first.shape[0])
    return overlaps


def _bases(point: Mapping[str, Tensor], side: Side, tolerance: float) -> dict[str, NDArray[np.float64]]:
    """Orthonormal columns, shape (dimension, numerical rank), per module."""
    for name, tensor in point.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"Expected finite weights, got NaN or infinity in '{name}'; check the adapter's training.")
    bases = {}
    balanced = balance(as_double(point))
    for module in module_names(balanced):
        # Balanced factors are U√S and √S·Vᵀ: their columns and rows are the singular vectors, scaled.
        B, A = balanced[key_b(module)], balanced[key_a(module)]
        values = B.square().sum(dim=0)
        kept = values > tolerance * values.amax() if len(values) else values.bool()
        scaled = (B if side == "column" else A.T)[:, kept]
        bases[module] = (scaled / values[kept].sqrt()).cpu().numpy()
    return bases
