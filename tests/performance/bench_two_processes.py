"""The points of a path shared between two processes of one thread each, against one process of one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from engine_way import engine_way
from points import Way, embedded_case
from timing import ratio, take_turns
from workload import Aim, Options, Section, Table

from mcanalysis.studies.engine import Engine, Here, Piece, Steps
from mcanalysis.studies.executors.processes import Processes

TITLE = "W4: two processes against one"
ONE, TWO = "one process", "two processes"


def measure(options: Options) -> Section:
    num_points, num_examples, turns = (4, 2, 1) if options.quick else (40, 100, options.long_repetitions)
    ts = np.linspace(0, 1, num_points).tolist()
    _loaded(num_examples)
    with TemporaryDirectory() as folder:

        def run(workers: int) -> dict[str, Any]:
            meeting = Path(folder, str(time.monotonic_ns()))
            ready = _Ready(meeting, workers, num_examples)

            def study() -> Steps[list[tuple[float, float, int]]]:
                return (yield [Piece(str(t), evaluate, (float(t), num_examples)) for t in ts])

            started = time.perf_counter()
            if workers == 1:
                ready()
                (found,) = Engine(Here()).run([study()])
            else:
                with Processes(workers, initializer=ready) as processes:
                    (found,) = Engine(processes).run([study()])
            whole = time.perf_counter() - started
            points = [sum(f[2] == process for f in found) for process in {f[2] for f in found}]
            return {
                "work": max(f[1] for f in found) - min(f[0] for f in found),
                "whole": whole,
                "points": sorted(points),
            }

        results = take_turns({ONE: lambda: run(1), TWO: lambda: run(2)}, turns)
    work = {way: [r["work"] for r in found] for way, found in results.items()}
    value, detail = ratio(work[ONE], work[TWO])
    whole, spread = ratio([r["whole"] for r in results[ONE]], [r["whole"] for r in results[TWO]])
    rows = [["", "first point begun to last one done, s", "with starting the processes, s", "points of each process"]]
    for way, found in results.items():
        shares = ", ".join(str(n) for n in found[len(found) // 2]["points"])
        median = [f"{np.median([r[key] for r in found]):.2f}" for key in ("work", "whole")]
        rows.append([way, *median, shares])
    return Section(
        [Aim(f"{ONE} / {TWO}", 1.85, value, at_most=False, detail=detail)],
        [
            Table(
                f"{num_points} points, 8 tasks of {num_examples} examples, loss only; whoever is free takes the next.",
                rows,
            )
        ],
        [
            f"The engine with one worker and with two, on {os.cpu_count()} cores, one thread per process; medians of "
            f"{turns} turns (a turn takes over 20 s); range over turns in brackets.",
            "The aim is about the work itself: both processes have loaded model and data, and start together. With "
            f"starting two processes (import, model, data: once per command) the ratio here is {whole:.2f} {spread}.",
        ],
    )


@cache
def _loaded(num_examples: int) -> Way:
    """A process's own model and data, warm."""
    torch.set_num_threads(1)
    way = engine_way(embedded_case(8, num_examples))
    way([0.5])
    return way


def evaluate(t: float, num_examples: int, progress: Callable[..., Any]) -> tuple[float, float, int]:
    """A job: one point; when it began and ended by the machine's clock, and in which process."""
    started = time.perf_counter()
    _loaded(num_examples)([t])
    return started, time.perf_counter(), os.getpid()


class _Ready:
    """Called in each worker before its first job: loads, then waits for the others."""

    def __init__(self, meeting: Path, workers: int, num_examples: int) -> None:
        self.meeting, self.workers, self.num_examples = meeting, workers, num_examples

    def __call__(self) -> None:
        _loaded(self.num_examples)
        self.meeting.mkdir(exist_ok=True)
        (self.meeting / str(os.getpid())).touch()
        until = time.monotonic() + 120
        while len(list(self.meeting.iterdir())) < self.workers and time.monotonic() < until:
            time.sleep(0.005)
