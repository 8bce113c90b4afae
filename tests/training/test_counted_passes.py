"""What a training cost and what it keeps, counted: against sums by hand, of each strategy."""

import json
from dataclasses import replace

import pytest

from mcanalysis.errors import UserError
from mcanalysis.strategies import get_strategy, make_strategy, strategy_names
from mcanalysis.training import continual_trainer
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.stopping import Stopped

# Two tasks of 10 examples, 3 steps of 4 rows each. Examples forward and backward, first task + second task.
PLAIN = 12 + 12
COUNTS = {
    "agem": ({"reference_batch_size": 3}, PLAIN + 3 * 3, PLAIN + 3 * 3),  # three reference batches of 3
    "cls_er": ({}, 12 + 24 + 2 * 12, 12 + 24),  # two teachers read the 12 replayed rows
    "der": ({}, 12 + 24 + 10 + 10, 12 + 24),  # each example's logits, once
    "er": ({}, 12 + 24, 12 + 24),
    "ewc": ({"fisher_examples": 5}, PLAIN + 5 + 5, PLAIN + 5 + 5),
    "gem": ({"examples_per_step": 3}, PLAIN + 3 * 3, PLAIN + 3 * 3),
    "ilora": ({}, 12 + 24 + 12, 12 + 24),  # slow reads the replayed rows
    "inflora": ({"num_covariance_examples": 5}, PLAIN + 4 * 5, PLAIN),  # inputs before and after each task
    "lwf": ({}, PLAIN + 12, PLAIN),
    "mc_sgd": ({"num_alphas": 2}, PLAIN + 3 * (8 + 8), PLAIN + 3 * (8 + 8)),  # both ends of each line, then w itself
    "self_replay": ({}, 24 + 24 + 2, 24 + 24),  # prompts are rows of their own; 2 written, neither comes to its end
    "sure": ({}, 10 + 12 + 10 + 12 + 2 * 4, 12 + 12 + 2 * 4),  # surprise; replay in steps 4 and 6
    "zero_shot": ({}, 0, 0),
}
KEPT = dict.fromkeys(("agem", "cls_er", "der", "er", "gem", "ilora", "mc_sgd", "sure"), 20)  # all that were seen
KEEPS_NOTHING = {"individual", "joint", "l2p", "migu", "self_replay", "sequential", "zero_shot"}
FAST = {"ewc", "gem", "ilora", "mc_sgd", "self_replay"}


@pytest.fixture(scope="module")
def tasks(make_tasks):
    return make_tasks(num_train=10, num_test=1)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in strategy_names()]
)
def test_examples_are_counted_as_by_hand(name, run_config, tasks, tmp_path):
    settings, forward, backward = COUNTS.get(name, ({}, PLAIN, PLAIN))
    train(run_config(name, strategy_settings=settings, num_test=1), tmp_path / "run", device="cpu", tasks=tasks)
    cost = json.loads((tmp_path / "run/tables/cost.json").read_text())
    assert (cost["forward_examples"], cost["backward_examples"]) == (forward, backward)
    assert cost["memory_examples"] == KEPT.get(name, 0)
    assert (cost["memory_bytes"] == 0) == (name in KEEPS_NOTHING)


def test_a_stopped_run_counts_what_an_undisturbed_one_does(run_config, tasks, stop_after, tmp_path):
    """Tokens too: of one row per step they are its own; ids are 4 bytes, and the slow adapter's numbers as well."""
    config = run_config("ilora", num_test=1)
    config = replace(config, training=replace(config.training, batch_size=1))
    train(config, tmp_path / "whole", device="cpu", tasks=tasks[:1])
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", device="cpu", tasks=tasks[:1], progress=stop_after(2))
    train(config, tmp_path / "run", device="cpu", tasks=tasks[:1], resume=True)
    whole, resumed = (json.loads((tmp_path / n / "tables/cost.json").read_text()) for n in ("whole", "run"))
    names = [f"{way}_{what}" for way in ("forward", "backward") for what in ("examples", "tokens")]
    assert {n: whole[n] for n in names} == {n: resumed[n] for n in names}
    state = json.loads((tmp_path / "run/checkpoint/state.json").read_text())
    tokens = sum(len(p) + len(a) for p, a, _ in state["strategy"]["buffer"]["items"])
    assert whole["memory_examples"] == whole["forward_examples"] == 3
    assert whole["forward_tokens"] == whole["backward_tokens"] == tokens
    assert whole["memory_bytes"] == 4 * tokens + 4 * whole["num_trained"]


def test_a_run_that_began_before_passes_were_counted_goes_on_without(
    run_config, tasks, stop_after, tmp_path, monkeypatch
):
    config = run_config("sequential", num_test=1)
    written = continual_trainer.ContinualTrainer._all_passes
    monkeypatch.setattr(continual_trainer.ContinualTrainer, "_all_passes", lambda self: None)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", device="cpu", tasks=tasks[:1], progress=stop_after(2))
    monkeypatch.setattr(continual_trainer.ContinualTrainer, "_all_passes", written)
    train(config, tmp_path / "run", device="cpu", tasks=tasks[:1], resume=True)
    cost = json.loads((tmp_path / "run/tables/cost.json").read_text())
    assert "forward_examples" not in cost and cost["train_seconds"] > 0


@pytest.mark.parametrize("name", ["er", "sure"])
def test_a_memory_is_a_share_of_all_train_examples(name, run_config, tasks, tmp_path):
    """0.25 of 20 are 5; the manifest keeps the share, and a finished run is known again."""
    config = run_config(name, strategy_settings={"memory_size": 0.25}, num_test=1)
    assert train(config, tmp_path / "run", device="cpu", tasks=tasks)
    cost = json.loads((tmp_path / "run/tables/cost.json").read_text())
    assert cost["memory_examples"] == (5 if name == "er" else 4)  # sure shares 5 out among 2 tasks
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["config"]["strategy_settings"]["memory_size"] == 0.25
    assert not train(config, tmp_path / "run", device="cpu", tasks=tasks)
    strategy = make_strategy(name, 0, memory_size=0.25)
    strategy.settle_memory([10, 10])
    assert strategy.config.memory_size == 5


@pytest.mark.parametrize(("size", "got"), [(1, "got 1; raise"), (0.06, "got 1, 0.06 of 20 train examples; raise")])
def test_a_memory_too_small_for_one_example_per_task_is_refused_before_anything_is_written(
    size, got, run_config, tasks, tmp_path, monkeypatch
):
    config = run_config("er", strategy_settings={"memory_size": size}, num_test=1)
    with pytest.raises(UserError, match=f"each of 2 tasks, {got}"):
        train(config, tmp_path / "run", device="cpu", tasks=tasks)
    assert not (tmp_path / "run").exists()
    if size == 1:  # a run of before there was this check goes on, and is served
        with monkeypatch.context() as before:
            before.setattr(get_strategy("er").config_class, "num_remembered", lambda self, num_examples: None)
            train(config, tmp_path / "run", device="cpu", tasks=tasks)
        assert not train(config, tmp_path / "run", device="cpu", tasks=tasks)
