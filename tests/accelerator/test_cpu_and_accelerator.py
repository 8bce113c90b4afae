"""What the CPU measures, the accelerator measures too: losses, answers, curvature, curves, training, whole commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import mcanalysis as mc
from mcanalysis.benchmarks import load_benchmark
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import EngineSettings
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.models.encoding import collate, encode_all, pad_id
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]
TS = (0.0, 0.3, 0.5, 1.0)


def objectives_of(model, number=40, num_tasks=8):
    tasks = load_benchmark("embedded", sizes={"train": 1, "eval": 1, "test": number})[:num_tasks]
    return [make_objective(t, "test", model.tokenizer) for t in tasks]


def along(model, ends, **settings):
    """Per place and task: losses per example, and what was written."""
    objectives = objectives_of(model)
    engine = Engine(model, EngineSettings(**settings))
    found = [engine.evaluate(mc.Linear(*ends)(t), objectives) for t in TS]
    losses = np.array([[e.measurement.nll / e.measurement.targets for e in row] for row in found])
    return losses, [o for row in found for e in row for o in e.outputs]


@pytest.fixture(scope="module")
def on_cpu(embedded_on, ends):
    return along(embedded_on("cpu"), ends)


@pytest.mark.parametrize("settings", [{}, {"adapter": "unmerged"}, {"prefix": "whole"}, {"compile": True}], ids=str)
def test_losses_and_answers_in_float32(embedded_on, device, ends, on_cpu, settings):
    losses, outputs = along(embedded_on(device), ends, **settings)
    assert np.abs(losses - on_cpu[0]).max() <= 1e-4  # nats, of one example
    assert np.abs(losses.mean(axis=2) - on_cpu[0].mean(axis=2)).max() <= 1e-5  # of a task
    differing = sum(a != b for a, b in zip(outputs, on_cpu[1], strict=True))
    assert differing <= 0.001 * len(outputs)  # a tie of two words falls to either


def test_losses_in_bfloat16_are_as_near_to_float32_as_those_of_the_cpu(embedded_on, device, ends, on_cpu):
    of_cpu, _ = along(embedded_on("cpu", "bfloat16"), ends)
    losses, _ = along(embedded_on(device, "bfloat16"), ends)
    exact = on_cpu[0].mean(axis=2)

    def off(values):
        return np.abs(values.mean(axis=2) - exact).max()

    assert off(losses) <= max(2 * off(of_cpu), 1e-3)
    assert losses.mean() == pytest.approx(of_cpu.mean(), rel=1e-3)  # over all places and tasks rounding cancels


def batch_and_loss(model, number=16):
    examples = load_benchmark("embedded", sizes={"train": number, "eval": 1, "test": 1})[0].splits["train"]
    batch = collate(encode_all(examples, model.tokenizer, 256)[0], pad_id(model.tokenizer)).to(model.device)

    def loss(point):
        result = model.forward_at(point, batch)
        return result.nll.sum() / result.num_targets.sum()

    return loss


def on(device, point):
    return {name: tensor.to(device) for name, tensor in point.items()}


def test_hessian_products(embedded_on, device, ends):
    def product(device):
        hessian = HessianOperator(batch_and_loss(embedded_on(device)), on(device, ends[0]))
        direction = np.random.default_rng(0).normal(size=hessian.num_coordinates)
        return hessian @ direction, hessian.loss(), direction

    (ours, loss, direction), (expected, expected_loss, _) = product(device), product("cpu")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert np.linalg.norm(ours - expected) <= 1e-3 * np.linalg.norm(expected)
    assert direction @ ours == pytest.approx(direction @ expected, rel=1e-3)


def test_fitted_curves(embedded_on, device, ends):
    def fitted(device):
        loss = batch_and_loss(embedded_on(device))
        curve = mc.fit_curve(mc.Bezier(*(on(device, end) for end in ends)), loss, num_steps=20)
        return curve.history, [float(loss(curve(t)).detach()) for t in TS]

    (history, losses), (expected_history, expected) = fitted(device), fitted("cpu")
    assert history[0] == pytest.approx(expected_history[0], rel=1e-5)
    assert np.asarray(history) == pytest.approx(np.asarray(expected_history), rel=0.02)  # Adam enlarges rounding
    assert losses == pytest.approx(expected, rel=0.02)
    assert max(losses) < max(float(batch_and_loss(embedded_on("cpu"))(mc.Linear(*ends)(t))) for t in TS) + 1e-6


def test_a_network_with_batch_norm(device):
    def profiled(device):
        torch.manual_seed(0)
        nn = torch.nn
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
        random = torch.Generator().manual_seed(1)
        batches = [
            (torch.randn(50, 3, 8, 8, generator=random), torch.randint(5, (50,), generator=random)) for _ in range(4)
        ]
        start = mc.snapshot(module)
        for batch, _ in batches:
            module(batch)
        end = {k: v + 0.3 * torch.randn(v.shape, generator=random).abs() for k, v in mc.snapshot(module).items()}
        module.to(device).eval()
        here = [tuple(t.to(device) for t in batch) for batch in batches]

        def loss(network, batch):
            return torch.nn.functional.cross_entropy(network(batch[0]), batch[1], reduction="none")

        objective = mc.module_objective(module, loss, here, recalibrate=here)
        return [objective(mc.Linear(on(device, start), on(device, end))(t)).loss for t in TS]

    assert profiled(device) == pytest.approx(profiled("cpu"), rel=1e-4)


@pytest.fixture
def three_tasks(make_tasks):
    return make_tasks(("zeta", "alpha", "mu"), num_train=10, num_test=2)


@pytest.mark.parametrize("name", [n for n in strategy_names() if get_strategy(n).schedule != "none"])
def test_every_strategy_trains_as_on_the_cpu(name, device, run_config, three_tasks, tmp_path):
    config = run_config(name, num_steps=6, strategy_settings={"num_alphas": 2} if name == "mc_sgd" else {})
    losses = []
    for number, where in enumerate(("cpu", device)):
        run = tmp_path / str(number)
        train(config, run, device=where, tasks=three_tasks)
        files = sorted((run / "losses").glob("*.json"))
        losses.append([loss for f in files for loss in np.ravel(json.loads(f.read_text()))])
        assert pd.read_csv(run / "tables" / "accuracy_matrix.csv").notna().any(axis=None)
    assert len(losses[0]) >= 6
    # Adam enlarges rounding, the more the smaller a gradient is.
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-3)


def test_the_command_on_the_accelerator_and_its_run_read_on_the_cpu(device, tmp_path):
    def call(script, *flags):
        command = [sys.executable, f"analyses/{script}.py", *flags, "--json"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    run = tmp_path / "run"
    sizes = ("--tasks", "FOMC,NumGLUE-cm", "--steps", "20", "--num-test", "20", "--num-train", "40")
    call("train", "--strategy", "ilora", "--output-dir", str(run), "--device", device, *sizes)
    call("connectivity", "--run", str(run), "--device", device, "--num-points", "5", "--curve-steps", "10")
    here, there = mc.load_run(run, device="cpu"), mc.load_run(run, device=device)
    for t in (0.0, 0.5):
        point = here.path(1, 2)(t)
        one, other = here.objective("FOMC")(point), there.objective("FOMC")(on(device, point))
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
