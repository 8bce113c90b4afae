"""`connectivity.py --dry-run`: what it counts is what is computed afterwards, and it writes nothing."""

import json
import sqlite3
import time

import pandas as pd
import pytest

SMALL = (
    "--tasks", "FOMC,MedMCQA,JEC-QA", "--steps", 3, "--num-train", 16, "--num-test", 4, "--batch-size", 4,
    "--num-points", 3, "--num-examples", 4, "--curve-steps", 2, "--workers", 1, "--strategy", "sequential,er",
)  # fmt: skip


def counted(script, *flags):
    code, out, err = script("connectivity", "--dry-run", "--json", *flags)
    assert code == 0, err
    document = json.loads(out)
    return document, pd.DataFrame(document["tables"]["work"]).set_index(["run", "work"])


def contents(folder):
    return {str(f): f.stat().st_size for f in sorted(folder.rglob("*"))}


def test_what_is_told_is_what_is_computed(script, tmp_path):
    document, told = counted(script, *SMALL)
    assert not list(tmp_path.iterdir())
    assert document["seconds"] > 0 and document["memory_bytes"] > 50e6 and document["workers"] == 1
    main, other = "embedded-sequential-seed0", "embedded-er-seed0"
    assert told.to_do[main, "training"] == told.to_do[other, "training"] == 3
    assert told.to_do[main, "scoring"] == 4 and told.examples[main, "scoring"] == 4 * 3 * 4
    assert told.to_do[main, "curves"] == 2 and (other, "curves") not in told.index
    assert (told.stored == 0).all()
    code, _, err = script("connectivity", *SMALL)
    assert code == 0, err
    for run in (main, other):
        rows = sqlite3.connect(tmp_path / "runs" / run / "measurements.sqlite")
        (points,) = rows.execute("SELECT COUNT(DISTINCT point_key) FROM measurements").fetchone()
        assert told.to_do[run, "points"] == points - 1, "all but the base"
        # of a point, each task on two splits, or on one for the accuracy matrix, where the examples are the same four
        (examples,) = rows.execute("SELECT SUM(num_examples) FROM measurements").fetchone()
        shared = 4 * (1 + 2 + 2) + 4 * 2  # ... those of the minima 1, 2, 3 that both ask for
        assert told.examples[run, "points"] + told.examples[run, "scoring"] - examples in range(0, shared + 4 * 3)
        rows.close()
    before = contents(tmp_path)
    for flags in (SMALL, ("--run", f"runs/{main}", *SMALL[10:14])):
        _, stored = counted(script, *flags)
        assert (stored.to_do == 0).all() and stored.stored[main, "points"] == told.to_do[main, "points"]
        assert stored.seconds.sum() == 0
    more = [5 if before == "--num-points" else value for before, value in zip(("", *SMALL), SMALL, strict=False)]
    _, added = counted(script, *more)
    assert added.to_do[main, "points"] == 2 * 3 * 2 and added.stored[main, "curves"] == 2
    assert contents(tmp_path) == before


def test_adapters_can_be_told_of_and_people_are_told_in_words(script, tmp_path):
    assert script("connectivity", *SMALL[:-1], "sequential", "--paths", "linear-factor")[0] == 0
    minima = tmp_path / "runs/embedded-sequential-seed0/minima"
    (tmp_path / "data.json").write_text(json.dumps([{"prompt": f"{i}:", "answer": "A"} for i in range(6)]))
    before = contents(tmp_path)
    pair = ",".join(str(minima / name / "fast") for name in ("1-FOMC", "2-MedMCQA"))
    flags = ("--minima", pair, "--data", "data.json", "--output-dir", "out", "--num-points", 4)
    code, out, err = script("connectivity", "--dry-run", *flags)
    assert code == 0, err
    assert contents(tmp_path) == before
    rows = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith("out ")}
    assert rows["points"][2:5] == ["8", "0", "48"] or rows["points"][2:5] == ["10", "0", "60"]
    assert "memory at its peak" in out and "nothing is written" in out
    code, _, err = script("connectivity", "--dry-run", "--minima", pair)
    assert code == 2 and "go together" in err


@pytest.mark.slow
def test_the_time_told_is_within_a_factor_of_two(script, tmp_path):
    flags = (
        "--tasks", "FOMC,MedMCQA,NumGLUE-cm,JEC-QA", "--strategy", "sequential", "--workers", 1, "--num-points", 11,
    )  # fmt: skip
    document, _ = counted(script, *flags)
    began = time.monotonic()
    assert script("connectivity", *flags)[0] == 0
    took = time.monotonic() - began
    assert took / 2 < document["seconds"] < 2 * took
