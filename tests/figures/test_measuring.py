"""`python figures` draws what there is; with `--measure` the scripts that the figures name measure the rest first."""

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcanalysis.cli import measuring
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.training.continual_trainer import train

LORA = '{"peft_type": "LORA"}'
WRITTEN = {"similarity": ["cka", "weight_distance"], "connectivity": ["simplex"], "curvature": ["spectrum"]}
LATE = [table for tables in WRITTEN.values() for table in tables]


@pytest.fixture
def bare_run(made_run):
    """`bare_run(DIR, ...)`: a run with adapters whose later tables were not measured."""

    def make(directory, strategy="sequential", without=LATE, adapter=LORA, **more):
        run = made_run(directory, strategy, without=without, **more)
        folder = run / "minima" / "1-FOMC" / "fast"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(adapter)
        return run

    return make


@pytest.fixture
def scripts(monkeypatch, made_run, tmp_path):
    """The commands that were started, none of which is: after 30 or 90 s the tables of its run would be there.

    What is in `scripts.refuses` ends with an error.
    """
    whole = made_run(tmp_path / "whole")
    seen = SimpleNamespace(asked=[], run=[], refuses=())

    def start(words, *flags, stderr=None):
        if words[0] in seen.refuses:
            return subprocess.CompletedProcess("", 2, "", "a warning\nerror: Expected an apple, got none; eat it.\n")
        if flags == ("--dry-run", "--json"):
            seen.asked.append(words)
            seconds = 30.0 if words[0] == "connectivity" else 90.0
            return subprocess.CompletedProcess("", 0, json.dumps({"seconds": seconds}), "")
        seen.run.append(words)
        if words == ["connectivity", "--resume"]:
            made_run(tmp_path / "runs" / "trained")
        for run in (words[i + 1] for i, word in enumerate(words) if word == "--run"):
            for name in WRITTEN[words[0]]:
                shutil.copy(whole / "tables" / f"{name}.csv", Path(run) / "tables")
        return subprocess.CompletedProcess("", 0, "{}", "")

    monkeypatch.setattr(measuring, "_run", start)
    return seen


def test_what_is_there_is_drawn_and_what_is_missing_is_named_with_exit_code_0(figure_script, bare_run, tmp_path):
    measured_by_others = ["profiles", "barriers", "flips", "landscape", "attribution_barriers", "signals"]
    measured_by_others += ["basin_forks", "basin_stable", "basin_radius", "basin_volume"]
    run = bare_run(tmp_path / "runs" / "a", without=[*LATE, *measured_by_others])
    code, out, err = figure_script("__main__", "--run", run, "--format", "png")
    assert code == 0
    assert {Path(line).stem for line in out.splitlines()} == {"accuracy_matrices", "scores_over_time", "finders"}
    *absent, last = err.splitlines()
    named = {line.split(": ")[1]: line for line in absent if line.startswith("not drawn: ")}
    assert len(named) == len(absent) == 13 and {"ablations", "curvature", "layers", "plane"} < set(named)
    assert f"python analyses/connectivity.py --simplex 1,2,3 --run {run}" in named["simplex"]
    assert last == f"next: python figures --measure --run {run}"


def test_it_says_how_long_and_measures_and_draws(figure_script, bare_run, scripts, tmp_path):
    runs = [bare_run(tmp_path / "runs" / name, name) for name in ("sequential", "er")]
    flags = [word for run in runs for word in ("--run", str(run))]
    some = ("--only", "layers,simplex", "--format", "png")
    code, out, err = figure_script("__main__", *flags, *some, "--measure", "--dry-run")
    assert (code, out, scripts.run) == (0, "", []) and "about 2 min 30 s in all" in err
    code, out, err = figure_script("__main__", *flags, *some, "--measure")
    as_before = ["--paths", "linear-factor,bezier-factor", "--other-paths", "linear-factor,bezier-factor"]
    as_before += ["--num-points", "5", "--num-examples", "5"]
    simplexes = [["connectivity", "--simplex", "1,2,3", *as_before, "--run", str(run)] for run in runs]
    expected = [["similarity", *flags], *simplexes]
    assert scripts.asked == expected * 2 and scripts.run == [*sorted(simplexes), expected[0]]  # short ones first
    assert code == 0, err
    drawn = {"simplex_sequential", "simplex_er", "layers_sequential_fast", "layers_er_fast"}
    assert {Path(line).stem for line in out.splitlines()} == drawn
    assert err.index("1 min 30 s  python analyses/similarity.py") < err.index("about 2 min 30 s in all")
    code, _, err = figure_script("__main__", *flags, *some, "--measure", "--dry-run")
    assert code == 0 and "nothing is missing" in err and len(scripts.asked) == 6


