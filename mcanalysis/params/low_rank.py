"""Adapters made from adapters: sums at a higher rank, cuts to a lower one, other factors of the same ΔW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, key_b, module_names, share_modules
from mcanalysis.params.one_thread import one_thread
from mcanalysis.params.point import Point, working_dtype


def concatenate(points: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Point:
    """Return the adapter of rank Σ rᵢ whose ΔW is exactly Σᵢ weights[i]·ΔWᵢ.

    A = [A₁; A₂; …] and B = [w₁B₁, w₂B₂, …]. Ranks and targets may differ; a module that an adapter lacks
    counts with ΔW = 0. Gradients flow to the points.

    Args:
        points: `k` LoRA points.
        weights: `k` numbers of any sign.

    Raises:
        PointMismatchError: if a point is not a LoRA point, or a module has other dimensions in two of them.
        UserError: if the numbers of points and weights differ.

    >>> a = {"q.lora_A.weight": torch.tensor([[1.0, 0.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> concatenate([a, a], [0.5, 0.5])
    {'q.lora_A.weight': tensor([[1., 0.],
            [1., 0.]]), 'q.lora_B.weight': tensor([[1., 1.]])}
    """
    if len(points) != len(weights) or not points:
        raise UserError(
            f"Expected one weight for each of one or more adapters, got {len(weights)} weights for "
            f"{len(points)} adapters; pass sequences of equal length."
        )
    filled = share_modules(points)
    result: Point = {}
    for module in module_names(filled[0]):
        factors = [(p[key_a(module)], p[key_b(module)]) for p in filled]
        dtype = working_dtype(tensor for pair in factors for tensor in pair)
        result[key_a(module)] = torch.cat([A.to(dtype) for A, _ in factors])
        result[key_b(module)] = torch.cat(
            [B.to(dtype) * float(w) for (_, B), w in zip(factors, weights, strict=True)], dim=1
        )
    return result


@one_thread()
@torch.no_grad()
def truncate(point: Mapping[str, Tensor], rank: int) -> tuple[Point, float]:
    """Return the closest adapter of at most the given rank, and how far it is off relative to ΔW.

    Eckart–Young per module: the leading singular triples of ΔW, found by QR of the factors and an SVD of an
    (r, r) matrix in float64. The factors come back balanced and of rank min(rank, r). The error is
    ‖ΔW − ΔW_rank‖ / ‖ΔW‖ over all modules, in [0, 1], and 0 where ΔW = 0.

    Args:
        point: a LoRA point.
        rank: at least 1.

    Raises:
        PointMismatchError: if the point is not a LoRA point.
        UserError: if `rank` is below 1.

    >>> from mcanalysis.params.lora import ranks
    >>> a = {"q.lora_A.weight": torch.diag(torch.tensor([4.0, 3.0])), "q.lora_B.weight": torch.eye(2)}
    >>> smaller, error = truncate(a, 1)
    >>> ranks(smaller), round(error, 6)
    ({'q': 1}, 0.6)
    """
    if rank < 1:
        raise UserError(f"Expected a rank of at least 1, got {rank}; choose a positive rank.")
    result: Point = {}
    lost = total = 0.0
    for module in module_names(point):
        A, B = point[key_a(module)], point[key_b(module)]
        U, S, Vh = factored_svd(B, A)
        kept = min(rank, A.shape[0])
        result[key_a(module)], result[key_b(module)] = _balanced_pair(U, S, Vh, kept, working_dtype([A, B]))
        lost += float(S[kept:].square().sum())
        total += float(S.square().sum())
    return result, math.sqrt(lost / total) if total else 0.0


@one_thread()
@torch.no_grad()
def balance(point: Mapping[str, Tensor]) -> Point:
    """Return the same adapter (same ΔW, names and shapes) with balanced factors, BᵀB = AAᵀ = S.

    From the SVD ΔW = U·S·Vᵀ: B = U·√S and A = √S·Vᵀ. Each singular pair is signed so that the entry of
    largest magnitude in its column of U is positive. What is left of the freedom (BR, R⁻¹A) is a rotation
    among equal singular values. Raises `PointMismatchError` if the point is not a LoRA point.

    >>> a = {"q.lora_A.weight": torch.tensor([[8.0]]), "q.lora_B.weight": torch.tensor([[0.5]])}
    >>> balance(a)
    {'q.lora_A.weight': tensor([[2.]]), 'q.lora_B.weight': tensor([[2.]])}
    """
    result: Point = {}
    for module in module_names(point):
        A, B = point[key_a(module)], point[key_b(module)]
        result[key_a(module)], result[key_b(module)] = _balanced_pair(
            *factored_svd(B, A), A.shape[0], working_dtype([A, B])
        )
    return result


@one_thread()
@torch.no_grad()
def compress(points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
    """Return small float64 adapters of the same geometry: all Bᵢ·Aⱼ keep norms and inner products.

    Column spaces of all Bᵢ and row spaces of all Aᵢ are expressed in one orthonormal basis each, per module,
    which turns (out, r) and (r, in) into at most (Σr, r) and (r, Σr). Norms along a whole path then cost next
    to nothing.

    Raises `PointMismatchError` as `share_modules` does.

    >>> a = {"q.lora_A.weight": torch.ones(1, 400), "q.lora_B.weight": torch.ones(100, 1)}
    >>> compress([a])[0]["q.lora_B.weight"].shape
    torch.Size([1, 1])
    """
    filled = share_modules(points)
    result: list[Point] = [{} for _ in filled]
    for module in module_names(filled[0]):
        basis_out = _basis(torch.cat([p[key_b(module)].double() for p in filled], dim=1))
        basis_in = _basis(torch.cat([p[key_a(module)].double() for p in filled]).T)
        for small, point in zip(result, filled, strict=True):
            small[key_a(module)] = point[key_a(module)].double() @ basis_in
            small[key_b(module)] = basis_out.T @ point[key_b(module)].double()
    return result


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis, shape (n, min(n, k)), of a space that contains the columns, shape (n, k)."""
    return torch.linalg.qr(columns).Q


def factored_svd(B: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, Vᵀ of the thin SVD of B·A in float64, signs fixed and singular values at rounding level set to 0.

    Args:
        B: shape (out, r).
        A: shape (r, in).

    Returns:
        shapes (out, k), (k,) and (k, in), k the least of r, out and in; singular values falling.

    >>> factored_svd(torch.tensor([[3.0]]), torch.tensor([[2.0, 0.0]]))[1]
    tensor([6.], dtype=torch.float64)
    """
    Q_out, R_out = torch.linalg.qr(B.double())
    Q_in, R_in = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(R_out @ R_in.T, full_matrices=False)
    U, Vh = Q_out @ U, Vh @ Q_in.T
    if S.numel():
        # √S would lift a singular value of 1e-17, which is rounding, to factors of 3e-9.
        rounding = 4 * S.numel() * torch.finfo(S.dtype).eps * S[0]
        S = torch.where(rounding < S, S, 0.0)
        largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
        signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)
        U, Vh = U * signs, Vh * signs.T
    return U, S, Vh


def _balanced_pair(U: Tensor, S: Tensor, Vh: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(A, B) of the given rank from an SVD: the leading triples, filled up with zeros if there are fewer."""
    kept = min(rank, S.numel())
    root = S[:kept].sqrt()
    A, B = Vh.new_zeros(rank, Vh.shape[1]), U.new_zeros(U.shape[0], rank)
    A[:kept], B[:, :kept] = root[:, None] * Vh[:kept], U[:, :kept] * root
    return A.to(dtype), B.to(dtype)
