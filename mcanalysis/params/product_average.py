"""The exponential moving average of LoRA products ΔW = B·A, beside that of the factors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.ema import ema_update_
from mcanalysis.params.lora import delta_norm, key_a, module_names
from mcanalysis.params.low_rank import concatenate, truncate
from mcanalysis.params.point import Point, check_compatible


class ProductAverage:
    """What the average of the products is more than the product of the averages, as an adapter of low rank.

    Let B̄, Ā be the moving averages of the factors and P that of the product. Then P = B̄·Ā + C, exactly, with C = 0 at
    the start and, at each update with decay λ, before B̄ and Ā move,

        C ← λ·C + λ(1−λ)·(B − B̄)(A − Ā),

    the recursion of a weighted covariance. C is of second order in what fast moves within the memory of the average, so
    that cutting C costs far less than cutting P would. Its rank grows by that of fast at each update; past 3·`rank` it
    is cut back to `rank` (the leading singular triples), which needs a singular value decomposition only once in a
    while. `correction` is C ({} while it is 0), and `error_bound` bounds ‖P − (B̄·Ā + C)‖, by λ·bound at each update
    plus what each cut drops.

    >>> slow = {"q.lora_A.weight": torch.tensor([[1.0]]), "q.lora_B.weight": torch.tensor([[1.0]])}
    >>> fast = {"q.lora_A.weight": torch.tensor([[3.0]]), "q.lora_B.weight": torch.tensor([[2.0]])}
    >>> average = ProductAverage(rank=1)
    >>> average.update_(slow, fast, decay=0.5)
    >>> whole = average.point(slow)
    >>> whole["q.lora_B.weight"] @ whole["q.lora_A.weight"]  # the mean of 1 and 6
    tensor([[3.5000]])
    """

    def __init__(self, rank: int) -> None:
        if rank < 1:
            raise UserError(f"Expected a rank of at least 1 for the correction, got {rank}; choose a larger slow_rank.")
        self.rank = rank
        self.correction: Point = {}
        self.error_bound = 0.0

    def update_(
        self,
        slow: Mapping[str, Tensor],
        fast: Mapping[str, Tensor],
        decay: float,
        scale: Mapping[str, float] | None = None,
    ) -> None:
        """Move slow towards fast as `ema_update_` does, and the correction with it."""
        self._move(slow, fast, decay, scale or {})
        ema_update_(slow, fast, decay, scale)

    @torch.no_grad()
    def _move(
        self, slow: Mapping[str, Tensor], fast: Mapping[str, Tensor], decay: float, scale: Mapping[str, float]
    ) -> None:
        check_compatible(slow, fast)
        if decay == 0.0:
            self.reset()
        if decay in (0.0, 1.0):
            return
        ahead = {name: fast[name].to(s.dtype) * scale.get(name, 1.0) - s for name, s in slow.items()}
        parts, weights = [ahead], [decay * (1.0 - decay)]
        if self.correction:
            parts, weights = [self.correction, ahead], [decay, *weights]
        self.correction = concatenate(parts, weights)
        self.error_bound *= decay
        if any(self.correction[key_a(m)].shape[0] > 3 * self.rank for m in module_names(self.correction)):
            self.cut()

    def cut(self) -> None:
        """Cut the correction back to `rank`."""
        if not self.correction or all(
            self.correction[key_a(m)].shape[0] <= self.rank for m in module_names(self.correction)
        ):
            return
        self.correction, share = truncate(self.correction, self.rank)
        # `share` is of the norm before the cut, whose square is what is kept plus what is lost.
        self.error_bound += delta_norm(self.correction) * share / math.sqrt(1.0 - share**2)

    def reset(self) -> None:
        """Forget the past: the average of the product is the product of the averages again."""
        self.correction, self.error_bound = {}, 0.0

    def point(self, slow: Mapping[str, Tensor]) -> Point:
        """The average of the products as an adapter: the factors' average beside the correction."""
        if not self.correction:
            return dict(slow)
        return concatenate([slow, self.correction], [1.0, 1.0])

    def deviation(self, slow: Mapping[str, Tensor]) -> float:
        """How far the two averages part: ‖B̄·Ā − P‖ / ‖P‖; 0 where both are 0."""
        size = delta_norm(self.point(slow))
        return delta_norm(self.correction) / size if self.correction and size else 0.0
