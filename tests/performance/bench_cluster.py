"""What a dask cluster costs beside the computing: pieces that do nothing, on 64 workers that are idle.

    python tests/performance/bench_cluster.py [PIECES [WORKERS]]

The workers are threads of this process, so that its processor time is that of scheduler, client and workers together.
Prints JSON: milliseconds per piece by the clock and of the processor, and the resident memory after each tenth.
"""

from __future__ import annotations

import json
import sys
import time

import dask
import psutil
from distributed import LocalCluster

from mcanalysis.studies.engine import Engine, Piece
from mcanalysis.studies.executors.cluster import Cluster


def nothing(progress):
    return None


def study(number, memory, step):
    """Asks for so many at a time that all workers have one."""
    for first in range(0, number, step):
        yield [Piece(f"{first + i}", nothing) for i in range(min(step, number - first))]
        memory.append(round(psutil.Process().memory_info().rss / 1e6))


def measure(number=100_000, workers=64):
    dask.config.set({"distributed.worker.profile.enabled": False})
    memory = []
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=":0", memory_limit=0
        ) as machines,
        Cluster(machines.scheduler_address, say=lambda line: None) as cluster,
    ):
        while cluster.count < workers:
            time.sleep(0.1)
        Engine(cluster).run([study(workers, [], workers)])
        started, used = time.perf_counter(), time.process_time()
        Engine(cluster).run([study(number, memory, max(workers, number // 10))])
        seconds = {"clock": time.perf_counter() - started, "processor": time.process_time() - used}
    per_piece = {name: round(1000 * value / number, 2) for name, value in seconds.items()}
    return {"pieces": number, "workers": workers, "ms_per_piece": per_piece, "megabytes": memory}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))  # noqa: T201
