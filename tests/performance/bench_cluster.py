"""What a dask cluster costs beside the computing: pieces that do nothing, on 64 workers that are idle."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from workload import Aim, Options, Section, Table

from mcanalysis.progress import Progress
from mcanalysis.studies.engine import Engine, Piece, Steps
from mcanalysis.studies.executors.cluster import Cluster

TITLE = "Pieces on a dask cluster"
# All workers in one process: 64 processes would compete for the cores of this machine.
WORKERS = """
import asyncio, sys
from distributed import Worker

async def main(address, number):
    workers = [Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(number)]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def measure(options: Options) -> Section:
    number, workers = (200, 4) if options.quick else (100_000, 64)
    with started(workers) as (address, scheduler), Cluster(address, say=lambda line: None) as cluster:
        while cluster.count < workers:
            time.sleep(0.1)
        Engine(cluster).run([study(workers, scheduler, [], workers)])
        memory: list[float] = []
        before, clock = scheduler.cpu_times().user, time.perf_counter()
        Engine(cluster).run([study(number, scheduler, memory, number // 10)])
        seconds, of_scheduler = time.perf_counter() - clock, scheduler.cpu_times().user - before
    rows = [["pieces done", *(f"{(i + 1) * number // 10:,}" for i in range(10))]]
    rows.append(["scheduler, MB", *(f"{size:.0f}" for size in memory)])
    return Section(
        [
            Aim("a piece beside computing it, ms", 10.0, 1000 * seconds / number),
            Aim("scheduler's memory at the end, times that after a fifth", 1.1, memory[-1] / memory[1]),
        ],
        [Table("Memory of the scheduler.", rows)],
        [
            f"{number:,} pieces that return at once, {workers} workers of one thread each in one process, scheduler "
            f"and study in two others, on this machine; {1000 * of_scheduler / number:.1f} ms of each are the "
            "scheduler's."
        ],
    )


def nothing(progress: Progress) -> None:
    """The piece."""


def study(number: int, scheduler: psutil.Process, memory: list[float], step: int) -> Steps[None]:
    """Wants so many pieces, and notes the scheduler's memory after each `step` of them."""
    for first in range(0, number, step):
        yield [Piece(f"{first + i}", nothing) for i in range(step)]
        memory.append(scheduler.memory_info().rss / 1e6)


@contextlib.contextmanager
def started(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """A scheduler's address and its process, with so many workers."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def start(*command: Any) -> int:
            # As the batch script does; of itself dask keeps the last 1,000 messages to each worker.
            environment = os.environ | {"DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "20"}
            environment["PYTHONPATH"] = os.pathsep.join(sys.path)  # the piece is a function of this file
            process = subprocess.Popen(
                [sys.executable, *map(str, command)], cwd=folder, env=environment, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process.pid

        file = Path(folder, "scheduler.json")
        ports = ("--port", 0, "--dashboard-address", ":0")
        pid = start("-m", "dask", "scheduler", "--host", "127.0.0.1", *ports, "--scheduler-file", file)
        while not file.exists() or not file.read_text():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        start("-c", WORKERS, address, workers)
        yield address, psutil.Process(pid)
