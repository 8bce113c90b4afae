"""Rates of steps against the closed form, steps by task and by epochs, and runs of before that keep their schedule."""

import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from mcanalysis.errors import RunDirectoryError, UnknownNameError, UserError
from mcanalysis.strategies import strategy_names
from mcanalysis.strategies.sequential import Sequential
from mcanalysis.strategies.strategy import StrategyConfig
from mcanalysis.training.config import RunConfig, TrainingConfig, steps_in_words
from mcanalysis.training.continual_trainer import is_finished, train
from mcanalysis.training.dry_run import dry_run
from mcanalysis.training.stopping import Stopped

PEAK = 2e-3


@pytest.fixture
def rates(monkeypatch):
    """The rate that each step of AdamW was taken with."""
    seen, step = [], torch.optim.AdamW.step

    def spied(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    return seen


def closed_form(schedule, i, steps, warmup):
    if i < warmup:
        return (i + 1) / (warmup + 1)
    after = (i - warmup) / (steps - warmup)
    return {"linear": 1 - after, "cosine": (1 + math.cos(math.pi * after)) / 2, "constant": 1.0}[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("ratio", "warmup"), [(0.0, 0), (0.3, 2), (1.0, 7)])
def test_each_step_has_the_rate_of_the_closed_form(
    make_model, encode_examples, train_task, rates, schedule, ratio, warmup
):
    settings = {"num_steps": 7, "learning_rate": PEAK, "warmup_ratio": ratio, "schedule": schedule}
    train_task(make_model(), Sequential(StrategyConfig(), 0), encode_examples(4), **settings)
    assert rates == pytest.approx([PEAK * closed_form(schedule, i, 7, warmup) for i in range(7)], rel=1e-12)
    assert all(rate > 0 for rate in rates)
    if schedule == "constant":
        return
    # transformers' own, whose first `warmup` rates are lower.
    make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[schedule]
    factor = make(torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup, 7).lr_lambdas[0]
    assert rates[warmup:] == pytest.approx([PEAK * factor(i) for i in range(warmup, 7)], rel=1e-12)


class Watching(Sequential):
    """Keeps the point after every step."""

    def __init__(self):
        super().__init__(StrategyConfig(), 0)
        self.points = []

    def after_step(self, model, examples, first_pass):
        self.points.append(model.point())


@pytest.mark.parametrize("from_zero", [False, True])
def test_the_first_step_moves_the_weights(make_model, encode_examples, train_task, from_zero):
    model, watching = make_model(), Watching()
    before = model.point()
    train_task(model, watching, encode_examples(4), num_steps=4, warmup_ratio=0.5, from_zero=from_zero)
    moved = [any(not torch.equal(before[name], t) for name, t in point.items()) for point in watching.points]
    assert moved == [not from_zero, True, True, True]  # a run of before wasted it, and goes on so


def test_a_run_of_before_has_the_rates_it_had(make_model, encode_examples, train_task, rates):
    settings = {"num_steps": 10, "learning_rate": PEAK, "warmup_ratio": 0.25, "from_zero": True}
    train_task(make_model(), Sequential(StrategyConfig(), 0), encode_examples(4), **settings)
    factor = get_linear_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=1.0), 2, 10).lr_lambdas[0]
    assert rates == pytest.approx([PEAK * factor(i) for i in range(10)], rel=1e-12) and rates[0] == 0


@pytest.fixture(scope="module")
def two_tasks(make_tasks):
    """Eleven and six train examples: three and two steps of four."""
    zeta, alpha = make_tasks(("zeta", "alpha"), num_train=11, num_test=2)
    return [zeta, alpha.first({"train": 6})]


def with_training(config, **settings):
    return replace(config, training=replace(config.training, **settings))


def lengths(directory):
    return {f.stem: len(json.loads(f.read_text())) for f in sorted((directory / "losses").glob("*.json"))}


EPOCHS = {"num_steps": None, "epochs": {"zeta": 2, "alpha": 1}}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_steps": None, "epochs": 2}, [6, 4]),
        (EPOCHS, [6, 2]),
        ({"num_steps": {"alpha": 1, "zeta": 3}}, [3, 1]),
        ({"num_steps": None, "epochs": 1, "gradient_accumulation": 2}, [2, 1]),
    ],
)
def test_steps_by_task_and_epochs_are_planned(settings, steps, run_config, two_tasks):
    config = with_training(run_config(), **settings)
    assert list(dry_run(config, tasks=two_tasks).stages.steps) == steps
    assert list(dry_run(replace(config, strategy="joint"), tasks=two_tasks).stages.steps) == [sum(steps)]
    recorded = json.loads(json.dumps(config.resolved()))
    assert RunConfig.from_resolved(recorded).training == config.training


def test_epochs_are_trained(run_config, two_tasks, tmp_path):
    train(with_training(run_config(), **EPOCHS), tmp_path / "run", device="cpu", tasks=two_tasks)
    assert lengths(tmp_path / "run") == {"1-zeta": 6, "2-alpha": 2}
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["training"]
    assert (recorded["num_steps"], recorded["epochs"]) == (None, EPOCHS["epochs"])


SLOW = [name for name in strategy_names() if name not in ("joint", "mc_sgd", "zero_shot")]


