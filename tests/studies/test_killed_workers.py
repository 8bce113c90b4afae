"""Workers killed at seeded moments: every study ends by itself with the undisturbed tables, and only what was under way
is computed twice."""

import os
import random
import shutil
import signal
import threading
import time

import pandas as pd
import pytest

from mcanalysis.runs.run import load_run
from mcanalysis.studies.attribution import Attribution
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Here
from mcanalysis.studies.executors.processes import Processes
from mcanalysis.studies.landscape.study import Landscape
from mcanalysis.studies.strategies import train_runs
from mcanalysis.studies.strategy_tables import metrics_table
from mcanalysis.studies.study import carry_out
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train

pytestmark = pytest.mark.slow

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
SIZES = {"train": 16, "eval": 8, "test": 8}
STUDIES = {
    "connectivity": Connectivity(num_points=7, num_examples=8, paths=("linear-factor", "bezier-factor"), curve_steps=8),
    "landscape": Landscape(transition=1, grid=(6,), num_examples=8, num_directions=1, sharpness_samples=2),
    "attribution": Attribution(num_points=3, num_examples=8),
}
MOMENTS = [(seed, workers) for seed, workers in enumerate([2, 2, 2, 4, 4])]


class Counted:
    """Workers that count what is asked of them, and how often they were asked."""

    def __init__(self, workers):
        self.workers, self.apart, self.pieces = workers, workers.apart, []

    @property
    def count(self):
        return self.workers.count

    def submit(self, piece):
        self.pieces.append(piece.key)
        return self.workers.submit(piece)

    def stop(self):
        self.workers.stop()


class Computed:
    """How often a process was given a piece, whatever became of it."""

    def __init__(self, monkeypatch):
        self.times = 0
        exchange = Processes.__init__.__globals__["_Slot"]._exchange

        def counted(slot, piece, end):
            self.times += 1
            return exchange(slot, piece, end)

        monkeypatch.setattr(Processes.__init__.__globals__["_Slot"], "_exchange", counted)


def kill_one(workers, after, seed):
    """SIGKILL to one of the processes, so many seconds after the first is there; returns the thread."""
    draw = random.Random(seed)
    killed = []

    def kill():
        while not (alive := _alive(workers)):
            time.sleep(0.01)
        time.sleep(after * draw.random())
        if alive := _alive(workers):
            process = draw.choice(alive)
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.killed = killed
    thread.start()
    return thread


def _alive(workers):
    return [slot._process for slot in workers._slots if slot._process is not None and slot._process.is_alive()]


@pytest.fixture(scope="module")
def finished(base_folder, tmp_path_factory):
    """Two finished runs."""
    from mcanalysis.training.config import RunConfig, TrainingConfig

    folder = tmp_path_factory.mktemp("finished")
    training = TrainingConfig(num_steps=4, batch_size=4, max_length=128)
    for strategy in ("sequential", "ilora"):
        config = RunConfig(
            strategy=strategy, model=str(base_folder), lora_rank=4, training=training, tasks=TASKS, sizes=SIZES
        )
        train(config, folder / strategy, device="cpu")
    return folder


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """By study: its tables in one process without a fault, the number of pieces, and seconds."""
    found = {}
    for name, study in STUDIES.items():
        folder = tmp_path_factory.mktemp(name)
        workers, started = Counted(Here()), time.monotonic()
        outcome = carry_out(study, _copies(finished, folder), folder, workers)
        found[name] = outcome.tables, len(workers.pieces), time.monotonic() - started
    return found


def _copies(finished, folder):
    return [load_run(shutil.copytree(finished / s, folder / s), "cpu") for s in ("sequential", "ilora")]


@pytest.mark.parametrize(("seed", "count"), MOMENTS)
@pytest.mark.parametrize("name", list(STUDIES))
def test_a_study_survives_a_killed_worker(undisturbed, finished, tmp_path, monkeypatch, name, seed, count):
    tables, num_pieces, seconds = undisturbed[name]
    computed = Computed(monkeypatch)
    with Processes(count) as processes:
        workers = Counted(processes)
        killer = kill_one(processes, 3.0 + seconds, seed)
        outcome = carry_out(STUDIES[name], _copies(finished, tmp_path), tmp_path, workers)
        killer.join(0)
    assert len(workers.pieces) == len(set(workers.pieces)) == num_pieces
    assert num_pieces <= computed.times <= num_pieces + len(killer.killed)
    assert set(outcome.tables) == set(tables)
    for table, expected in tables.items():
        # Threads per process differ, and with them the last digits.
        pd.testing.assert_frame_equal(outcome.tables[table], expected, rtol=1e-3, atol=1e-4, obj=table)


@pytest.mark.parametrize(("seed", "count"), MOMENTS)
def test_training_goes_on_after_a_killed_worker(run_config, tmp_path, seed, count):
    configs = [
        run_config(s, num_steps=30, tasks=TASKS[:2], sizes=SIZES) for s in ("sequential", "er", "ilora")
    ]  # fmt: skip
    execution = Execution(device="cpu", save_steps=5)
    directories = [tmp_path / "killed" / c.strategy for c in configs]
    with Processes(count) as processes:
        killer = kill_one(processes, 12.0, seed)
        runs = train_runs(configs, directories, processes, execution=execution)
        killer.join(0)
    alone = train_runs(configs, [tmp_path / "alone" / c.strategy for c in configs], execution=execution)
    columns = ["strategy", "learner", "seed", "average_accuracy", "forgetting"]
    pd.testing.assert_frame_equal(metrics_table(runs)[columns], metrics_table(alone)[columns], atol=0.15)
    for killed, whole in zip(runs, alone, strict=True):
        assert [m.label for m in killed.minima] == [m.label for m in whole.minima]
