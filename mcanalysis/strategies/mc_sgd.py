"""MC-SGD: mode connectivity as a training signal: a point that low-loss lines join to the minima before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import Batch, EncodedExample
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point, interpolate
from mcanalysis.replay.random_state import random_state, set_random_state
from mcanalysis.replay.reservoir import Rehearsal
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig

_PREVIOUS, _MINIMUM = "previous.", "task_minimum."  # what the names of their tensors begin with in the state


@dataclass(frozen=True)
class McSgdConfig(StrategyConfig):
    """Settings of MC-SGD. The paper's final table of settings was not seen; these are values of the authors' code.

    `num_alphas`: places on each line, α = 1/n, 2/n, …, 1 (5, as in their research code; CL-Gym's default is 10). A step
    of the second phase costs about as much as n steps of experience replay. `init_position`: where between w̄ and ŵ the
    second phase starts (0.25, the default of CL-Gym, their later library; the research code's experiments have 0.05).
    `start_from`: where the first phase starts, `fast`, w̄_{t−1} (as in CL-Gym), or `task_minimum`, ŵ_{t−1} (as in the
    research code). `memory_size`: 500, as for the other replay strategies here.
    """

    num_alphas: int = 5
    init_position: float = 0.25
    start_from: Literal["fast", "task_minimum"] = "fast"
    memory_size: int | float = 500

    def __post_init__(self) -> None:
        if self.num_alphas < 1:
            raise UserError(f"Expected num_alphas of at least 1, got {self.num_alphas}; leave it out to use 5.")
        if not 0 <= self.init_position <= 1:
            raise UserError(
                f"Expected init_position in [0, 1], got {self.init_position}; choose 0 for the old point, 1 for "
                "the task's minimum."
            )
        if self.start_from not in ("fast", "task_minimum"):
            raise UserError(
                f"Expected start_from to be fast or task_minimum, got '{self.start_from}'; choose one of these."
            )


class McSgd(Strategy):
    """Two phases per task, each with all its steps and an optimiser of its own; the first task has the first alone.

    First phase: ŵ_t minimises CE on the current task, from w̄_{t−1}. Second phase: w̄_t minimises, from
    w̄_{t−1} + p·(ŵ_t − w̄_{t−1}),

        mean over α of ½[CE(w̄_{t−1} + α(w − w̄_{t−1}); replay) + CE(ŵ_t + α(w − ŵ_t); current)],

    so that low-loss lines lead from the new point to the old one (for the earlier tasks) and to the task's own minimum
    (for the task). Points are the LoRA factors, A and B, and lines are straight in them. The halves make the term α = 1
    the loss of experience replay. The gradient is that of this objective, with the factor α of the chain rule;
    α = 0, constant in w, is left out. (The authors' code takes the gradient *at* each place, α = 0 included, without
    that factor, sums it, and so is no descent on the objective.)

    The memory fills in the first phase, on the first pass; the second replays examples of earlier tasks only. The
    learner `fast` is w̄_t, and answers; `task_minimum` is ŵ_t.

    >>> strategy = McSgd(McSgdConfig(num_alphas=4), seed=0)
    >>> strategy.alphas
    [0.25, 0.5, 0.75, 1.0]
    >>> strategy.task_index = 1
    >>> strategy.num_phases()
    2
    """

    name = "mc_sgd"
    reference = "Mirzadeh et al. 2021, arXiv 2010.04495"
    config_class = McSgdConfig
    # Of the research code and of CL-Gym, the authors' both.
    searched = {"init_position": (0.05, 0.25), "start_from": ("fast", "task_minimum")}
    learners = ("fast", "task_minimum")
    resting_learners = ("task_minimum",)

    def __init__(self, config: McSgdConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.rehearsal = Rehearsal(config.memory_size, seed)
        self.previous: Point = {}  # w̄ of the task before
        self.minimum: Point = {}  # ŵ of this task, or of the one before until it is there
        self.phase = 0
        self._rng = Random(f"mc_sgd/{seed}")

    @property
    def alphas(self) -> list[float]:
        """The places on the lines; the last is their common end, w itself."""
        n = self.config.num_alphas
        return [k / n for k in range(1, n + 1)]

    def num_phases(self) -> int:
        return 1 if self.task_index == 0 else 2

    def begin_phase(self, model: LoraModel, phase: int) -> None:
        self.phase = phase
        if phase == 1:
            self.minimum = model.point()
            model.load_point(interpolate(self.previous, self.minimum, self.config.init_position))
        elif self.task_index > 0:
            self.previous = model.point()
            if self.config.start_from == "task_minimum":
                model.load_point(self.minimum)

    def draw_replay(self, number: int) -> list[EncodedExample]:
        if self.phase == 0:
            return []
        earlier = [i.example for i in self.rehearsal.buffer.items if i.task_index < self.task_index]
        if not earlier:  # a very small memory may hold the current task alone
            return []
        return self._rng.sample(earlier, number) if number <= len(earlier) else self._rng.choices(earlier, k=number)

    def loss(self, step: Step) -> Tensor:
        if self.phase == 0:
            return step.current_loss(step.forward())
        n = self.config.num_alphas
        inner = self._inner_places(step) if n > 1 else None
        # The place α = 1 last and through `step.network`: there the processes add up the gradients, of all places.
        result = step.forward()
        loss = step.current_loss(result)
        if step.num_replay:
            loss = (loss + step.replay_loss(result)) / 2
        return loss / n if inner is None else loss / n + inner

    def _inner_places(self, step: Step) -> Tensor:
        """The terms with α < 1: a number with the right value and the right gradient with respect to the adapter.

        Each term's gradient is taken at its place and put, times α, into a linear function of the adapter. So only one
        pass is in memory at a time, and activations that are computed again (gradient checkpointing) are computed
        where they belong.
        """
        model: LoraModel = step.model
        lines = [(self.minimum, step.current_batch(), step.totals.current_targets)]
        if step.num_replay:
            lines.append((self.previous, step.replay_batch(), step.totals.replay_targets))
        trained = list(model.parameters.values())
        gradients = [torch.zeros_like(p) for p in trained]
        value = torch.zeros((), device=model.device)
        here = model.point()
        for alpha in self.alphas[:-1]:
            for start, batch, targets in lines:
                weight = 1 / (self.config.num_alphas * len(lines) * targets)
                nll, at_place = self._gradient_at(model, interpolate(start, here, alpha), batch.trimmed())
                value += weight * nll
                for total, gradient in zip(gradients, at_place, strict=True):
                    total.add_(gradient, alpha=alpha * weight)
        # p − p is 0 and has the derivative 1.
        return value + sum(((p - p.detach()) * g).sum() for p, g in zip(trained, gradients, strict=True))

    @staticmethod
    def _gradient_at(model: LoraModel, point: Point, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum of the negative log-likelihoods at a point, and its gradient with respect to the factors there."""
        with model.unmerged(point) as network:
            nll = forward(network, batch).nll.sum()
            gradient = torch.autograd.grad(nll, list(model.parameters.values()))
        return nll.detach(), gradient

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        if self.phase == 0:  # the second phase goes through the same examples, whose first pass it is not
            self.rehearsal.remember(examples, first_pass, self.task_index)

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        if self.task_index == 0:
            self.minimum = model.point()

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self.minimum if learner == "task_minimum" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {_PREVIOUS + k: v for k, v in self.previous.items()}
        tensors |= {_MINIMUM + k: v for k, v in self.minimum.items()}
        return tensors, {
            "phase": self.phase,
            "rng": random_state(self._rng),
            "buffer": self.rehearsal.buffer.state(),
        }

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.previous, self.minimum = (
            {k.removeprefix(prefix): v.to(model.device) for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in (_PREVIOUS, _MINIMUM)
        )
        self.phase = int(values["phase"])
        set_random_state(self._rng, values["rng"])
        self.rehearsal.buffer.load_state(values["buffer"])
