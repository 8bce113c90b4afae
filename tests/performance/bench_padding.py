"""Length-grouped batches with logits where there are labels, against every example padded to 1024 with all logits."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from points import right_padded
from setups import embedded_model
from timing import Moment, StepCosts, ratio, step_costs, take_turns
from workload import Aim, Options, Section, Table

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DataError
from mcanalysis.models.encoding import EncodedExample, encode, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.pretraining.base_model import train_tokenizer
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks.task import Example, TaskData
from mcanalysis.training.config import TrainingConfig

TITLE = "Padding: length-grouped batches against 1024 tokens each"
LENGTH = 1024
BATCH = 4


def measure(options: Options) -> Section:
    model = embedded_model()
    length, num_steps, num_padded = (128, 3, 1) if options.quick else (LENGTH, 13, 2)
    settings = TrainingConfig(num_steps=num_steps, batch_size=BATCH, max_length=length, group_by_length=True)
    tasks = load_benchmark("trace" if options.data_dir else "embedded", options.data_dir)
    tokenizer = _own_tokenizer(tasks, len(model.tokenizer)) if options.data_dir else model.tokenizer
    model.tokenizer = tokenizer  # its pad token is the same
    aims, rows, dropped = [], [], 0
    for task in tasks[:2] if options.quick else tasks:
        examples, left_out = _sample(task.splits["train"], tokenizer, length, num_steps * BATCH)
        dropped += left_out
        ours, padded = _turns(model, examples, settings, num_padded, options.repetitions)
        grouped = [float(costs.wall.mean()) for costs in ours]
        tokens_ratio = length * BATCH / ours[0].tokens.mean()
        speed_up, detail = ratio(padded, grouped)
        aims.append(Aim(f"speed-up, {task.task.name}", 0.8 * tokens_ratio, speed_up, at_most=False, detail=detail))
        tokens = [f"{of.mean() / BATCH:.0f}" for of in (ours[0].tokens, ours[0].padded)]
        seconds = [f"{np.median(of) / BATCH * 1e3:.1f}" for of in (grouped, padded)]
        ratios = [f"{speed_up:.2f}", f"{speed_up / tokens_ratio:.2f}"]
        rows.append([task.task.name, *tokens, str(length), f"{tokens_ratio:.2f}", *seconds, *ratios])
    header = ["task", "tokens", "with our padding", "with the other", "tokens ratio r"]
    header += ["ours, ms", "padded, ms", "speed-up", "speed-up / r"]
    notes = [
        f"Medians of {options.repetitions} turns of {num_steps - 1} of our steps and {num_padded} padded ones, batches "
        f"of {BATCH}; range over turns in brackets. Limit: 0.8 × (padded tokens / real tokens). Forward, backward, "
        "clipping and AdamW on the embedded base with LoRA, strategy sequential.",
        f"Ours: `TaskTrainer` on {num_steps * BATCH} examples grouped by length, all its own work included. Padded: a "
        f"bare loop over some of the same examples, each padded to {length} tokens, with attention mask and logits at "
        "every position, the loss being the model's own; its time does not depend on which examples they are.",
        _what_data(options, len(tokenizer), dropped),
    ]
    return Section(aims, [Table("Tokens and milliseconds, per example.", [header, *rows])], notes)


def _what_data(options: Options, vocabulary: int, dropped: int) -> str:
    if options.data_dir is None:
        return (
            "No folder of TRACE-form tasks was given (`--data-dir`, or the variable MCANALYSIS_TRACE_DIR): these are "
            "the embedded tasks, whose examples are much shorter than real ones."
        )
    return (
        f"Real text in TRACE form, in tokens of a byte-level BPE of {vocabulary} words made from its train splits (the "
        "embedded base's own knows the embedded tasks only). Examples left out for an answer that does not fit: "
        f"{dropped}."
    )


def _own_tokenizer(tasks: Sequence[TaskData], vocabulary: int) -> Any:
    return train_tokenizer((e.prompt + e.answer for t in tasks for e in t.splits["train"]), vocabulary)


def _sample(examples: Sequence[Example], tokenizer: Any, length: int, number: int) -> tuple[list[EncodedExample], int]:
    """So many random examples, and how many were met that do not fit."""
    kept: list[EncodedExample] = []
    dropped = 0
    for example in Random(0).sample(examples, len(examples)):
        try:
            kept.append(encode(example, tokenizer, length)[0])
        except DataError:
            dropped += 1
        if len(kept) == number:
            break
    return kept, dropped


def _turns(
    model: LoraModel,
    examples: Sequence[EncodedExample],
    settings: TrainingConfig,
    num_padded: int,
    repetitions: int,
) -> tuple[list[StepCosts], list[float]]:
    """In each turn: what our steps cost, and the seconds of a padded one."""
    start = model.point()

    def ours() -> StepCosts:
        model.load_point(start)
        return step_costs(model, make_strategy("sequential", 0), examples, settings)

    def padded() -> float:
        model.load_point(start)
        return _padded_seconds(model, examples[: num_padded * BATCH], settings.max_length)

    ours()
    found = take_turns({"ours": ours, "padded": padded}, repetitions)
    return found["ours"], found["padded"]


def _padded_seconds(model: LoraModel, examples: Sequence[EncodedExample], length: int) -> float:
    """Seconds per step of the plain way."""
    network = model.peft.train()
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=1e-3)
    batches = [
        right_padded(examples[i : i + BATCH], pad_id(model.tokenizer), length) for i in range(0, len(examples), BATCH)
    ]
    gc.collect()
    started = Moment.now()
    for batch in batches:
        network(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (Moment.now().wall - started.wall) / len(batches)
