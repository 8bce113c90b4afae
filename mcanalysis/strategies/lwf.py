"""Learning without forgetting: on the new task's inputs, the model goes on predicting what it predicted before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig


@dataclass(frozen=True)
class LwfConfig(StrategyConfig):
    """Settings of LwF.

    `temperature` (T), 2, is that of the codes seen (mammoth, TRACE). `alpha` (α), 0.5, is mammoth's number, but the
    factor T² (Hinton et al. 2015: it keeps the strength when T changes) is not in its code, so this default is four
    times as strong; α = 0.125 is mammoth's strength. No authors' setting for language models is known.
    """

    alpha: float = 0.5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise UserError(f"Expected a finite alpha of at least 0, got {self.alpha}; choose 0 to switch it off.")
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"Expected a finite temperature above 0, got {self.temperature}; choose 1 to leave the probabilities "
                "as they are."
            )


class Lwf(Strategy):
    """CE + α·T²·KL(p_old ‖ p_new), both softened by T, at the target positions of the current inputs; nothing replayed.

    p ∝ exp(logits / T) over the whole vocabulary; mean over target tokens, as in CE; old is the adapter as it stood
    when the previous task ended, without dropout and without gradient. CE alone in the first task.

    >>> Lwf.config_class()
    LwfConfig(alpha=0.5, temperature=2.0)
    """

    name = "lwf"
    reference = "Li & Hoiem 2016, arXiv 1606.09282"
    config_class = LwfConfig
    # 0.125 is mammoth's strength (see the config); the powers of 2 above it are ours.
    searched = {"alpha": (0.125, 0.25, 0.5, 1.0, 2.0)}

    def __init__(self, config: LwfConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.old: Point = {}

    def loss(self, step: Step) -> Tensor:
        new = step.forward()
        loss = step.current_loss(new)
        if not self.old or not self.config.alpha:
            return loss
        with torch.no_grad(), step.model.without_dropout():
            old = step.model.forward_at(self.old, step.batch)
        temperature = self.config.temperature
        log_p_new, log_p_old = (log_softmax(f.logits / temperature, dim=-1) for f in (new, old))
        divergence = kl_div(log_p_new, log_p_old, reduction="sum", log_target=True) / step.totals.current_targets
        return loss + self.config.alpha * temperature**2 * divergence

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        self.old = model.point()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.old, {}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.old = {k: v.to(model.device) for k, v in tensors.items()}
