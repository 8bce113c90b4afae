"""I-LoRA: a fast adapter learns, a slow one averages it; replay and a consistency loss tie the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.ema import ema_decay_at, ema_update_
from mcanalysis.params.point import Point
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig


@dataclass(frozen=True)
class IloraConfig(StrategyConfig):
    """Settings of I-LoRA.

    `ema_decay` (λ): larger is slower. The paper does not state the value it used; 0.95 is our default and LLMCL, its
    reference code, has 0.25. `consistency_weight` (γ), 1.0, likewise ours. `consistency_layers`: the last so many
    blocks, None for all. `consistency_form`: `two_sided` is the mean squared difference; `one_sided` counts only
    where slow exceeds fast, as the reference code does. `memory_size`: examples in the reservoir (500, LLMCL's).
    `reset_at_task`: overwrite slow with fast when a task begins (erases long-term memory; off). `answering`: which
    learner's scores count.
    """

    ema_decay: float = 0.95
    consistency_weight: float = 1.0
    consistency_layers: int | None = None
    consistency_form: Literal["two_sided", "one_sided"] = "two_sided"
    memory_size: int = 500
    replay_from_first_step: bool = False
    reset_at_task: bool = False
    answering: Literal["slow", "fast"] = "slow"

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay <= 1:
            raise UserError(f"Expected ema_decay in [0, 1], got {self.ema_decay}; larger means slower.")
        if self.consistency_form not in ("two_sided", "one_sided"):
            raise UserError(
                f"Expected consistency_form two_sided or one_sided, got '{self.consistency_form}'; choose one."
            )
        if self.answering not in ("slow", "fast"):
            raise UserError(f"Expected answering slow or fast, got '{self.answering}'; choose one.")
        if not self.consistency_weight >= 0:
            raise UserError(
                f"Expected a consistency_weight of at least 0, got {self.consistency_weight}; 0 switches it off."
            )
        if self.consistency_layers is not None and self.consistency_layers < 1:
            raise UserError(
                f"Expected consistency_layers of at least 1, got {self.consistency_layers}; leave it out for all."
            )


class Ilora(Strategy):
    """½(CE current + CE replay) + γ·MSE(hidden states of fast and slow on the replay batch).

    After every optimiser step slow ← λ_k·slow + (1−λ_k)·fast, λ_k = min(1 − 1/(k+1), λ), factor by factor, with k
    counted over the whole sequence of tasks. Slow starts as a copy of fast and persists at task boundaries.

    >>> Ilora.learners
    ('fast', 'slow')
    """

    name = "ilora"
    reference = "Ren et al. 2024, arXiv 2402.18865; ancestor: CLS-ER, Arani et al. 2022, arXiv 2201.12604"
    config_class = IloraConfig
    learners = ("fast", "slow")

    def __init__(self, config: IloraConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed, config.replay_from_first_step)
        self.slow: Point = {}
        self.num_updates = 0

    @property
    def answering_learner(self) -> str:
        return self.config.answering

    def begin(self, model: LoraModel) -> None:
        self.slow = model.point()

    def begin_task(self, model: LoraModel, task_index: int) -> None:
        super().begin_task(model, task_index)
        if self.config.reset_at_task and task_index > 0:
            self.slow = model.point()

    def draw_replay(self, number: int) -> list[EncodedExample]:
        return self.rehearsal.draw(number, self.task_index)

    def loss(self, step: Step) -> Tensor:
        if not step.num_replay:
            return step.current_loss(step.forward())
        weight = self.config.consistency_weight
        result = step.forward(hidden_states=weight > 0)
        loss = (step.current_loss(result) + step.replay_loss(result)) / 2
        if weight > 0:
            loss = loss + weight * self._consistency(step, result.hidden_states)
        return loss

    def _consistency(self, step: Step, fast_states: tuple[Tensor, ...]) -> Tensor:
        """Mean over layers, replayed tokens that are not padding, and width."""
        batch = step.replay_batch()
        with torch.no_grad(), step.model.without_dropout():
            slow_states = step.model.forward_at(self.slow, batch, hidden_states=True).hidden_states
        layers = slice(-self.config.consistency_layers if self.config.consistency_layers else None, None)
        kept = batch.mask().bool()
        pairs = [(f[step.num_current :], s) for f, s in zip(fast_states[layers], slow_states[layers], strict=True)]
        total = fast_states[0].new_zeros(())
        for fast, slow in pairs:
            difference = slow[kept].float() - fast[kept].float()
            if self.config.consistency_form == "one_sided":
                difference = difference.relu()
            total = total + difference.square().mean(-1).sum()
        return total / (len(pairs) * step.totals.replay_tokens)

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.rehearsal.remember(examples, first_pass, self.task_index)
        self.num_updates += 1
        ema_update_(self.slow, model.point(), ema_decay_at(self.num_updates, self.config.ema_decay))

    def learner_point(self, model: LoraModel, learner: str) -> Point:
        if learner == "slow":
            return {k: v.clone() for k, v in self.slow.items()}
        return model.point()

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self.slow if learner == "slow" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.slow, {"num_updates": self.num_updates, "buffer": self.rehearsal.buffer.state()}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.slow = {k: v.to(self.slow[k].device) for k, v in tensors.items()}
        self.num_updates = int(values["num_updates"])
        self.rehearsal.buffer.load_state(values["buffer"])
