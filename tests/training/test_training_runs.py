"""Whole runs through `train`: what they write, refuse, repeat and never look at."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from mcanalysis.errors import DataError, RunDirectoryError, UnknownNameError, UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.store.hashing import hash_files
from mcanalysis.tasks.task import Example, Task, TaskData
from mcanalysis.training import continual_trainer
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import ContinualTrainer, train
from mcanalysis.training.task_trainer import TaskTrainer


def fingerprint(directory):
    return {p: hash_files([p]) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def ilora_run(run_config, make_tasks, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "ilora"
    assert train(run_config("ilora"), directory, device="cpu", tasks=make_tasks())
    return directory


def test_a_run_directory_holds_what_outsiders_rely_on(ilora_run):
    files = {str(p.relative_to(ilora_run)) for p in ilora_run.rglob("*") if p.is_file()}
    for label in ("1-zeta", "2-alpha"):
        for learner in ("fast", "slow"):
            assert f"minima/{label}/{learner}/adapter_config.json" in files
            assert f"minima/{label}/{learner}/adapter_model.safetensors" in files
    for name in ("accuracy_matrix.csv", "accuracy_matrix_fast.csv", "metrics.json"):
        assert f"tables/{name}" in files
    assert {"manifest.json", "measurements.sqlite", "checkpoint/state.json"} <= files
    manifest = json.loads((ilora_run / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["config"]["strategy_settings"]["ema_decay"] == 0.95
    assert manifest["config"]["tasks"] == ["zeta", "alpha"]
    metrics = json.loads((ilora_run / "tables" / "metrics.json").read_text())
    assert set(metrics["learners"]) == {"fast", "slow"}
    assert {k: v for k, v in metrics.items() if k != "learners"} == metrics["learners"]["slow"]


def test_no_file_of_a_run_is_a_pickle(ilora_run):
    for path in ilora_run.rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".safetensors", ".csv", ".sqlite"), path
            assert path.read_bytes()[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"), path
    assert not [p for p in ilora_run.rglob("*") if p.name.startswith(".")]


def test_losses_are_finite_numbers_one_per_step(ilora_run):
    for label in ("1-zeta", "2-alpha"):
        losses = json.loads((ilora_run / "losses" / f"{label}.json").read_text())
        assert len(losses) == 3
        assert all(np.isfinite(x) and x > 0 for x in losses)


def test_the_matrix_has_a_row_per_task_and_the_base_above_them(ilora_run):
    for name in ("accuracy_matrix", "accuracy_matrix_fast"):
        table = pd.read_csv(ilora_run / "tables" / f"{name}.csv")
        assert list(table.columns) == ["after", "zeta", "alpha"]
        assert list(table.after) == [0, 1, 2]
        assert table[["zeta", "alpha"]].notna().all(axis=None)
        assert table[["zeta", "alpha"]].apply(lambda c: c.between(0, 1)).all(axis=None)


def test_row_zero_is_the_base(run_config, make_tasks, plain_model_at, tokenizer, tmp_path):
    """The test answers are what the base itself writes, so that the base and only the base scores 1."""
    plain = plain_model_at()
    tasks = []
    for data in make_tasks():
        answered = []
        for e in data.splits["test"]:
            ids = tokenizer(e.prompt, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
            answered.append(Example(e.prompt, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
        tasks.append(TaskData.of(data.task, {**data.splits, "test": answered}))
    train(run_config("sequential", num_steps=12), tmp_path / "run", device="cpu", tasks=tasks)
    matrix = pd.read_csv(tmp_path / "run" / "tables" / "accuracy_matrix.csv")[["zeta", "alpha"]].to_numpy()
    assert (matrix[0] == 1).all()
    assert (matrix[1:] < 1).any()


def test_what_is_kept_of_outputs_is_written_to_its_end(ilora_run, make_tasks, tokenizer, plain_model_at):
    """Though the score, an exact match, is decided by the first tokens; against `generate` by hand, at the base."""
    plain = plain_model_at()
    kept = json.loads((ilora_run / "generations" / "0-base.json").read_text(encoding="utf-8"))
    for data in make_tasks():
        for example, output in zip(data.splits["test"], kept[data.task.name], strict=True):
            ids = tokenizer(example.prompt, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                out = plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
            assert len(out[0]) == ids.shape[1] + 6
            assert output == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) != example.answer


def test_the_saved_minima_are_the_points_that_were_measured(ilora_run, make_model, make_tasks, tokenizer):
    from mcanalysis.evaluation.engine import Engine
    from mcanalysis.evaluation.measuring import measurement_key
    from mcanalysis.evaluation.objective import make_objective
    from mcanalysis.params.point import content_hash
    from mcanalysis.store.measurements import MeasurementStore

    objectives = [make_objective(t, "test", tokenizer, 128) for t in make_tasks()]
    engine = Engine(make_model(alpha=16.0))
    with MeasurementStore(ilora_run / "measurements.sqlite") as store:
        for label, learner in (("1-zeta", "fast"), ("2-alpha", "fast"), ("2-alpha", "slow")):
            point = load_adapter(ilora_run / "minima" / label / learner).point
            for objective, evaluation in zip(objectives, engine.evaluate(point, objectives), strict=True):
                stored = store.get(measurement_key(content_hash(point), objective))
                assert stored is not None
                np.testing.assert_allclose(stored.nll, evaluation.measurement.nll, rtol=1e-6)
        assert len(store) == 2 * (1 + 2 * 2)  # tasks × (base and two learners after two tasks)


def test_a_finished_run_is_not_trained_again(ilora_run, run_config, make_tasks, monkeypatch):
    before = fingerprint(ilora_run)
    monkeypatch.setattr(TaskTrainer, "train", lambda *a, **k: pytest.fail("trained again"))
    assert train(run_config("ilora"), ilora_run, device="cpu", tasks=make_tasks()) is False
    assert train(run_config("ilora"), ilora_run, device="cpu", tasks=make_tasks(), resume=True) is False
    assert fingerprint(ilora_run) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"strategy_settings": {"ema_decay": 0.5}}, "ema_decay"),
        ({"seed": 1}, "seed"),
        ({"num_steps": 4}, "num_steps"),
        ({"lora_alpha": 8.0}, "lora_alpha"),
        ({"strategy": "er"}, "strategy"),
        ({"num_test": 2}, "num_test"),
    ],
)
def test_another_configuration_is_refused_by_the_name_of_the_field(ilora_run, run_config, make_tasks, change, field):
    before = fingerprint(ilora_run)
    config = run_config(**{"strategy": "ilora", **change})
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=field):
            train(config, ilora_run, device="cpu", tasks=make_tasks(), resume=resume)
    assert fingerprint(ilora_run) == before


def test_other_data_and_other_tasks_are_refused(ilora_run, run_config, make_tasks):
    with pytest.raises(RunDirectoryError, match="zeta with content hash"):
        train(run_config("ilora"), ilora_run, device="cpu", tasks=make_tasks(seed=1))
    with pytest.raises(RunDirectoryError, match="tasks"):
        train(run_config("ilora"), ilora_run, device="cpu", tasks=make_tasks(("zeta", "beta")))


def test_training_never_looks_at_the_other_splits(run_config, make_tasks, adapter_bytes, tmp_path):
    for name, held_out in (("a", 900), ("b", 901)):
        tasks = make_tasks(held_out_seed=held_out, num_test=2 if name == "a" else 3)
        train(run_config("er"), tmp_path / name, device="cpu", tasks=tasks)
    assert adapter_bytes(tmp_path / "a") == adapter_bytes(tmp_path / "b")
    losses = [[p.read_text() for p in sorted((tmp_path / n / "losses").iterdir())] for n in "ab"]
    assert losses[0] == losses[1]


def test_no_held_out_example_is_ever_in_a_training_batch(make_model, make_tasks, tokenizer, monkeypatch, tmp_path):
    from mcanalysis.models.encoding import encode_all
    from mcanalysis.strategies import make_strategy

    seen = set()
    original = TaskTrainer.compute_loss

    def spy(self, model, inputs, **kwargs):
        seen.update([*inputs["micro_batch"].current, *inputs["micro_batch"].replay])
        return original(self, model, inputs, **kwargs)

    monkeypatch.setattr(TaskTrainer, "compute_loss", spy)
    tasks = make_tasks()
    config = TrainingConfig(num_steps=4, batch_size=4)
    ContinualTrainer(make_model(), tasks, make_strategy("ilora", 0), config, tmp_path / "run").run()
    everything = [encode_all(t.splits["train"], tokenizer, 1024)[0] for t in tasks]
    assert seen == {e for task in everything for e in task}


def test_same_seed_same_bytes_and_other_seed_other_losses(run_config, make_tasks, adapter_bytes, ilora_run, tmp_path):
    torch.manual_seed(123)  # the caller's random state is no part of a run
    train(run_config("ilora"), tmp_path / "same", device="cpu", tasks=make_tasks())
    train(run_config("ilora", seed=1), tmp_path / "other", device="cpu", tasks=make_tasks())
    assert adapter_bytes(tmp_path / "same") == adapter_bytes(ilora_run)

    def losses(directory):
        return [json.loads(p.read_text()) for p in sorted((directory / "losses").iterdir())]

    assert losses(tmp_path / "same") == losses(ilora_run)
    assert all(a != b for a, b in zip(losses(tmp_path / "other"), losses(ilora_run), strict=True))
    assert not set(adapter_bytes(tmp_path / "other").values()) & set(adapter_bytes(ilora_run).values())


@pytest.mark.parametrize("names", [("C-STANCE", "FOMC"), ("FOMC", "C-STANCE")])
def test_a_run_is_the_same_whatever_its_tasks_are_called(
    run_config, make_tasks, adapter_bytes, ilora_run, names, tmp_path
):
    train(run_config("ilora"), tmp_path / "run", device="cpu", tasks=make_tasks(names))
    renamed, expected = adapter_bytes(tmp_path / "run"), adapter_bytes(ilora_run)
    assert [k.split("/")[1] for k in sorted(renamed)][::2] == [f"{k}-{name}" for k, name in enumerate(names, 1)]
    assert [v for _, v in sorted(renamed.items())] == [v for _, v in sorted(expected.items())]


def test_nothing_is_dropped_and_the_cut_ones_are_counted(make_model, make_tasks, caplog, tmp_path):
    from mcanalysis.strategies import make_strategy

    data = make_tasks(("zeta",))[0]
    long = [Example("river " * 100, "green") for _ in range(3)]
    data = TaskData.of(data.task, {**data.splits, "train": [*data.splits["train"], *long]})
    config = TrainingConfig(num_steps=1, batch_size=4, max_length=60)
    trainer = ContinualTrainer(make_model(), [data], make_strategy("er", 0), config, tmp_path)
    assert trainer.num_cut == {"zeta": 3}
    assert len(trainer._stages[0].examples) == len(data.splits["train"])
    assert "3 of 15 train prompts of zeta were cut" in caplog.text


def test_one_task_leaves_undefined_metrics_null(run_config, make_tasks, tmp_path):
    train(run_config("er"), tmp_path / "run", device="cpu", tasks=make_tasks(("only",)))
    metrics = json.loads((tmp_path / "run" / "tables" / "metrics.json").read_text())
    assert metrics["backward_transfer"] is None
    assert metrics["average_accuracy"] is not None


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        ({"strategy": "ilore"}, UnknownNameError, "Did you mean 'ilora'"),
        ({"benchmark": "embeded"}, UnknownNameError, "Did you mean 'embedded'"),
        ({"tasks": ("FOMCC",)}, UnknownNameError, "Did you mean 'FOMC'"),
        ({"model": "embeded"}, UnknownNameError, "Did you mean 'embedded'"),
        ({"target_modules": ("nothing",)}, UserError, "LoRA-able"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(base_folder, tmp_path, config, error, match):
    settings = {"model": str(base_folder), "tasks": ("FOMC",), "sizes": {"train": 2, "eval": 1, "test": 1}, **config}
    with pytest.raises(error, match=match):
        train(RunConfig(**settings), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_task_without_train_examples_is_refused_before_anything_is_written(run_config, make_tasks, tmp_path):
    data = TaskData.of(Task("zeta", "en", "exact_match", 4), {"test": make_tasks()[0].splits["test"]})
    with pytest.raises(DataError, match="train examples for zeta"):
        train(run_config(), tmp_path / "run", device="cpu", tasks=[data])
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_refused(run_config, make_tasks, tmp_path):
    with pytest.raises(UserError, match="--device"):
        train(run_config(), tmp_path / "run", device="cuda:77", tasks=make_tasks())
    assert not (tmp_path / "run").exists()


def test_without_a_device_the_machine_decides(run_config, make_tasks, tmp_path, monkeypatch):
    asked = []
    load_base = continual_trainer.load_base
    monkeypatch.setattr(
        continual_trainer, "load_base", lambda n, d, device, *_: asked.append(device) or load_base(n, d)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train(run_config(num_steps=1), tmp_path / "run", tasks=make_tasks(("zeta",)))
    assert asked == ["cpu"]
    assert TrainingConfig().num_steps > 0


@pytest.mark.parametrize("field", ["num_steps", "batch_size", "gradient_accumulation", "max_length"])
def test_impossible_training_settings_are_named(field):
    with pytest.raises(UserError, match=field):
        TrainingConfig(**{field: 0})
    with pytest.raises(UserError, match="learning_rate"):
        TrainingConfig(learning_rate=float("nan"))


def test_a_configuration_survives_the_manifest(ilora_run, run_config):
    recorded = json.loads((ilora_run / "manifest.json").read_text())["config"]
    config = RunConfig.from_resolved(recorded)
    assert config.training == run_config("ilora").training
    assert {**config.resolved(), "tasks": None} == {**run_config("ilora").resolved(), "tasks": None}
