"""What a run would do and need, told without its weights: steps, tokens, padding, trained parameters, memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from random import Random
from typing import Any

import pandas as pd
import torch
from torch import nn

from mcanalysis.errors import DataError, UserError
from mcanalysis.evaluation.objective import encode_split, make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.chat_template import choose_template, template_name, use_template
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.loading import load_shape, load_tokenizer
from mcanalysis.runs.general import told_apart
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.tasks.names import check_distinct
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import check_run_positions, load_tasks, train_sizes
from mcanalysis.training.data_order import steps_of_examples
from mcanalysis.training.stages import Stage, make_stages

_BYTES_PER_WEIGHT = {"4bit": 0.516, "8bit": 1.0}  # 4bit: half a byte, and 0.127 bits of doubly quantised scales


@dataclass(frozen=True)
class Memory:
    """An estimate of one process's memory, in bytes, at the peak of a training step; the evaluation is left out.

    - `base`: every weight in its dtype; with a quantization, the weights of the linear layers but the output layer in
      0.516 (4bit) or 1 (8bit) bytes.
    - `trained`: 16 bytes per trained parameter: itself, its gradient and AdamW's two moments, all float32.
    - `learners`: 4 bytes per trained parameter for each learner beyond the first (an averaged adapter).
    - `activations`: what the forward pass keeps, T·n·c, with gradient checkpointing T·n·b·h. T: tokens of the largest
      micro-batch, padding and replay included; n: layers; h: width; i: width of the MLP; b: bytes of the dtype; k:
      key-value heads per head. One layer keeps, per token, c = 8h (inputs of the norms, in float32) + b(2 + 2k)h
      (attention: query, key, value, output) + 3bi (MLP) + 4·Σ(d + r) over its adapted layers (their inputs of width d,
      and what A makes of them, in float32), + 5·Σd with dropout.
    - `passing`: what is needed beside that for a moment, the larger of two: the logits, 12 bytes (float32), else 16,
      for each of the vocabulary at every answer token of a micro-batch; and backward within a layer, T·2b(h + i), with
      gradient checkpointing T·(c + 2b(h + i)).

    Not counted: what a strategy keeps or computes beside that, fragmentation, and the libraries themselves (some
    hundred MB of a process, about 0.5 GB on a GPU). Attention is taken not to keep its matrix of scores.

    What a run really took is in its `tables/cost.json`. An allocator that keeps freed memory adds to it. Not compared
    with a GPU.
    """

    base: int
    trained: int
    learners: int
    activations: int
    passing: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    `stages`, one row per training: `task`, train `examples`, `cut` (prompts too long), mean `answer_tokens` and
    `longest_answer`, optimiser `steps`, `epochs`; then over all steps `tokens` (replayed ones included), `padded` (with
    padding), `padded_ungrouped` (if examples of like length were not put together) and `padded_to_max` (if every row
    were padded to `max_length`); `replayed` examples. Replay is drawn evenly from the earlier tasks here, from the
    second on, so its lengths are an estimate; current examples are those of the run itself.

    `training` has the schedule; `peak_rate` is its learning rate with the strategy's factor.

    `generations`: prompts that are answered for the accuracy matrix and the general tasks; `cut_tests` of them differ
    from the test files, being too long. `template` names the chat template that prompts are put into, if any.
    """

    model: str
    strategy: str
    num_parameters: int
    num_trained: int
    stages: pd.DataFrame
    generations: int
    cut_tests: int
    memory: Memory
    training: TrainingConfig
    peak_rate: float
    template: str


@dataclass
class _Counts:
    """Sums over the micro-batches of a training; the largest of them, in padded tokens and in answer tokens."""

    tokens: int = 0
    padded: int = 0
    rows: int = 0
    largest: int = 0
    most_targets: int = 0


