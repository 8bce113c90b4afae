"""A file of a run that is missing, empty, cut or garbage: one line that names it, never a number made of what is left.

What can be made again is made again once the file is removed, as the line says.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mcanalysis as mc
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.paths import Bezier
from mcanalysis.store.point_files import point_bytes, read_points
from mcanalysis.strategies import strategy_names
from mcanalysis.training.continual_trainer import train

REPOSITORY = Path(__file__).parents[2]
FINISHED = REPOSITORY / "tests" / "runs_of_version_0_1" / "finished"
DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage": lambda file: file.write_bytes(bytes(range(256)) * 40),
}
damages = pytest.mark.parametrize("damage", DAMAGES)


@pytest.fixture
def run(tmp_path):
    """A copy of a finished run, of version 0.1."""
    return shutil.copytree(FINISHED, tmp_path / "run")


def line_of(action):
    with pytest.raises(UserError) as refused:
        action()
    line = str(refused.value)
    assert "\n" not in line and line.startswith("Expected ")
    return line


def everything(folder):
    """What a run says of itself in Python."""
    run = mc.load_run(folder)
    for learner in run.learners:
        for minimum in run.minima_of(learner):
            assert minimum.point
    return run.accuracy_matrix, run.metrics, run.curve(1, 2)


@damages
@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "tables/accuracy_matrix.csv",
        "tables/metrics.json",
        "minima/1-FOMC/slow/adapter_config.json",
        "minima/2-NumGLUE-cm/fast/adapter_model.safetensors",
        "curves/slow/1-FOMC--2-NumGLUE-cm-bezier-factor-fe955f79.safetensors",
    ],
)
def test_a_run_with_a_damaged_file_is_refused_by_name(name, damage, run):
    everything(run)
    DAMAGES[damage](run / name)
    line = line_of(lambda: everything(run))
    curve = "1-FOMC--2-NumGLUE-cm-bezier-factor"
    assert any(part in line for part in (Path(name).name, str(Path(name).parent), curve))


@pytest.mark.parametrize("cut", range(1, 52))
def test_an_accuracy_matrix_that_was_cut_anywhere_is_not_read(cut, run):
    """Half a CSV file is a CSV file; half a number is a number."""
    file = run / "tables/accuracy_matrix.csv"
    whole = file.read_bytes()
    assert len(whole) == 52
    file.write_bytes(whole[:cut])
    line_of(lambda: mc.load_run(run).accuracy_matrix)


def test_a_minimum_that_is_missing_does_not_shift_the_others(run):
    second = mc.load_run(run).minimum(2).key
    shutil.rmtree(run / "minima/1-FOMC")
    line = line_of(lambda: mc.load_run(run).minimum(1))
    assert "the minimum 1-FOMC" in line and str(run / "minima") in line
    shutil.copytree(FINISHED / "minima/1-FOMC", run / "minima/1-FOMC")
    assert mc.load_run(run).minimum(2).key == second


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
@pytest.mark.parametrize("name", ["profiles", "accuracy_matrix", "barriers"])
def test_the_report_names_a_damaged_table(name, damage, run, script):
    DAMAGES[damage](run / f"tables/{name}.csv")
    code, _, err = script("report", run, "--output", run.parent / "page.html")
    assert "Traceback" not in err and f"{name}.csv" in err, err
    assert code in (0, 2)  # a page of the rest, with a word on what is missing, or a refusal


@pytest.mark.parametrize(
    ("name", "damage"),
    [("measurements.sqlite", "garbage"), ("measurements.sqlite", "cut"), ("manifest.json", "cut"),
     ("curves/slow/1-FOMC--2-NumGLUE-cm-bezier-factor-fe955f79.safetensors", "cut"),
     ("minima/1-FOMC/slow/adapter_model.safetensors", "cut"), ("minima/1-FOMC/slow/adapter_config.json", "missing")],
)  # fmt: skip
def test_the_script_says_one_line(name, damage, run, script):
    DAMAGES[damage](run / name)
    flags = ("--num-points", 3, "--num-examples", 4, "--paths", "linear-factor,bezier-factor", "--curve-steps", 2)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "sqlite-" not in p.name}
    code, _, err = script("connectivity", "--run", run, *flags, "--workers", 1, "--output-dir", run.parent)
    lines = [row for row in err.splitlines() if row.startswith("error: ")]
    assert code == 2 and "Traceback" not in err and len(lines) == 1, err
    assert Path(name).name in lines[0] or str(Path(name).parent) in lines[0]
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "sqlite-" not in p.name}


def test_a_damaged_row_of_the_store(run, caplog):
    import sqlite3

    from mcanalysis.store.measurements import MeasurementStore

    file = run / "measurements.sqlite"
    with sqlite3.connect(file) as connection:
        key = connection.execute("SELECT point_key, task, split, settings_key FROM measurements").fetchone()
        connection.execute("UPDATE measurements SET nll = x'0102'")
    connection.close()
    with MeasurementStore(file) as store:
        assert store.get(key) is None and store.missing([key]) == [key]  # left out, and measured again
    assert caplog.text.count(f"'{file}' is damaged") == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_store_that_is_gone_is_measured_anew(damage, run, script):
    """The same values but for rounding on another processor."""
    import pandas as pd

    before = pd.read_csv(run / "tables/profiles.csv")
    DAMAGES[damage](run / "measurements.sqlite")
    flags = ("--num-points", 3, "--num-examples", 4, "--paths", "linear-factor,bezier-factor", "--curve-steps", 2)
    code, _, err = script("connectivity", "--run", run, *flags, "--workers", 1, "--output-dir", run.parent)
    assert code == 0, err
    after = pd.read_csv(run / "tables/profiles.csv")
    assert after.loss.to_numpy() == pytest.approx(before.loss.to_numpy(), rel=1e-4)


@pytest.mark.parametrize(
    "strategy",
    [name if name in ("ilora", "joint") else pytest.param(name, marks=pytest.mark.slow) for name in strategy_names()],
)
def test_tables_that_were_removed_are_written_again_without_measuring(
    strategy, run_config, make_tasks, tmp_path, monkeypatch
):
    config, tasks = run_config(strategy, num_steps=2), make_tasks(num_train=6, num_test=2)
    train(config, tmp_path / "run", device="cpu", tasks=tasks)
    shutil.rmtree(tmp_path / "run" / "checkpoint", ignore_errors=True)  # a finished run needs none
    tables = {
        f: f.read_bytes()
        for pattern in ("accuracy_matrix*.csv", "metrics.json")
        for f in (tmp_path / "run/tables").glob(pattern)
    }
    kept = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.suffix == ".safetensors"}
    for file in tables:
        file.unlink()
    monkeypatch.setattr(Engine, "evaluate", None)
    assert train(config, tmp_path / "run", device="cpu", tasks=tasks) is False
    assert {f: f.read_bytes() for f in tables} == tables
    assert {p: p.read_bytes() for p in kept} == kept


@pytest.fixture
def stopped_fit(tmp_path):
    """(go_on, file): a curve fit that was stopped, and what goes on with it."""
    ends = [{"w": torch.tensor([-1.0, 0.5], dtype=torch.float64)}, {"w": torch.tensor([1.0, 0.2], dtype=torch.float64)}]
    file = tmp_path / "fit.checkpoint"

    def fit(loss):
        return fit_curve(Bezier(*ends), loss, num_steps=12, checkpoint=file, checkpoint_steps=2)

    calls = []

    def stops(point):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return (point["w"] ** 2).sum()

    with pytest.raises(KeyboardInterrupt):
        fit(stops)
    return lambda: fit(lambda point: (point["w"] ** 2).sum()), file


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped"])
def test_a_fit_does_not_go_on_from_a_damaged_file(damage, stopped_fit):
    go_on, file = stopped_fit
    content = file.read_bytes()
    if damage == "flipped":
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        DAMAGES[damage](file)
    line = line_of(go_on)
    assert str(file) in line and "remove it" in line
    file.write_bytes(content)
    resumed = go_on().bends[0]["w"]
    assert not file.exists()
    assert torch.equal(go_on().bends[0]["w"], resumed)  # the remedy: without the file, from its beginning


@pytest.mark.parametrize("place", [-1, -9, 10, 25, 40, 100])
def test_a_curve_of_which_a_bit_was_flipped_is_refused(place, tmp_path):
    file = tmp_path / "curve.safetensors"
    content = bytearray(point_bytes([{"w": torch.arange(4.0), "v": torch.ones(2, 2, dtype=torch.bfloat16)}]))
    file.write_bytes(content)
    assert torch.equal(read_points(file)[0]["w"], torch.arange(4.0))
    content[place] ^= 1
    file.write_bytes(content)
    assert str(file) in line_of(lambda: read_points(file))


def test_a_curve_of_version_0_1_is_read(run):
    file = next((run / "curves/slow").iterdir())
    (bend,) = read_points(file)
    assert bend.keys() == mc.load_run(run).minimum(1).point.keys()
    assert all(tensor.isfinite().all() for tensor in bend.values())


@damages
def test_a_snapshot_of_a_trajectory(damage, run):
    from mcanalysis.runs.snapshots import read_snapshot, snapshot_files

    file = snapshot_files(run, "1-FOMC", "fast")[4]
    read_snapshot(file)
    DAMAGES[damage](file)
    assert str(file) in line_of(lambda: read_snapshot(file))


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage"])
def test_stored_results_of_an_ensemble(damage, tmp_path):
    from mcanalysis.store.small_files import read_json

    file = tmp_path / "ensemble.json"
    file.write_text(json.dumps([{"task": "FOMC", "loss": 0.5}] * 3))
    DAMAGES[damage](file)
    line = line_of(lambda: read_json(file))
    assert str(file) in line and "remove it" in line
