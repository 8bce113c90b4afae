"""Workers killed at seeded moments: every study ends by itself with the undisturbed tables, and only what was under way
is computed twice."""

import os
import random
import shutil
import signal
import threading
import time
from contextlib import contextmanager

import pandas as pd
import pytest
import torch

from mcanalysis.runs.run import load_run
from mcanalysis.studies.attribution import Attribution
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Here
from mcanalysis.studies.executors import processes
from mcanalysis.studies.landscape.study import Landscape
from mcanalysis.studies.strategies import train_runs
from mcanalysis.studies.study import carry_out
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train

pytestmark = pytest.mark.slow

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
SIZES = {"train": 16, "eval": 8, "test": 8}
STRATEGIES = ("sequential", "ilora")
STUDIES = {
    "connectivity": Connectivity(num_points=7, num_examples=8, paths=("linear-factor", "bezier-factor"), curve_steps=8),
    "landscape": Landscape(transition=1, grid=(6,), num_examples=8, num_directions=1, sharpness_samples=2),
    "attribution": Attribution(num_points=3, num_examples=8),
}
MOMENTS = [(seed, count) for seed, count in enumerate([2, 2, 2, 4, 4])]
# A cluster takes its time to start: one moment a study, or as many as asked for, half of them with four workers.
ON_A_CLUSTER = [(seed, 2 if seed % 2 else 4) for seed in range(7, 7 + int(os.environ.get("CLUSTER_KILLS", "1")))]
STARTING = 4.0  # seconds, about: until the first process is at work


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As workers have it on two cores, so that the last digits are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted:
    """Workers that remember what is asked of them."""

    def __init__(self, workers):
        self.workers, self.apart, self.pieces = workers, workers.apart, []
        self.stop = workers.stop

    @property
    def count(self):
        return self.workers.count

    def submit(self, piece):
        self.pieces.append(piece.key)
        return self.workers.submit(piece)


class OfThisMachine:
    """Processes, how often one was given a piece, and which of them are there."""

    def __init__(self, count, monkeypatch):
        self.count, self.times = count, 0
        exchange = processes._Slot._exchange

        def counted(slot, piece, end):
            self.times += 1
            return exchange(slot, piece, end)

        monkeypatch.setattr(processes._Slot, "_exchange", counted)

    @contextmanager
    def started(self):
        with processes.Processes(self.count) as self.workers:
            yield self.workers

    def alive(self):
        found = [slot._process for slot in self.workers._slots]
        return [process.pid for process in found if process is not None and process.is_alive()]


class OfDask:
    """The same of a dask cluster."""

    def __init__(self, count, monkeypatch, start_cluster):
        from mcanalysis.studies.executors import cluster

        self.start, self.cluster, self.count, self.times = start_cluster, cluster, count, 0
        ask = cluster.Cluster._ask

        async def counted(own, address, piece):
            self.times += 1
            return await ask(own, address, piece)

        monkeypatch.setattr(cluster.Cluster, "_ask", counted)

    @contextmanager
    def started(self):
        with self.start(self.count) as self.machines:
            address = self.machines.scheduler_address
            with self.cluster.Cluster(address, say=lambda line: None) as self.workers:
                yield self.workers

    def alive(self):
        busy = self.workers._busy
        return [n.pid for n in self.machines.workers.values() if n.pid and n.worker_address in busy]


def killer(place, within, seed):
    """A thread that kills one of the processes with SIGKILL, at a drawn moment after the first was there."""
    draw, killed = random.Random(seed), []

    def kill():
        while not place.alive():
            time.sleep(0.01)
        time.sleep(within * draw.random())
        end = time.monotonic() + 30
        while not (alive := place.alive()) and time.monotonic() < end:
            time.sleep(0.005)
        if alive:
            killed.append(draw.choice(alive))
            os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    return killed


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """Two finished runs."""
    folder = tmp_path_factory.mktemp("finished")
    training = TrainingConfig(num_steps=4, batch_size=4, max_length=128)
    for strategy in STRATEGIES:
        config = RunConfig(
            strategy=strategy, model=str(base_folder), lora_rank=4, training=training, tasks=TASKS, sizes=SIZES
        )
        train(config, folder / strategy, device="cpu")
    return folder


def _copies(finished, folder):
    return [load_run(shutil.copytree(finished / s, folder / s), "cpu") for s in STRATEGIES]


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """By study: its tables in one process without a fault, its pieces, and seconds."""
    found = {}
    for name, study in STUDIES.items():
        folder = tmp_path_factory.mktemp(name)
        workers, started = Counted(Here()), time.monotonic()
        outcome = carry_out(study, _copies(finished, folder), folder, workers)
        found[name] = outcome.tables, workers.pieces, time.monotonic() - started
    return found


def _survives(undisturbed, finished, folder, name, place, seed):
    tables, pieces, seconds = undisturbed[name]
    with place.started() as started:
        workers = Counted(started)
        killed = killer(place, STARTING + seconds / place.count, seed)
        outcome = carry_out(STUDIES[name], _copies(finished, folder), folder, workers)
    assert len(set(workers.pieces)) == len(workers.pieces) == len(pieces)
    assert len(pieces) <= place.times <= len(pieces) + len(killed)
    assert set(outcome.tables) == set(tables)
    for table, expected in tables.items():
        pd.testing.assert_frame_equal(outcome.tables[table], expected, check_exact=True, obj=table)


@pytest.mark.parametrize(("seed", "count"), MOMENTS)
@pytest.mark.parametrize("name", list(STUDIES))
def test_a_study_survives(undisturbed, finished, tmp_path, monkeypatch, name, seed, count):
    _survives(undisturbed, finished, tmp_path, name, OfThisMachine(count, monkeypatch), seed)


@pytest.mark.parametrize(("seed", "count"), ON_A_CLUSTER)
@pytest.mark.parametrize("name", list(STUDIES))
def test_a_study_on_a_cluster_survives(undisturbed, finished, tmp_path, monkeypatch, start_cluster, name, seed, count):
    _survives(undisturbed, finished, tmp_path, name, OfDask(count, monkeypatch, start_cluster), seed)


def _comparison_survives(run_config, adapter_bytes, tmp_path, place, seed):
    configs = [run_config(s, num_steps=30, tasks=TASKS[:2], sizes=SIZES) for s in ("sequential", "er", "ilora")]
    execution = Execution(device="cpu", save_steps=5)
    with place.started() as workers:
        killed = killer(place, 12.0, seed)
        runs = train_runs(configs, [tmp_path / "killed" / c.strategy for c in configs], workers, execution=execution)
    assert len(configs) <= place.times <= len(configs) + len(killed)
    alone = train_runs(configs, [tmp_path / "alone" / c.strategy for c in configs], execution=execution)
    for disturbed, whole in zip(runs, alone, strict=True):
        assert adapter_bytes(disturbed.directory) == adapter_bytes(whole.directory)
        assert disturbed.metrics["learners"] == whole.metrics["learners"]


@pytest.mark.parametrize(("seed", "count"), MOMENTS)
def test_a_comparison_survives(run_config, adapter_bytes, tmp_path, monkeypatch, seed, count):
    _comparison_survives(run_config, adapter_bytes, tmp_path, OfThisMachine(count, monkeypatch), seed)


@pytest.mark.parametrize(("seed", "count"), ON_A_CLUSTER)
def test_a_comparison_on_a_cluster_survives(
    run_config, adapter_bytes, tmp_path, monkeypatch, start_cluster, seed, count
):
    _comparison_survives(run_config, adapter_bytes, tmp_path, OfDask(count, monkeypatch, start_cluster), seed)