def test_one_that_cannot_be_carried_out_keeps_no_other_from_being(figure_script, bare_run, scripts, tmp_path):
    run = bare_run(tmp_path / "runs" / "a")
    scripts.refuses = ("similarity",)
    some = ("--only", "layers,simplex", "--format", "png")
    code, out, err = figure_script("__main__", "--run", run, *some, "--measure")
    assert code == 2 and "simplex_a" in out and "layers_a" not in out
    assert f"left out: python analyses/similarity.py --run {run}: Expected an apple, got none; eat it." in err
    assert "error: layers: " in err and [words[0] for words in scripts.run] == ["connectivity"]
    scripts.run.clear()
    without = [name for name in WRITTEN if name != "similarity"]
    for name in LATE:
        if name not in WRITTEN["similarity"]:
            (run / "tables" / f"{name}.csv").unlink(missing_ok=True)
    scripts.refuses = ("similarity", "ablations")
    code, out, err = figure_script("__main__", "--run", run, "--format", "png", "--measure")
    assert code == 0 and "simplex_a" in out and "not drawn: layers: " in err, err  # nobody asked for this one by name
    assert {words[0] for words in scripts.run} == set(without)


def test_from_nothing_a_main_job_that_is_refused_is_an_error(figure_script, scripts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripts.refuses = ("connectivity",)
    code, out, err = figure_script("__main__", "--measure", "--format", "png")
    assert code == 2 and not out and "Expected an apple" in err and scripts.run == [], err


def test_a_study_that_would_refuse_the_runs_says_so_in_its_dry_run(script, run_config, tmp_path):
    """Three runs of two tasks have too few transitions for a correlation: nothing is timed."""
    sizes = {"train": 8, "test": 2}
    for seed in range(3):
        config = run_config("sequential", num_steps=1, tasks=("FOMC", "MedMCQA"), sizes=sizes, num_test=2, seed=seed)
        train(config, tmp_path / f"run{seed}", device="cpu")
    runs = [word for seed in range(3) for word in ("--run", tmp_path / f"run{seed}")]
    code, _, err = script("predictors", *runs, "--dry-run")
    assert code == 2 and "Expected at least 24 transitions" in err and "got 3 of 3" in err, err


def test_runs_go_together_where_one_call_can_analyse_them(bare_run, tmp_path):
    figure = SimpleNamespace(ANALYSIS="similarity", TABLES=("cka",))
    runs = [
        FinishedRun(bare_run(tmp_path / name, strategy, seed=seed, adapter=adapter))
        for name, strategy, seed, adapter in (
            ("a", "sequential", 0, LORA), ("b", "sequential", 0, LORA), ("c", "er", 0, LORA),
            ("prompts", "progressive_prompts", 0, '{"peft_type": "PROMPT_TUNING"}'),
        )
    ]  # fmt: skip
    whole = FinishedRun(bare_run(tmp_path / "d", without=()))
    found = measuring.lacking([figure, figure], lambda folder: [*runs, whole], given=True)
    assert [[Path(word).name for word in words[2::2]] for words in found] == [["a", "c"], ["b"]]
    more = SimpleNamespace(ANALYSIS="similarity --num-examples all", TABLES=("weight_distance",))
    found = measuring.lacking([figure, more], lambda folder: runs[:1], given=True)
    assert [words[:3] for words in found] == [["similarity", "--num-examples", "all"]]


def test_runs_of_their_own_are_trained_where_there_are_none(bare_run, tmp_path):
    figure = SimpleNamespace(ANALYSIS="ablations --resume", FOLDER="ablations")
    run = FinishedRun(bare_run(tmp_path / "a"))
    assert measuring.lacking([figure], lambda folder: [run], given=False) == [["ablations", "--resume"]]
    assert measuring.lacking([figure], lambda folder: [run], given=True) == []
    assert measuring.lacking([figure], lambda folder: [run] * (1 + (folder is not None)), given=False) == []


def test_from_nothing_the_runs_of_the_main_job_come_first(figure_script, scripts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = figure_script("__main__", "--measure", "--dry-run")
    assert (code, out, scripts.run) == (0, "", []) and scripts.asked == [["connectivity", "--resume"]]
    assert "0 min 30 s  python analyses/connectivity.py --resume" in err
    code, out, err = figure_script("__main__", "--measure", "--only", "simplex", "--format", "png")
    assert scripts.run == [["connectivity", "--resume"]]
    assert (code, out) == (0, "runs/figures/simplex_trained.png\n"), err
