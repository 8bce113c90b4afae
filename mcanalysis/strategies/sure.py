"""SuRe: replay of the most surprising examples of each task, and a slow adapter that averages the trained one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample, collate, cut_by_length, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.ema import ema_update_
from mcanalysis.params.lora import key_b
from mcanalysis.params.point import Point
from mcanalysis.replay.reservoir import check_memory_size
from mcanalysis.strategies.strategy import Step, Strategy, StrategyConfig

_TOKENS = 1024  # per pass that measures surprise, each with logits over the vocabulary; changes nothing but memory


@dataclass(frozen=True)
class SureConfig(StrategyConfig):
    """Settings of SuRe; "the authors' code" is HHazard2002/continual-learning.

    `memory_size`: 500, the authors' code's and that of the other replay strategies here, shared out equally among the
    tasks so far. `surprise_of`: the negative log-likelihood per token of the whole `sequence` (the authors' code), or
    of the `answer` alone, a variant of theirs. `surprise_at`: examples are chosen when a task starts, before it is
    learned, as in the authors' script, or at its `end`, a variant of theirs. `replay_every`: steps from one with replay
    to the next (2, the authors' code). `replay_from_first_step`: with `surprise_at=start` the authors replay within the
    first task; off, so that all replay strategies here start with the second.

    `ema_decay`: of slow, the same at every step. The authors' code has 0.999 after every micro-batch of one example:
    it remembers 1,000 examples, which is one task of theirs. A run here has a few hundred steps in all, over which
    0.999 would leave slow mostly what it was at the start. 0.95, I-LoRA's here, remembers 20 steps; raise it with their
    number.
    `answering`: the learner whose scores count.
    """

    memory_size: int | float = 500
    surprise_of: Literal["sequence", "answer"] = "sequence"
    surprise_at: Literal["start", "end"] = "start"
    replay_every: int = 2
    replay_from_first_step: bool = False
    ema_decay: float = 0.95
    answering: Literal["slow", "fast"] = "slow"

    def __post_init__(self) -> None:
        check_memory_size(self.memory_size)
        if self.replay_every < 1:
            raise UserError(
                f"Expected replay_every of at least 1, got {self.replay_every}; choose the strategy sequential to "
                "train without replay."
            )
        for name, choices in (
            ("surprise_of", ("sequence", "answer")),
            ("surprise_at", ("start", "end")),
            ("answering", ("slow", "fast")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"Expected {name} {' or '.join(choices)}, got '{getattr(self, name)}'; choose one.")
        if not 0 <= self.ema_decay <= 1:
            raise UserError(
                f"Expected ema_decay in [0, 1], got {self.ema_decay}; choose a number near 1 for slow averages."
            )


class Sure(Strategy):
    """½(CE current + CE replay) on every second step, CE current on the others; slow ← λ·slow + (1−λ)·fast after each.

    The memory has room for `memory_size // t` examples of each of the t tasks so far, those with the highest surprise
    when they were chosen; later tasks push the least surprising out. What is replayed is drawn uniformly from it, as
    many as there are current examples. With `surprise_at=start` a task's own examples are among them, as in the
    authors' code. Measuring surprise takes a pass over all train examples of the task, without dropout.

    Slow starts as a copy of fast, averages A and B separately, persists at task boundaries and is never trained. It
    moves once per optimiser step; the authors' code moves it with every micro-batch, and has no ramp either.

    Their paper's text beyond its abstract was not read: rule and settings are those of the code. Compared with I-LoRA:
    what is remembered is chosen, not a reservoir, and nothing ties fast to slow.

    >>> Sure.learners, Sure(SureConfig(), seed=0).answering_learner
    (('fast', 'slow'), 'slow')
    """

    name = "sure"
    reference = "Hazard et al. 2025, arXiv 2511.22367"
    config_class = SureConfig
    # 0.999 is the authors', and fits thousands of steps; the decays for shorter runs are ours. Both surprises are too.
    searched = {"ema_decay": (0.9, 0.95, 0.99, 0.999), "surprise_of": ("sequence", "answer")}
    learners = ("fast", "slow")

    def __init__(self, config: SureConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.memory: dict[int, list[EncodedExample]] = {}  # by task, the most surprising first
        self.slow: Point = {}
        self.num_steps = 0
        self._scale: dict[str, float] = {}

    @property
    def answering_learner(self) -> str:
        return self.config.answering

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        self.slow = model.point()
        self._scale = {key_b(module): scaling for module, scaling in model.scaling.items()}

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if self.config.surprise_at == "start":
            self._remember(model, examples)

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        if self.config.surprise_at == "end":
            self._remember(model, examples)

    def _remember(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        surprise = surprises(model, list(dict.fromkeys(examples)), self.config.surprise_of)
        self.memory[self.task_index] = sorted(surprise, key=surprise.__getitem__, reverse=True)
        room = self.config.memory_size // len(self.memory)
        self.memory = {task: memory[:room] for task, memory in self.memory.items()}

    def kept_examples(self) -> list[EncodedExample]:
        return [example for memory in self.memory.values() for example in memory]

    def draw_replay(self, number: int) -> list[EncodedExample]:
        pool = self.kept_examples()
        is_early = self.task_index == 0 and not self.config.replay_from_first_step
        if is_early or not pool or (self.num_steps + 1) % self.config.replay_every:
            return []
        rng = Random(f"sure/{self.seed}/{self.num_steps}")  # by seed and step alone: no random state to save
        return rng.sample(pool, number) if number <= len(pool) else rng.choices(pool, k=number)

    def loss(self, step: Step) -> Tensor:
        result = step.forward()
        if not step.num_replay:
            return step.current_loss(result)
        return (step.current_loss(result) + step.replay_loss(result)) / 2

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.num_steps += 1
        ema_update_(self.slow, model.parameters, self.config.ema_decay, self._scale)

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self.slow if learner == "slow" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        memory = [[task, [[e.prompt_ids, e.answer_ids] for e in kept]] for task, kept in self.memory.items()]
        return self.slow, {"num_steps": self.num_steps, "memory": memory}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.slow = {k: v.to(model.device) for k, v in tensors.items()}
        self.num_steps = int(values["num_steps"])
        self.memory = {
            int(task): [EncodedExample(tuple(p), tuple(a)) for p, a in kept] for task, kept in values["memory"]
        }


@torch.no_grad()
def surprises(
    model: LoraModel, examples: Sequence[EncodedExample], of: Literal["sequence", "answer"]
) -> dict[EncodedExample, float]:
    """The negative log-likelihood per token, in nats, of each example, without dropout.

    Of a whole sequence, prompt and answer, every token but the first is counted, which nothing predicts.
    """
    texts = [_as_text(e) if of == "sequence" else e for e in examples]
    found: dict[int, float] = {}
    with model.without_dropout():
        for group in cut_by_length([len(text) for text in texts], _TOKENS):
            result = model.forward(collate([texts[i] for i in group], pad_id(model.tokenizer)).to(model.device))
            found |= dict(zip(group, (result.nll / result.num_targets).tolist(), strict=True))
    return {example: found[i] for i, example in enumerate(examples)}


def _as_text(example: EncodedExample) -> EncodedExample:
    ids = example.prompt_ids + example.answer_ids
    return EncodedExample(ids[:1], ids[1:])
