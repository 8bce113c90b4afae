"""`analyses/trajectory.py`: trains, draws the way of training, says where the minima lie; refuses runs without one."""

import json
import shutil

import pandas as pd

SMALL = (
    "--tasks", "FOMC,MedMCQA", "--steps", 2, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--workers", 1,
    "--device", "cpu", "--strategy", "ilora", "--save-trajectory", 1,
)  # fmt: skip
FEW = ("--num-losses", 2, "--num-examples", 2)


def test_a_run_is_trained_and_its_way_is_drawn(script, tmp_path):
    code, out, err = script("trajectory", *SMALL, *FEW)
    assert code == 0, err
    run = tmp_path / "runs" / "embedded-ilora-seed0"
    assert "ilora / seed 0, factor space" in out and "2-MedMCQA" in out and "trajectory_losses.csv" in out
    assert len(pd.read_csv(run / "tables" / "trajectory_pca.csv")) == 2 * 2 * (3 + 1)  # learners, tasks, points
    assert len(pd.read_csv(run / "tables" / "trajectory_losses.csv")) == 2 * 2 * (1 + 3)
    assert (run / "figures" / "trajectory_pca.pdf").exists()
    code, out, err = script("trajectory", "--run", run, "--num-losses", 0, "--json")
    assert code == 0, err
    rows = json.loads(out)["tables"]["trajectory_pca"]
    assert {row["kind"] for row in rows} == {"snapshot", "minimum"} and 0 < rows[0]["explained_1"] <= 1
    shutil.rmtree(run / "trajectory")
    code, out, err = script("trajectory", "--run", run)
    assert code == 2 and not out and len(err.splitlines()) == 1 and "--save-trajectory 10" in err


def test_a_wrong_space_is_refused_before_anything_is_trained(script, tmp_path):
    code, out, err = script("trajectory", "--space", "factors")
    assert code == 2 and "Did you mean 'factor'" in err and not out
    assert not list(tmp_path.iterdir())
