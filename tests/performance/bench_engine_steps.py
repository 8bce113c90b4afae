"""What each step from the plain way to the engine gains, and where the time goes before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from engine_way import engine_way
from matrix_products import floor_seconds, record
from points import BATCH, Case, Way, embedded_case, padded_batches, peft_by_hand, plain_loss
from step_parts import _silent_stderr
from timing import ratio, take_turns
from torch.profiler import ProfilerActivity, profile
from workload import Aim, Options, Section, Table

from mcanalysis.models.encoding import Batch, EncodedExample, collate, pad_id
from mcanalysis.models.forward import forward

TITLE = "W1: step by step from the plain way to the engine"
PLAIN = "PEFT adapter, batches of 64 padded with mask, all logits"
MERGED = "+ adapter merged into the weights"
TARGETS = "+ logits at targets only"
EQUAL = "+ batches of like length, no mask"
ENGINE = "+ prefixes shared where it pays (the engine)"
COMPILED = "+ compiled"
BUDGETS = (1024, 4096, 8192)  # beside the engine's own of 2048
PRODUCTS, ATTENTION, LOSS, COPIES, REST, OVERHEAD = (
    "matrix products",
    "attention",
    "softmax and loss",
    "copies, gathering",
    "element-wise, norms, rotation",
    "between operations: Python, dispatch",
)


def measure(options: Options) -> Section:
    case = embedded_case(*((2, 8) if options.quick else (8, 200)))
    engine = engine_way(case)
    compiled = engine_way(case, compile=not options.quick)
    steps: dict[str, Way] = {
        PLAIN: peft_by_hand(case),
        MERGED: _merged(case, [padded_batches(e, pad_id(case.model.tokenizer)) for e in case.examples], plain_loss),
        TARGETS: _merged(case, [_in_order(case, e) for e in case.examples], _loss_at_targets),
        EQUAL: engine_way(case, prefix="whole"),
        ENGINE: engine,
        COMPILED: compiled,
    }
    ts = [0.5]
    losses = [way(ts) for way in steps.values()]  # also the warming up
    gap = float(np.ptp(losses, axis=0).max())
    products = record(lambda: engine(ts))
    ways: dict[str, Callable[[], float]] = {name: _timed(way, ts) for name, way in steps.items()}
    ways[PRODUCTS] = lambda: floor_seconds(products)
    for budget in BUDGETS:
        ways[str(budget)] = _timed(engine_way(case, token_budget=budget), ts)
        ways[str(budget)]()  # plans its batches
    found = take_turns(ways, options.repetitions)
    rows = [["step", "seconds per point", "gain of the step", "gain so far", "share of the floor"]]
    before = PLAIN
    for name in steps:
        gain, spread = ratio(found[before], found[name])
        so_far, share = ratio(found[PLAIN], found[name])[0], ratio(found[PRODUCTS], found[name])[0]
        cells = [f"{np.median(found[name]):.3f}", f"{gain:.2f} {spread}", f"{so_far:.2f}", f"{share:.2f}"]
        rows.append([name, *cells])
        before = name
    by_budget = {"2048": found[ENGINE], **{str(budget): found[str(budget)] for budget in BUDGETS}}
    budgets = [["tokens at once", "seconds per point", "times as long as with 2048"]]
    for name, seconds in sorted(by_budget.items(), key=lambda item: int(item[0])):
        longer, spread = ratio(seconds, found[ENGINE])
        budgets.append([name, f"{np.median(seconds):.3f}", f"{longer:.2f} {spread}"])
    whole, spread = ratio(found[PLAIN], found[COMPILED])
    kinds = {name: _kinds(steps[name], ts) for name in (PLAIN, EQUAL, ENGINE)}
    header = ["kind of work", *(f"{name}, ms" for name in ("plain", "like length, no mask", "engine"))]
    table = [[kind, *(f"{1e3 * of[kind]:.0f}" for of in kinds.values())] for kind in next(iter(kinds.values()))]
    table.append(["sum", *(f"{1e3 * sum(of.values()):.0f}" for of in kinds.values())])
    return Section(
        [Aim("plain way / engine, compiled", 1.6, whole, at_most=False, detail=spread)],
        [
            Table("Each row has what the rows above it have.", rows),
            Table(
                "Where a point's time goes, by torch's profiler, which makes small operations look dearer than they "
                "are.",
                [header, *table],
            ),
            Table("The engine's token budget, not compiled.", budgets),
        ],
        [
            f"One point, 8 tasks of 200 examples, embedded base, one thread; medians of {options.repetitions} turns, "
            f"range in brackets. The first three rows: batches of {BATCH} in the order of the data; from the fourth "
            f"on: the engine's, all tasks pooled. All give the same losses: the largest difference is {gap:.0e} nats. "
            "The floor is the time of the engine's matrix products alone, prefixes shared.",
        ],
    )


def _merged(case: Case, tasks: Sequence[Sequence[Any]], loss: Callable[[Any, Any], float]) -> Way:
    def losses(ts: Sequence[float]) -> np.ndarray:
        found = []
        for t in ts:
            with torch.no_grad(), case.model.merged(case.point(t)) as network:
                found.append([loss(network, batches) for batches in tasks])
        return np.array(found)

    return losses


def _loss_at_targets(network: Any, batches: Sequence[Batch]) -> float:
    results = [forward(network, batch) for batch in batches]
    return float(sum(r.nll.sum() for r in results) / sum(r.num_targets.sum() for r in results))


def _in_order(case: Case, examples: Sequence[EncodedExample]) -> list[Batch]:
    padding = pad_id(case.model.tokenizer)
    return [collate(examples[i : i + BATCH], padding) for i in range(0, len(examples), BATCH)]


def _timed(way: Way, ts: Sequence[float]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        way(ts)
        return time.perf_counter() - started

    return run


def _kinds(way: Way, ts: Sequence[float]) -> dict[str, float]:
    """Seconds per point by kind of operation, each operation's own time without what it calls."""
    with _silent_stderr():
        profiler = profile(activities=[ProfilerActivity.CPU])
        profiler.start()
    started = time.perf_counter()
    way(ts)
    total = time.perf_counter() - started
    with _silent_stderr():
        profiler.stop()
    seconds: dict[str, float] = dict.fromkeys((PRODUCTS, ATTENTION, LOSS, COPIES, REST), 0.0)
    for event in profiler.key_averages():
        kind: str = kind_of(event.key)
        seconds[kind] += event.self_cpu_time_total / 1e6
    return {**seconds, OVERHEAD: max(0.0, total - sum(seconds.values()))}


def kind_of(operation: str) -> str:
    """What an operation of torch does, by its name.

    >>> kind_of("aten::addmm"), kind_of("aten::silu")
    ('matrix products', 'element-wise, norms, rotation')
    """
    name = operation.removeprefix("aten::").strip("_")
    if name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"):
        return PRODUCTS
    if "attention" in name:
        return ATTENTION
    if any(part in name for part in ("softmax", "nll_loss", "cross_entropy", "logsumexp")):
        return LOSS
    if any(name.startswith(part) for part in ("copy", "cat", "clone", "index", "gather", "embedding", "contiguous")):
        return COPIES
    return REST
