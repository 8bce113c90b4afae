"""A run that was killed goes on as if it had not been."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mcanalysis.errors import RunDirectoryError, RunInUseError, UserError
from mcanalysis.store.lock import lock_training
from mcanalysis.store.manifest import lock_run_directory
from mcanalysis.training import checkpoint
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import ContinualTrainer, train
from mcanalysis.training.stopping import Stopped
from mcanalysis.training.task_trainer import TaskTrainer

REPOSITORY = Path(__file__).parents[2]
KILLED_STRATEGIES = ("er", "ewc", "ilora")
NUM_STEPS = 6

# Runs in a process of its own that has never used autograd, so that it may fork: each child trains (or goes on) with
# one strategy and is killed from outside after a random time, so and so often. A run that ends before that many kills
# is followed by another.
KILLED = """
import os, pickle, random, signal, sys, time
import torch
from mcanalysis.training import continual_trainer as c
from mcanalysis.training.config import Execution

configs, tasks, folder, seconds, times = pickle.load(sys.stdin.buffer)

def child(where, config):
    pid = os.fork()
    if pid == 0:
        c.train(config, where, device="cpu", tasks=tasks, resume=True, execution=Execution(save_steps=2))
        os._exit(0)
    return pid

for name, config in configs.items():
    rng, kills, run = random.Random("kill/" + name), 0, 0
    while kills < times:
        pid = child(f"{folder}/{name}-{run}", config)
        time.sleep(rng.uniform(0.02, 0.25) * seconds[name])
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert status == 0, (name, status)
            run += 1
    _, status = os.waitpid(child(f"{folder}/{name}-{run}", config), 0)
    assert status == 0, (name, status)
