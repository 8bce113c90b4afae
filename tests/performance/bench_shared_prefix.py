"""Tasks whose prompts begin with the same instruction: computing it once per point, against once per example."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from bench_padding import _own_tokenizer
from engine_way import engine_way, make_engine
from points import Case, random_ends
from setups import embedded_model
from timing import ratio, take_turns
from workload import Aim, Options, Section, Table

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.encoding import EncodedExample

TITLE = "W3: the common prefix of a task's prompts"
MEASURED = "FOMC"
LENGTH = 1024
SLOWER = 1.02  # what a measurement can tell from 1


def measure(options: Options) -> Section:
    num_examples, ts = (4, [0.5]) if options.quick else (64, [0.5, 1.0])
    model = embedded_model()
    tasks = load_benchmark("trace" if options.data_dir else "embedded", options.data_dir)
    if options.data_dir:
        model.tokenizer = _own_tokenizer(tasks, len(model.tokenizer))  # its pad token is the same
    if options.quick:
        tasks = [t for t in tasks if t.task.name == MEASURED]
    start, end = random_ends(model)
    aims, rows = [], []
    for task in tasks:
        case = Case(model, [make_objective(task, "test", model.tokenizer, LENGTH, num_examples)], start, end)
        examples = case.examples[0]
        share = prefix_share(examples)
        engine = make_engine(case)
        ways: dict[str, Callable[[], float]] = {}
        found_losses = []
        for name, forced in (("shared", "shared"), ("each", "whole"), ("automatic", "auto")):
            way = engine_way(case, prefix=forced)
            found_losses.append(way(ts))
            ways[name] = _timed(way, ts)
        gap = float(np.ptp(found_losses, axis=0).max())
        found = take_turns(ways, options.repetitions)
        forced_gain, forced_spread = ratio(found["each"], found["shared"])
        gain, spread = ratio(found["each"], found["automatic"])
        slower, slower_spread = ratio(found["automatic"], found["each"])
        if not engine.choices(case.objectives)["shared_prefix_tokens"][task.task.name]:
            slower, slower_spread = 1.0, "(not shared: one way)"
        ceiling = 1 / (1 - share)
        name = task.task.name
        if name == MEASURED:
            aims.append(
                Aim(
                    f"speed-up, {name} / ceiling 1/(1−p)",
                    0.8,
                    gain / ceiling,
                    at_most=False,
                    detail=f"({gain:.2f} {spread} of {ceiling:.2f})",
                )
            )
        aims.append(
            Aim(f"time with prefixes shared where it pays / without, {name}", SLOWER, slower, detail=slower_spread)
        )
        tokens = float(np.mean([len(e) for e in examples]))
        rows.append(
            [
                name,
                f"{tokens:.0f}",
                str(common_prefix(examples)),
                f"{share:.3f}",
                f"{ceiling:.2f}",
                f"{np.median(found['each']) / len(examples) * 1e3:.2f}",
                f"{gain:.2f} {spread}",
                f"{forced_gain:.2f} {forced_spread}",
                f"{gap:.0e}",
            ]
        )
    header = [
        "task",
        "tokens per example",
        "prefix",
        "p",
        "ceiling",
        "ms per example, not shared",
        "speed-up",
        "always shared",
        "difference, nats",
    ]
    return Section(
        aims,
        [Table("Per task, the engine's own choice and both choices forced.", [header, *rows])],
        [
            f"Up to {num_examples} test examples per task, at {len(ts)} points, loss only, not compiled, one thread; "
            f"{options.repetitions} turns, range in brackets. p: prefix tokens of all examples but one / all tokens, "
            "the answers' last tokens left out, from which nothing is predicted. Where the engine chooses not to "
            "share, it does what it does when it is told not to.",
            _data_note(options),
        ],
    )


def common_prefix(examples: Sequence[EncodedExample]) -> int:
    """The number of tokens that all prompts begin with; the last token of a prompt, which predicts the answer, is
    each example's own.

    >>> common_prefix([EncodedExample((1, 2, 3), (4,)), EncodedExample((1, 2), (6,))])
    1
    """
    first = examples[0].prompt_ids[: min(len(e.prompt_ids) for e in examples) - 1]
    return next((i for i, token in enumerate(first) if any(e.prompt_ids[i] != token for e in examples)), len(first))


def prefix_share(examples: Sequence[EncodedExample]) -> float:
    """The share of tokens that need not be computed when what all prompts begin with is computed once.

    >>> prefix_share([EncodedExample((1, 2, 3), (4,)), EncodedExample((1, 2, 5), (6,))])  # 2 of 6
    0.3333333333333333
    """
    total = sum(len(e) - 1 for e in examples)
    return common_prefix(examples) * (len(examples) - 1) / total


def _timed(way: Callable[..., object], ts: Sequence[float]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        way(ts)
        return (time.perf_counter() - started) / len(ts)

    return run


def _data_note(options: Options) -> str:
    if options.data_dir is None:
        return (
            "No folder of TRACE-form tasks was given (the variable MCANALYSIS_TRACE_DIR): these are the embedded "
            "tasks, whose instructions are a few words."
        )
    return "Real text in TRACE form, in tokens of a byte-level BPE made from its train splits, on the embedded base."