@pytest.mark.parametrize("name", ["joint", "mc_sgd", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_every_strategy_honours_steps_by_task(name, run_config, two_tasks, tmp_path):
    config = with_training(run_config(name), num_steps={"zeta": 3, "alpha": 1})
    train(config, tmp_path / "run", device="cpu", tasks=two_tasks)
    phases = 2 if name == "mc_sgd" else 1  # from its second task on
    expected = {"2-JOINT": 4} if name == "joint" else {"1-zeta": 3, "2-alpha": 1 * phases}
    assert lengths(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("name", "steps"),
    [("ilora", 7), *(pytest.param(n, s, marks=pytest.mark.slow) for n in ("er", "mc_sgd", "o_lora") for s in (2, 7))],
)
def test_stopped_within_a_task_it_ends_as_if_it_had_not_been(
    name, steps, run_config, two_tasks, adapter_bytes, stop_after, tmp_path
):
    config = with_training(run_config(name), **EPOCHS, schedule="cosine", warmup_ratio=0.5)
    train(config, tmp_path / "whole", device="cpu", tasks=two_tasks)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", device="cpu", tasks=two_tasks, progress=stop_after(steps))
    assert train(config, tmp_path / "run", device="cpu", tasks=two_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")
    assert lengths(tmp_path / "run") == lengths(tmp_path / "whole")


@pytest.fixture
def of_before(run_config):
    """(configuration of today without a rate, of a run of before) on a base that is not the embedded one."""
    today = with_training(run_config(num_steps=6), learning_rate=None, warmup_ratio=0.5)
    return today, with_training(today, learning_rate=3e-3, from_zero=True)


@pytest.mark.slow
def test_a_run_of_before_goes_on_with_its_own_schedule(of_before, two_tasks, adapter_bytes, stop_after, tmp_path):
    today, before = of_before
    train(before, tmp_path / "whole", device="cpu", tasks=two_tasks)
    with pytest.raises(Stopped):
        train(before, tmp_path / "run", device="cpu", tasks=two_tasks, progress=stop_after(2))
    manifest = tmp_path / "run" / "manifest.json"
    kept = json.loads(manifest.read_text())["config"]["training"]
    assert kept.keys() == {  # those of version 0.1
        "num_steps", "batch_size", "gradient_accumulation", "learning_rate", "warmup_ratio", "max_grad_norm",
        "weight_decay", "max_length", "group_by_length",
    }  # fmt: skip
    with pytest.raises(RunDirectoryError, match=r'expected no training.schedule, got "cosine"'):
        train(with_training(today, schedule="cosine"), tmp_path / "run", device="cpu", tasks=two_tasks, resume=True)
    assert train(today, tmp_path / "run", device="cpu", tasks=two_tasks, resume=True)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "whole")
    assert json.loads(manifest.read_text())["config"]["training"] == kept
    assert is_finished(today, tmp_path / "run", two_tasks, resume=False)
    assert not train(today, tmp_path / "run", device="cpu", tasks=two_tasks)


def test_old_and_new_runs_in_one_comparison_are_told(run_config, tmp_path, caplog, monkeypatch):
    from mcanalysis.store.manifest import new_manifest, write_manifest
    from mcanalysis.studies import training

    monkeypatch.setattr(training, "is_finished", lambda *_: False)
    configs = [replace(run_config(), benchmark="embedded", tasks=("FOMC",), sizes={"train": 4}, seed=s) for s in (0, 1)]
    old = configs[0].resolved()
    del old["training"]["schedule"]
    write_manifest(tmp_path / "0", new_manifest(old))
    training.trainings(configs, [tmp_path / "0", tmp_path / "1"])
    (said,) = [r.getMessage() for r in caplog.records if r.name == training.logger.name]
    assert said.startswith("1 of 2 runs are of before schedules")
    caplog.clear()
    training.trainings(configs[1:], [tmp_path / "1"])
    assert not caplog.records


def test_the_rate_fits_the_base(base_folder):
    for model, rate in (("embedded", 3e-3), (str(base_folder), 2e-4), ("meta-llama/Llama-2-7b-hf", 2e-4)):
        config = RunConfig(model=model)
        assert config.resolved()["training"]["learning_rate"] == config.settled().training.learning_rate == rate
        given = RunConfig(model=model, training=TrainingConfig(learning_rate=1e-5))
        assert given.resolved()["training"]["learning_rate"] == 1e-5


def test_the_rate_of_the_base_is_trained_with(make_model, encode_examples, train_task, rates):
    model = make_model()
    for name, rate in (("embedded", 3e-3), ("some/other", 2e-4)):
        model.name = name
        train_task(model, Sequential(StrategyConfig(), 0), encode_examples(4), num_steps=1, learning_rate=None)
        assert rates.pop() == rate


def test_what_is_wrong_with_steps_and_epochs_is_named():
    for settings, said in (
        ({"num_steps": 3, "epochs": 3}, "got both"),
        ({"epochs": 1.5}, r"epochs as a whole number, got 1\.5"),
        ({"epochs": {"FOMC": 0}}, "epochs of at least 1, got 0 for FOMC"),
        ({"num_steps": -2}, "num_steps of at least 1, got -2"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"schedule": "cosine", "from_zero": True}, "from_zero"),
    ):
        with pytest.raises(UserError, match=said):
            TrainingConfig(**settings)
    by_task = TrainingConfig(epochs={"FOMC": 3, "ScienceQA": 2})
    with pytest.raises(UnknownNameError, match="Did you mean 'ScienceQB'"):
        by_task.check_tasks(["FOMC", "ScienceQB"])
    with pytest.raises(UserError, match="--epochs for every task, got none for MedMCQA; add MedMCQA=N"):
        by_task.check_tasks(["FOMC", "MedMCQA"], others=["ScienceQA"])
    by_task.check_tasks(["FOMC"], others=["ScienceQA"])
    with pytest.raises(UserError, match="got none for Other"):
        by_task.steps_of("Other", 10)


def test_how_long_a_task_was_trained_is_told(run_config):
    assert steps_in_words(run_config(num_steps=9).resolved()["training"]) == "9 steps each"
    training = with_training(run_config(), num_steps={"A": 3, "B": 4}).resolved()["training"]
    assert steps_in_words(training) == "steps A 3, B 4"
