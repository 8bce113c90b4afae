"""What the training workloads share: the embedded base with an adapter, and strategies in the middle of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, encode_all
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Strategy

MEMORY = 500  # the default of er and ilora


def embedded_model(device: str = "cpu", rank: int = 8) -> LoraModel:
    """The embedded base with a fresh adapter of the default shape, or of another rank."""
    base, tokenizer = load_base(device=device)
    return LoraModel.attach(base, tokenizer, LoraSettings(rank=rank), 0, "embedded")


def embedded_examples(tokenizer: Any, number: int) -> dict[str, list[EncodedExample]]:
    """So many train examples of each embedded task, in the benchmark's order."""
    tasks = load_benchmark("embedded", sizes={"train": number, "eval": 1, "test": 1})
    return {t.task.name: encode_all(t.splits["train"], tokenizer, 1024)[0] for t in tasks}


def in_mid_sequence(
    name: str, model: LoraModel, earlier: Sequence[EncodedExample], examples: Sequence[EncodedExample]
) -> Strategy:
    """A strategy at the start of its second task, what it replays from filled with `earlier` as by a first one.

    Two strategies made with the same arguments draw the same examples, step by step.
    """
    strategy = make_strategy(name, seed=0)
    strategy.begin(model, 2)
    rehearsal = getattr(strategy, "rehearsal", None)
    if rehearsal is not None:
        rehearsal.remember(earlier, [True] * len(earlier), 0)
    strategy.begin_task(model, 1, examples)
    return strategy
