"""Two processes (gloo, CPU) compute what one computes: the same losses, the same minima, one set of files.

All quick runs share one launch of `torch.distributed.run`, since two interpreters take longer to start than to train.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]

# Rounding decides what these do next (which constraint is active, which prompt is chosen, which directions, rows or
# examples are kept, which change is the largest, which token is drawn), so only one update from an equal state can be
# compared.
DISCRETE = {"gem", "agem", "l2p", "cls_er", "inflora", "magmax", "migu", "sure", "self_replay"}
BY_EACH = {"ewc", "self_replay"}  # F is made by each process for itself, texts are written by each
UNTRAINED = {"zero_shot"}
LONG = {"sequential", "er", "ilora"}  # over more steps than the others, where a difference has the time to grow
NAMES = [n for n in strategy_names() if n not in UNTRAINED]
# A memory and a second learner, a gradient that is edited, a penalty. The others are slow tests, with their own launch.
OF_EACH_KIND = {"ilora", "agem", "ewc"}

WORKER = """
import atexit, os, pickle, signal, sys, traceback
import torch

@atexit.register  # the first registered runs last
def group_is_closed():
    with open(f"{folder}/closed.{os.environ['RANK']}", "w") as stream:
        stream.write(str(not torch.distributed.is_initialized()))

from mcanalysis.progress import silent
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped

class StopAfter:
    def __init__(self, steps):
        self.left = steps
    def __call__(self, *, total, desc):
        return self if desc.startswith("train ") else silent(total=total, desc=desc)
    def update(self, n=1):
        self.left -= n
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    def close(self):
        pass

with open(sys.argv[1], "rb") as stream:
    configs, tasks, folder = pickle.load(stream)
for name, config in configs.items():
    try:
        train(config, f"{folder}/{name}", device="cpu", tasks=tasks, execution=Execution(save_steps=7))
    except Exception:
        with open(f"{folder}/{name}.error", "a") as stream:
            traceback.print_exc(file=stream)
        os._exit(1)  # the other process may wait for this one: the launcher ends it

# Only the main process has a bar, so only it is told to stop; both must, after the same step.
if "ilora" in configs:
    where = f"{folder}/stopped"
    try:
        train(configs["ilora"], where, device="cpu", tasks=tasks, progress=StopAfter(25))
    except Stopped:
        open(f"{folder}/stopped.{os.environ['RANK']}", "w").close()
    train(configs["ilora"], where, device="cpu", tasks=tasks, resume=True)
"""


@pytest.fixture(scope="module")
def configs(base_folder):
    def config(name):
        training = TrainingConfig(
            num_steps=1 if name in DISCRETE else 20 if name in LONG else 8,
            batch_size=4,
            gradient_accumulation=1 if name in DISCRETE else 2,
            learning_rate=1e-4 if name in DISCRETE else 1e-3,
            max_length=128,
        )
        return RunConfig(strategy=name, model=str(base_folder), lora_rank=4, training=training)

    return {name: config(name) for name in NAMES}


@pytest.fixture(scope="module")
def tasks(make_tasks):
    return make_tasks(("zeta", "alpha"), num_train=30, num_test=3)


@pytest.fixture(scope="module")
def with_two(configs, tasks, tmp_path_factory):
    """with_two(strategy) -> the folder of the launch that has it."""
    quick = {name: config for name, config in configs.items() if name in OF_EACH_KIND}
    rest = {name: config for name, config in configs.items() if name not in OF_EACH_KIND}
    launched = {}

    def launch(name):
        of = quick if name in quick else rest
        if id(of) not in launched:
            launched[id(of)] = _launch(of, tasks, tmp_path_factory.mktemp("two"))
        return launched[id(of)]

    return launch


def _launch(configs, tasks, folder):
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")
    (folder / "input").write_bytes(pickle.dumps((configs, tasks, str(folder))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(folder / "worker.py"), str(folder / "input")],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too
    errors = "".join(f.read_text(encoding="utf-8") for f in folder.glob("*.error"))
    assert process.returncode == 0, errors or (folder / "log").read_text(encoding="utf-8")[-3000:]
    return folder


@pytest.fixture(scope="module")
def with_one(configs, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")

    def run(name):
        train(configs[name], folder / name, device="cpu", tasks=tasks)
        return folder / name

    return run


@pytest.mark.parametrize("name", [n if n in OF_EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_two_processes_train_as_one(name, with_two, with_one):
    two, one = with_two(name) / name, with_one(name)
    losses = {
        run: {f.name: json.loads(f.read_text()) for f in sorted((run / "losses").glob("*.json"))} for run in (one, two)
    }
    assert losses[one].keys() == losses[two].keys() != set()
    for label, expected in losses[one].items():
        np.testing.assert_allclose(losses[two][label][:20], expected[:20], rtol=0, atol=1e-4, err_msg=label)
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}
    if name in DISCRETE:
        for file in sorted(one.glob("minima/*/*/*.safetensors")):
            other = load_file(two / file.relative_to(one))
            for key, value in load_file(file).items():
                np.testing.assert_allclose(other[key].numpy(), value.numpy(), rtol=0, atol=1e-5, err_msg=key)
    costs = [json.loads((run / "tables" / "cost.json").read_text()) for run in (one, two)]
    assert [c["processes"] for c in costs] == [1, 2]
    if name not in BY_EACH:
        assert costs[0]["backward_examples"] == costs[1]["backward_examples"] > 0
    assert (two / "tables" / "accuracy_matrix.csv").read_text() == (one / "tables" / "accuracy_matrix.csv").read_text()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_the_run_goes_on(with_two, adapter_bytes):
    folder = with_two("ilora")
    assert (folder / "stopped.0").exists() and (folder / "stopped.1").exists()
    assert adapter_bytes(folder / "stopped") == adapter_bytes(folder / "ilora") != {}


def test_the_process_group_is_closed_before_the_interpreter_ends(with_two):
    assert [(with_two("ilora") / f"closed.{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def test_a_batch_that_processes_cannot_share_is_refused(make_model, tmp_path, encode_examples, monkeypatch):
    from mcanalysis.errors import UserError
    from mcanalysis.strategies import make_strategy
    from mcanalysis.training.processes import Processes
    from mcanalysis.training.task_trainer import TaskTrainer

    three = Processes("cpu")
    three.count = 3
    model, config = make_model(), TrainingConfig(num_steps=1, batch_size=4)
    with pytest.raises(UserError, match="that 3 processes can share, got 4"):
        strategy = make_strategy("er", 0)
        TaskTrainer(model, strategy, encode_examples(4), "zeta", config, "0", str(tmp_path), processes=three)


def test_the_list_of_discrete_rules_is_of_strategies_there_are():
    assert all(get_strategy(name) for name in DISCRETE & set(strategy_names()))
