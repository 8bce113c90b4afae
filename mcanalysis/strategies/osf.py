"""OSF: the weights themselves are trained, but for the directions that carry most of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.osf_model import OsfModel
from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class OsfConfig(StrategyConfig):
    """Settings of OSF.

    `preserved`: the part of each weight's singular directions, the largest, that a task leaves alone (0.5, PEFT's
    default; the same for every task and layer). `learning_rate_factor`: PEFT's guide wants rates of 1e-5 to 1e-4; 0.1
    is ours and makes 2e-5 of this package's default on bases other than the embedded one. It was not tuned.
    """

    preserved: float = 0.5
    learning_rate_factor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.preserved < 1:
            raise UserError(f"Expected preserved in (0, 1), got {self.preserved}; leave it out to use 0.5.")
        if not self.learning_rate_factor > 0:
            raise UserError(
                f"Expected a positive learning_rate_factor, got {self.learning_rate_factor}; leave it out to use 0.1."
            )


class Osf(Strategy):
    """W = U_high·S_high·V_high + U_low·S_low·V_low by SVD; CE trains U_low, S_low, V_low, gradients ⟂ the high part.

    PEFT's tuner (0.21.2) does it, in the layers that LoRA would adapt. Adam comes after and scales each entry by
    itself, so it is the gradient that is orthogonal, not the step. Before each later task what was trained joins the
    weights, and these are decomposed anew, so that what the last task made large is preserved, too. It is no LoRA:
    `--lora-rank`, `--lora-alpha` and `--lora-dropout` mean nothing. A minimum is ΔW from the base, written as an
    adapter of a layer's whole width (ΔW and an identity); such factors are nothing that was trained, and paths in
    factor space are refused. The base has to be float32 or float64, its layers `torch.nn.Linear`.

    The paper keeps a part of the directions that grows with the tasks and differs by layer (adaptive SVD); here, as in
    PEFT's default, it is one number. PEFT's guide unwraps the model between tasks by `unload`, which in 0.21.2 gives
    the untrained weights back; what was trained is added here.

    >>> Osf.config_class()
    OsfConfig(preserved=0.5, learning_rate_factor=0.1)
    """

    name = "osf"
    reference = "Nayak et al. 2025, arXiv 2504.07097"
    config_class = OsfConfig
    # Ours: about PEFT's 0.5, and rates from PEFT's guide's to that of the other strategies here.
    searched = {"preserved": (0.25, 0.5, 0.75), "learning_rate_factor": (0.1, 0.3, 1.0)}
    has_factors = False

    def attach(self, base: torch.nn.Module, tokenizer: Any, lora: LoraSettings, name: str) -> OsfModel:
        preserved, targets = self.config.preserved, lora.target_modules
        return OsfModel.attach(base, tokenizer, name, preserved=preserved, target_modules=targets)

    def begin_task(self, model: OsfModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index > 0:
            model.begin_anew()
