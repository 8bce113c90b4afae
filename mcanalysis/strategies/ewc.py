"""Elastic weight consolidation: parameters that mattered to earlier tasks are held back by a quadratic penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point, snapshot
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig


@dataclass(frozen=True)
class EwcConfig(StrategyConfig):
    """Settings of EWC.

    `ewc_lambda` (λ): no value is authoritative. Published ones lie between 0.1 and 1000 and cannot be compared, since
    codes differ in whether F is a sum or a mean, of squared gradients of examples or of batches. With the F of this one
    and a loss in nats per target token, Laplace's approximation would make λ the number of earlier examples over the
    number of target tokens of the current task, so around 1 for short answers. 10 has the best mean of a sweep from 1
    to 100000 on four embedded tasks, within its noise (docs/strategies.md); sweep it for yours. `gamma` (γ): what is
    left of the old F when a task ends (1, as in mammoth: all tasks count alike; below 1 older ones fade).
    `fisher_examples`: how many of a task's train examples, chosen by the seed, F is averaged over; None for all. Each
    costs a pass forward and back by itself, so 200, our choice, keep that to a few seconds a task with a small model.
    """

    ewc_lambda: float = 10.0
    gamma: float = 1.0
    fisher_examples: int | None = 200

    def __post_init__(self) -> None:
        if not 0 <= self.ewc_lambda < math.inf:
            raise UserError(
                f"Expected a finite ewc_lambda of at least 0, got {self.ewc_lambda}; choose 0 to switch it off."
            )
        if not 0 <= self.gamma <= 1:
            raise UserError(
                f"Expected gamma in [0, 1], got {self.gamma}; choose 1 to keep all tasks, 0 to keep the last one only."
            )
        if self.fisher_examples is not None and self.fisher_examples < 1:
            raise UserError(
                f"Expected fisher_examples of at least 1, got {self.fisher_examples}; leave it out, or choose None, "
                "to use all."
            )


def diagonal_fisher(model: LoraModel, examples: Sequence[EncodedExample]) -> Point:
    """The diagonal of the empirical Fisher information: the mean over examples of (∂ log p(answer | prompt) / ∂θ)².

    log p is summed over the answer's tokens, in nats; θ are the adapter's raw tensors; dropout is off. One example at
    a time: the square of a batch's mean gradient is another, much smaller thing.
    """
    fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.parameters.items()}
    parameters = list(model.parameters.values())
    with model.without_dropout(), torch.enable_grad():
        for example in examples:
            batch = collate([example], pad_id(model.tokenizer)).to(model.device)
            gradients = torch.autograd.grad(model.forward(batch).nll.sum(), parameters)
            for total, gradient in zip(fisher.values(), gradients, strict=True):
                total += gradient.float().square() / len(examples)
    return fisher


class Ewc(Strategy):
    """CE + (λ/2)·Σ F(θ − θ*)² over the adapter's raw tensors; CE alone in the first task.

    When a task ends F ← γF + F_task and θ* ← θ (online EWC: one F and one θ*, however many tasks), where F_task is
    `diagonal_fisher` of its train examples at its end.

    >>> Ewc.config_class()
    EwcConfig(ewc_lambda=10.0, gamma=1.0, fisher_examples=200)
    """

    name = "ewc"
    reference = "Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al. 2018, arXiv 1805.06370"
    config_class = EwcConfig
    # The decades over which published values are scattered; no one of them has authority.
    searched = {"ewc_lambda": (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)}

    def __init__(self, config: EwcConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.fisher: Point = {}
        self.anchor: Point = {}

    def loss(self, step: Step) -> Tensor:
        loss = step.current_loss(step.forward())
        if not self.fisher or not self.config.ewc_lambda:
            return loss
        return loss + step.share * self.config.ewc_lambda / 2 * self._distance(step.model)

    def _distance(self, model: LoraModel) -> Tensor:
        """Σ F(θ − θ*)², differentiable."""
        terms = [(self.fisher[k] * (p - self.anchor[k]).square()).sum() for k, p in model.parameters.items()]
        return torch.stack(terms).sum()

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        number = self.config.fisher_examples
        if number is not None and number < len(examples):
            examples = Random(f"fisher/{self.seed}/{self.task_index}").sample(list(examples), number)
        new = diagonal_fisher(model, examples)
        self.fisher = {k: self.config.gamma * self.fisher[k] + f if self.fisher else f for k, f in new.items()}
        self.anchor = snapshot(model.parameters)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"fisher.{k}": v for k, v in self.fisher.items()}
        return {**tensors, **{f"anchor.{k}": v for k, v in self.anchor.items()}}, {}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.fisher, self.anchor = (
            {k.removeprefix(part): v.to(model.device) for k, v in tensors.items() if k.startswith(part)}
            for part in ("fisher.", "anchor.")
        )
