"""Random adapters and vectors in float64 for the closed forms, and dense NumPy matrices to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mcanalysis.params.lora import key_a, key_b, ranks
from mcanalysis.params.point import Point

SHAPES: Mapping[str, tuple[int, int]] = {"layers.0.q": (9, 6), "layers.0.v": (5, 6), "layers.1.q": (7, 9)}
SEEDS = range(5)
TS = np.linspace(0.0, 1.0, 11)


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64, from a generator of their own.

    >>> draw(0, 2).dtype
    torch.float64
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adapter(seed: int, rank: int = 3) -> Point:
    """A random LoRA point over `SHAPES`.

    >>> ranks(adapter(0, rank=2))
    {'layers.0.q': 2, 'layers.0.v': 2, 'layers.1.q': 2}
    """
    point: Point = {}
    for number, (module, (out, inn)) in enumerate(SHAPES.items()):
        point[key_a(module)] = draw(1000 * seed + number, rank, inn)
        point[key_b(module)] = draw(1000 * seed + number + 500, out, rank)
    return point


def vector(seed: int, size: int = 12) -> Point:
    """A random plain point of two tensors.

    >>> sum(tensor.numel() for tensor in vector(0).values())
    12
    """
    return {"bias": draw(seed, 2), "weight": draw(seed + 7919, size - 2)}


def rotated(point: Mapping[str, Tensor], seed: int, orthogonal: bool = True) -> Point:
    """The same adapter as (B·R, R⁻¹·A), R random per module, orthogonal or only invertible."""
    turned: Point = {}
    for number, (module, rank) in enumerate(ranks(point).items()):
        R = draw(seed + number, rank, rank)
        R = torch.linalg.qr(R).Q if orthogonal else R + 3 * torch.eye(rank, dtype=R.dtype)
        turned[key_a(module)] = torch.linalg.solve(R, point[key_a(module)])
        turned[key_b(module)] = point[key_b(module)] @ R
    return turned


def dense(point: Mapping[str, Tensor]) -> np.ndarray:
    """ΔW of all modules as one NumPy vector, by NumPy's own matrix product; zeros for a module that is not there.

    >>> dense(adapter(0)).shape
    (147,)
    """
    blocks = []
    for module, (out, inn) in SHAPES.items():
        there = key_a(module) in point
        B, A = (point[key(module)].detach().numpy() if there else None for key in (key_b, key_a))
        blocks.append(np.zeros(out * inn) if A is None or B is None else (B @ A).ravel())
    return np.concatenate(blocks)


def flat(point: Mapping[str, Tensor]) -> np.ndarray:
    """All coordinates as one NumPy vector, tensors sorted by name."""
    return np.concatenate([point[name].detach().numpy().ravel() for name in sorted(point)])


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """‖found − exact‖ / ‖exact‖.

    >>> relative(np.array([3.0, 5.0]), np.array([3.0, 4.0]))
    0.2
    """
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def num_different_bits(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    """How many entries are not the same number, names and shapes included."""
    if set(found) != set(exact) or any(found[n].shape != exact[n].shape for n in exact):
        return float("inf")
    return float(sum(int((found[n] != exact[n]).sum()) for n in exact))
