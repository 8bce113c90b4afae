"""A dask cluster on this machine, whose workers import the pieces of `cluster_pieces.py` by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def start_cluster():
    """start_cluster(number of workers) -> a LocalCluster of processes with one thread each."""
    distributed = pytest.importorskip("distributed")
    import dask

    # A LocalCluster gives up a worker that happens to be down so long after an earlier one of its name was.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 h"})

    def start(number):
        return distributed.LocalCluster(
            processes=True, n_workers=number, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0",
            silence_logs="CRITICAL",
        )  # fmt: skip

    return start


@pytest.fixture
def until():
    """until(condition, what): wait for it."""
    import time

    def wait(condition, what):
        end = time.monotonic() + 40
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.05)

    return wait
