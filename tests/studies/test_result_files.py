"""Result files: what a finished run leaves for machines that have no runs/, and what of it is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.runs.general import PRETRAINING, General
from mcanalysis.runs.result_file import FiledRun, write_result
from mcanalysis.store.code_key import PARTS, code_key
from mcanalysis.store.hashing import hash_json
from mcanalysis.studies import training
from mcanalysis.studies.strategies import run_directories, train_runs
from mcanalysis.studies.strategy_tables import comparison_table
from mcanalysis.studies.strategy_words import write_comparison
from mcanalysis.studies.tuning import Search, Trial, Tuning

FINISHED = Path(__file__).parents[1] / "runs_of_version_0_1" / "finished"
ER, ILORA, ALONE = "embedded-er-seed0.json", "embedded-ilora-seed0.json", "embedded-individual-seed0.json"


@pytest.fixture(scope="module")
def configs(run_config):
    """Of one learner, of two, and of one whose matrix has gaps."""
    small = {"num_steps": 1, "tasks": ("FOMC", "MedMCQA"), "sizes": {"train": 4}, "num_test": 2}
    return [run_config(strategy, **small) for strategy in ("er", "ilora", "individual")]


def trained(configs, folder, results, **options):
    return train_runs(configs, run_directories(configs, folder / "runs"), results=results, **options)


@pytest.fixture(scope="module")
def study(configs, tmp_path_factory):
    """Where three runs were trained, and left their files in results/."""
    folder = tmp_path_factory.mktemp("study")
    trained(configs, folder, folder / "results")
    return folder


@pytest.fixture
def results(study, tmp_path):
    return shutil.copytree(study / "results", tmp_path / "results")


@pytest.fixture
def started(monkeypatch):
    """The strategies whose training has begun."""
    begun, real = [], training.train
    monkeypatch.setattr(training, "train", lambda c, *rest, **more: begun.append(c.strategy) or real(c, *rest, **more))
    return begun


def changed(file, change):
    """A file in which `change` was applied to the values, with the hash that goes with them."""
    values = json.loads(file.read_text())
    del values["sha256"]
    change(values)
    file.write_text(json.dumps(values | {"sha256": hash_json(values)}))


def test_the_tables_of_files_alone_are_those_of_the_runs_to_the_bit(study, configs, results, tmp_path, started):
    runs = [FinishedRun(d) for d in run_directories(configs, study / "runs")]
    filed = trained(configs, tmp_path, results)
    assert not started and not (tmp_path / "runs").exists()
    assert_frame_equal(comparison_table(filed), comparison_table(runs), check_exact=True)
    for name, of in (("runs", runs), ("files", filed)):
        write_comparison(of, tmp_path / name)
    written = [sorted((tmp_path / name / "comparison").iterdir()) for name in ("runs", "files")]
    assert len(written[0]) == 5 and [f.read_bytes() for f in written[0]] == [f.read_bytes() for f in written[1]]
    for run, file in zip(runs, filed, strict=True):
        assert file.name == run.name and file.manifest == run.manifest and file.cost == run.cost
        assert file.metrics_by_learner == run.metrics_by_learner and file.answering_learner == run.answering_learner
        for learner in run.metrics["learners"]:
            assert_frame_equal(file.accuracy_matrix_of(learner), run.accuracy_matrix_of(learner), check_exact=True)
        with pytest.raises(RunDirectoryError, match="without minima; train the run here"):
            _ = file.is_joint
    assert filed[2].accuracy_matrix.isna().any(axis=None) and len(filed[1].metrics["learners"]) == 2
    assert all(f.stat().st_size < 10_000 for f in results.iterdir())


def test_what_has_a_file_is_not_trained_and_what_is_trained_leaves_one(study, configs, results, tmp_path, started):
    (results / ILORA).unlink()
    runs = trained(configs, tmp_path, results)
    assert started == ["ilora"] and [r.directory.name for r in runs] == [ER, "embedded-ilora-seed0", ALONE]
    again, first = (json.loads((folder / ILORA).read_text()) for folder in (results, study / "results"))
    for name in ("metrics", "tables", "report"):  # not what has the time in it
        assert again[name] == first[name]
    untouched = (study / "results" / ER).read_bytes()
    assert (results / ER).read_bytes() == untouched
    table = comparison_table(runs)
    shutil.rmtree(tmp_path / "runs")
    assert_frame_equal(comparison_table(trained(configs, tmp_path, results)), table, check_exact=True)


def test_runs_that_are_there_leave_files_too(study, configs, tmp_path, started):
    trained(configs, study, tmp_path / "results")
    assert not started and {f.name for f in (tmp_path / "results").iterdir()} == {ER, ILORA, ALONE}


def test_a_run_of_before_is_filed_to_the_last_bit(tmp_path):
    old = FinishedRun(shutil.copytree(FINISHED, tmp_path / "embedded-ilora-seed0"))
    random = np.random.default_rng(0)
    for name in ("accuracy_matrix", "accuracy_matrix_fast"):
        table = old.table(name)
        table[old.task_names] = random.random((len(table), 2)) * 1e-3
        table.iloc[1, 2] = np.nan
        table.to_csv(old.directory / "tables" / f"{name}.csv", index=False)
    write_result(old, tmp_path / "results" / ILORA)
    filed = FiledRun(tmp_path / "results" / ILORA)
    for learner in ("fast", "slow"):
        assert_frame_equal(filed.accuracy_matrix_of(learner), old.accuracy_matrix_of(learner), check_exact=True)
    assert filed.metrics == old.metrics and filed.manifest == old.manifest


def test_a_study_that_is_stopped_leaves_the_files_of_what_was_done(configs, tmp_path, started, monkeypatch):
    real = training.train

    def stopped(config, *rest, **more):
        if config.strategy == "ilora":
            raise KeyboardInterrupt
        return real(config, *rest, **more)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(configs[:2], tmp_path, tmp_path / "results")
    assert [f.name for f in (tmp_path / "results").iterdir()] == [ER]
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(training, "train", real)
    trained(configs[:2], tmp_path, tmp_path / "results")
    assert started == ["er", "ilora"]  # er once


def refused(kind, match, configs, tmp_path, results, **options):
    before = {f: f.read_bytes() for f in results.iterdir()}
    with pytest.raises(kind, match=match) as refusal:
        trained(configs, tmp_path, results, **options)
    assert "\n" not in str(refusal.value) and not (tmp_path / "runs").exists()
    assert {f: f.read_bytes() for f in results.iterdir()} == before


def test_a_file_of_another_run_is_refused_by_what_differs(configs, results, tmp_path, started):
    er, ilora, alone = configs
    shutil.copy(results / ER, results / "embedded-er-seed1.json")
    changed(results / ILORA, lambda values: values["manifest"]["hashes"]["data"].update(FOMC="sha256:" + "0" * 64))
    changed(results / ALONE, lambda values: values["manifest"]["hashes"].update(base="files-2:" + "1" * 64))
    faster = replace(er, training=replace(er.training, learning_rate=0.5))
    general = General(PRETRAINING)
    for config, differs, options in (
        (replace(er, seed=1), "expected seed 0, got 1", {}),
        (replace(er, strategy_settings={"memory_size": 7}), r"expected strategy_settings.memory_size \d+, got 7", {}),
        (faster, "expected training.learning_rate 0.003, got 0.5", {}),
        (replace(er, scored_split="eval"), "on the eval split, got .* scored on test", {}),
        (er, "expected general tasks as measured, none, got pretraining-text", {"general": general}),
        (ilora, "expected FOMC with content hash 0000.*, got ", {}),
        (alone, "expected base model with content hash 1111.*, got ", {}),
    ):
        refused(RunDirectoryError, differs, [config], tmp_path, results, **options)
    ends = "give the recorded values and data, or choose another --results."
    where = f"Result file {results / ER} belongs to another run: expected training.learning_rate 0.003, got 0.5; {ends}"
    refused(RunDirectoryError, f"^{re.escape(where)}$", [faster], tmp_path, results)
    assert not started


def test_where_the_data_lie_is_no_difference(configs, results, tmp_path, started):
    changed(results / ER, lambda values: values["manifest"]["config"].update(data_dir="elsewhere"))
    trained(configs[:1], tmp_path, results)
    assert not started


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda text: text[:-200], "Expected JSON in"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "of format 1 at .*, got format 2"),
        (lambda text: "[]", "of format 1 at .*, got no format"),
        (
            lambda text: text.replace('"average_accuracy": 0', '"average_accuracy": 1', 1),
            "that was changed or cut since",
        ),
    ],
)
def test_a_damaged_file_is_refused(configs, results, tmp_path, started, damage, match):
    text = (results / ER).read_text()
    (results / ER).write_text(damage(text))
    assert (results / ER).read_text() != text
    refused(DataError, f"{match}.*; restore it, or remove it to train the run again", configs, tmp_path, results)
    assert not started


def test_other_scores_than_those_of_the_run_that_is_there_are_refused(study, configs, results, started):
    changed(results / ER, lambda values: values["metrics"].update(average_accuracy=0.123))
    before = (results / ER).read_bytes()
    with pytest.raises(
        RunDirectoryError, match=r"Expected the scores of '.*er-seed0' in its result file .* remove one"
    ):
        trained(configs, study, results)
    assert (results / ER).read_bytes() == before and not started


def test_a_file_is_no_folder_of_them(configs, results, tmp_path):
    with pytest.raises(UserError, match="Expected a folder of result files, got the file"):
        trained(configs, tmp_path, results / ER)


def test_files_of_other_code_are_counted_in_one_line(configs, results, tmp_path, caplog):
    trained(configs, tmp_path, results)
    assert "other code" not in caplog.text
    for name in (ER, ILORA):
        changed(results / name, lambda values: values["manifest"].update(code="0" * 64))
    trained(configs, tmp_path, results)
    assert caplog.text.count("2 of 3 result files in ") == 1 and "are of other code than this" in caplog.text


def test_the_key_of_the_code_changes_with_what_trains_and_scores(tmp_path, monkeypatch):
    for part in (*PARTS, "plotting"):
        (tmp_path / "mcanalysis" / part / "deeper").mkdir(parents=True)
        (tmp_path / "mcanalysis" / part / "deeper" / "a.py").write_text("one = 1")
    monkeypatch.setattr("mcanalysis.store.code_key.__file__", str(tmp_path / "mcanalysis" / "store" / "code_key.py"))
    keys = [code_key.__wrapped__()]
    for part in PARTS:
        (tmp_path / "mcanalysis" / part / "deeper" / "a.py").write_text("one = 2")
        keys.append(code_key.__wrapped__())
    assert len(set(keys)) == len(PARTS) + 1
    (tmp_path / "mcanalysis" / "plotting" / "deeper" / "a.py").write_text("one = 2")
    assert code_key.__wrapped__() == keys[-1]


def test_a_measured_general_task_is_in_the_file(configs, tmp_path, started):
    for _ in range(2):
        (run,) = trained(configs[:1], tmp_path, tmp_path / "results", general=General(PRETRAINING))
    filed = FiledRun(tmp_path / "results" / ER)
    assert started == ["er"] and filed.has("general")
    assert_frame_equal(filed.table("general"), run.table("general"), check_exact=True)
    with pytest.raises(DataError, match="profiles"):
        filed.table("profiles")


def test_a_search_goes_on_from_files_of_the_eval_split(configs, tmp_path, started):
    tuning = Tuning(("er",), seed=(0,), output_dir=str(tmp_path / "tuning"), results=str(tmp_path / "results"))
    base = replace(configs[0], scored_split="eval")
    trials = [
        Trial(replace(base, training=replace(base.training, learning_rate=r)), n, 2) for n, r in enumerate((1e-3, 9e-3))
    ]

    def trained(trials):
        configs, folders = [t.config for t in trials], [tmp_path / "tuning" / t.name for t in trials]
        return training.trainings(configs, folders, results=tuning.results)

    def search():
        return Search(tuning, base, list(base.tasks), trials, trained(trials), [], trained)

    table = search().carry_out()
    assert started == ["er"] * 3  # both score alike, the first of them is chosen, and its rate is the lowest
    names = [f"embedded-er-seed0-trial{n}" for n in (0, 1, 2)]
    assert sorted(f.stem for f in (tmp_path / "results").iterdir()) == names
    tuned = (tmp_path / "tuning" / "tuned.yaml").read_bytes()
    shutil.rmtree(tmp_path / "tuning")
    (*_, cost) = search().plan()
    assert cost == "2 runs, 2 of them there (2 as result files)"
    assert_frame_equal(search().carry_out(), table, check_exact=True)
    assert len(started) == 3 and (tmp_path / "tuning" / "tuned.yaml").read_bytes() == tuned
    (tmp_path / "results" / f"{names[1]}.json").unlink()
    (*_, cost) = search().plan()
    assert cost.startswith("2 runs, 1 of them there (1 as result files); the others take about 0 minutes")
    file = tmp_path / "results" / f"{names[0]}.json"
    with pytest.raises(RunDirectoryError, match=r"on the test split, got .* scored on eval"):
        FiledRun(file)
