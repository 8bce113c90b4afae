"""CLS-ER: two slow averages of the adapter, one more plastic and one more stable, teach it on replayed examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.forward import Forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.ema import ema_decay_at, ema_update_
from mcanalysis.params.lora import key_b
from mcanalysis.params.point import Point
from mcanalysis.replay.random_state import random_state, set_random_state
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig

_PLASTIC, _STABLE = "plastic.", "stable."  # what the names of their tensors begin with in the state


@dataclass(frozen=True)
class ClsErConfig(StrategyConfig):
    """Settings of CLS-ER; defaults of the authors' code (models/clser.py of NeurAI-Lab/CLS-ER) where it has them.

    `consistency_weight`: 0.1. `plastic_decay`, `stable_decay`: 0.999 each; they are ramped as I-LoRA's, over all steps,
    so 0.999 is reached after 999 of them; before, all is averaged since the start (choose 1/(1 − λ) well below them).
    `plastic_probability`, `stable_probability`: how often the average is updated, 0.9 and 0.7; at equal decays this
    alone makes one of them slower. `memory_size`: 500, as for the other replay strategies here.
    `replay_from_first_step`: the authors' code replays as soon as the buffer holds anything; off, so that all replay
    strategies here start with the second task.
    """

    consistency_weight: float = 0.1
    plastic_decay: float = 0.999
    stable_decay: float = 0.999
    plastic_probability: float = 0.9
    stable_probability: float = 0.7
    memory_size: int | float = 500
    replay_from_first_step: bool = False

    def __post_init__(self) -> None:
        for name in ("plastic_decay", "stable_decay", "plastic_probability", "stable_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"Expected {name} in [0, 1], got {getattr(self, name)}; choose a number between 0 and 1."
                )
        if not self.consistency_weight >= 0:
            raise UserError(
                f"Expected a consistency_weight of at least 0, got {self.consistency_weight}; choose 0 to switch it "
                "off."
            )


class ClsEr(Strategy):
    """CE(current and replay as one batch) + w·MSE(logits of fast and of its teacher on the replayed answers).

    The cross entropy is one mean over the answer tokens of both batches, as in the authors' code (ER's here is the mean
    of two means). Each replayed example has its own teacher, the average, plastic or stable, that gives its answer the
    higher probability (the sum of log p over its tokens). The squared difference is averaged over replayed answer
    tokens and the whole vocabulary; the authors' code classifies, and averages over examples and classes. Teachers
    answer without dropout and get no gradient.

    After step k each average is updated with its own probability: average ← λ_k·average + (1−λ_k)·fast,
    λ_k = min(1 − 1/(k+1), λ), where k counts the steps of the whole sequence, not the updates. Both start as copies of
    fast and persist at task boundaries. The learner `slow` is the stable one, and answers.

    >>> ClsEr.learners
    ('fast', 'slow', 'plastic')
    """

    name = "cls_er"
    reference = "Arani et al. 2022, arXiv 2201.12604"
    config_class = ClsErConfig
    # 0.1 and 0.999 are the authors'. A decay λ acts from step λ/(1 − λ) on: 0.9, 0.95 and 0.99, ours, do in short runs.
    searched = {
        "consistency_weight": (0.1, 1.0), "plastic_decay": (0.95, 0.999), "stable_decay": (0.9, 0.95, 0.99, 0.999)
    }  # fmt: skip
    learners = ("fast", "slow", "plastic")

    def __init__(self, config: ClsErConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed, config.replay_from_first_step)
        self.plastic: Point = {}
        self.stable: Point = {}
        self.num_steps = 0
        self._rng = Random(f"cls_er/{seed}")
        self._scale: dict[str, float] = {}

    @property
    def answering_learner(self) -> str:
        return "slow"

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        self.plastic, self.stable = model.point(), model.point()
        self._scale = {key_b(module): scaling for module, scaling in model.scaling.items()}

    def draw_replay(self, number: int) -> list[EncodedExample]:
        return self.rehearsal.draw(number, self.task_index)

    def loss(self, step: Step) -> Tensor:
        result = step.forward()
        loss = result.nll.sum() / (step.totals.current_targets + step.totals.replay_targets)
        if step.num_replay and self.config.consistency_weight > 0:
            loss = loss + self.config.consistency_weight * self._consistency(step, result)
        return loss

    def _consistency(self, step: Step, fast: Forward) -> Tensor:
        """Mean over the replayed answers' tokens and the vocabulary."""
        batch = step.replay_batch().trimmed()
        with torch.no_grad(), step.model.without_dropout():
            plastic = step.model.forward_at(self.plastic, batch)
            stable = step.model.forward_at(self.stable, batch)
        is_stable = (stable.nll < plastic.nll)[stable.rows]
        teacher = torch.where(is_stable[:, None], stable.logits, plastic.logits)
        difference = fast.logits[fast.rows >= step.num_current] - teacher
        return difference.square().mean(-1).sum() / step.totals.replay_targets

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.rehearsal.remember(examples, first_pass, self.task_index)
        self.num_steps += 1
        c = self.config
        for point, decay, probability in (
            (self.plastic, c.plastic_decay, c.plastic_probability),
            (self.stable, c.stable_decay, c.stable_probability),
        ):
            if self._rng.random() < probability:
                ema_update_(point, model.parameters, ema_decay_at(self.num_steps, decay), self._scale)

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, {"fast": None, "slow": self.stable, "plastic": self.plastic}[learner])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {_PLASTIC + k: v for k, v in self.plastic.items()}
        tensors |= {_STABLE + k: v for k, v in self.stable.items()}
        return tensors, {
            "num_steps": self.num_steps,
            "rng": random_state(self._rng),
            "buffer": self.rehearsal.buffer.state(),
        }

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.plastic = {k: tensors[_PLASTIC + k].to(model.device) for k in self.plastic}
        self.stable = {k: tensors[_STABLE + k].to(model.device) for k in self.stable}
        self.num_steps = int(values["num_steps"])
        set_random_state(self._rng, values["rng"])
        self.rehearsal.buffer.load_state(values["buffer"])
