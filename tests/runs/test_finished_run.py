"""What the files of a finished run say, read without torch: by name, by type, whole or refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import DataError, RunDirectoryError
from mcanalysis.runs.finished import FinishedRun, runs_in

REPOSITORY = Path(__file__).parents[2]
FINISHED = REPOSITORY / "tests" / "runs_of_version_0_1" / "finished"
TABLES = ("accuracy_matrix", "accuracy_matrix_fast", "barriers", "front", "paths", "profiles")


@pytest.fixture
def run(tmp_path):
    return FinishedRun(shutil.copytree(FINISHED, tmp_path / "run"))


def everything(run):
    """All that its files say."""
    scores = [run.accuracy_matrix, run.metrics_by_learner, run.cost, run.losses, run.minima_labels, run.has_paths]
    return scores, [run.outputs(learner) for learner in run.learners], [run.table(name) for name in TABLES], run.tasks


CHECK = """
import sys
sys.path.insert(0, "tests/runs")
from test_finished_run import FINISHED, everything
from mcanalysis.report import find_runs
from mcanalysis.report.page import render

found = find_runs([FINISHED])
everything(found.runs[0])
render(found.runs)
heavy = {"torch", "transformers", "peft", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""


def test_no_torch_is_needed_to_read_a_run_and_to_write_its_report():
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_what_it_says_is_what_its_files_say(run):
    assert (run.strategy, run.seed, run.task_names) == ("ilora", 0, ["FOMC", "NumGLUE-cm"])
    assert run.minima_labels == ["1-FOMC", "2-NumGLUE-cm"] and run.learners == ["fast", "slow"]
    assert run.answering_learner == "slow" and list(run.metrics_by_learner) == ["slow", "fast"]
    assert run.has_paths and run.is_sequential and not run.is_joint
    stored = {f.stem: json.loads(f.read_text()) for f in (run.directory / "losses").iterdir()}
    assert run.losses == stored and all(len(losses) == 4 for losses in stored.values())
    assert run.cost == json.loads((run.directory / "tables/cost.json").read_text())
    outputs = run.outputs("fast")
    assert {k: task for k, (task, _) in outputs.items()} == {0: "base", 1: "FOMC", 2: "NumGLUE-cm"}
    assert outputs[2][1] == json.loads((run.directory / "generations/2-NumGLUE-cm-fast.json").read_text())
    for name in TABLES:
        np.testing.assert_array_equal(
            run.table(name).select_dtypes("number"),
            pd.read_csv(run.directory / f"tables/{name}.csv").select_dtypes("number"),
        )


def test_numbers_give_the_order_of_minima(run):
    for label in ("10-FOMC", "9-NumGLUE-cm"):
        shutil.copytree(run.directory / "minima/1-FOMC", run.directory / "minima" / label)
    assert run.minima_labels == ["1-FOMC", "2-NumGLUE-cm", "9-NumGLUE-cm", "10-FOMC"]


@pytest.mark.parametrize("names", [("NA", "nan", "1"), ("1", "2", "3"), ("True", "few_events", "inf")])
def test_a_name_is_text_in_every_table_and_few_events_is_true_or_false(names, run):
    text = ("learner", "start_learner", "end_learner", "start", "end", "minimum", "anchor", "task", "key")
    rows = pd.DataFrame({column: names for column in text})
    rows = rows.assign(loss=[0.1 + 0.2, 1e-300, np.nan], seed=0, few_events=[True, False, None])
    rows.assign(score_few_events=False).to_csv(run.directory / "tables/any.csv", index=False)
    table = run.table("any")
    assert [table[column].tolist() for column in text] == [rows[column].tolist() for column in text]
    assert table.few_events.tolist() == [True, False, False] and table.score_few_events.dtype == bool
    assert table.loss.tolist()[:2] == [0.1 + 0.2, 1e-300] and np.isnan(table.loss[2]) and table.seed.tolist() == [0] * 3


def test_an_empty_cell_of_a_name_is_missing_and_a_table_without_rows_is_none(run):
    (run.directory / "tables/landscape.csv").write_text('task,anchor\nNA,""\n1,1-NA\n')
    assert run.table("landscape").anchor.isna().tolist() == [True, False]
    pd.DataFrame([]).to_csv(run.directory / "tables/simplex.csv", index=False)
    assert run.has("landscape") and not run.has("simplex") and not run.has("trajectory")


DAMAGES = {"empty": b"", "garbage": bytes(range(256)) * 40, "another value": b'"text"\n'}
READ = {
    "tables/metrics.json": lambda run: run.metrics,
    "tables/cost.json": lambda run: run.cost,
    "tables/accuracy_matrix.csv": lambda run: run.accuracy_matrix,
    "tables/accuracy_matrix_fast.csv": lambda run: run.accuracy_matrix_of("fast"),
    "tables/profiles.csv": lambda run: run.table("profiles", ["loss"]),
    "losses/1-FOMC.json": lambda run: run.losses,
    "generations/1-FOMC-slow.json": lambda run: run.outputs("slow"),
    "minima/1-FOMC/fast/adapter_config.json": lambda run: run.has_paths,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_is_named_in_one_line(name, damage, run):
    READ[name](run)
    (run.directory / name).write_bytes(DAMAGES[damage])
    with pytest.raises(DataError) as refused:
        READ[name](run)
    assert str(run.directory / name) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("change", [{"hashes": []}, {"hashes": {}}, {"config": {"strategy": "er", "seed": 0}}])
def test_a_manifest_that_lacks_something_is_refused_by_name(change, run):
    file = run.directory / "manifest.json"
    file.write_text(json.dumps(run.manifest | change))
    with pytest.raises(
        RunDirectoryError, match=r"Expected the (config's tasks|hashes) .*manifest\.json', got none; restore"
    ):
        FinishedRun(run.directory)


def test_a_file_that_is_missing_is_named_or_may_be_absent(run):
    (run.directory / "tables/cost.json").unlink()
    assert run.cost == {}
    (run.directory / "tables/profiles.csv").unlink()
    with pytest.raises(DataError, match=r"one of the tables in .*\(accuracy_matrix, .*got no profiles\.csv; name one"):
        run.table("profiles")
    with pytest.raises(DataError, match="Did you mean 'accuracy_matrix'"):
        run.table("accuracy_matric")
    (run.directory / "tables/accuracy_matrix_fast.csv").unlink()
    with pytest.raises(DataError, match=r"Expected accuracy_matrix_<learner>\.csv of all but one of fast, slow"):
        _ = run.answering_learner


def test_without_its_minima_a_run_keeps_its_scores(run):
    before = run.accuracy_matrix
    shutil.rmtree(run.directory / "minima")
    assert run.is_sequential and not run.has_paths and run.minima_labels == []
    pd.testing.assert_frame_equal(run.accuracy_matrix, before)


def test_runs_of_a_folder_are_told_from_unfinished_ones(run, tmp_path):
    shutil.copytree(FINISHED.parent / "interrupted", tmp_path / "a")
    finished, unfinished = runs_in(tmp_path)
    assert [r.name for r in finished] == ["run"] and unfinished == ["a"]
    (tmp_path / "card-1-A-2-B").mkdir()  # what card.py and --minima leave, whole
    manifest = {"status": "finished", "config": {"model": "m", "adapters": ["1-A", "2-B"]}}
    (tmp_path / "card-1-A-2-B/manifest.json").write_text(json.dumps(manifest))
    assert [r.name for r in runs_in(tmp_path)[0]] == ["run"] and runs_in(tmp_path)[1] == ["a"]
    with pytest.raises(RunDirectoryError, match="Expected a finished run"):
        FinishedRun(tmp_path / "a")
    with pytest.raises(RunDirectoryError, match="Expected a run directory"):
        FinishedRun(tmp_path)
