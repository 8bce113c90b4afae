"""`analyses/train.py`: its flags and configurations reach the run, it plans, stops, and prints once."""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from accelerate.commands.config.config_args import load_config_from_file

from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import lock_run_directory
from mcanalysis.strategies import strategy_names
from mcanalysis.training import continual_trainer, dry_run
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.stopping import Stopped

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "analyses" / "configs"
SMALL = ("--tasks", "FOMC,MedMCQA", "--steps", 1, "--num-train", 8, "--num-test", 2, "--batch-size", 2)


def refused(result, *pieces):
    code, out, err = result
    assert code == 2 and out == "", (code, out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for piece in pieces:
        assert piece in err


@pytest.fixture
def planned(script, monkeypatch):
    """planned(*flags) -> the (configuration, execution) that train.py would run."""
    seen = []

    def spy(config, how, **rest):
        seen.append((config, how))
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(dry_run, "dry_run", spy)

    def run(*flags):
        code, _, err = script("train", "--dry-run", *flags)
        assert code == 143, err
        return seen[-1]

    return run


def test_the_flags_defaults_are_the_configurations(planned):
    assert planned() == (RunConfig(), Execution())


def test_every_flag_arrives(planned):
    config, how = planned(
        "--strategy", "er", "--settings", "memory_size=7", "--seed", 3, "--model", "m/n", "--dtype", "bfloat16",
        "--quantization", "4bit", "--lora-rank", 2, "--lora-alpha", 3, "--lora-dropout", 0.1, "--target-modules", "a,b",
        "--benchmark", "trace", "--data-dir", "d", "--tasks", "A,B", "--scores", "A=rouge_l", "--num-train", 5,
        "--num-test", 6, "--max-length", 77, "--steps", 8, "--batch-size", 9, "--gradient-accumulation", 2,
        "--learning-rate", 0.1, "--warmup-ratio", 0.2, "--weight-decay", 0.3, "--max-grad-norm", 0.4,
        "--schedule", "cosine", "--order", "shuffled3",
        "--no-group-by-length", "--save-steps", 11, "--gradient-checkpointing", "--torch-compile", "--device", "cpu",
        "--revision", "side",
    )  # fmt: skip
    training = TrainingConfig(8, 9, 2, 0.1, 0.2, 0.4, 0.3, 77, False, "cosine")
    assert config == RunConfig(
        "er", {"memory_size": 7}, 3, "m/n", "bfloat16", "trace", "d", ("A", "B"), {"A": "rouge_l"}, {"train": 5}, 6,
        "4bit", 2, 3.0, 0.1, ("a", "b"), training, order="shuffled3", revision="side",
    )  # fmt: skip
    assert how == Execution("cpu", 11, (), True, True)


def test_an_order_that_does_not_exist_is_one_line(script, tmp_path):
    code, out, err = script("train", "--order", "papr", "--dry-run")
    assert (code, out) == (2, "") and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert err.startswith("error: Unknown order of the benchmark 'embedded' 'papr'. Did you mean 'paper'?")


def test_execution_reaches_training(script, monkeypatch):
    seen = []

    def spy(*args, **kwargs):
        seen.append(kwargs["execution"])
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(continual_trainer, "train", spy)
    code, _, err = script("train", "--save-steps", 5, "--gradient-checkpointing")
    assert (
        code == 130
        and err == "stopped; what was saved is kept: give the same command again, with --resume if training had begun\n"
    )
    assert seen == [Execution(save_steps=5, gradient_checkpointing=True)]
    from mcanalysis.studies import training

    monkeypatch.setattr(training, "train", spy)
    for name in ("compare", "connectivity"):
        flags = ("--strategy", "sequential", "--workers", 1, "--save-steps", 6, *SMALL)
        assert script(name, *flags)[0] == 130
        assert seen.pop().save_steps == 6


@pytest.mark.parametrize("file", sorted(f.name for f in CONFIGS.glob("*.yaml") if not f.name.startswith("accelerate")))
def test_the_configurations_that_come_along_are_valid(planned, file):
    config, how = planned("--config", CONFIGS / file, "--seed", 5)
    resolved = config.resolved()  # its strategy's settings, too
    assert resolved["seed"] == 5 and resolved["strategy"] == ("sequential" if file.startswith("trace") else "ilora")
    if file.startswith("ilora"):
        assert config.model == "meta-llama/Llama-2-7b-hf" and how.gradient_checkpointing
        assert config.training.learning_rate == 1e-4 and resolved["strategy_settings"]["ema_decay"] == 0.95
        assert config.training.schedule == "constant" and config.training.num_warmup_steps(395) == 79
        assert config.training.steps_of("any", 5000) == 5 * 79  # ⌈5000 / 64⌉


@pytest.mark.parametrize("engine", ["ddp", "deepspeed-zero2", "fsdp"])
def test_accelerate_reads_its_configurations(engine):
    config = load_config_from_file(str(CONFIGS / f"accelerate-{engine}.yaml"))
    assert config.mixed_precision == "no"  # the base's dtype is --dtype, adapters are float32
    if engine == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if engine == "deepspeed-zero2":
        assert config.deepspeed_config["zero_stage"] == 2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("steps: [1, 2]", ("steps", "[1, 2]")),
        ("resume: maybe", ("resume", "maybe")),
        ("quantization: 3bit", ("3bit", "4bit, 8bit")),
        ("seed: {a: 1}", ("seed",)),
        ("tasks: []", ("tasks", "[]")),
        ("general: x", ("general", "Did you mean 'general-data'?")),
        ("config: x.yaml", ("Unknown setting", "config")),
        ("steps: three", ("a whole number for steps", "three")),
        ("steps: {FOMC: 1.5}", ("whole numbers", "1.5")),
        ("epochs: {}", ("epochs", "{}")),
        ("steps: 3\nepochs: 2", ("got both", "--epochs")),
        ("epochs: {FOMCC: 2}\ntasks: [FOMC]", ("Unknown task for --epochs", "Did you mean 'FOMC'?")),
        ("lora-alpha: much", ("a number for lora-alpha", "much")),
        ("steps: 1\nsteps: 2", ("steps twice",)),
        ("num-train: 1\nnum_train: 2", ("num_train twice",)),
    ],
)
def test_a_configuration_file_is_held_to_what_flags_are(script, tmp_path, text, pieces):
    (tmp_path / "run.yaml").write_text(text)
    refused(script("train", "--config", "run.yaml"), *pieces)


