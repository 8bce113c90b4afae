"""What the workloads of many points share: a model, two ends of a path, tasks; and the plain ways of going along it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import peers
import torch
from setups import embedded_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Trainer, TrainingArguments

import mcanalysis as mc
from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.adapter_tensors import PREFIX
from mcanalysis.models.base_source import EMBEDDED_DIRECTORY
from mcanalysis.models.encoding import IGNORED, EncodedExample, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point

BATCH = 64
Batches = Sequence[Mapping[str, Tensor]]
Way = Callable[[Sequence[float]], np.ndarray]
"""Losses, shape (points, tasks), in nats per target token, at the places `ts` of a path."""


@dataclass(frozen=True)
class Case:
    """A straight path in factor space between two adapters, and the tasks measured along it."""

    model: LoraModel
    objectives: Sequence[Objective]
    start: Point
    end: Point

    def point(self, t: float) -> Point:
        """The point at t."""
        return mc.Linear(self.start, self.end)(t)

    @property
    def examples(self) -> list[list[EncodedExample]]:
        """Of each task."""
        return [list(o.encoded) for o in self.objectives]


def embedded_case(num_tasks: int = 8, num_examples: int = 200, vocabulary: int | None = None, rank: int = 8) -> Case:
    """The embedded base, or one of its shape with another vocabulary and random weights, and the embedded tasks."""
    model = embedded_model(rank=rank) if vocabulary is None else random_model(vocabulary, rank)
    tasks = load_benchmark("embedded", sizes={"train": 1, "eval": 1, "test": num_examples})[:num_tasks]
    return Case(model, [make_objective(t, "test", model.tokenizer) for t in tasks], *random_ends(model))


def random_model(vocabulary: int, rank: int = 8) -> LoraModel:
    """A random base of the embedded one's shape."""
    config = LlamaConfig.from_pretrained(EMBEDDED_DIRECTORY)
    config.vocab_size = vocabulary
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_DIRECTORY)
    return LoraModel.attach(base, tokenizer, LoraSettings(rank=rank, alpha=rank), 0, "random")


def random_ends(model: LoraModel) -> tuple[Point, Point]:
    """Two adapters that change what the model says; cost does not depend on what is in them."""
    generator = torch.Generator().manual_seed(0)

    def shaken() -> Point:
        return {
            k: v + 0.02 * torch.randn(v.shape, generator=generator).to(v.device, v.dtype)
            for k, v in model.point().items()
        }

    return shaken(), shaken()


def random_objectives(model: LoraModel, num_tasks: int, num_examples: int, length: int, answer: int) -> list[Objective]:
    """So many sets of examples of one length, of random tokens, the last `answer` of them the answer."""
    tasks = load_benchmark("embedded", sizes={"train": 1, "eval": 1, "test": num_examples})[:num_tasks]
    made = []
    for seed, task in enumerate(tasks):
        rng = Random(seed)
        rows = [tuple(rng.randrange(2, 4096) for _ in range(length)) for _ in range(num_examples)]
        encoded = tuple(EncodedExample(row[:-answer], row[-answer:]) for row in rows)
        made.append(replace(make_objective(task, "test", model.tokenizer), encoded=encoded))
    return made


def padded_batches(
    examples: Sequence[EncodedExample], padding: int, size: int = BATCH, length: int | None = None
) -> list[dict[str, Tensor]]:
    """In the order given, padded on the right to the longest of a batch, or to `length`, with mask and labels."""
    return [right_padded(examples[i : i + size], padding, length) for i in range(0, len(examples), size)]


def right_padded(examples: Sequence[EncodedExample], padding: int, length: int | None = None) -> dict[str, Tensor]:
    """One such batch."""
    length = length or max(len(e) for e in examples)
    ids = torch.full((len(examples), length), padding)
    labels = torch.full((len(examples), length), IGNORED)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    for row, e in enumerate(examples):
        ids[row, : len(e)] = torch.tensor(e.prompt_ids + e.answer_ids)
        labels[row, len(e.prompt_ids) : len(e)] = torch.tensor(e.answer_ids)
        mask[row, : len(e)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain_loss(network: Any, batches: Batches) -> float:
    """The model's own loss over batches, each weighted by its targets."""
    total = number = 0.0
    for batch in batches:
        targets = int((batch["labels"] != IGNORED).sum())
        total += float(network(**batch, use_cache=False).loss) * targets
        number += targets
    return total / number


def plain_network(case: Case) -> Any:
    """A PEFT model of its own, that a peer may move."""
    return copy.deepcopy(case.model.peft).eval()


def peft_state(case: Case, point: Point) -> dict[str, Tensor]:
    """A point as PEFT's state dict."""
    return {PREFIX + name: tensor for name, tensor in case.model._raw(point).items()}


def put(network: Any, case: Case, t: float) -> None:
    """Set the adapter by PEFT's own function."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(network, peft_state(case, case.point(t)))


def peft_by_hand(case: Case, length: int | None = None, size: int = BATCH) -> Way:
    """A PEFT model whose adapter is set per point, batches padded to their longest (or to `length`), all logits."""
    network = plain_network(case)
    tasks = [padded_batches(e, pad_id(case.model.tokenizer), size, length) for e in case.examples]

    def losses(ts: Sequence[float]) -> np.ndarray:
        found = []
        with torch.no_grad():
            for t in ts:
                put(network, case, t)
                found.append([plain_loss(network, batches) for batches in tasks])
        return np.array(found)

    return losses


def loss_landscapes_way(case: Case) -> Callable[[int], np.ndarray]:
    """`linear_interpolation` of loss-landscapes at t = 1/n, …, 1, on the same batches. Raises `PeerMissingError`."""
    peer = peers.load("loss_landscapes")
    metric_class = peers.load("loss_landscapes.metrics.metric").Metric
    tasks = [padded_batches(e, pad_id(case.model.tokenizer)) for e in case.examples]
    start, end = plain_network(case), plain_network(case)
    put(start, case, 0.0)
    put(end, case, 1.0)

    class Losses(metric_class):
        def __call__(self, model_wrapper: Any) -> list[float]:
            return [plain_loss(model_wrapper.modules[0], batches) for batches in tasks]

    def losses(num_points: int) -> np.ndarray:
        with torch.no_grad():
            return peer.linear_interpolation(start, end, Losses(), steps=num_points, deepcopy_model=True)

    return losses


def trainer_evaluate(case: Case) -> Way:
    """`transformers.Trainer.evaluate` per point and task, batches of 64 padded to their longest, the loss alone."""
    network = plain_network(case)
    padding = pad_id(case.model.tokenizer)
    with TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=BATCH,
            prediction_loss_only=True,
            report_to=[],
            disable_tqdm=True,
            use_cpu=case.model.device.type == "cpu",
            remove_unused_columns=False,
        )
        trainer: Any = Trainer(model=network, args=settings, data_collator=lambda rows: right_padded(rows, padding))
    trainer.callback_handler.callbacks.clear()  # it would print every result

    def losses(ts: Sequence[float]) -> np.ndarray:
        found = []
        for t in ts:
            put(network, case, t)
            found.append([trainer.evaluate(examples)["eval_loss"] for examples in case.examples])
        return np.array(found)

    return losses
