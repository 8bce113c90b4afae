"""A run whose worker is killed ends as one that was never disturbed."""

import os
import signal

import cluster_pieces as pieces
import pytest

from mcanalysis.studies.engine import Engine, Piece
from mcanalysis.studies.executors.cluster import Cluster
from mcanalysis.studies.executors.processes import Processes
from mcanalysis.training.continual_trainer import train

pytestmark = pytest.mark.slow  # trains three times


@pytest.fixture
def config(run_config):
    return run_config("er", num_steps=20, tasks=("FOMC", "MedMCQA"), sizes={"train": 8, "eval": 4, "test": 4})


def killing(run, find_victim):
    """A progress that kills a process when the run has its first checkpoint."""
    killed = []

    class Bar:
        total = 0.0

        def update(self, n=1):
            if not killed and (run / "checkpoint").exists():
                killed.append(find_victim())
                os.kill(killed[0], signal.SIGKILL)

        def close(self):
            pass

    return (lambda *, total, desc: Bar()), killed


def test_on_a_cluster_and_in_processes(start_cluster, config, tmp_path, adapter_bytes):
    train(config, tmp_path / "undisturbed", device="cpu")

    def study(name):
        yield [Piece(name, pieces.train_run, (config, tmp_path / name), name=name, trains=True)]

    with start_cluster(2) as machines:
        address = machines.scheduler_address
        nannies = machines.workers.values()

        def busy():
            return next(n.pid for n in nannies if n.worker_address in cluster._busy)

        progress, killed = killing(tmp_path / "cluster", busy)
        with Cluster(address, progress, say=lambda line: None) as cluster:
            Engine(cluster).run([study("cluster")])
    assert killed
    progress, killed = killing(tmp_path / "processes", lambda: processes._slots[0]._process.pid)
    with Processes(1, progress) as processes:
        Engine(processes).run([study("processes")])
    assert killed
    for name in ("cluster", "processes"):
        assert adapter_bytes(tmp_path / name) == adapter_bytes(tmp_path / "undisturbed")
        assert not list((tmp_path / name).glob("*.lock"))
