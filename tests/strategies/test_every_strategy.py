"""What holds for every registered strategy, and what the references among them (joint, individual, zero_shot) are."""

import json

import numpy as np
import pandas as pd
import pytest

from mcanalysis.runs.run import load_run
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped

TRAINED = [n for n in strategy_names() if get_strategy(n).schedule != "none"]
# Small memories and parts of them, so that what is drawn matters; strong penalties, so that what is kept does.
SETTINGS = {
    "agem": {"memory_size": 9, "reference_batch_size": 3},
    "ewc": {"fisher_examples": 5},
    "gem": {"examples_per_step": 3},
    "lwf": {"alpha": 5.0},
    "inflora": {"num_covariance_examples": 5},
    "magmax": {"rank": 6},
    "mc_sgd": {"num_alphas": 2},
    "n_lora": {"lambda1": 0.01},
    "der": {"memory_size": 9, "alpha": 3.0},
    "sure": {"memory_size": 9},
    "migu": {"threshold": 0.5},
}


@pytest.fixture(scope="module")
def three_tasks(make_tasks):
    return make_tasks(("zeta", "alpha", "mu"), num_train=10, num_test=2)


@pytest.fixture
def config_of(run_config):
    def make(name, **settings):
        return run_config(name, num_steps=4, strategy_settings=SETTINGS.get(name, {}), **settings)

    return make


def minima(directory):
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.glob("minima/*/*/*.safetensors"))}


# Two learners and a memory, prompts that grow. The others, slow tests, go through the same checkpoint,
# and what each adds to it goes through JSON and on in its own tests.
OF_EACH_KIND = {"ilora", "progressive_prompts"}


@pytest.mark.parametrize("name", [n if n in OF_EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in TRAINED])
def test_a_run_stopped_within_a_task_ends_with_the_very_same_bytes(name, config_of, three_tasks, stop_after, tmp_path):
    config = config_of(name, lora_dropout=0.3)
    train(config, tmp_path / "whole", device="cpu", tasks=three_tasks)
    with pytest.raises(Stopped):  # in the third task; of mc_sgd, in the second phase of the second
        train(config, tmp_path / "run", device="cpu", tasks=three_tasks, progress=stop_after(10))
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["within"]
    train(config, tmp_path / "run", device="cpu", tasks=three_tasks, resume=True)
    assert minima(tmp_path / "run") == minima(tmp_path / "whole") != {}
    for table in ("accuracy_matrix.csv", "metrics.json"):
        assert (tmp_path / "run" / "tables" / table).read_text() == (tmp_path / "whole" / "tables" / table).read_text()
    costs = [load_run(tmp_path / name).cost for name in ("whole", "run")]
    for key in ("forward_examples", "backward_examples", "memory_examples", "memory_bytes"):
        assert costs[0][key] == costs[1][key]
    run, strategy = load_run(tmp_path / "run"), make_strategy(name, 0, **SETTINGS.get(name, {}))
    assert run.answering_learner == strategy.answering_learner and run.has_paths == strategy.has_paths
    assert run.is_joint == (strategy.schedule == "joint") and run.is_sequential == (strategy.schedule == "sequence")


@pytest.fixture
def trained_on(monkeypatch):
    """The current examples of every step, in order."""
    seen = []
    monkeypatch.setattr(Strategy, "after_step", lambda self, model, examples, first_pass: seen.append(examples))
    return seen


def test_joint_sees_all_train_splits_shuffled_together_and_nothing_else(
    run_config, three_tasks, tokenizer, trained_on, tmp_path
):
    from mcanalysis.models.encoding import encode_all

    train(run_config("joint", num_steps=5), tmp_path / "run", device="cpu", tasks=three_tasks)
    assert len(trained_on) == 3 * 5  # the steps of all tasks
    of_task = {e: t.task.name for t in three_tasks for e in encode_all(t.splits["train"], tokenizer, 128)[0]}
    held_out = {e for t in three_tasks for s in ("eval", "test") for e in encode_all(t.splits[s], tokenizer, 128)[0]}
    seen = {e for step in trained_on for e in step}
    assert seen == set(of_task) and not seen & held_out
    assert sum(len({of_task[e] for e in step}) > 1 for step in trained_on) > 10  # mixtures, not tasks in turn
    assert [p.name for p in (tmp_path / "run" / "minima").iterdir()] == ["3-JOINT"]
    table = pd.read_csv(tmp_path / "run" / "tables" / "accuracy_matrix.csv")
    assert list(table.after) == [0, 3] and table.notna().all(axis=None)


def test_individual_does_not_depend_on_the_order_of_the_tasks(run_config, three_tasks, tmp_path):
    for name, tasks in (("there", three_tasks), ("back", three_tasks[::-1])):
        train(run_config("individual", num_steps=2), tmp_path / name, device="cpu", tasks=tasks)
    found = {n: minima(tmp_path / n) for n in ("there", "back")}
    for k, task in enumerate(three_tasks, start=1):
        file = f"{task.task.name}/fast/adapter_model.safetensors"
        assert found["there"][f"minima/{k}-{file}"] == found["back"][f"minima/{4 - k}-{file}"]
    assert len(set(found["there"].values())) == 3
    matrix = pd.read_csv(tmp_path / "there" / "tables" / "accuracy_matrix.csv").drop(columns="after").to_numpy()
    expected = np.vstack([np.ones((1, 3)), np.eye(3)]).astype(bool)  # row 0 and the diagonal
    assert (~np.isnan(matrix) == expected).all()


def test_zero_shot_is_the_base_in_every_row(run_config, three_tasks, tmp_path):
    train(run_config("zero_shot"), tmp_path / "zero", device="cpu", tasks=three_tasks)
    train(run_config("sequential"), tmp_path / "trained", device="cpu", tasks=three_tasks)
    zero, trained = (
        pd.read_csv(tmp_path / n / "tables" / "accuracy_matrix.csv").drop(columns="after").to_numpy()
        for n in ("zero", "trained")
    )
    assert (zero == trained[0]).all() and zero.shape == (4, 3)
    run = load_run(tmp_path / "zero")
    assert run.answering_learner == "base" and not (run.has_paths or run.is_joint or run.is_sequential)
    assert not (tmp_path / "zero" / "minima").exists()
