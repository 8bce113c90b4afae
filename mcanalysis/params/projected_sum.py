"""Adding adapters one after another, each without the part that lies in what those before have changed (OPCM)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, key_b, module_names, share_modules
from mcanalysis.params.low_rank import factored_svd
from mcanalysis.params.point import Point, working_dtype


@torch.no_grad()
def projected_sum(total: Mapping[str, Tensor], point: Mapping[str, Tensor], alpha: float) -> Point:
    """Return the adapter of ΔW = S + P(T), S what was summed so far, T the new ΔW, P the projection of OPCM.

    Per module, S = U·diag(s)·Vᵀ over its k singular values above rounding, and M = Uᵀ·T·V says how much of T lies in
    each product of a left and a right singular direction. P takes out of T all of M among the leading r directions, r
    as many as hold at most the share `alpha` of Σs, and the diagonal of M: T loses what would scale a direction of S,
    or mix those that carry most of it. (Tang et al. 2025, arXiv 2501.09522, as their code computes it, method `opcm` of
    FusionBench. It completes U and V to square matrices and takes their whole diagonal out; beyond the k-th those
    columns are any basis of what S leaves free, so that with S of low rank the result would depend on the library.)

    The rank is at most k plus the new adapter's: what P takes out lies in the columns of U and rows of Vᵀ.

    Args:
        total: S, a LoRA point.
        point: T, a LoRA point; rank and targets may differ.
        alpha: in [0, 1]; 0 takes out the diagonal only, 1 all of M.

    Raises:
        PointMismatchError: if one is not a LoRA point, or a module has other dimensions in the two.
        UserError: if `alpha` is out of range.

    >>> def adapter(*rows):
    ...     return {"q.lora_A.weight": torch.eye(2), "q.lora_B.weight": torch.tensor(rows)}
    >>> S, T = adapter([3.0, 0.0], [0.0, 1.0]), adapter([5.0, 6.0], [7.0, 8.0])
    >>> p = projected_sum(S, T, alpha=0.5)
    >>> (p["q.lora_B.weight"] @ p["q.lora_A.weight"]).round(decimals=4)
    tensor([[3., 6.],
            [7., 1.]])
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"Expected alpha in [0, 1], got {alpha}; choose the share of the spectrum to keep clear of.")
    before, new = share_modules([total, point])
    result: Point = {}
    for module in module_names(before):
        A, B = new[key_a(module)], new[key_b(module)]
        dtype = working_dtype([A, B, before[key_a(module)]])
        U, s, Vh = factored_svd(before[key_b(module)], before[key_a(module)])
        kept = int((s > 0).sum())
        U, s, Vh = U[:, :kept], s[:kept], Vh[:kept]
        M = (U.T @ B.double()) @ (A.double() @ Vh.T)
        num_leading = int((s.cumsum(0) <= alpha * s.sum() * (1 + 1e-12)).sum())
        removed = torch.diag(M.diagonal())
        removed[:num_leading, :num_leading] = M[:num_leading, :num_leading]
        result[key_a(module)] = torch.cat([Vh, A.double()]).to(dtype)
        result[key_b(module)] = torch.cat([U @ (torch.diag(s) - removed), B.double()], dim=1).to(dtype)
    return result
