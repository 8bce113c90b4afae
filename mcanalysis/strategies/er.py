"""Experience replay: half the loss on the current batch, half on a batch from a reservoir of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig


@dataclass(frozen=True)
class ErConfig(StrategyConfig):
    """`memory_size`: examples remembered over the whole stream (500, as for I-LoRA, so that both see the same)."""

    memory_size: int | float = 500
    replay_from_first_step: bool = False


class Er(Strategy):
    """½(CE on the current batch + CE on a replay batch of the same size); CE alone before replay starts.

    >>> Er.config_class()
    ErConfig(memory_size=500, replay_from_first_step=False)
    """

    name = "er"
    reference = "Chaudhry et al. 2019, arXiv 1902.10486"
    config_class = ErConfig

    def __init__(self, config: ErConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed, config.replay_from_first_step)

    def draw_replay(self, number: int) -> list[EncodedExample]:
        return self.rehearsal.draw(number, self.task_index)

    def loss(self, step: Step) -> Tensor:
        result = step.forward()
        if not step.num_replay:
            return step.current_loss(result)
        return (step.current_loss(result) + step.replay_loss(result)) / 2

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.rehearsal.remember(examples, first_pass, self.task_index)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"buffer": self.rehearsal.buffer.state()}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.rehearsal.buffer.load_state(values["buffer"])
