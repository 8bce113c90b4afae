"""The flags of runs are those of their settings classes, and no `--help` waits for a library."""

import subprocess
import sys
from pathlib import Path

import pytest

from mcanalysis.cli.flags import Parser
from mcanalysis.cli.run_flags import add_run_flags, execution, run_config
from mcanalysis.evaluation.engine_settings import EngineSettings
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = sorted(f for f in (REPOSITORY / "analyses").glob("*.py") if f.name != "start.py")


@pytest.fixture
def args(monkeypatch):
    """args(*flags) -> what the flags of runs come to."""

    def parse(*flags):
        parser = Parser(None)
        add_run_flags(parser)
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, flags)])
        return parser.parse()

    return parse


def test_without_flags_runs_are_as_in_python(args):
    given = args()
    assert run_config(given, "er", 3, {"memory_size": 9}) == RunConfig("er", {"memory_size": 9}, 3)
    assert execution(given) == Execution()
    assert given.steps is None, "compare.py takes fewer by default"


def test_every_flag_reaches_its_setting(args):
    given = args(
        "--model", "here", "--dtype", "float32", "--device", "cpu", "--token-budget", 99, "--engine", "unmerged,whole",
        "--settings", "memory_size=9", "--quantization", "4bit", "--lora-rank", 2, "--lora-alpha", 3,
        "--lora-dropout", 0.5, "--target-modules", "q_proj,v_proj", "--benchmark", "trace", "--data-dir", "there",
        "--tasks", "B,A", "--scores", "A=rouge_l", "--max-new-tokens", "B=7", "--num-train", 11, "--num-test", 12,
        "--max-length", 13, "--steps", 14, "--batch-size", 15, "--gradient-accumulation", 16, "--learning-rate", 17,
        "--warmup-ratio", 0.18, "--weight-decay", 0.19, "--max-grad-norm", 20, "--group-by-length", "--resume",
        "--save-steps", 21, "--gradient-checkpointing", "--torch-compile", "--save-trajectory", 0,
    )  # fmt: skip
    assert given.resume and given.settings == {"memory_size": "9"}
    assert run_config(given, "er", 3, {}) == RunConfig(
        strategy="er", seed=3, model="here", dtype="float32", benchmark="trace", data_dir="there", tasks=("B", "A"),
        scores={"A": "rouge_l"}, sizes={"train": 11}, num_test=12, quantization="4bit", lora_rank=2, lora_alpha=3.0,
        lora_dropout=0.5, target_modules=("q_proj", "v_proj"), max_new_tokens={"B": 7},
        training=TrainingConfig(14, 15, 16, 17.0, 0.18, 20.0, 0.19, 13, group_by_length=True),
    )  # fmt: skip
    assert execution(given) == Execution(
        device="cpu", save_steps=21, gradient_checkpointing=True, torch_compile=True, save_trajectory=0,
        engine=EngineSettings(99, "unmerged", "whole"),
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_loads_no_library(script):
    command = [sys.executable, "-X", "importtime", str(script), "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "mcanalysis" in loaded
    heavy = {"torch", "transformers", "peft", "numpy", "pandas", "scipy", "matplotlib", "yaml"}
    assert not heavy & loaded, heavy & loaded