def test_numbers_and_nothing_in_settings(planned, tmp_path):
    (tmp_path / "run.yaml").write_text("settings: {consistency_weight: 1e1, slow_rank: null, warm_up: false}\n")
    settings = planned("--config", "run.yaml")[0].strategy_settings
    assert settings == {"consistency_weight": 10.0, "slow_rank": None, "warm_up": False}
    assert planned("--settings", "consistency_weight=1e-2,answering=fast")[0].strategy_settings == {
        "consistency_weight": 0.01, "answering": "fast",
    }  # fmt: skip


@pytest.mark.parametrize("strategy", strategy_names())
def test_every_strategy_runs_and_is_reported(script, strategy):
    code, out, err = script("train", "--strategy", strategy, *SMALL, "--output-dir", "run")
    assert code == 0, err
    matrix = pd.read_csv("run/tables/accuracy_matrix.csv")
    lines = out[out.index("after") :].splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if ": " in line)]
    labels = {0: "base", 1: "1 FOMC", 2: "all tasks" if strategy == "joint" else "2 MedMCQA"}
    rows = [line for line in table if line.lstrip().startswith(tuple(labels.values()))]
    assert [labels[k] for k in matrix["after"]] == [next(v for v in labels.values() if v in r) for r in rows]


def test_a_dry_run_prints_and_writes_nothing(script, tmp_path):
    code, out, err = script("train", "--dry-run", "--strategy", "er", *SMALL, "--report-to", "tensorboard")
    if importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX"):
        assert code == 0, err
    code, out, err = script("train", "--dry-run", "--strategy", "er", *SMALL)
    assert code == 0, err
    for piece in ("FOMC", "MedMCQA", "24,576 trained", "an estimate", "generations: 12", "nothing is written"):
        assert piece in out
    assert "learning rate: 0.003 at its peak, schedule linear, warm-up over 10% of a task's steps" in out
    by_task = ("--epochs", "FOMC=3,MedMCQA=1", "--schedule", "cosine", "--learning-rate", 1e-3)
    code, out, err = script("train", "--dry-run", "--json", *SMALL[:2], *SMALL[4:], *by_task)
    plan = json.loads(out)
    assert code == 0 and (plan["learning_rate"], plan["schedule"]) == (1e-3, "cosine"), err
    assert [row["steps"] for row in plan["tables"]["stages"]] == [12, 4]  # eight examples, two a step
    assert not any(tmp_path.iterdir())


