"""`analyses/ablations.py`: one setting at a time, the base in each of them, and a figure of it."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from mcanalysis.runs.run import load_run
from mcanalysis.studies import training

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    "--tasks", "FOMC,MedMCQA", "--steps", 2, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--workers", 1,
    "--device", "cpu",
)  # fmt: skip


def test_one_setting_differs_and_the_base_is_in_every_panel(script, tmp_path, monkeypatch):
    vary = ("--vary", "ema_decay=0.5,0.95", "--vary", "memory_size=4")
    code, out, err = script("ablations", *SMALL, *vary, "--seed", "0,1", "--dry-run", "--json")
    told = json.loads(out)
    assert code == 0 and len(told["missing"]) == 6 and told["seconds"] > 0 and not list(tmp_path.iterdir())
    code, out, err = script("ablations", *SMALL, *vary, "--seed", "0,1")
    assert code == 0, err
    code, told, _ = script("ablations", *SMALL, *vary, "--seed", "0,1", "--dry-run")
    assert code == 0 and "0 of 6 runs are missing: about 0 min 00 s" in told
    folder = tmp_path / "runs" / "ablations"
    names = {f"{what}-seed{seed}" for what in ("base", "ema_decay-0.5", "memory_size-4") for seed in (0, 1)}
    assert {f.parent.name for f in folder.glob("*/manifest.json")} == names  # 0.95 is the base
    settings = load_run(folder / "memory_size-4-seed1").config["strategy_settings"]
    assert settings["memory_size"] == 4 and settings["ema_decay"] == 0.95
    table = pd.read_csv(folder / "ablations.csv")
    assert list(table[table.learner == "slow"].value) == [0.95, 0.5, 500, 4]
    assert list(table[table.is_base].value.unique()) == [0.95, 500]
    assert all(len(values.split()) == 2 for values in table.average_accuracy_seeds)
    varied = [load_run(folder / f"ema_decay-0.5-seed{seed}") for seed in (0, 1)]
    scores = [run.metrics["learners"]["slow"]["average_accuracy"] for run in varied]
    row = table[(table.setting == "ema_decay") & (table.value == 0.5) & (table.learner == "slow")].iloc[0]
    assert row.average_accuracy == pytest.approx(sum(scores) / 2)
    assert "0.95 *" in out and "500 *" in out
    monkeypatch.setattr(training, "train", lambda *a, **k: pytest.fail("trained again"))
    code, again, err = script("ablations", *SMALL, *vary, "--seed", "0,1")
    assert code == 0 and again == out, err
    command = [sys.executable, str(REPOSITORY / "figures" / "ablations.py"), "--format", "png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/figures/ablations.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("flags", "piece"),
    [
        (("--vary", "ema_decay"), "--vary NAME=V1,V2, got 'ema_decay'"),
        (("--vary", "ema_decay=0.95"), "a value the base does not have"),
        (("--vary", "decay=0.5"), "Did you mean 'ema_decay'"),
        (("--vary", "ema_decay=2"), "ema_decay in [0, 1]"),
        (("--strategy", "er"), "say what to vary"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(script, tmp_path, flags, piece):
    code, out, err = script("ablations", *SMALL, *flags)
    assert code == 2 and not out and len(err.splitlines()) == 1 and piece in err, err
    assert not list(tmp_path.iterdir())
