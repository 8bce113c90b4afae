"""Which part of the network, the optimiser and the rest a training step's time goes to, by torch's profiler."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from timing import train_steps
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer

ATTENTION = "attention: scores, softmax, rotation"
PROJECTIONS = "attention: projections with LoRA"
MLP = "MLP"
REST = "embedding, norms, residuals"
HEAD = "head"
LOSS = "loss terms"
TEACHER = "forward of slow, no gradient"
ENGINE = "backward: the engine itself"
CLIPPING = "clipping"
OPTIMISER = "AdamW"
AFTER = "after the step: EMA, buffer"
OVERHEAD = "overhead: Trainer, batches"
PARTS = (ATTENTION, PROJECTIONS, MLP, REST, HEAD, LOSS, TEACHER, ENGINE, CLIPPING, OPTIMISER, AFTER, OVERHEAD)

_MARK = "part/"
_BACKWARD = "autograd::engine::evaluate_function: "


def part_seconds(
    model: LoraModel,
    strategy: Strategy,
    examples: Sequence[EncodedExample],
    config: TrainingConfig,
) -> dict[str, float]:
    """Seconds per step of each of `PARTS`, over all steps but the first two. They sum to the step.

    Forward: the innermost marked module, children taken off. Backward: each autograd node counts for the part whose
    forward operation made it, which their common sequence number tells. The profiler's own cost is in it, so only the
    shares mean something.
    """
    profiler = profile(activities=[ProfilerActivity.CPU])
    moments: list[float] = []

    def on_step() -> None:
        moments.append(time.perf_counter())
        if len(moments) == 2:
            with _silent_stderr():
                profiler.start()
            moments[-1] = time.perf_counter()
        elif len(moments) == config.num_steps:
            with _silent_stderr():
                profiler.stop()

    with ExitStack() as stack:
        _mark_modules(model, stack)
        strategy.loss = _marked(strategy.loss, LOSS)  # type: ignore[method-assign]
        strategy.after_step = _marked(strategy.after_step, AFTER)  # type: ignore[method-assign]
        gc.collect()
        train_steps(model, strategy, examples, config, on_step, _mark_engine)
    num_steps = config.num_steps - 2
    parts = {part: s / num_steps for part, s in exclusive_seconds(profiler.events() or ()).items()}
    total = (moments[-1] - moments[1]) / num_steps
    return {**{p: parts.get(p, 0.0) for p in PARTS}, OVERHEAD: total - sum(parts.values())}


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Kineto tells of every start and stop, past Python's `sys.stderr`."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def exclusive_seconds(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of each part, what is nested in it and belongs to another one taken off."""
    seconds: dict[str, float] = defaultdict(float)
    part_of_node: dict[int, str] = {}
    open_ranges: list[tuple[float, str, bool]] = []  # end, part, whether it keeps what is nested in it
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):
        start, end = event.time_range.start, event.time_range.end
        while open_ranges and open_ranges[-1][0] <= start:
            open_ranges.pop()
        inside = open_ranges[-1] if open_ranges else None
        part = _part(event.name, event.sequence_nr, part_of_node)
        if part is None:  # a plain operation; the last one with a number is the one that made the node
            if inside and event.sequence_nr >= 0:
                part_of_node[event.sequence_nr] = inside[1]
            continue
        if inside and inside[2]:
            continue
        if inside:
            seconds[inside[1]] -= (end - start) / 1e6
        seconds[part] += (end - start) / 1e6
        open_ranges.append((end, part, part == TEACHER or event.name.startswith(_BACKWARD)))
    return dict(seconds)


def _part(name: str, sequence: int, part_of_node: dict[int, str]) -> str | None:
    if name.startswith(_MARK):
        return name.removeprefix(_MARK)
    if name.startswith(_BACKWARD):
        return part_of_node.get(sequence, ENGINE)
    return OPTIMISER if name.startswith("Optimizer.") else None


def _marked(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + part):
            return function(*args, **kwargs)

    return call


def _mark_engine(trainer: TaskTrainer) -> None:
    accelerator = trainer.accelerator
    accelerator.backward = _marked(accelerator.backward, ENGINE)
    accelerator.clip_grad_norm_ = _marked(accelerator.clip_grad_norm_, CLIPPING)


def _mark_modules(model: LoraModel, stack: ExitStack) -> None:
    base: Any = model.base
    head = base.get_output_embeddings()
    for name, module in base.named_modules():
        kind = type(module).__name__
        if module is base:
            _mark_module(module, lambda: REST if torch.is_grad_enabled() else TEACHER, stack)
        elif module is head:
            _mark_module(module, lambda: HEAD, stack)
        elif name in model.scaling:
            _mark_module(module, lambda: PROJECTIONS, stack)
        elif kind.endswith("Attention"):
            _mark_module(module, lambda: ATTENTION, stack)
        elif kind.endswith("MLP"):
            _mark_module(module, lambda: MLP, stack)
        elif kind.endswith("RotaryEmbedding"):
            _mark_module(module, lambda: ATTENTION, stack)


def _mark_module(module: nn.Module, part: Callable[[], str], stack: ExitStack) -> None:
    """Mark every call of a module. As hooks and not in place of `forward`, which PEFT and functional calls look up."""
    opened: list[Any] = []

    def enter(*_: Any) -> None:
        opened.append(record_function(_MARK + part()))
        opened[-1].__enter__()

    def leave(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
    stack.callback(module.register_forward_hook(leave, always_call=True).remove)
