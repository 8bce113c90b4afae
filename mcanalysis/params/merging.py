"""Merging adapters into one: averages, task arithmetic, TIES, DARE and MagMax of what they do to the weights.

Everything here is done in delta space, on ΔW = B·A: the mean of the products, not the product of the mean factors, so
that (B·R, R⁻¹·A) merges as (B, A) does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_weights, key_a, key_b, module_names, ranks, share_modules
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import Point, check_distinct, first_not_finite, working_dtype


def average(points: Sequence[Mapping[str, Tensor]]) -> Point:
    """Return the adapter of rank Σ rᵢ whose ΔW is exactly the mean of those of the points.

    Raises as `concatenate` does, and `PointMismatchError` for two dicts of the same tensors in memory, as two
    checkpoints loaded into one module are (`check_distinct`); one dict given twice is the point twice.

    >>> a = {"q.lora_A.weight": torch.tensor([[2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
    >>> b = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[4.0]])}
    >>> delta_weights(average([a, b]))
    {'q': tensor([[5.]])}
    """
    check_distinct(points)
    return concatenate(points, [1.0 / len(points)] * len(points) if points else [])


def task_arithmetic(points: Sequence[Mapping[str, Tensor]], scale: float) -> Point:
    """Return the adapter of rank Σ rᵢ whose ΔW is exactly scale · Σᵢ ΔWᵢ (Ilharco et al. 2023, arXiv 2212.04089).

    Raises as `concatenate` does, and `PointMismatchError` for two dicts of the same tensors in memory, as two
    checkpoints loaded into one module are (`check_distinct`); one dict given twice is the point twice.

    >>> a = {"q.lora_A.weight": torch.tensor([[2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
    >>> delta_weights(task_arithmetic([a, a], scale=0.5))
    {'q': tensor([[6.]])}
    """
    check_distinct(points)
    return concatenate(points, [scale] * len(points))


@torch.no_grad()
def ties(points: Sequence[Mapping[str, Tensor]], density: float, scale: float = 1.0) -> Point:
    """Return TIES (Yadav et al. 2023, arXiv 2306.01708) of the points' ΔW, as an adapter with exactly that ΔW.

    Trim: of each ΔWᵢ, all modules together, the `density` part of largest magnitude is kept (entries that equal the
    smallest one kept are, too), the rest is 0. Elect: the sign of each entry is that of the sum over i; where the sum
    is 0, that of the sum of all entries' signs, of all modules. Merge: the mean of those trimmed entries that have the
    elected sign, times `scale`. Rounding aside this is the authors' code, which keeps one entry more.

    TIES of low-rank updates has full rank: the result's factors are ΔW and an identity, of rank min(out, in). See
    `truncate` for a smaller one, and `with_one_rank` for saving it.

    One task's dense ΔW is in memory at a time, and the result's.

    Args:
        points: `k` LoRA points; ranks and targets may differ.
        density: in (0, 1].
        scale: any number.

    Raises:
        PointMismatchError: if a point is not a LoRA point, or a module has other dimensions in two of them.
        UserError: if there is no point, one holds NaN or ∞, or `density` is out of range.

    >>> def adapter(*row):
    ...     return {"q.lora_A.weight": torch.tensor([row]), "q.lora_B.weight": torch.ones(1, 1)}
    >>> delta_weights(ties([adapter(4.0, 3.0, 0.1, 0.0), adapter(-1.0, 0.2, 2.0, 0.0)], density=0.5))
    {'q': tensor([[4., 3., 2., 0.]])}
    """
    _check_sparse(points, density)
    filled = share_modules(points)
    modules = module_names(filled[0])
    smallest = [_smallest_kept(point, density) for point in filled]
    majority = sum(float(_trimmed(filled, module, smallest).sum(0).sign().sum()) for module in modules)
    result: Point = {}
    for module in modules:
        trimmed = _trimmed(filled, module, smallest)
        sign = trimmed.sum(0).sign()
        sign = torch.where(sign == 0, float((majority > 0) - (majority < 0)), sign)
        agrees = trimmed * sign > 0
        delta = scale * (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)
        result |= dense_factors(module, delta)
    return result


@torch.no_grad()
def dare(points: Sequence[Mapping[str, Tensor]], density: float, scale: float = 1.0, seed: int = 0) -> Point:
    """Return scale · Σᵢ DARE(ΔWᵢ) (Yu et al. 2024, arXiv 2311.03099), as an adapter with exactly that ΔW.

    Drop and rescale: each entry of ΔWᵢ stays with probability `density`, divided by it, so that its expectation is that
    of `task_arithmetic`. An entry stays where a uniform float32 number of PyTorch's generator for CPUs, of this seed,
    is below `density`; they are drawn module by module by name, of each module point after point. (mergekit by default
    divides by what keeps Σ|ΔWᵢ| instead.) The result has full rank, as that of `ties`.

    Args:
        points: `k` LoRA points; ranks and targets may differ.
        density: in (0, 1]; with 1 nothing is dropped.
        scale: any number.
        seed: of the draw.

    Raises:
        PointMismatchError: if a point is not a LoRA point, a module has other dimensions in two of them, or two
            dicts hold the same tensors in memory (`check_distinct`; one dict given twice is the point twice).
        UserError: if there is no point, one holds NaN or ∞, or `density` is out of range.

    >>> a = {"q.lora_A.weight": torch.ones(1, 4), "q.lora_B.weight": torch.ones(1, 1)}
    >>> sorted(set(delta_weights(dare([a], density=0.5))["q"].flatten().tolist()))
    [0.0, 2.0]
    """
    _check_sparse(points, density)
    filled = share_modules(points)
    generator = torch.Generator().manual_seed(seed)
    result: Point = {}
    for module in sorted(module_names(filled[0])):
        deltas = [_delta(point, module) for point in filled]
        kept = [(torch.rand(d.shape, generator=generator, dtype=torch.float32) < density).to(d.device) for d in deltas]
        total = torch.stack([d.to(working_dtype(deltas)) * k for d, k in zip(deltas, kept, strict=True)]).sum(0)
        result |= dense_factors(module, total * (scale / density))
    return result


@torch.no_grad()
def magmax(points: Sequence[Mapping[str, Tensor]], scale: float = 1.0) -> Point:
    """Return MagMax (Marczak et al. 2024, arXiv 2407.06322) of the points' ΔW, as an adapter with exactly that ΔW.

    Each entry of ΔW is that of the largest magnitude among the points, with its sign, times `scale`; of two of the same
    magnitude the later point's is taken, as in the authors' code. The result has full rank, its factors are ΔW and an
    identity, as those of `ties`; two dense ΔW of one module are in memory at a time, and the result's.

    Args:
        points: `k` LoRA points; ranks and targets may differ.
        scale: any number.

    Raises:
        PointMismatchError: if a point is not a LoRA point, a module has other dimensions in two of them, or two
            dicts hold the same tensors in memory (`check_distinct`; one dict given twice is the point twice).
        UserError: if there is no point, or one holds NaN or ∞.

    >>> def adapter(*row):
    ...     return {"q.lora_A.weight": torch.tensor([row]), "q.lora_B.weight": torch.ones(1, 1)}
    >>> delta_weights(magmax([adapter(4.0, -3.0, 1.0), adapter(-1.0, 2.0, -1.0)], scale=0.5))
    {'q': tensor([[ 2.0000, -1.5000, -0.5000]])}
    """
    _check_sparse(points, 1.0)
    filled = share_modules(points)
    result: Point = {}
    for module in module_names(filled[0]):
        largest = _delta(filled[0], module)
        for point in filled[1:]:
            delta = _delta(point, module)
            largest = torch.where(delta.abs() >= largest.abs(), delta, largest)
        result |= dense_factors(module, scale * largest)
    return result


def dense_factors(module: str, delta: Tensor) -> Point:
    """Return a module's ΔW as an adapter: itself and an identity of its smaller side.

    Args:
        module: its name.
        delta: shape (out, in).

    >>> dense_factors("q", torch.tensor([[2.0, 3.0]]))
    {'q.lora_A.weight': tensor([[2., 3.]]), 'q.lora_B.weight': tensor([[1.]])}
    """
    rows, columns = delta.shape
    identity = torch.eye(min(rows, columns), dtype=delta.dtype, device=delta.device)
    A, B = (delta, identity) if rows <= columns else (identity, delta)
    return {key_a(module): A, key_b(module): B}


def _check_sparse(points: Sequence[Mapping[str, Tensor]], density: float) -> None:
    if not points:
        raise UserError("Expected one or more adapters to merge, got none; pass at least one.")
    if not 0 < density <= 1:
        raise UserError(f"Expected a density in (0, 1], got {density}; choose the share of the entries to keep.")
    check_distinct(points)
    for number, point in enumerate(points, start=1):
        if (name := first_not_finite(point)) is not None:  # of which comparisons would keep nothing, and say nothing
            raise UserError(
                f"Expected finite numbers to merge, got NaN or ∞ in '{name}' of adapter {number}; leave out what "
                "diverged."
            )


def _delta(point: Mapping[str, Tensor], module: str) -> Tensor:
    return delta_weights({key: point[key] for key in (key_a(module), key_b(module))})[module]


def _smallest_kept(point: Mapping[str, Tensor], density: float) -> Tensor:
    """The magnitude of the smallest entry of ΔW, over all modules, that trimming keeps."""
    magnitudes = torch.cat([_delta(point, module).abs().flatten() for module in module_names(point)])
    number = max(round(density * len(magnitudes)), 1)
    return magnitudes.kthvalue(len(magnitudes) - number + 1).values


def _trimmed(points: Sequence[Mapping[str, Tensor]], module: str, smallest: Sequence[Tensor]) -> Tensor:
    """The points' trimmed ΔW of one module, shape (k, out, in)."""
    deltas = [_delta(point, module) for point in points]
    dtype = working_dtype(deltas)
    return torch.stack(
        [torch.where(d.abs() >= least, d, 0.0).to(dtype) for d, least in zip(deltas, smallest, strict=True)]
    )


def with_one_rank(point: Mapping[str, Tensor]) -> Point:
    """Return the same adapter with the largest of its modules' ranks throughout, filled up with zeros.

    Raises `PointMismatchError` if the point is not a LoRA point.

    >>> v = {"v.lora_A.weight": torch.ones(2, 3), "v.lora_B.weight": torch.ones(4, 2)}
    >>> q = {"q.lora_A.weight": torch.ones(1, 3), "q.lora_B.weight": torch.ones(5, 1)}
    >>> ranks(with_one_rank({**q, **v}))
    {'q': 2, 'v': 2}
    """
    rank = max(ranks(point).values())
    result: Point = {}
    for module in module_names(point):
        A, B = point[key_a(module)], point[key_b(module)]
        missing = rank - A.shape[0]
        result[key_a(module)] = torch.cat([A, A.new_zeros(missing, A.shape[1])])
        result[key_b(module)] = torch.cat([B, B.new_zeros(B.shape[0], missing)], dim=1)
    return result


@torch.no_grad()
def orthonormal_rows(A: Tensor) -> Tensor:
    """Return Qᵀ of the reduced QR decomposition Aᵀ = Q·R with a non-negative diagonal of R: A·Aᵀ = I.

    The rows span what those of A span (where these are independent), and rows that are orthonormal come back.

    Args:
        A: shape (r, in), r at most in.

    Returns:
        shape (r, in), in the dtype of A; computed in float32 at least.

    Raises:
        UserError: if r exceeds in.

    >>> orthonormal_rows(torch.tensor([[0.0, -2.0], [3.0, 5.0]]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    if A.shape[0] > A.shape[1]:
        raise UserError(
            f"Expected a rank of at most the layer's width {A.shape[1]}, got {A.shape[0]}; lower the rank, or "
            "leave the layer out."
        )
    Q, R = torch.linalg.qr(A.T.to(working_dtype([A])))
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)  # a sign of 0 would erase a row
    return (Q * signs).T.to(A.dtype).contiguous() + 0.0  # + 0.0: no negative zeros
