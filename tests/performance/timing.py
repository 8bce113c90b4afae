"""Seconds of training steps through `TaskTrainer`, and how measurements that took turns are summed up."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.encoding import Batch, EncodedExample
from mcanalysis.strategies.strategy import Step, Strategy
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer


class Moment(NamedTuple):
    """Wall clock and processor time of this process, in seconds; their difference is what others took."""

    wall: float
    processor: float

    @classmethod
    def now(cls, device: str = "cpu") -> Moment:
        """After what was asked of the device is done."""
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())


def train_steps(
    model: AdaptedModel,
    strategy: Strategy,
    examples: Sequence[EncodedExample],
    config: TrainingConfig,
    on_step: Callable[[], None] = lambda: None,
    prepare: Callable[[TaskTrainer], None] = lambda trainer: None,
) -> TaskTrainer:
    """Train as a run does, without checkpoints; `prepare` is given the trainer before it starts."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TaskTrainer(model, strategy, examples, "bench", config, "0", scratch, on_step=on_step)
        prepare(trainer)
        trainer.train()
    return trainer


class StepCosts(NamedTuple):
    """One array each, an entry per step: seconds by the wall clock and of the processor, tokens without and with
    padding."""

    wall: np.ndarray
    processor: np.ndarray
    tokens: np.ndarray
    padded: np.ndarray


def step_costs(
    model: AdaptedModel, strategy: Strategy, examples: Sequence[EncodedExample], config: TrainingConfig
) -> StepCosts:
    """What each step but the first costs, from the end of the one before to its own; without gradient accumulation.

    So everything a step needs is in it: fetching, drawing replay, both passes, clipping, AdamW, `after_step`, the
    Trainer's own work. The first step, in which AdamW makes its state, is for warming up.
    """
    device = model.device.type
    moments: list[Moment] = []
    batches: list[Batch] = []
    loss = strategy.loss

    def witnessed(step: Step) -> Tensor:
        batches.append(step.batch)
        return loss(step)

    strategy.loss = witnessed  # type: ignore[method-assign]
    gc.collect()
    train_steps(model, strategy, examples, config, on_step=lambda: moments.append(Moment.now(device)))
    wall, processor = np.diff(np.array(moments), axis=0).T
    tokens = [int(b.mask().sum()) for b in batches[1:]]
    padded = [b.input_ids.numel() for b in batches[1:]]
    return StepCosts(wall, processor, np.array(tokens), np.array(padded))


def take_turns(ways: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[Any]]:
    """The results of each way, A B C A B C …, so that a slow moment of the machine falls on all of them.

    >>> take_turns({"a": lambda: 1, "b": lambda: 2}, 2)
    {'a': [1, 1], 'b': [2, 2]}
    """
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for kept in _RECORDS:
        kept.append(results)
    for _ in range(repetitions):
        for name, way in ways.items():
            results[name].append(way())
    return results


_RECORDS: list[list[dict[str, list[Any]]]] = []


@contextmanager
def recording() -> Iterator[list[dict[str, list[Any]]]]:
    """What every `take_turns` in the block found, in order.

    >>> with recording() as turns:
    ...     _ = take_turns({"a": lambda: 1}, 2)
    >>> turns
    [{'a': [1, 1]}]
    """
    turns: list[dict[str, list[Any]]] = []
    _RECORDS.append(turns)
    try:
        yield turns
    finally:
        _RECORDS.remove(turns)


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, str]:
    """The ratio of two medians, and, as text, the range of the ratios of each turn.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 2.0, 4.0])
    (2.0, '(1.50 to 2.00)')
    """
    each = np.array(one) / np.array(other)
    return float(np.median(one) / np.median(other)), f"({each.min():.2f} to {each.max():.2f})"
