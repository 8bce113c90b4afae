"""Other factors of the same adapter: (B·R, R⁻¹·A) for a random invertible R of each module."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import delta_distance, delta_norm, key_a, key_b, ranks
from mcanalysis.params.point import Point, working_dtype

SPREAD = 0.5
"""Standard deviation of the logarithms of R's singular values: two in three lie between 0.61 and 1.65."""
MOST_CHANGE = 1e-6
"""The most by which ΔW may differ from what it was, relative, after the factors were rounded to their precision."""


@torch.no_grad()
def random_gauge(point: Mapping[str, Tensor], seed: int, spread: float = SPREAD) -> Point:
    """Return the same adapter as (B·R, R⁻¹·A), R drawn anew for each module; its ΔW stays, its factors do not.

    R = U·diag(exp(spread·z))·Vᵀ with U and V uniform over the orthogonal matrices (Haar) and z standard normal. That is
    as likely as R⁻¹ and as Q·R·Q' for any rotations Q, Q': it prefers neither A nor B, and no direction. With `spread`
    0 only rotations and reflections are drawn, which leave balanced factors balanced. Computed in float64, rounded at
    the end.

    Args:
        point: a LoRA point.
        seed: of the draw, at least 0; modules are drawn in the order of their names.
        spread: at least 0.

    Raises:
        PointMismatchError: if the point is not a LoRA point.
        UserError: if `spread` is negative or not finite, or so large that rounding the factors changes ΔW by more than
            1e-6 relative.

    >>> a = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> turned = random_gauge(a, seed=0)
    >>> bool((turned["q.lora_A.weight"] == a["q.lora_A.weight"]).any()), round(delta_norm(turned), 4)
    (False, 10.0)
    """
    if not (math.isfinite(spread) and spread >= 0):
        raise UserError(f"Expected a spread of at least 0, got {spread}; leave it out to use {SPREAD}.")
    generator = np.random.default_rng(seed)
    turned: Point = {}
    for module, rank in sorted(ranks(point).items()):
        A, B = point[key_a(module)], point[key_b(module)]
        U, V = _orthogonal(generator, rank), _orthogonal(generator, rank)
        D = np.exp(spread * generator.standard_normal(rank))
        R, inverse = (torch.from_numpy(x).to(A.device) for x in ((U * D) @ V.T, (V / D) @ U.T))
        dtype = working_dtype([A, B])
        turned[key_a(module)] = (inverse @ A.double()).to(dtype)
        turned[key_b(module)] = (B.double() @ R).to(dtype)
    change = gauge_change(point, turned)
    if not change <= MOST_CHANGE:
        raise UserError(
            f"Expected factors whose ΔW stays within {MOST_CHANGE:g} (relative), got a change of {change:.1e} with a "
            f"spread of {spread:g}; choose a smaller one, such as {SPREAD}, or give the adapter in float64."
        )
    return {name: turned[name] for name in point}


def gauge_change(point: Mapping[str, Tensor], turned: Mapping[str, Tensor]) -> float:
    """Return ‖ΔW_turned − ΔW‖ / ‖ΔW‖, in float64; 0 where both are 0.

    >>> a = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> gauge_change(a, a)
    0.0
    """
    apart, norm = delta_distance(turned, point), delta_norm(point)
    return apart / norm if norm else apart


def _orthogonal(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """A Haar-distributed orthogonal matrix: QR of Gaussian numbers with the signs of R's diagonal (Mezzadri 2007)."""
    Q, R = np.linalg.qr(generator.standard_normal((size, size)))
    return Q * np.where(R.diagonal() < 0, -1.0, 1.0)
