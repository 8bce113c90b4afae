"""The points of a path shared between two processes of one thread each, against one process of one thread."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from distributed import LocalCluster
from engine_way import engine_way
from points import Way, embedded_case
from workload import Aim, Options, Section, Table

from mcanalysis.studies.engine import Engine, Here, Piece, Steps, Workers
from mcanalysis.studies.executors.cluster import Cluster
from mcanalysis.studies.executors.processes import Processes

TITLE = "W4: two processes against one"
ONE, TWO, DASK = "one process", "two processes", "two workers of a dask cluster"


def measure(options: Options) -> Section:
    num_points, num_examples = (4, 2) if options.quick else (240, 100)
    ts = np.linspace(0, 1, num_points).tolist()
    _loaded(num_examples)
    with TemporaryDirectory() as folder:

        def run(way: str) -> dict[str, Any]:
            ready = _Ready(Path(folder, str(time.monotonic_ns())), 1 if way == ONE else 2, num_examples)

            def study() -> Steps[list[tuple[float, float, int]]]:
                return (yield [Piece(str(t), evaluate, (float(t), num_examples)) for t in ts])

            started = time.perf_counter()
            with _workers(way, ready) as workers:
                (found,) = Engine(workers).run([study()])
            whole = time.perf_counter() - started
            points = [sum(f[2] == process for f in found) for process in {f[2] for f in found}]
            return {
                "work": max(f[1] for f in found) - min(f[0] for f in found),
                "whole": whole,
                "points": sorted(points),
            }

        results = {way: run(way) for way in (ONE, TWO, DASK)}
    one, two, dask = results[ONE], results[TWO], results[DASK]
    rows = [["", "first point begun to last one done, s", "with starting the processes, s", "points of each process"]]
    for way, found in results.items():
        shares = ", ".join(str(n) for n in found["points"])
        rows.append([way, f"{found['work']:.2f}", f"{found['whole']:.2f}", shares])
    return Section(
        [
            Aim(f"{ONE} / {TWO}, once started", 1.9, one["work"] / two["work"], at_most=False),
            Aim(f"{ONE} / {TWO}, with starting them", 1.7, one["work"] / two["whole"], at_most=False),
            Aim(f"{ONE} / {DASK}, once started", 1.8, one["work"] / dask["work"], at_most=False),
        ],
        [
            Table(
                f"{num_points} points, 8 tasks of {num_examples} examples, loss only; whoever is free takes the next.",
                rows,
            )
        ],
        [
            f"The engine with one worker and two, on {os.cpu_count()} cores, one thread per process, each way once.",
            "Once started: all processes have loaded model and data, and begin together. With starting them: import, "
            "model and data of the two count, those of the one do not.",
        ],
    )


@contextmanager
def _workers(way: str, ready: _Ready) -> Iterator[Workers]:
    if way == ONE:
        ready()
        yield Here()
    elif way == TWO:
        with Processes(2, initializer=ready) as processes:
            yield processes
    else:
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0") as machines,
            Cluster(machines.scheduler_address, initializer=ready, say=lambda line: None) as cluster,
        ):
            yield cluster


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
