"""LoRA adapters as points: their names, and the size and distance of what they do to the weights, ΔW = B·A.

A LoRA point holds two tensors per adapted module `M`: `M.lora_A.weight` of shape (r, in) and
`M.lora_B.weight` of shape (out, r). The scaling (α/r, or α/√r for rank-stabilised LoRA) is already multiplied
into B, so that ΔW = B·A and adapters of different scalings, ranks and targets combine correctly (Hu et al.
2022, arXiv 2106.09685, for the form).

(B·R, R⁻¹·A) is the same adapter for every invertible R. The norms and distances here are those of ΔW and do
not see this freedom; they are computed in float64 and without ever building a matrix of shape (out, in).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.one_thread import one_thread
from mcanalysis.params.point import Point, as_double, check_compatible, check_point, subtract, working_dtype

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<factor>[AB])\.weight$")


def key_a(module: str) -> str:
    """Return the name of the factor A, shape (r, in), of an adapted module.

    >>> key_a("layers.0.q_proj")
    'layers.0.q_proj.lora_A.weight'
    """
    return f"{module}.lora_A.weight"


def key_b(module: str) -> str:
    """Return the name of the factor B, shape (out, r), of an adapted module.

    >>> key_b("layers.0.q_proj")
    'layers.0.q_proj.lora_B.weight'
    """
    return f"{module}.lora_B.weight"


def holds_lora_tensors(point: Mapping[str, Tensor]) -> bool:
    """Return whether any name of the point looks like a part of a LoRA adapter, complete or not.

    >>> holds_lora_tensors({"q.lora_magnitude_vector": torch.ones(2)})
    True
    """
    return any(".lora_" in name for name in point)


def is_lora_point(point: Mapping[str, Tensor]) -> bool:
    """Return whether the point consists of LoRA factor pairs of matching rank and nothing else.

    >>> is_lora_point({"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2)})
    True
    >>> is_lora_point({"weight": torch.zeros(3, 5)})
    False
    """
    try:
        module_names(point)
    except UserError:
        return False
    return True


def module_names(point: Mapping[str, Tensor]) -> list[str]:
    """Return the adapted modules of a LoRA point in order of first appearance.

    Raises:
        PointMismatchError: if the point holds anything but complete factor pairs (a bias, a DoRA magnitude, a
            module saved whole, one factor without the other, factors of different rank), naming the first
            such tensor.

    >>> module_names({"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2)})
    ['q']
    """
    check_point(point)
    modules: dict[str, None] = {}
    for name, tensor in point.items():
        match = _FACTOR.match(name)
        if match is None:
            raise PointMismatchError(
                f"Expected only LoRA factors ('<module>.lora_A.weight', '<module>.lora_B.weight'), got "
                f"'{name}'; use an adapter without biases, DoRA or modules_to_save, or space='factor' for "
                "plain weights."
            )
        if tensor.dim() != 2:
            raise PointMismatchError(
                f"Expected a LoRA factor with 2 dimensions at '{name}', got shape {tuple(tensor.shape)}; "
                "use adapters of linear layers only."
            )
        modules[match["module"]] = None
    for module in modules:
        for key in (key_a(module), key_b(module)):
            if key not in point:
                raise PointMismatchError(
                    f"Expected both factors of '{module}', got no '{key}'; load the whole adapter."
                )
        rank_a, rank_b = point[key_a(module)].shape[0], point[key_b(module)].shape[1]
        if rank_a != rank_b:
            raise PointMismatchError(
                f"Expected factors of one rank at '{module}', got {rank_a} rows of A and {rank_b} columns "
                "of B; store A as (r, in) and B as (out, r)."
            )
    return list(modules)


def base_point(point: Mapping[str, Tensor]) -> Point:
    """Return the base model in the coordinates of an adapter: (A, 0), its A with B = 0, so that ΔW = 0.

    The straight path between the two is t·ΔW in every space: with one A nothing bends between factors and product. The
    tensors of A are those of the adapter, not copies. Raises `PointMismatchError` if the point is not a LoRA point.

    >>> base_point({"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])})
    {'q.lora_A.weight': tensor([[1., 2.]]), 'q.lora_B.weight': tensor([[0.]])}
    """
    of_b = {key_b(module) for module in module_names(point)}
    return {name: torch.zeros_like(tensor) if name in of_b else tensor for name, tensor in point.items()}


def is_base_point(point: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter is the base itself because B = 0 in all modules, as before training.

    Raises `PointMismatchError` if the point is not a LoRA point.

    >>> is_base_point({"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.zeros(3, 2)})
    True
    """
    return not any(bool(point[key_b(module)].any()) for module in module_names(point))


def ranks(point: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank r of the factors of each adapted module (the rank of ΔW may be lower).

    Raises `PointMismatchError` if the point is not a LoRA point.

    >>> ranks({"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2)})
    {'q': 2}
    """
    return {module: point[key_a(module)].shape[0] for module in module_names(point)}


def delta_weights(point: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dense weight change ΔW = B·A, shape (out, in), of each adapted module.

    Gradients flow. For norms, distances and inner products use `delta_norm`, `delta_distance` and
    `delta_dot`, which need no dense matrix. Raises `PointMismatchError` if the point is not a LoRA point.

    >>> a = {"q.lora_A.weight": torch.tensor([[1.0, 2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
    >>> delta_weights(a)
    {'q': tensor([[3., 6.]])}
    """
    deltas = {}
    for module in module_names(point):
        A, B = point[key_a(module)], point[key_b(module)]
        dtype = working_dtype([A, B])
        deltas[module] = B.to(dtype) @ A.to(dtype)
    return deltas


@one_thread()
@torch.no_grad()
def delta_norm(point: Mapping[str, Tensor]) -> float:
    """Return the Frobenius norm of ΔW over all modules, in float64.

    With the QR decompositions B = Q₁R₁ and Aᵀ = Q₂R₂ the norm is ‖R₁R₂ᵀ‖, a matrix of shape (r, r). (The Gram
    form tr(BᵀB·AAᵀ) is the same number, but squares the rounding error where parts of ΔW cancel.)

    Raises `PointMismatchError` if the point is not a LoRA point.

    >>> delta_norm({"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0]])})
    10.0
    """
    return math.sqrt(
        sum(_product_square_norm(point[key_b(m)].double(), point[key_a(m)].double()) for m in module_names(point))
    )


@one_thread()
@torch.no_grad()
def delta_distance(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> float:
    """Return the Frobenius norm of ΔW_p − ΔW_q over all modules, in float64; ranks and targets may differ.

    Where the ranks agree the difference is written as (B_p − B_q)·A_p + B_q·(A_p − A_q), so that two adapters
    close to each other do not cancel; equal adapters give exactly 0. A module that one adapter lacks counts
    with ΔW = 0.

    Raises:
        PointMismatchError: if a point is not a LoRA point, or a module has other dimensions in the two.

    >>> a = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> delta_distance(a, {**a, "q.lora_B.weight": torch.tensor([[1.0]])})
    5.0
    """
    p, q = share_modules([p, q])
    total = 0.0
    for module in module_names(p):
        A_p, B_p = p[key_a(module)].double(), p[key_b(module)].double()
        A_q, B_q = q[key_a(module)].double(), q[key_b(module)].double()
        if A_p.shape == A_q.shape:
            B, A = torch.cat([B_p - B_q, B_q], dim=1), torch.cat([A_p, A_p - A_q])
        else:
            B, A = torch.cat([B_p, -B_q], dim=1), torch.cat([A_p, A_q])
        total += _product_square_norm(B, A)
    return math.sqrt(total)


@torch.no_grad()
def delta_dot(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> float:
    """Return the inner product ⟨ΔW_p, ΔW_q⟩ = Σ tr(A_p A_qᵀ · B_qᵀB_p) over all modules, in float64.

    Ranks and targets may differ. Raises `PointMismatchError` as `delta_distance` does.

    >>> a = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> delta_dot(a, a)
    100.0
    """
    p, q = share_modules([p, q])
    return sum(
        float(((p[key_a(m)].double() @ q[key_a(m)].double().T) * (p[key_b(m)].double().T @ q[key_b(m)].double())).sum())
        for m in module_names(p)
    )


def factor_delta_deviation(a: Mapping[str, Tensor], b: Mapping[str, Tensor], ts: ArrayLike) -> NDArray[np.float64]:
    """Return, for each t, how far the factor path lies from the straight ΔW line, relative to its length.

    ‖ΔW_factor(t) − ΔW_delta(t)‖ / ‖ΔW_b − ΔW_a‖: interpolating A and B separately misses the line by
    −t(1−t)·(B_b − B_a)(A_b − A_a), whose norm is computed from the factors. 0 for plain points and for equal
    adapters; infinite, or very large by rounding, for adapters of equal ΔW but different factors, whose
    factor path leaves and comes back.

    Args:
        a: the adapter at t = 0.
        b: the adapter at t = 1, of the same modules and ranks.
        ts: shape (n,), any real numbers.

    Returns:
        shape (n,), non-negative, without unit.

    Raises:
        PointMismatchError: if the two differ in names or shapes (there is no factor path between them).

    >>> a = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
    >>> b = {"q.lora_A.weight": torch.tensor([[3.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> factor_delta_deviation(a, b, [0.0, 0.5, 1.0])  # 0.25 · 1 · 2 / (6 − 1)
    array([0. , 0.1, 0. ])
    """
    check_compatible(a, b, remedy="use space='delta' for adapters of different ranks or targets")
    grid = np.asarray(ts, dtype=np.float64)
    if not holds_lora_tensors(a):
        return np.zeros_like(grid)
    with torch.no_grad():
        bending = delta_norm(subtract(as_double(b), as_double(a)))
    if bending == 0.0:
        return np.zeros_like(grid)
    apart = delta_distance(a, b)
    shape = np.abs(grid * (1.0 - grid))
    return shape * (bending / apart) if apart > 0.0 else np.where(shape > 0.0, np.inf, 0.0)


def share_modules(points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
    """Return the adapters over one list of modules, missing ones filled in with factors of rank 0.

    Raises `PointMismatchError` if a point is not a LoRA point, or a module has other dimensions in two of
    them.

    >>> q = {"q.lora_A.weight": torch.zeros(2, 5), "q.lora_B.weight": torch.zeros(3, 2)}
    >>> v = {"v.lora_A.weight": torch.zeros(1, 5), "v.lora_B.weight": torch.zeros(4, 1)}
    >>> [ranks(point) for point in share_modules([q, v])]
    [{'q': 2, 'v': 0}, {'q': 0, 'v': 1}]
    """
    examples: dict[str, tuple[Tensor, Tensor]] = {}
    for point in points:
        for module in module_names(point):
            A, B = point[key_a(module)], point[key_b(module)]
            first_A, first_B = examples.setdefault(module, (A, B))
            expected, got = (first_B.shape[0], first_A.shape[1]), (B.shape[0], A.shape[1])
            if expected != got:
                raise PointMismatchError(
                    f"Expected ΔW of shape {expected} at '{module}', got {got}; use adapters of the same base model."
                )
    return [
        {
            key: tensor
            for module, (A, B) in examples.items()
            for key, tensor in (
                (key_a(module), point[key_a(module)] if key_a(module) in point else A.new_zeros(0, A.shape[1])),
                (key_b(module), point[key_b(module)] if key_b(module) in point else B.new_zeros(B.shape[0], 0)),
            )
        }
        for point in points
    ]


def _product_square_norm(B: Tensor, A: Tensor) -> float:
    """‖B·A‖² for float64 B of shape (out, k) and A of shape (k, in)."""
    if B.shape[1] == 0:
        return 0.0
    return float((torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T).square().sum())
