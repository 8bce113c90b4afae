"""`make real`: its settings are accepted, and what they ask for together works, here with the embedded base."""

from pathlib import Path

import pandas as pd
import pytest

REAL = Path(__file__).parents[2] / "analyses" / "real"
SMALL = (
    "--model", "embedded", "--benchmark", "embedded", "--tasks", "FOMC,MedMCQA", "--strategy", "sequential",
    "--steps", 1, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--num-points", 3, "--num-examples", 2,
    "--workers", 1, "--general-data", REAL / "general",
)  # fmt: skip


@pytest.mark.parametrize("file", ["small.yaml", "full.yaml"])
def test_every_setting_is_known(script, file):
    code, _, err = script("connectivity", "--config", REAL / file, "--strategy", "nobody")
    assert code == 2 and "Unknown strategy 'nobody'" in err


def test_paths_rewinding_general_text_and_scores_come_together(script, tmp_path):
    code, out, err = script("connectivity", "--config", REAL / "small.yaml", *SMALL)
    assert code == 0, err
    tables = tmp_path / "runs/real-small/embedded-sequential-seed0/tables"
    profiles = pd.read_csv(tables / "profiles.csv")
    assert set(profiles.start) == {"0-BASE", "1-FOMC"}
    general = profiles[(profiles.role == "general") & (profiles.start == "0-BASE")]
    assert set(general.task) >= {"English"} and (general[general.t == 0].retention == 1).all()
    scores = pd.read_csv(tmp_path / "runs/real-small/comparison/tables/task_scores.csv")
    assert scores.task.tolist() == ["FOMC", "MedMCQA"] and (scores.num_examples == 2).all()
    assert "most common" in out and "rewinding" in out
