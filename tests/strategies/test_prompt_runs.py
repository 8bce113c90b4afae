"""Whole runs of the strategies that train prompts: stopped and resumed, scored, and learning on the shipped base."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import encode_all
from mcanalysis.models.loading import load_base
from mcanalysis.runs.run import load_run
from mcanalysis.strategies import make_strategy
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train

NAMES = ("l2p", "progressive_prompts")
NUM_STEPS = 3


def contents(directory):
    """Everything that a resumed run must give again."""
    files = [*directory.glob("minima/*/*/*"), *directory.glob("losses/*"), *directory.glob("tables/[am]*")]
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(files)}


@pytest.fixture(scope="module")
def tasks(make_tasks):
    return make_tasks()


@pytest.fixture(scope="module")
def whole(run_config, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    for name in NAMES:
        assert train(run_config(name), folder / name, device="cpu", tasks=tasks)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_run_holds_a_minimum_and_a_row_per_task(name, whole):
    files = contents(whole / name)
    kept = ("prompts.safetensors", "prompt_config.json")
    if name == "progressive_prompts":
        kept = ("adapter_model.safetensors", "adapter_config.json")
    assert {f for f in files if f.startswith("minima")} == {
        f"minima/{task}/prompts/{k}" for task in ("1-zeta", "2-alpha") for k in kept
    }
    assert not [p for p in (whole / name).rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    matrix = pd.read_csv(whole / name / "tables" / "accuracy_matrix.csv")
    assert matrix.notna().all(axis=None) and list(matrix.after) == [0, 1, 2]
    losses = [json.loads((whole / name / "losses" / f"{t}.json").read_text()) for t in ("1-zeta", "2-alpha")]
    assert np.isfinite(losses).all() and np.shape(losses) == (2, NUM_STEPS)
    run = load_run(whole / name)
    assert run.answering_learner == "prompts"
    learners = ["prompts", "own_prompts"] if name == "progressive_prompts" else ["prompts"]
    assert list(run.metrics_by_learner) == learners and run.learners == ["prompts"]
    if name == "progressive_prompts":  # each task keeps the score that its own prefix had when it was learned
        answered, own = matrix.to_numpy(), run.accuracy_matrix_of("own_prompts").to_numpy()
        assert (own[:2] == answered[:2]).all() and own[2].tolist() == [2, answered[1, 1], answered[2, 2]]
    with pytest.raises(UserError, match=f"{name}, which has none"):
        run.path(1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_goes_on_from_its_checkpoint(name, whole, run_config, tasks, tmp_path, monkeypatch):
    """Killed two steps after its last checkpoint, which was written in the middle of the second task."""
    from mcanalysis.training.task_trainer import TaskTrainer

    original, calls = TaskTrainer.training_step, []

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * NUM_STEPS:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    config, execution = run_config(name), Execution(save_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(TaskTrainer, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", device="cpu", tasks=tasks, execution=execution)
    state = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())
    assert (state["stage"], state["within"], len(state["losses"])) == (1, True, 2)
    train(config, tmp_path / "run", device="cpu", tasks=tasks, resume=True, execution=execution)
    assert contents(tmp_path / "run") == contents(whole / name)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_base_learns_from_prompts_alone(name, train_task):
    from mcanalysis.benchmarks import load_benchmark

    data = load_benchmark("embedded", None, ("C-STANCE",), None, None)[0]
    base, tokenizer = load_base("embedded")
    strategy = make_strategy(name, 0)
    model = strategy.attach(base, tokenizer, LoraSettings(), "embedded")
    frozen = {k: v.clone() for k, v in base.state_dict().items()}
    examples = encode_all(data.splits["train"], tokenizer, 1024)[0]
    strategy.begin(model, 1)
    strategy.begin_task(model, 0, examples)
    rate = 3e-3 * strategy.config.learning_rate_factor
    trainer = train_task(model, strategy, examples, num_steps=40, batch_size=8, learning_rate=rate, warmup_ratio=0.1)
    assert np.mean(trainer.losses[-5:]) < 0.4 * np.mean(trainer.losses[:5])
    assert all(torch.equal(v, frozen[k]) for k, v in base.state_dict().items())
    objective = make_objective(data, "test", tokenizer, 1024, 40)
    at_base, at_end = (Engine(model).evaluate(p, [objective])[0] for p in (model.base_point(), model.point()))
    assert at_end.measurement.loss < 0.4 * at_base.measurement.loss
    assert at_end.measurement.score > at_base.measurement.score + 0.2