def dry_run(
    config: RunConfig,
    execution: Execution | None = None,
    *,
    tasks: Sequence[TaskData] | None = None,
    general: Sequence[TaskData] = (),
    processes: int = 1,
) -> DryRun:
    """Plan a run; reads the data, the tokenizer and the base's configuration, no weights, and writes nothing.

    Raises `UserError` for what the run itself would refuse in its data, strategy, model and layers to adapt; whether
    the device can do it is not asked, so a run on a GPU can be planned without one.
    """
    execution, config = execution or Execution(), config.settled()
    training = config.training
    if training.batch_size % processes:
        raise UserError(
            f"Expected a batch size that {processes} processes can share, got {training.batch_size}; choose "
            f"a multiple of {processes}."
        )
    tasks = load_tasks(config) if tasks is None else tasks
    check_distinct([task.task.name for task in tasks])
    general = told_apart(general, [task.task.name for task in tasks])
    strategy = make_strategy(config.strategy, config.seed, **config.strategy_settings)
    strategy.config.num_remembered(train_sizes(tasks))
    base, tokenizer, base_bytes = _without_weights(config)
    template = choose_template(config.chat_template, tokenizer, tasks)
    use_template(tokenizer, template)
    num_parameters = sum(p.numel() for p in base.parameters())
    _embed_for_real(base)
    lora = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, config.target_modules)
    parameters = strategy.attach(base, tokenizer, lora, config.model).parameters
    num_trained = sum(p.numel() for p in parameters.values() if p.requires_grad)

    train, cut = [], {}
    for task in tasks:
        name = task.task.name
        if not task.splits.get("train"):
            raise DataError(f"Expected train examples for {name}, got none; add them or drop the task.")
        encoded, cut[name] = encode_split(task, "train", tokenizer, training.max_length)
        train.append((name, encoded))
    stages = make_stages(train, strategy.schedule, training)
    rows, worst = _stage_rows(stages, cut, strategy, config, training.batch_size // processes)
    tests, asked_general = (
        [make_objective(t, "test", tokenizer, training.max_length, config.num_test) for t in data]
        for data in (tasks, general)
    )
    everything = [*tests, *asked_general]
    check_run_positions(base, tokenizer, strategy, stages, everything, tasks, training.max_length)
    tested, asked = ([len(o.encoded) for o in objectives if o.task.has_score] for objectives in (tests, asked_general))
    scored = sum(tested) + len(strategy.learners) * sum(
        tested[i] for s in stages for i in strategy.scored_tasks(s.row - 1, len(tasks))
    )
    kept, within = _activations(base, parameters, worst.largest, config, execution)
    logits = worst.most_targets * base.config.vocab_size * (12 if base.dtype == torch.float32 else 16)
    memory = Memory(
        base=base_bytes,
        trained=16 * num_trained,
        learners=4 * num_trained * max(len(strategy.learners) - 1, 0) * bool(stages),
        activations=kept,
        passing=max(logits, within),
    )
    return DryRun(
        config.model,
        config.strategy,
        num_parameters,
        num_trained if stages else 0,
        pd.DataFrame(rows),
        scored + (1 + len(strategy.learners) * len(stages)) * sum(asked),
        sum(o.num_cut for o in everything),
        memory,
        training,
        strategy.learning_rate_factor * training.rate_for(config.model),
        template_name(template),
    )


def _stage_rows(
    stages: Sequence[Stage], cut: dict[str, int], strategy: Strategy, config: RunConfig, micro: int
) -> tuple[list[dict[str, Any]], _Counts]:
    training, worst = config.training, _Counts()
    step_size = training.batch_size * training.gradient_accumulation
    replays = type(strategy).draw_replay is not Strategy.draw_replay
    earlier: list[EncodedExample] = []
    rows = []
    for index, stage in enumerate(stages):
        lengths = [len(e) for e in stage.examples]
        strategy.task_index = index  # what the number of phases may depend on
        phases = strategy.num_phases()
        steps = {
            grouped: [
                steps_of_examples(lengths, stage.num_steps, step_size, stage.order_seed(config.seed, phase), grouped)
                for phase in range(phases)
            ]
            for grouped in (training.group_by_length, False)
        }
        pool = earlier if replays else []
        counts, ungrouped = (
            _count(_micro_batches(itertools.chain(*of), stage.examples, pool, micro, config.seed))
            for of in (steps[training.group_by_length], steps[False])
        )
        answers = [len(e.answer_ids) for e in stage.examples]
        num_steps = stage.num_steps * phases
        rows.append(
            {
                "task": stage.name,
                "examples": len(lengths),
                "cut": cut.get(stage.name, sum(cut.values())),
                "answer_tokens": sum(answers) / len(answers),
                "longest_answer": max(answers),
                "steps": num_steps,
                "epochs": num_steps * step_size / len(lengths),
                "tokens": counts.tokens,
                "padded": counts.padded,
                "padded_ungrouped": ungrouped.padded,
                "padded_to_max": counts.rows * training.max_length,
                "replayed": counts.rows - num_steps * step_size,
            }
        )
        worst.largest = max(worst.largest, counts.largest)
        worst.most_targets = max(worst.most_targets, counts.most_targets)
        earlier = [*earlier, *stage.examples]
    return rows, worst


def _micro_batches(
    steps: Iterator[list[tuple[int, bool]]],
    examples: Sequence[EncodedExample],
    pool: Sequence[EncodedExample],
    micro: int,
    seed: int,
) -> Iterator[list[EncodedExample]]:
    """The rows that one process sees at once: current ones, and beside them as many drawn from the pool, if any."""
    rng = Random(f"dry run/{seed}")
    for step in steps:
        for start in range(0, len(step), micro):
            current = [examples[i] for i, _ in step[start : start + micro]]
            yield current + (rng.choices(pool, k=len(current)) if pool else [])


def _count(batches: Iterator[list[EncodedExample]]) -> _Counts:
    counts = _Counts()
    for batch in batches:
        padded = len(batch) * max(len(e) for e in batch)
        counts.rows += len(batch)
        counts.tokens += sum(len(e) for e in batch)
        counts.padded += padded
        counts.largest = max(counts.largest, padded)
        counts.most_targets = max(counts.most_targets, sum(len(e.answer_ids) for e in batch))
    return counts


def _without_weights(config: RunConfig) -> tuple[Any, Any, int]:
    """The base on the meta device, which holds shapes only, its tokenizer, and the bytes its weights would take."""
    base = load_shape(config.model, config.dtype, config.revision)
    tokenizer = load_tokenizer(config.model, config.revision)
    quantised = set()
    if config.quantization:
        output = base.get_output_embeddings()
        linear = [m for m in base.modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
        quantised = {id(m.weight) for m in linear if m is not output}
    total = sum(
        p.numel() * (_BYTES_PER_WEIGHT[config.quantization or ""] if id(p) in quantised else p.element_size())
        for p in base.parameters()
    )
    return base, tokenizer, int(total)


def _embed_for_real(base: Any) -> None:
    """Give the embeddings memory (of which only what is read is ever filled): prompts start as rows of theirs."""
    embeddings = base.get_input_embeddings()
    real = torch.empty(embeddings.weight.shape, dtype=embeddings.weight.dtype)
    embeddings.weight = nn.Parameter(real, requires_grad=False)


def _activations(
    base: Any, parameters: dict[str, nn.Parameter], tokens: int, config: RunConfig, execution: Execution
) -> tuple[int, int]:
    """What forward keeps, and what backward takes within a layer; see `Memory`."""
    shape = base.config.get_text_config()
    n, h, b = shape.num_hidden_layers, shape.hidden_size, base.dtype.itemsize
    names = ("intermediate_size", "ffn_dim", "n_inner")
    i = next((v for v in (getattr(shape, name, None) for name in names) if v), 4 * h)
    k = (getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads) / shape.num_attention_heads
    factors: list[tuple[int, ...]] = [p.shape for name, p in parameters.items() if ".lora_A." in name]  # each r × d
    factors += [(2 * p.shape[0], p.shape[1]) for name, p in parameters.items() if name.endswith(".V_low")]  # of OSF
    c = 8 * h + b * (2 + 2 * k) * h + 3 * b * i + 4 * sum(r + d for r, d in factors) / n
    if config.lora_dropout > 0:
        c += 5 * sum(d for _, d in factors) / n
    within = 2 * b * (h + i)
    if execution.gradient_checkpointing:
        return round(tokens * n * b * h), round(tokens * (c + within))
    return round(tokens * n * c), round(tokens * within)
