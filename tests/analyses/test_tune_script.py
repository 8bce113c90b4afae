"""`analyses/tune.py`: what it says before it starts, what it writes, and what `compare.py --tuned` makes of it."""

import json

import pandas as pd
import pytest
import yaml

from mcanalysis.studies import training

SMALL = ("--tasks", "FOMC,MedMCQA", "--num-train", "8", "--num-test", "2", "--batch-size", "2", "--steps", "1")
SMALL += ("--device", "cpu", "--save-trajectory", "0")


def test_a_dry_run_says_what_is_searched_and_writes_nothing(script, tmp_path):
    code, out, err = script("tune", "--strategy", "ewc,er,zero_shot", "--dry-run")
    assert code == 0, err
    assert "8 of 18" in out and "ewc_lambda 1.0, 10.0, 100.0" in out and "3 of 3" in out
    assert "fewer than 8 trials: er" in out and "left out, as nothing is trained: zero_shot" in out
    assert "11 runs, 0 of them there; how long they take is not known" in out
    assert list(tmp_path.iterdir()) == []


def test_no_eval_split_is_refused_in_one_line(script, tmp_path):
    for split in ("train", "test"):
        (file := tmp_path / "data" / "FOMC" / f"{split}.json").parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([{"prompt": "Good?", "answer": "A"}]))
    code, out, err = script("tune", "--strategy", "er", "--benchmark", "trace", "--data-dir", "data")
    assert code == 2 and not out and "eval.json" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_tuned_compared_and_nothing_of_it_twice(script, tmp_path, monkeypatch):
    flags = ("--strategy", "sequential,er", *SMALL)
    code, out, err = script("tune", *flags, "--num-trials", 2)
    assert code == 0, err
    trials = pd.read_csv(tmp_path / "runs" / "tuning" / "trials.csv")
    numbers = trials.strategy.value_counts(sort=False)  # of two rates the better is at an edge: the search goes on
    assert list(trials.strategy) == [name for name in ("sequential", "er") for _ in range(numbers[name])]
    assert numbers.between(3, 4).all() and (trials.train_seconds > 0).all()
    tuned = yaml.safe_load((tmp_path / "runs" / "tuning" / "tuned.yaml").read_text())
    rates = {row.strategy: row.learning_rate for row in trials[trials.chosen].itertuples()}
    assert {name: of["learning_rate"] for name, of in tuned["strategies"].items()} == rates
    for row in trials.itertuples():  # the trained adapters' scores, of the eval split alone
        directory = tmp_path / "runs" / "tuning" / f"embedded-{row.strategy}-seed100-trial{row.trial}"
        matrix = pd.read_csv(directory / "tables" / "accuracy_matrix.csv")
        assert row.score == pytest.approx(matrix.iloc[-1, 1:].mean())
        assert json.loads((directory / "manifest.json").read_text())["config"]["scored_split"] == "eval"

    code, out, err = script("compare", *flags, "--seed", 0, "--tuned", "runs/tuning/tuned.yaml")
    assert code == 0, err
    note = f"best of up to {numbers.max()} trials on the eval split, seed 100"
    assert note in out and note in (tmp_path / "runs/compare/tuned/comparison/summary.md").read_text()
    for name, rate in rates.items():
        manifest = json.loads((tmp_path / f"runs/compare/tuned/embedded-{name}-seed0/manifest.json").read_text())
        assert manifest["config"]["training"]["learning_rate"] == rate
        assert "scored_split" not in manifest["config"]

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_run", refuse)
    code, out, err = script("tune", *flags, "--num-trials", 2, "--json")
    assert code == 0, err
    assert [row["chosen"] for row in json.loads(out)["tables"]["trials"]] == trials.chosen.tolist()
    code, out, _ = script("tune", *flags, "--num-trials", 3, "--dry-run")
    assert "6 runs, 6 of them there" in out  # the search at the edge was the third trial
    code, _, err = script("report", "runs/tuning")
    assert code == 2 and "scored on eval to choose settings" in err
