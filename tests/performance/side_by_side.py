"""The engine and its peers along one path, in turns, with the time their matrix products alone would take."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from engine_way import engine_way
from matrix_products import Products, floor_seconds, record
from peers import PeerMissingError
from points import BATCH, Case, Way, loss_landscapes_way, peft_by_hand, trainer_evaluate
from timing import ratio, take_turns
from workload import Options

OURS, EAGER, FLOOR = "this engine, compiled", "this engine, not compiled", "its matrix products alone"
PEER, BY_HAND, TRAINER = "loss-landscapes 3.0.6", "PEFT adapter by hand", "Trainer.evaluate"
LENGTH, PADDED_BATCH = 1024, 16
PADDED = f"padded to {LENGTH}, all logits"
_FEW = (0.5, 1.0)  # where loss-landscapes puts two points


@dataclass
class Comparison:
    """`seconds` per point, of every turn, by way; `first` of the first compiled call; `differences` between the losses
    of a way and ours; `missing`: why a way was not measured."""

    num_points: int
    num_tokens: int
    products: Products
    first: float
    seconds: dict[str, list[float]] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def times(self, way: str) -> tuple[float | None, str]:
        """How much longer a way takes than ours, and the range over turns; or None and why not."""
        if way in self.missing:
            return None, f"({self.missing[way]})"
        return ratio(self.seconds[way], self.seconds[OURS])

    def share_of_floor(self, way: str = OURS) -> tuple[float, str]:
        """Floor / way: 1 where a way takes no longer than its matrix products."""
        return ratio(self.seconds[FLOOR], self.seconds[way])

    def pays_from(self) -> str:
        """After how many points compiling has gained what it took."""
        compiled, eager = (float(np.median(self.seconds[way])) for way in (OURS, EAGER))
        if eager <= compiled:
            return "It gained nothing."
        return f"So it pays from {(self.first - compiled) / (eager - compiled):.0f} such points on."

    def rows(self) -> list[list[str]]:
        """As a table."""
        rows = [["way", "seconds per point", f"{self.num_points} points, s", "times ours"]]
        for name, turns in self.seconds.items():
            seconds = float(np.median(turns))
            value, spread = ratio(turns, self.seconds[OURS])
            cells = [f"{seconds:.3f}", f"{seconds * self.num_points:.1f}", f"{value:.2f} {spread}"]
            rows.append([name, *cells])
        return rows

    def notes(self) -> list[str]:
        """How it was measured."""
        steady = float(np.median(self.seconds[OURS]))
        apart = ", ".join(f"{name} {value:.0e}" for name, value in self.differences.items())
        return [
            f"{OURS}: {self.num_points} points per turn, from the two adapters to the losses of every task; the other "
            "ways two of them, as their cost is linear in the points. A turn takes over 20 s.",
            f"The peers' batches of {BATCH} are padded to their longest, in the order of the data, with mask and "
            "logits everywhere; they are made once, beforehand, but by the Trainer, which makes its own. "
            "loss-landscapes is given two PEFT models, so that it goes along the same path.",
            f"Compilation is apart: the first call, with empty caches, took {self.first:.1f} s, later ones "
            f"{steady:.2f} s per point. {self.pays_from()}",
            f"Per point {self.num_tokens} tokens of text and {self.products.operations / 1e9:.1f} G operations in "
            f"matrix products ({100 * self.products.attention / self.products.operations:.0f} % in attention), "
            "counted as they ran; their floor is the time that plain products of the same shapes take, measured in "
            "every turn.",
            f"Largest difference of a task's loss from ours, in nats: {apart}. (The Trainer averages over batches, not "
            "tokens, where a task has more than one.)",
        ]


def compare(
    case: Case, others: Sequence[str], num_points: int, options: Options, padded_length: int = LENGTH, every: int = 20
) -> Comparison:
    """Time the engine and the others named, in turns. `every`: the padded way sees every so manieth example."""
    ts = np.linspace(0, 1, num_points).tolist()
    ours = engine_way(case, compile=not options.quick)
    eager = engine_way(case)
    with tempfile.TemporaryDirectory() as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = caches
        started = time.perf_counter()
        ours(_FEW[:1])
        first = time.perf_counter() - started
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    reference = ours(_FEW)
    num_tokens = sum(len(e) for task in case.examples for e in task)
    found = Comparison(num_points, num_tokens, record(lambda: eager(_FEW[:1])), first)
    ways: dict[str, Callable[[], float]] = {OURS: _per_point(ours, ts), EAGER: _per_point(eager, _FEW)}
    for name in others:
        try:
            if name == PEER:
                peer = loss_landscapes_way(case)
                losses, ways[name] = peer(2), _per_point(lambda ts, peer=peer: peer(len(ts)), _FEW)
            elif name == PADDED:
                some = _every_nth(case, every)
                way = peft_by_hand(some, padded_length, PADDED_BATCH)
                losses, ways[name] = None, _per_point(way, _FEW[:1], every)
            else:
                way = {BY_HAND: peft_by_hand, TRAINER: trainer_evaluate}[name](case)
                losses, ways[name] = way(_FEW), _per_point(way, _FEW)
            if losses is not None:
                found.differences[name] = float(np.abs(losses - reference).max())
        except PeerMissingError as reason:
            found.missing[name] = str(reason)
    ways[FLOOR] = lambda: floor_seconds(found.products)
    found.seconds = take_turns(ways, options.long_repetitions)
    return found


def _per_point(way: Way | Any, ts: Sequence[float], times: float = 1.0) -> Callable[[], float]:
    """Run a way and return its seconds per point."""

    def timed() -> float:
        started = time.perf_counter()
        way(ts)
        return (time.perf_counter() - started) * times / len(ts)

    return timed


def _every_nth(case: Case, every: int) -> Case:
    """Every so manieth example of each task."""
    return replace(
        case, objectives=[replace(o, examples=o.examples[::every], encoded=o.encoded[::every]) for o in case.objectives]
    )
