"""O-LoRA: a new adapter for each task, held orthogonal to the frozen ones of earlier tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import key_a
from mcanalysis.strategies.strategy import Step, StrategyConfig, SummedAdapters


@dataclass(frozen=True)
class OLoraConfig(StrategyConfig):
    """Settings of O-LoRA; 0.5 and 0 are the defaults of the authors' code (for T5 and for LLaMA).

    `lambda1` (λ₁): weight of the orthogonality. The penalty is a sum over modules, entries and old adapters, no mean,
    so it grows with depth, rank and the number of tasks. (The authors' code adds it once per micro-batch: with gradient
    accumulation over n of them theirs is n times as strong as ours, which counts once per step.) `lambda2` (λ₂): weight
    of the norms. `form`: `l1`, Σ|A_new·A_oldᵀ|, is what the authors' code computes; `squared` is ‖A_new·A_oldᵀ‖².
    """

    lambda1: float = 0.5
    lambda2: float = 0.0
    form: Literal["l1", "squared"] = "l1"

    def __post_init__(self) -> None:
        for name in ("lambda1", "lambda2"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(
                    f"Expected a finite {name} of at least 0, got {value}; choose 0 to switch its term off."
                )
        if self.form not in ("l1", "squared"):
            raise UserError(f"Expected form to be l1 or squared, got '{self.form}'; choose one of these.")


class OLora(SummedAdapters):
    """CE + λ₁·Σ_modules Σ_old Σ_ij |A_new·A_oldᵀ|_ij + λ₂·Σ_modules (‖A_new‖ + ‖B_new‖); only A_new and B_new train.

    A is PEFT's lora_A, shape (r, in): its rows are the input directions the adapter reads. (What the paper writes as
    its A may be the transpose.) B is not constrained. The norms are Frobenius norms, not squared.

    How adapters are added and what is saved: `SummedAdapters`.

    >>> OLora.config_class()
    OLoraConfig(lambda1=0.5, lambda2=0.0, form='l1')
    """

    name = "o_lora"
    reference = "Wang et al. 2023, arXiv 2310.14152"
    config_class = OLoraConfig
    # 0.5 is the authors' (scripts/order_1.sh); the decades about it are ours, and 0, which is IncLoRA.
    searched = {"lambda1": (0.0, 0.05, 0.5, 5.0)}

    def loss(self, step: Step) -> Tensor:
        loss = step.current_loss(step.forward())
        penalty = self._penalty(step.model)
        return loss if penalty is None else loss + step.share * penalty

    def _penalty(self, model: LoraModel) -> Tensor | None:
        terms = []
        if self.config.lambda1 and model.frozen:
            for module in model.scaling:
                overlap = model.parameters[key_a(module)] @ model.frozen[key_a(module)].T  # with all old ones at once
                size = overlap.abs() if self.config.form == "l1" else overlap.square()
                terms.append(self.config.lambda1 * size.sum())
        if self.config.lambda2:
            terms += [self.config.lambda2 * torch.linalg.vector_norm(p) for p in model.parameters.values()]
        return torch.stack(terms).sum() if terms else None
