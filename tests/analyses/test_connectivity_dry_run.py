"""`connectivity.py --dry-run`: what it counts is what is computed afterwards, and it writes nothing."""

import json
import sqlite3
import time

import pandas as pd
import pytest

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 3, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-points", 3, "--num-examples", 4, "--curve-steps", 2, "--workers", 1, "--strategy", "sequential",
)  # fmt: skip


def counted(script, *flags):
    code, out, err = script("connectivity", "--dry-run", "--json", *flags)
    assert code == 0, err
    document = json.loads(out)
    return document, pd.DataFrame(document["tables"]["work"]).set_index(["run", "work"])


def contents(folder):
    return {str(f): f.stat().st_size for f in sorted(folder.rglob("*"))}


def test_what_is_told_is_what_is_computed_and_nothing_is_written(script, tmp_path):
    document, told = counted(script, *SMALL)
    assert not list(tmp_path.iterdir())
    assert document["seconds"] > 0 and document["memory_bytes"] > 50e6 and document["workers"] == 1
    told = told.xs("embedded-sequential-seed0")
    assert told.to_do["training"] == 3 and told.to_do["curves"] == 2 and (told.stored == 0).all()
    assert told.to_do["scoring"] == 4 and told.examples["scoring"] == 4 * 3 * 4
    code, _, err = script("connectivity", *SMALL)
    assert code == 0, err
    run = tmp_path / "runs/embedded-sequential-seed0"
    rows = sqlite3.connect(run / "measurements.sqlite")
    (points,) = rows.execute("SELECT COUNT(DISTINCT point_key) FROM measurements").fetchone()
    (examples,) = rows.execute("SELECT SUM(num_examples) FROM measurements").fetchone()
    rows.close()
    assert told.to_do["points"] == points - 1, "all but the base"
    of_both = 4 * (2 + 3 + 3)  # the paths ask for test examples of the minima that the accuracy matrix has asked for
    assert told.examples["points"] + told.examples["scoring"] - of_both == examples

    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{i}:", "answer": "A"} for i in range(6)]))
    before = contents(tmp_path)
    more = ("--run", run, "--num-points", 5, "--num-examples", 4, "--curve-steps", 2)
    _, added = counted(script, *more)
    added = added.xs(run.name)
    assert added.to_do["points"] == 2 * 3 * 2 and added.stored["points"] == told.to_do["points"]
    assert added.to_do["curves"] == 0 and added.stored["curves"] == 2
    _, stored = counted(script, *more[:2], "--num-points", 3, *more[4:])
    assert (stored.to_do == 0).all() and stored.seconds.sum() == 0

    pair = ",".join(str(run / "minima" / name / "fast") for name in ("1-FOMC", "2-MedMCQA"))
    flags = (
        "--minima",
        pair,
        "--data",
        "data.json",
        "--output-dir",
        "out",
        "--num-points",
        4,
        "--paths",
        "linear-factor",
    )
    code, out, err = script("connectivity", "--dry-run", *flags)
    assert code == 0, err
    (row,) = [line.split() for line in out.splitlines() if line.startswith("out ")]
    assert row[1:5] == ["points", "4", "0", "24"]
    assert "nothing is written" in out and "memory at its peak" in out
    assert contents(tmp_path) == before
    code, _, err = script("connectivity", "--dry-run", "--minima", pair)
    assert code == 2 and "go together" in err


def test_joint_training_has_one_minimum_and_one_path_from_the_base(script, tmp_path):
    joint = (*SMALL[:-1], "joint", "--paths", "linear-factor,bezier-factor")
    _, told = counted(script, *joint, "--from-base", "--general-data", "pretraining")
    assert told.to_do["embedded-joint-seed0", "points"] == 3 and "curves" not in told.xs("embedded-joint-seed0").index
    for flags, words in (
        ((), "at least two minima, got 1"),
        (("--from-base", "--simplex", "0,1,2"), "minimum 1, got 2"),
    ):
        code, _, err = script("connectivity", *joint, *flags)
        assert code == 2 and words in err and not list(tmp_path.iterdir()), "nothing is trained"
    code, _, err = script("connectivity", *joint, "--from-base")
    assert code == 0, err
    small = ("--num-points", 3, "--num-examples", 4, "--from-base")
    _, stored = counted(script, "--run", "runs/embedded-joint-seed0", *small)
    assert stored.to_do.tolist() == [0] and stored.stored.tolist() == [3]


def test_a_path_through_all_minima_is_told(script):
    _, told = counted(script, *SMALL, "--paths", "linear-factor,segmented_bezier-factor")
    told = told.xs("embedded-sequential-seed0")
    assert told.to_do["curves"] == 1 and told.to_do["points"] == 3 + 2  # the long path's are minima


@pytest.mark.slow
def test_other_strategies_are_told_along_their_own_paths(script):
    _, told = counted(script, *SMALL[:-1], "sequential,er,ilora")
    assert ("embedded-er-seed0", "curves") not in told.index
    assert told.to_do["embedded-er-seed0", "points"] == 3 + 2 < told.to_do["embedded-sequential-seed0", "points"]
    assert told.to_do["embedded-ilora-seed0", "scoring"] == 1 + 2 * 3, "both learners"


@pytest.mark.slow
def test_the_time_told_is_within_a_factor_of_two(script, monkeypatch):
    """Of processor time, so that other work beside it does not count."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    tasks = ("--tasks", "FOMC,MeetingBank,NumGLUE-cm", "--strategy", "sequential", "--workers", 1, "--num-points", 7)
    document, _ = counted(script, *tasks)
    began = time.process_time()
    assert script("connectivity", *tasks)[0] == 0
    took = time.process_time() - began
    assert took / 2 < document["seconds"] < 2 * took, (took, document)
