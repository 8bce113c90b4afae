"""`analyses/attribution.py`: what it does by default, what it writes, what it refuses."""

import json

import pandas as pd
import pytest

from mcanalysis.evaluation.engine import Engine

SMALL = (
    "--tasks", "FOMC,MedMCQA", "--steps", 2, "--num-train", 8, "--num-test", 2, "--batch-size", 2, "--num-points", 3,
    "--num-examples", 2, "--workers", 1, "--device", "cpu",
)  # fmt: skip


def test_runs_are_trained_taken_apart_and_not_measured_twice(script, base_folder, tmp_path, monkeypatch):
    base = ("--model", base_folder, "--max-length", 64)
    code, out, err = script("attribution", *SMALL, *base, "--strategy", "sequential")
    assert code == 0, err
    run = tmp_path / "runs" / "embedded-sequential-seed0"
    assert "1-FOMC → 2-MedMCQA" in out and "q_proj" in out and "model.layers.1" in out
    for name in ("attribution", "attribution_barriers"):
        assert len(pd.read_csv(run / "tables" / f"{name}.csv"))
    assert (run / "figures" / "attribution_old_fast.pdf").exists()
    monkeypatch.setattr(Engine, "measure", lambda *a: pytest.fail("measured again"))
    code, again, err = script("attribution", "--run", run, *SMALL[-8:-2])
    assert code == 0, err
    assert [r for r in again.splitlines() if "after" not in r] == [r for r in out.splitlines() if "after" not in r]
    code, out, err = script("attribution", "--run", run, "--transition", 2)
    assert code == 2 and not out and len(err.splitlines()) == 1 and "from 1 to 1" in err


def test_a_dry_run_counts_the_points_that_are_computed_afterwards_and_writes_nothing(
    script, base_folder, tmp_path, monkeypatch
):
    base = ("--model", base_folder, "--max-length", 64)
    code, _, err = script("attribution", *SMALL, *base, "--strategy", "sequential", "--dry-run")
    assert code == 2 and "1 that are still to be trained" in err and not list(tmp_path.iterdir())
    assert script("train", *SMALL[:8], *base, "--strategy", "sequential", "--output-dir", "run")[0] == 0
    files = {file: file.stat().st_size for file in tmp_path.rglob("*")}

    def told():
        code, out, err = script("attribution", "--run", "run", *SMALL[8:], "--dry-run", "--json")
        assert code == 0, err
        return json.loads(out)

    before = told()
    assert before["seconds"] > 0 and files == {file: file.stat().st_size for file in tmp_path.rglob("*")}
    measured, measure = [], Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda *a: measured.append(a) or measure(*a))
    code, _, err = script("attribution", "--run", "run", *SMALL[8:])
    assert code == 0, err
    assert [row["to_do"] for row in before["tables"]["work"]] == [len(measured)]
    after = told()
    assert after["seconds"] == 0 and not after["tables"]["work"]


def test_by_default_the_first_transition_of_two_strategies(script, monkeypatch):
    from mcanalysis.errors import UserError
    from mcanalysis.studies import study, training
    from mcanalysis.studies.attribution import Attribution

    seen = {}
    monkeypatch.setattr(training, "trainings", lambda configs, *a, **k: seen.setdefault("configs", configs))

    def spy(settings, runs, *rest, **options):
        seen["settings"] = settings
        raise UserError("enough")

    monkeypatch.setattr(study, "carry_out", spy)
    assert script("attribution")[0] == 2
    assert [(c.strategy, c.seed) for c in seen["configs"]] == [("sequential", 0), ("ilora", 0)]
    assert seen["settings"] == Attribution(1, "factor", 11, 50)


def test_a_transition_that_will_not_be_there_is_refused_before_anything_is_trained(script, tmp_path):
    code, out, err = script("attribution", *SMALL, "--transition", 2)
    assert code == 2 and "from 1 to 1 between minima 1 to 2, got 2: give another --transition" in err and not out
    code, out, err = script("attribution", "--tasks", "FOMC")
    assert code == 2 and "at least two minima, got 1" in err and not out
    assert not list(tmp_path.iterdir())


def test_a_wrong_space_is_refused_before_anything_is_trained(script, tmp_path):
    code, out, err = script("attribution", "--space", "factors")
    assert code == 2 and "Did you mean 'factor'" in err and not out
    assert not list(tmp_path.iterdir())
