"""A base sharded over two processes by FSDP 2, its adapter left whole, trains and measures as one process does.

accelerate starts FSDP on accelerators only, so here `fully_shard` is applied by hand with what `check_engine` tells
accelerate: the modules with trainable parameters are ignored.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]

WORKER = """
import os, pickle, sys
from types import SimpleNamespace
import accelerate, torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.engines import check_engine
from mcanalysis.training.task_trainer import TaskTrainer

attach, create, step = LoraModel.attach, TaskTrainer.create_accelerator_and_postprocess, TaskTrainer.training_step

def sharded(*arguments):
    model = attach(*arguments)
    plugin = SimpleNamespace(fsdp_version=2, ignored_modules=None)
    check_engine(SimpleNamespace(fsdp_plugin=plugin), None, model.network)
    ignored = {p for m in plugin.ignored_modules for p in m.parameters()}
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.base.model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=ignored)
    fully_shard(model.peft, mesh=mesh, ignored_params=ignored)
    return model

def create_without(self):
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    create(self)
    os.environ["ACCELERATE_USE_FSDP"] = "true"  # what `Processes.map` asks

def step_as_fsdp(self, *args, **kwargs):
    self.is_fsdp_enabled = True
    try:
        return step(self, *args, **kwargs)
    finally:
        self.is_fsdp_enabled = False

LoraModel.attach = staticmethod(sharded)
TaskTrainer.create_accelerator_and_postprocess = create_without
TaskTrainer.training_step = step_as_fsdp
accelerate.Accelerator.prepare_model = lambda self, model, *a, **k: model  # it is wrapped already; no DDP about it
os.environ["ACCELERATE_USE_FSDP"] = "true"
with open(sys.argv[1], "rb") as stream:
    configs, tasks, folder = pickle.load(stream)
for name, config in configs.items():
    train(config, f"{folder}/{name}", device="cpu", tasks=tasks, execution=Execution(save_steps=7))
"""


@pytest.mark.slow
def test_a_sharded_base_trains_and_measures_as_a_whole_one(base_folder, make_tasks, tmp_path):
    tasks = make_tasks(("zeta", "alpha"), num_train=30, num_test=3)
    training = TrainingConfig(num_steps=10, batch_size=4, gradient_accumulation=2, learning_rate=1e-3, max_length=128)
    names = ("er", "ilora", "agem")
    configs = {n: RunConfig(strategy=n, model=str(base_folder), lora_rank=4, training=training) for n in names}
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    (tmp_path / "input").write_bytes(pickle.dumps((configs, tasks, str(tmp_path))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "input")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, config in configs.items():
        train(config, tmp_path / "one" / name, device="cpu", tasks=tasks)
        one, two = tmp_path / "one" / name, tmp_path / name
        for file in sorted((one / "losses").glob("*.json")):
            expected, losses = json.loads(file.read_text()), json.loads((two / "losses" / file.name).read_text())
            np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
        for table in ("accuracy_matrix.csv", "metrics.json"):
            assert (two / "tables" / table).read_text() == (one / "tables" / table).read_text()