"""


def tables(directory):
    names = ("tables/accuracy_matrix.csv", "tables/metrics.json")
    return {n: (directory / n).read_text() for n in names} | {
        p.name: p.read_text() for p in (directory / "losses").iterdir()
    }


@pytest.fixture(scope="module")
def three_tasks(make_tasks):
    return make_tasks(("zeta", "alpha", "mu"), num_train=10, num_test=2)


@pytest.fixture(scope="module")
def uninterrupted(run_config, three_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name in KILLED_STRATEGIES:
        started = time.monotonic()
        train(run_config(name, num_steps=NUM_STEPS), folder / name, device="cpu", tasks=three_tasks)
        (folder / f"{name}.seconds").write_text(str(time.monotonic() - started))
    return folder


# Slow, since it starts an interpreter and trains nine times: the signals and stops below end runs at chosen moments,
# and `test_a_full_disk_keeps_the_last_checkpoint` goes on from a checkpoint that is older than what was trained.
@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.slow) for n in (3, 10)])
def killed(request, run_config, three_tasks, uninterrupted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    configs = {name: run_config(name, num_steps=NUM_STEPS) for name in KILLED_STRATEGIES}
    seconds = {name: float((uninterrupted / f"{name}.seconds").read_text()) for name in KILLED_STRATEGIES}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=pickle.dumps((configs, three_tasks, str(folder), seconds, request.param)),
        env=environment,
        capture_output=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    return folder


@pytest.mark.parametrize("name", KILLED_STRATEGIES)
def test_a_run_killed_at_random_moments_ends_with_the_very_same_bytes(name, killed, uninterrupted, adapter_bytes):
    expected = adapter_bytes(uninterrupted / name)
    assert len(expected) == (6 if name == "ilora" else 3)
    runs = sorted(killed.glob(f"{name}-*"))
    assert runs
    for run in runs:
        assert adapter_bytes(run) == expected
        assert tables(run) == tables(uninterrupted / name)
        assert not [p for p in run.rglob("*") if p.name.startswith(".")]


# Each signal once, in the first task and in the second; what is left of the product is slow.
@pytest.mark.parametrize(
    ("name", "number", "steps"),
    [
        pytest.param(name, number, steps, marks=() if i == j == k else pytest.mark.slow)
        for i, name in enumerate(KILLED_STRATEGIES)
        for j, number in enumerate((signal.SIGTERM, signal.SIGINT))
        for k, steps in enumerate((1, NUM_STEPS + 3, 2 * NUM_STEPS))
    ],
)
def test_a_signal_saves_the_step_and_leaves(
    name, number, steps, uninterrupted, run_config, three_tasks, adapter_bytes, stop_after, tmp_path
):
    config = run_config(name, num_steps=NUM_STEPS)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        train(config, tmp_path / "run", device="cpu", tasks=three_tasks, progress=stop_after(steps, number))
    assert stopped.value.exit_code == 128 + number
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert state["within"] and len(state["losses"]) == (steps - 1) % NUM_STEPS + 1
    with pytest.raises(RunDirectoryError, match="--resume"):
        train(config, tmp_path / "run", device="cpu", tasks=three_tasks)
    assert train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(uninterrupted / name)
    assert tables(tmp_path / "run") == tables(uninterrupted / name)


@pytest.mark.slow
def test_dropout_goes_on_with_the_masks_it_would_have_drawn(
    run_config, three_tasks, adapter_bytes, stop_after, tmp_path
):
    config = run_config("er", num_steps=NUM_STEPS, lora_dropout=0.5)
    train(config, tmp_path / "whole", device="cpu", tasks=three_tasks)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", device="cpu", tasks=three_tasks, progress=stop_after(3, signal.SIGTERM))
    train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "run") != adapter_bytes_without_dropout(
        run_config, three_tasks, tmp_path, adapter_bytes
    )


def adapter_bytes_without_dropout(run_config, tasks, tmp_path, adapter_bytes):
    train(run_config("er", num_steps=NUM_STEPS), tmp_path / "no-dropout", device="cpu", tasks=tasks)
    return adapter_bytes(tmp_path / "no-dropout")


def test_training_leaves_the_global_random_states_alone(run_config, three_tasks, tmp_path):
    import numpy as np

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    train(run_config("er", num_steps=1), tmp_path / "run", device="cpu", tasks=three_tasks)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_a_full_disk_keeps_the_last_checkpoint(
    run_config, three_tasks, tmp_path, uninterrupted, adapter_bytes, monkeypatch
):
    config, execution = run_config("er", num_steps=NUM_STEPS), Execution(save_steps=2)
    save, calls = checkpoint.save_file, []

    def full(tensors, path, *args):
        calls.append(path)
        if len(calls) == 3:  # in the middle of the second checkpoint
            raise OSError(28, "No space left on device")
        save(tensors, path, *args)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"No space left on device.*--resume.*What was saved before is kept"):
            train(config, tmp_path / "run", device="cpu", tasks=three_tasks, execution=execution)
    assert len(json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["losses"]) == 2
    train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(uninterrupted / "er")


def test_a_run_directory_in_use_is_refused(run_config, three_tasks, tmp_path):
    with lock_run_directory(tmp_path / "run"), pytest.raises(RunDirectoryError, match="no other process"):
        train(run_config("er", num_steps=1), tmp_path / "run", device="cpu", tasks=three_tasks)
    assert list((tmp_path / "run").iterdir()) == []
    train(run_config("er", num_steps=1), tmp_path / "run", device="cpu", tasks=three_tasks)


@pytest.mark.parametrize("lock", [lock_run_directory, pytest.param(lock_training, marks=pytest.mark.slow)])
def test_another_process_that_still_saves_is_waited_for(run_config, three_tasks, tmp_path, stop_after, lock):
    """Of the two locks either is enough: on a network file system the one on the folder is none."""
    config, run = run_config("er", num_steps=3), tmp_path / "run"
    with pytest.raises(Stopped):
        train(config, run, device="cpu", tasks=three_tasks, progress=stop_after(2))
    assert not (run / "training.lock").exists()
    code = f"from {lock.__module__} import {lock.__name__} as lock\nwith lock({str(run)!r}): print(flush=True), input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunInUseError, match="no other process"):
            train(config, run, device="cpu", tasks=three_tasks, resume=True)
        threading.Timer(1.0, other.stdin.close).start()
        assert train(config, run, device="cpu", tasks=three_tasks, resume=True, lock_seconds=60.0)


def stop_at(monkeypatch, owner, method, call):
    """Make the n-th call of a method raise KeyboardInterrupt."""
    original, calls = getattr(owner, method), []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, stopping)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        pytest.param("_score", 1, marks=pytest.mark.slow),
        ("_train_stage", 1),
        ("_save_minima", 1),
        pytest.param("_score", 2, marks=pytest.mark.slow),
        pytest.param("_save_minima", 3, marks=pytest.mark.slow),
        ("_score", 4),
    ],
    ids=["base row", "first task", "first save", "first row", "last save", "last row"],
)
def test_wherever_a_run_is_stopped_it_ends_with_all_its_tables(
    method, call, uninterrupted, run_config, three_tasks, adapter_bytes, monkeypatch, tmp_path
):
    config = run_config("ilora", num_steps=NUM_STEPS)
    with monkeypatch.context() as patched:
        stop_at(patched, ContinualTrainer, method, call)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", device="cpu", tasks=three_tasks)
    train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(uninterrupted / "ilora")
    assert tables(tmp_path / "run") == tables(uninterrupted / "ilora")


def test_finished_tasks_are_not_trained_again(run_config, three_tasks, monkeypatch, tmp_path):
    config = run_config("er", num_steps=2)
    with monkeypatch.context() as patched:
        stop_at(patched, ContinualTrainer, "_train_stage", 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", device="cpu", tasks=three_tasks)
    trained = []
    original = TaskTrainer.train
    monkeypatch.setattr(TaskTrainer, "train", lambda self, **k: trained.append(self.task_name) or original(self, **k))
    train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert trained == ["mu"]


def test_resume_on_an_absent_directory_starts_afresh(run_config, make_tasks, tmp_path):
    tasks = make_tasks(("zeta",))
    assert train(run_config(num_steps=1), tmp_path / "run", device="cpu", tasks=tasks, resume=True)
    assert (tmp_path / "run" / "tables" / "accuracy_matrix.csv").exists()


def test_a_diverged_task_keeps_the_state_before_it(run_config, make_tasks, monkeypatch, tmp_path):
    from mcanalysis.strategies.er import Er

    original = Er.loss
    with monkeypatch.context() as patched:
        patched.setattr(
            Er, "loss", lambda self, step: original(self, step) * (1 if self.task_index == 0 else float("nan"))
        )
        with pytest.raises(UserError, match="step 1 of task alpha"):
            train(run_config("er"), tmp_path / "run", device="cpu", tasks=make_tasks())
    assert [p.name for p in (tmp_path / "run" / "minima").iterdir()] == ["1-zeta"]
    assert train(run_config("er"), tmp_path / "run", device="cpu", tasks=make_tasks(), resume=True)
