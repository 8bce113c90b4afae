"""A run that was killed goes on as if it had not been."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.training.continual_trainer import ContinualTrainer, train
from mcanalysis.training.task_trainer import TaskTrainer

REPOSITORY = Path(__file__).parents[2]

# Trains and kills itself: er when the second task begins, ilora in the middle of the second task.
# The parent of the two has never used autograd, so it may fork.
KILLED = """
import os, pickle, signal, sys
import torch
torch.set_num_threads(1)
from mcanalysis.training import continual_trainer as c
from mcanalysis.training.task_trainer import TaskTrainer

configs, tasks, folder = pickle.load(sys.stdin.buffer)
train_task, after_step = c.ContinualTrainer._train_task, TaskTrainer._after_step

def between_tasks(self, k, on_step):
    if k == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    train_task(self, k, on_step)

def within_a_task(self):
    after_step(self)
    if self.task_name == tasks[1].task.name and self.state.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

for name, config in configs.items():
    child = os.fork()
    if child == 0:
        if name == "er":
            c.ContinualTrainer._train_task = between_tasks
        else:
            TaskTrainer._after_step = within_a_task
        c.train(config, os.path.join(folder, name), device="cpu", tasks=tasks)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (name, status)
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
    for name in ("er", "ilora"):
        train(run_config(name, num_steps=4), folder / name, device="cpu", tasks=three_tasks)
    return folder


@pytest.fixture(scope="module")
def killed(run_config, three_tasks, tmp_path_factory):
    import pickle

    folder = tmp_path_factory.mktemp("killed")
    configs = {name: run_config(name, num_steps=4) for name in ("er", "ilora")}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", KILLED],
        input=pickle.dumps((configs, three_tasks, str(folder))),
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    return folder


@pytest.mark.parametrize("name", ["er", "ilora"])
def test_a_killed_run_resumes_to_the_very_same_bytes(
    name, killed, uninterrupted, run_config, three_tasks, adapter_bytes
):
    directory = killed / name
    config = run_config(name, num_steps=4)
    assert len(list((directory / "minima").iterdir())) == 1
    with pytest.raises(RunDirectoryError, match="--resume"):
        train(config, directory, device="cpu", tasks=three_tasks)
    assert train(config, directory, device="cpu", tasks=three_tasks, resume=True)
    expected = adapter_bytes(uninterrupted / name)
    assert len(expected) == (3 if name == "er" else 6)
    assert adapter_bytes(directory) == expected
    assert tables(directory) == tables(uninterrupted / name)


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
    [("_fill_row", 1), ("_train_task", 1), ("_save", 1), ("_fill_row", 2), ("_save", 3), ("_fill_row", 4)],
    ids=["base row", "first task", "first save", "first row", "last save", "last row"],
)
def test_wherever_a_run_is_stopped_it_ends_with_all_its_tables(
    method, call, uninterrupted, run_config, three_tasks, adapter_bytes, monkeypatch, tmp_path
):
    config = run_config("ilora", num_steps=4)
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
        stop_at(patched, ContinualTrainer, "_train_task", 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", device="cpu", tasks=three_tasks)
    trained = []
    original = TaskTrainer.train
    monkeypatch.setattr(TaskTrainer, "train", lambda self: trained.append(self.task_name) or original(self))
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
