"""N-LoRA: a new adapter for each task, kept sparse, so that few weights are changed by more than one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mcanalysis.errors import UserError
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import key_a, key_b
from mcanalysis.strategies.strategy import Step, StrategyConfig, SummedAdapters


@dataclass(frozen=True)
class NLoraConfig(StrategyConfig):
    """`lambda1` (λ₁): weight of the sparsity; the penalty is a sum over modules and entries, no mean.

    1e-4 is ours, found on embedded tasks (docs/strategies.md). The authors' scripts have 0.38 to 1.8, but of another
    quantity (see `NLora`), so that these say nothing about ours.
    """

    lambda1: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.lambda1 < math.inf:
            raise UserError(
                f"Expected a finite lambda1 of at least 0, got {self.lambda1}; choose the strategy inc_lora to train "
                "without the penalty."
            )


class NLora(SummedAdapters):
    """CE + λ₁·Σ_modules Σ_ij |ΔW_new|_ij, ΔW_new = (α/r)·B_new·A_new; only A_new and B_new train, in every task.

    The norm is that of the update ΔW, as a summary of the paper gives it (its text was not read): parameters "collide"
    where the ΔW of two tasks are both not zero, and sparse ones rarely are. A norm of the factors would not do: the
    product of sparse factors need not be sparse, nor have sparse products sparse factors. The authors' code
    (src/uie_trainer_lora.py of PKU-YuanGroup/N-LoRA) has a third thing: it multiplies the weights of its two layers as
    A·B, of shapes (r, in) and (out, r), which can be done where in = out, and gives r×r numbers that are not ΔW. Here
    it is ΔW with its scaling: what is added to the weights.

    |·| has the derivative 0 at 0, where B starts. The penalty counts once per step however the batch is cut. ΔW is made
    module by module, and again in the backward pass: one matrix of shape (out, in) is in memory at a time. How adapters
    are added and what is saved: `SummedAdapters`.

    >>> NLora.config_class()
    NLoraConfig(lambda1=0.0001)
    """

    name = "n_lora"
    reference = "Yang et al. 2025, arXiv 2410.10179"
    config_class = NLoraConfig
    # Decades about our default: the authors' values are of another quantity.
    searched = {"lambda1": (1e-6, 1e-5, 1e-4, 1e-3)}

    def loss(self, step: Step) -> Tensor:
        loss = step.current_loss(step.forward())
        return loss + step.share * self.config.lambda1 * _size(step.model) if self.config.lambda1 else loss


def _size(model: LoraModel) -> Tensor:
    """Σ |ΔW| of the adapter that is trained, differentiable."""
    terms = []
    for module, scaling in model.scaling.items():
        a, b = model.parameters[key_a(module)], model.parameters[key_b(module)]
        terms.append(scaling * checkpoint(_sum_of_sizes, a, b, use_reentrant=False, preserve_rng_state=False))
    return torch.stack(terms).sum()


def _sum_of_sizes(a: Tensor, b: Tensor) -> Tensor:
    return (b @ a).abs().sum()