@pytest.fixture
def general(tmp_path):
    folder = tmp_path / "general" / "Facts"
    folder.mkdir(parents=True)
    (folder / "test.json").write_text(json.dumps([{"prompt": "one and one:", "answer": "two"}]))
    return folder.parent


def test_general_tasks_are_measured_before_and_after_each_task(script, tmp_path, general):
    flags = ("--strategy", "ilora", *SMALL, "--general-data", general, "--output-dir", "run")
    assert script("train", *flags)[0] == 0
    table = pd.read_csv(tmp_path / "run" / "tables" / "general.csv")
    assert list(table.columns) == ["after", "learner", "task", "loss", "score", "retention"]
    assert len(table) == 2 * (1 + len(list((tmp_path / "run" / "minima").iterdir()))) and set(table.task) == {"Facts"}
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["general"]["folder"] == str(general)
    refused(script("connectivity", "--run", "run", "--general-data", general), "--general-data", "got it with --run")


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (("--report-to", "tensorbord"), ("Unknown tracker", "Did you mean 'tensorboard'?")),
        (("--batch-size", 0), ("batch_size of at least 1", "got 0")),
        (("--steps", -1), ("num_steps of at least 1", "got -1")),
        (("--epochs", 0), ("epochs of at least 1", "got 0")),
        (("--epochs", 1.5), ("--epochs", "TASK=N", "'1.5'")),
        (("--epochs", 2, "--steps", 3), ("steps or epochs, got both",)),
        (("--steps", "FOMC=3"), ("--steps for every task, got none for MedMCQA", "MedMCQA=N")),
        (("--steps", "FOMC=3,MedMCQA=0"), ("num_steps of at least 1, got 0 for MedMCQA",)),
        (("--epochs", "FOMC=3,MedMCQ=2"), ("Unknown task for --epochs", "Did you mean 'MedMCQA'?")),
        (("--epochs", "FOMC=3,FOMC=2"), ("each task once", "'FOMC=3,FOMC=2'")),
        (("--schedule", "cosin"), ("--schedule", "cosine")),
        (("--save-steps", 0), ("save_steps of at least 1",)),
        (("--warmup-ratio", 2), ("warmup_ratio in [0, 1]", "got 2.0")),
        (("--weight-decay", -1), ("weight_decay of at least 0",)),
        (("--lora-rank", 0), ("lora_rank of at least 1",)),
        (("--lora-dropout", 1), ("lora_dropout in [0, 1)",)),
        (("--num-test", 0), ("num_test of at least 1",)),
        (("--quantization", "4bit", "--device", "cpu"), ("NVIDIA GPU", "device 'cpu'", "mcanalysis[gpu]")),
        (("--quantization", "3bit"), ("3bit", "4bit")),
        (("--general-data", "empty"), ("<TASK>/test.json", "empty", "--general-data")),
        (("--general-data", "general", "--general-tasks", "Fact"), ("Did you mean 'Facts'?",)),
        (("--general-tasks", "Facts"), ("--general-data with --general-tasks",)),
        (("--report-to", ","), ("--report-to",)),
        (("--tasks", ""), ("--tasks",)),
    ],
)
def test_bad_input(script, tmp_path, general, flags, pieces):
    (tmp_path / "empty").mkdir()
    left_out = ("--steps",) if "--epochs" in flags else flags
    tasks = SMALL[:2] if {"--steps", "--epochs"} & set(flags) else ()
    others = [f for pair in zip(SMALL[2::2], SMALL[3::2], strict=True) if pair[0] not in left_out for f in pair]
    refused(script("train", *tasks, *others, *flags), *pieces)
    assert not (tmp_path / "runs").exists()


