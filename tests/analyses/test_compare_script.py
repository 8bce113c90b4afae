"""`analyses/compare.py`: what it runs by default, what it writes, and that a stop leaves nothing but resumable runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from mcanalysis.strategies import strategy_names
from mcanalysis.studies import strategies

REPOSITORY = Path(__file__).parents[2]
SMALL = ("--tasks", "FOMC,MedMCQA", "--num-train", "8", "--num-test", "2", "--batch-size", "2", "--device", "cpu")


@pytest.fixture
def asked(script, monkeypatch):
    """asked(*flags) -> the configurations that would be run and their output directory."""
    from mcanalysis.errors import UserError

    seen = []

    def spy(configs, directories, *rest, **more):
        seen.append((configs, str(directories[0].parent)))
        raise UserError("enough")

    monkeypatch.setattr(strategies, "train_runs", spy)

    def run(*flags):
        assert script("compare", *flags)[0] == 2
        return seen[-1]

    return run


def test_without_a_flag_all_strategies_learn_four_short_tasks_with_three_seeds(asked):
    configs, output_dir = asked()
    assert [(c.strategy, c.seed) for c in configs] == [(s, seed) for seed in (0, 1, 2) for s in strategy_names()]
    assert {(c.tasks, c.training.num_steps) for c in configs} == {
        (("C-STANCE", "FOMC", "MeetingBank", "ScienceQA"), 100)
    }
    assert output_dir == "runs/compare"


def test_full_size_is_all_tasks_and_what_is_named_is_kept(asked):
    configs, output_dir = asked("--full", "--strategy", "er", "--seed", 1)
    assert [(c.tasks, c.training.num_steps, c.seed) for c in configs] == [(None, 120, 1)] and output_dir == "runs"
    ((config,), _) = asked("--strategy", "er", "--seed", 1, "--tasks", "FOMC", "--steps", 7)
    assert config.tasks == ("FOMC",) and config.training.num_steps == 7
    ((config,), output_dir) = asked("--strategy", "er", "--seed", 1, "--benchmark", "trace", "--data-dir", "d")
    assert config.tasks is None and config.training.num_steps == 120 and output_dir == "runs"


def test_a_dry_run_says_what_there_is_and_what_the_others_cost_and_writes_nothing(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (*SMALL, "--steps", "1", "--strategy", "sequential,zero_shot", "--seed", "0", "--output-dir", "o")
    code, out, _ = script("compare", *flags, "--dry-run")
    assert code == 0 and "2 runs, 0 of them there; how long they take is not known" in out
    assert not any(tmp_path.iterdir())
    assert script("train", *flags[:-6], "--strategy", "zero_shot", "--output-dir", "o/embedded-zero_shot-seed0")[0] == 0
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = script("compare", *flags, "--dry-run")
    assert code == 0 and "2 runs, 1 of them there; the others take about" in out
    assert sorted(tmp_path.rglob("*")) == before
    code, _, err = script("compare", *flags, "--learning-rate", "0.5", "--dry-run")
    assert code == 2 and "zero_shot" in err  # of another configuration, said before anything is trained


def test_orders_by_name_or_number(asked):
    flags = ("--strategy", "er", "--seed", "0,1")
    configs, _ = asked(*flags, "--benchmark", "trace", "--data-dir", "d", "--order", "paper,shuffled2")
    assert [(c.order, c.seed) for c in configs] == [(o, seed) for o in ("paper", "shuffled2") for seed in (0, 1)]
    configs, _ = asked(*flags, "--num-orders", 2)
    assert [c.order for c in configs] == ["paper"] * 2 + ["shuffled1"] * 2 and len(configs[0].tasks) == 4
    configs, _ = asked(*flags)
    assert [c.order for c in configs] == [None] * 2


def test_settings_for_one_strategy(asked):
    configs, _ = asked("--strategy", "er,ilora", "--seed", 0, "--settings", "er.memory_size=9,ilora.ema_decay=5e-1")
    assert [dict(c.strategy_settings) for c in configs] == [{"memory_size": 9}, {"ema_decay": 0.5}]


TUNED = {
    "format": 2, "mcanalysis": "0.1.0", "benchmark": "embedded", "tasks": ["FOMC", "MedMCQA"], "model": "embedded",
    "steps": "7 steps each of 16 examples", "adapter": "rank 8, α 16",
    "schedule": "linear, warm-up 0.1, clipped at 1, weight decay 0", "trials": 8, "seeds": [100], "strategies": {
        "er": {"learning_rate": 0.009, "settings": {"memory_size": 9}, "score": 0.5, "default_score": 0.4, "trials": 8},
    },
}  # fmt: skip


def test_tuned_runs_have_the_files_settings_and_a_folder_of_their_own(asked, script, tmp_path):
    (tmp_path / "tuned.yaml").write_text(json.dumps(TUNED))  # JSON is YAML
    flags = ("--strategy", "er,ilora", "--seed", 0, "--tasks", "MedMCQA,FOMC", "--steps", 7, "--tuned", "tuned.yaml")
    configs, output_dir = asked(*flags)
    found = [(c.training.learning_rate, dict(c.strategy_settings)) for c in configs]
    assert found == [(0.009, {"memory_size": 9}), (None, {})] and output_dir == "runs/compare/tuned"
    configs, output_dir = asked(*flags, "--settings", "memory_size=5", "--output-dir", "out")
    assert [c.strategy_settings["memory_size"] for c in configs] == [5, 5] and output_dir == "out/tuned"
    for more, reason in (
        (("--learning-rate", "0.1"), "Expected --learning-rate or --tuned, got both"),
        (("--batch-size", "4"), "tuned for the steps of this comparison, 7 steps each of 4 examples"),
    ):
        code, out, err = script("compare", *flags, *more)
        assert code == 2 and not out and reason in err and err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["compare", "tune"])
def test_result_files_are_looked_for_before_anything_is_trained(script, tmp_path, name):
    (tmp_path / "results").write_text("")
    code, out, err = script(name, "--strategy", "er", "--results", "results")
    assert code == 2 and not out and err.count("\n") == 1
    assert "Expected a folder of result files, got the file 'results'; change --results." in err
    assert not (tmp_path / "runs").exists()


def in_session(session):
    """The living processes of a session (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_comparison_that_is_stopped_leaves_no_process_and_goes_on(script, tmp_path):
    flags = ("--strategy", "sequential,er", "--seed", "0", "--steps", "150", *SMALL, "--output-dir", "out")
    runs = [tmp_path / "out" / f"embedded-{s}-seed0" for s in ("sequential", "er")]
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "analyses" / "compare.py"), *flags, "--workers", "2", "--save-steps", "20"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 300
        while not all((run / "checkpoint" / "state.json").exists() for run in runs) and time.monotonic() < end:
            time.sleep(0.05)
        process.terminate()
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert (
        err.rstrip().splitlines()[-1].endswith("give the same command again, with --resume if training had begun")
        and not out
    )
    assert "Traceback" not in err
    end = time.monotonic() + 300
    while in_session(process.pid) and time.monotonic() < end:  # multiprocessing's resource tracker goes last
        time.sleep(0.05)
    assert in_session(process.pid) == []
    states = [json.loads((run / "manifest.json").read_text())["status"] for run in runs]
    assert "running" in states, "it was stopped too late"
    unfinished = [run for run, state in zip(runs, states, strict=True) if state == "running"]
    checkpoints = {run: json.loads((run / "checkpoint" / "state.json").read_text()) for run in unfinished}
    assert any(state["within"] for state in checkpoints.values())
    assert script("compare", *flags, "--workers", 1)[0] == 2
    code, out, err = script("compare", *flags, "--workers", 1, "--resume")
    assert code == 0, err
    for run, state in checkpoints.items():  # it went on from there
        written = [json.loads(f.read_text()) for f in sorted((run / "losses").glob("*.json"))]
        assert [len(w) for w in written] == [150, 150]
        assert any(w[: len(state["losses"])] == state["losses"] for w in written)
    table = pd.read_csv(tmp_path / "out" / "comparison" / "strategies.csv")
    assert list(table.strategy) == ["sequential", "er"] and (table.train_seconds > 0).all()
    assert "sequential" in (tmp_path / "out" / "comparison" / "summary.md").read_text()
    assert "average accuracy" in out and "comparison" in out
