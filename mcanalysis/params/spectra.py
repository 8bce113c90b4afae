"""What the singular values and vectors of ΔW say: effective rank, distance of two covariances, intruder dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.lora import key_a, key_b, module_names, share_modules
from mcanalysis.params.low_rank import factored_svd
from mcanalysis.params.one_thread import one_thread

__all__ = ["bures_wasserstein", "effective_rank", "intruder_dimensions"]


@one_thread()
@torch.no_grad()
def effective_rank(point: Mapping[str, Tensor]) -> dict[str, float]:
    """Return exp(−Σ pᵢ log pᵢ), pᵢ = σᵢ/Σσ of the singular values of ΔW, per module (Roy & Vetterli 2007).

    Between 1 and the rank, which it is where all singular values are equal; NaN where ΔW = 0. From the factors; raises
    `PointMismatchError` for what is no LoRA point.

    >>> point = {"q.lora_A.weight": torch.eye(2, 5), "q.lora_B.weight": 3 * torch.eye(4, 2)}
    >>> round(effective_rank(point)["q"], 9)
    2.0
    """
    found = {}
    for module in module_names(point):
        values = factored_svd(point[key_b(module)], point[key_a(module)])[1]
        shares = values[values > 0] / values.sum()
        found[module] = math.exp(-float((shares * shares.log()).sum())) if len(shares) else math.nan
    return found


@one_thread()
@torch.no_grad()
def bures_wasserstein(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the Bures–Wasserstein distance of the covariances ΔWᵀΔW/‖ΔW‖² of two adapters, per module.

    √(tr P + tr Q − 2·tr (P^½ Q P^½)^½), here √(2 − 2‖P^½ Q^½‖₁), traces being 1 (Bhatia, Jain & Lim 2019, arXiv
    1712.01504): 0 where both react to the same directions of the input with the same shares, √2 where they share none;
    neither sees a scale. From the factors. NaN where one ΔW = 0. Raises `PointMismatchError` for what is no LoRA point,
    or other modules' dimensions.

    >>> a = {"q.lora_A.weight": torch.eye(1, 3), "q.lora_B.weight": torch.ones(2, 1)}
    >>> b = {"q.lora_A.weight": torch.tensor([[0.0, 2.0, 0.0]]), "q.lora_B.weight": torch.ones(2, 1)}
    >>> round(bures_wasserstein(a, b)["q"] ** 2, 9), bures_wasserstein(a, dict(a))["q"]
    (2.0, 0.0)
    """
    a, b = share_modules([a, b])
    found = {}
    for module in module_names(a):
        roots = []
        for point in (a, b):
            _, values, directions = factored_svd(point[key_b(module)], point[key_a(module)])
            roots.append((values / values.norm())[:, None] * directions)
        if roots[0].shape[1] != roots[1].shape[1]:
            raise PointMismatchError(
                f"Expected '{module}' of one input width in both adapters, got {roots[0].shape[1]} and "
                f"{roots[1].shape[1]}; use adapters of one base."
            )
        if not all(root.numel() and bool(root.isfinite().all()) for root in roots):
            found[module] = math.nan
            continue
        overlap = float(torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
        found[module] = math.sqrt(max(2.0 - 2.0 * overlap, 0.0)) if overlap < 1.0 - 1e-12 else 0.0
    return found


@one_thread()
@torch.no_grad()
def intruder_dimensions(before: Tensor, after: Tensor, num_leading: int = 10, threshold: float = 0.5) -> int:
    """Return how many of the leading left singular vectors of a weight resemble none that it had before.

    A vector is an intruder where the largest |cosine| with any left singular vector of `before` is below `threshold`
    (Shuttleworth et al. 2024, arXiv 2410.21228; 10 vectors and 0.5 are of their experiments). Takes a whole SVD of
    both.

    Args:
        before: shape (out, in).
        after: shape (out, in).

    Raises:
        UserError: the shapes differ or are no matrices.

    >>> before, step = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])), torch.ones(4, 4)
    >>> intruder_dimensions(before, before), intruder_dimensions(before, before + 100 * step, 1, 0.6)
    (0, 1)
    """
    if before.dim() != 2 or before.shape != after.shape:
        raise UserError(
            f"Expected two matrices of one shape, got {tuple(before.shape)} and {tuple(after.shape)}; pass the weight "
            "of one layer before and after."
        )
    old, new = (torch.linalg.svd(weight.double(), full_matrices=False)[0] for weight in (before, after))
    return int(((new[:, :num_leading].T @ old).abs().amax(dim=1) < threshold).sum())