def test_a_tracker_that_is_not_installed(script, tmp_path, monkeypatch):
    from mcanalysis.training import config

    monkeypatch.setitem(config.TRACKERS, "mlflow", ("no_such_package_of_mlflow",))
    refused(script("train", "--report-to", "mlflow"), "mlflow", "pip install no_such_package_of_mlflow")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def unfinished(script, tmp_path):
    """A run on data of our own whose manifest says that it is not finished; its flags."""
    folder = tmp_path / "data" / "FOMC"
    folder.mkdir(parents=True)
    for split in ("train", "eval", "test"):
        examples = [{"prompt": f"{split} {i}:", "answer": "AB"[i % 2]} for i in range(8)]
        (folder / f"{split}.json").write_text(json.dumps(examples))
    flags = ("--strategy", "er", "--benchmark", "trace", "--data-dir", "data", *SMALL[2:], "--output-dir", "run")
    assert script("train", *flags)[0] == 0
    manifest = tmp_path / "run" / "manifest.json"
    write_text_atomic(manifest, manifest.read_text().replace('"finished"', '"running"', 1))
    return flags


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_changed_configuration_is_named_field_by_field_and_nothing_is_touched(script, tmp_path, unfinished):
    before = files(tmp_path / "run")
    for change, pieces in (
        (("--lora-rank", 4), ("expected lora_rank 8, got 4",)),
        (("--lora-alpha", 4), ("expected lora_alpha 16.0, got 4.0",)),
        (("--target-modules", "q_proj"), ("target_modules", "q_proj")),
        (("--settings", "memory_size=9"), ("expected strategy_settings.memory_size 500, got 9",)),
        (("--warmup-ratio", 0, "--seed", 1), ("training.warmup_ratio 0.1, got 0.0", "seed 0, got 1")),
    ):
        refused(script("train", *unfinished, "--resume", *change), *pieces, "--output-dir")
    data = tmp_path / "data" / "FOMC" / "train.json"
    text = data.read_text()
    data.write_text(text.replace("train 3:", "train three:"))
    refused(script("train", *unfinished, "--resume"), "FOMC with content hash")
    data.write_text(text)
    assert files(tmp_path / "run") == before
    # what does not change the result may change
    assert script("train", *unfinished, "--resume", "--save-steps", 1, "--gradient-checkpointing")[0] == 0


def test_two_processes_on_one_directory(script, tmp_path, unfinished):
    with lock_run_directory(tmp_path / "run"):
        refused(script("train", *unfinished, "--resume"), "no other process works on")
    assert script("train", *unfinished, "--resume")[0] == 0


def test_resume_on_nothing_says_so(script):
    code, _, err = script("train", "--strategy", "sequential", *SMALL, "--output-dir", "misspelt", "--resume")
    assert code == 0 and "--resume: no run at misspelt, starting anew" in err
    _, _, err = script("train", "--strategy", "sequential", *SMALL, "--output-dir", "misspelt", "--resume")
    assert "starting anew" not in err


@pytest.mark.slow
def test_under_torchrun_one_process_prints(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(REPOSITORY / "analyses" / "train.py"), "--device", "cpu", "--output-dir", "run", *map(str, SMALL)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def launch(*more):
        return subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )

    done = launch()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory: run") == done.stdout.count("ilora / slow") == 1
    assert done.stderr.count("train ilora (seed 0): 100%") <= 1
    done = launch("--lora-rank", "4")
    assert done.returncode != 0 and done.stdout == ""
    assert done.stderr.count("expected lora_rank 8, got 4") == 1


def test_help_is_in_groups(script):
    code, out, _ = script("train", "--help-all")
    headings = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert code == 0 and headings == ["options", "model", "data", "optimisation", "execution"]
    assert argparse.SUPPRESS not in out
