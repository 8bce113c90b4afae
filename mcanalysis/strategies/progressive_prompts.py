"""Progressive Prompts: a new prompt for each task, put before the frozen ones of the tasks before; no LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.prompt_stack import StackModel
from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class ProgressivePromptsConfig(StrategyConfig):
    """Settings of Progressive Prompts.

    `prompt_length`: vectors per task, 20, LLMCL's and TRACE's (the authors' script defaults to 10). `bottleneck`: width
    inside the residual MLP, 128, LLMCL's (the authors' script has 800 for T5). The paper's own values per model are not
    known to us. `learning_rate_factor`: prompts want larger rates than LoRA; 100 times the embedded base's 3e-3 is the
    authors' 0.3, and 100 times any other's 2e-4 is within TRL's 0.01 to 0.03 for prompt tuning.
    """

    prompt_length: int = 20
    bottleneck: int = 128
    learning_rate_factor: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate_factor < float("inf"):
            raise UserError(
                f"Expected a positive learning_rate_factor, got {self.learning_rate_factor}; leave it out to use 100."
            )
        for name in ("prompt_length", "bottleneck"):
            if getattr(self, name) < 1:
                raise UserError(f"Expected {name} of at least 1, got {getattr(self, name)}; raise it.")


class ProgressivePrompts(Strategy):
    """CE with the prefix [P'_k; …; P'_1; x], where P'_k = MLP_k(P_k) + P_k and only P_k and MLP_k train.

    When the next task begins, P'_k is frozen as it stands and MLP_k dropped. P_k starts as embeddings of random tokens,
    MLP_k at zero output.

    After task k *every* task is answered with the whole prefix of k prompts: nobody says which task a question belongs
    to, and prompts of later tasks may harm. The paper's "no forgetting" is about each task with its own prefix
    [P'_i; …; P'_1]: the tables have it as the learner `own_prompts`, whose rows below the diagonal repeat it.

    >>> ProgressivePrompts.config_class()
    ProgressivePromptsConfig(prompt_length=20, bottleneck=128, learning_rate_factor=100.0)
    """

    name = "progressive_prompts"
    reference = "Razdaibiedina et al. 2023, arXiv 2301.12314"
    config_class = ProgressivePromptsConfig
    # Length: the authors' and LLMCL's. Factor: on the embedded base 100 gives the authors' rate, 0.3; 10 is ours.
    searched = {"prompt_length": (10, 20), "learning_rate_factor": (10.0, 100.0)}
    learners = ("prompts",)
    own_task_learner = "own_prompts"
    has_paths = False

    def attach(self, base: torch.nn.Module, tokenizer: Any, lora: LoraSettings, name: str) -> StackModel:
        c = self.config
        return StackModel.attach(
            base, tokenizer, name, prompt_length=c.prompt_length, bottleneck=c.bottleneck, seed=self.seed
        )

    def num_prompts(self, num_tasks: int) -> int:
        return self.config.prompt_length * num_tasks

    def begin(self, model: StackModel, num_tasks: int) -> None:
        model.draw_starts(num_tasks)

    def begin_task(self, model: StackModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index > 0:
            model.grow(task_index)
