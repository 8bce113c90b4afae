"""Two runs that version 0.1 wrote stay what they are: read, measured no second time, gone on with."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

import mcanalysis as mc
from mcanalysis.evaluation.engine import Engine
from mcanalysis.store.measurements import MeasurementStore

REPOSITORY = Path(__file__).parents[2]
RUNS = REPOSITORY / "tests" / "runs_of_version_0_1"
TASKS = ("FOMC", "NumGLUE-cm")
MEASURED = ("--num-points", 3, "--num-examples", 4, "--paths", "linear-factor,bezier-factor", "--curve-steps", 2)
TRAINED = (
    "--tasks", ",".join(TASKS), "--num-train", 12, "--num-test", 4, "--steps", 4, "--batch-size", 4, "--lora-rank", 1,
    "--target-modules", "q_proj",
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """run("finished") -> a copy of it."""
    return lambda name: shutil.copytree(RUNS / name, tmp_path / name)


@pytest.fixture
def evaluations(monkeypatch):
    """How often a point is evaluated, for its outputs or its numbers alone."""
    calls, evaluate, measure = [], Engine.evaluate, Engine.measure
    monkeypatch.setattr(Engine, "evaluate", lambda self, *of: calls.append(of) or evaluate(self, *of))
    monkeypatch.setattr(Engine, "measure", lambda self, *of: calls.append(of) or measure(self, *of))
    return calls


def test_a_finished_run_is_read(run):
    folder = run("finished")
    finished = mc.load_run(folder)
    assert finished.task_names == list(TASKS) and finished.answering_learner == "slow"
    for learner in ("fast", "slow"):
        minima = finished.minima_of(learner)
        assert [m.label for m in minima] == ["1-FOMC", "2-NumGLUE-cm"]
        for minimum in minima:  # by hand: α/r = 16 on B
            saved = load_file(folder / "minima" / minimum.label / learner / "adapter_model.safetensors")
            for name, tensor in minimum.point.items():
                scale = 16.0 if ".lora_B." in name else 1.0
                assert np.array_equal(tensor, scale * saved[f"base_model.model.{name}"])
    by_hand = [row.split(",") for row in (folder / "tables/accuracy_matrix.csv").read_text().splitlines()]
    matrix = finished.accuracy_matrix
    assert list(matrix.columns) == by_hand[0] == ["after", *TASKS]
    np.testing.assert_array_equal(matrix.to_numpy(), np.array(by_hand[1:], dtype=float))
    scores = matrix[list(TASKS)].to_numpy()
    metrics = finished.metrics
    assert metrics["average_accuracy"] == pytest.approx(scores[2].mean(), abs=1e-12)
    assert metrics["backward_transfer"] == pytest.approx(scores[2, 0] - scores[1, 0], abs=1e-12)
    assert finished.path(1, 2)(0.5).keys() == finished.minima[0].point.keys()
    assert finished.curve(1, 2).bends[0].keys() == finished.minima[0].point.keys()


def test_its_measurements_are_served(run):
    """Each value of its tables is the one in its store, under the keys of today's minima and objectives."""
    from mcanalysis.evaluation.measuring import measurement_key

    folder = run("finished")
    finished, profiles = mc.load_run(folder), pd.read_csv(folder / "tables/profiles.csv")
    with MeasurementStore(folder / "measurements.sqlite") as store:
        for t, minimum in zip((0.0, 1.0), finished.minima, strict=True):
            for task in TASKS:
                for split in ("eval", "test"):
                    key = measurement_key(minimum.key, finished.task_objective(task, split, 4))
                    rows = profiles[(profiles.t == t) & (profiles.task == task) & (profiles.split == split)]
                    assert len(rows) == 2  # both paths start and end there
                    for row in rows.itertuples():
                        found = store.get(key)
                        assert found is not None and (found.loss, found.score) == (row.loss, row.score)


def test_measuring_again_serves_what_is_stored(run, script, evaluations):
    folder = run("finished")
    names = ("profiles", "barriers", "paths", "front")
    before = {n: pd.read_csv(folder / f"tables/{n}.csv") for n in names}
    code, out, err = script("connectivity", "--run", folder, *MEASURED, "--output-dir", folder.parent)
    assert code == 0 and "1-FOMC → 2-NumGLUE-cm" in out, err
    assert evaluations == []
    for name, table in before.items():
        again = pd.read_csv(folder / f"tables/{name}.csv")
        assert len(again) == len(table)
        for column in table:  # columns may have been added since, and intervals are made otherwise
            if column.endswith(("_low", "_high")):
                continue
            if table[column].dtype.kind == "f":
                # Sums of a bootstrap and of lengths, in another order perhaps; what was measured is the same text.
                np.testing.assert_allclose(again[column], table[column], rtol=1e-9, atol=1e-12, err_msg=column)
            else:
                assert again[column].equals(table[column]), column
        for column in {"loss", "score"} & set(table):
            assert again[column].equals(table[column])


def test_an_interrupted_run_goes_on(run, script, tmp_path, caplog):
    folder = run("interrupted")
    state = json.loads((folder / "checkpoint/state.json").read_text())
    first = (folder / "losses/1-FOMC.json").read_text()
    minimum = (folder / "minima/1-FOMC/fast/adapter_model.safetensors").read_bytes()
    with caplog.at_level(logging.WARNING, logger="mcanalysis"):
        code, _, err = script("train", "--strategy", "er", *TRAINED, "--output-dir", folder, "--resume")
    assert code == 0, err
    said = [r.getMessage() for r in caplog.records if "'" + str(folder / "checkpoint") in r.getMessage()]
    assert len(said) == 1 and "version 0.1" in said[0]
    losses = {n: json.loads((folder / f"losses/{n}.json").read_text()) for n in ("1-FOMC", "2-NumGLUE-cm")}
    assert (folder / "losses/1-FOMC.json").read_text() == first
    assert (folder / "minima/1-FOMC/fast/adapter_model.safetensors").read_bytes() == minimum
    assert len(state["losses"]) == 2 and losses["2-NumGLUE-cm"][:2] == state["losses"]

    code, _, err = script("train", "--strategy", "er", *TRAINED, "--output-dir", tmp_path / "whole")
    assert code == 0, err
    whole, finished = mc.load_run(tmp_path / "whole"), mc.load_run(folder)
    for name, expected in losses.items():
        # Float32 sums over some hundred tokens, on another processor perhaps; four steps of Adam, whose first divides
        # a gradient by its own size, carry that on.
        np.testing.assert_allclose(
            json.loads((whole.directory / f"losses/{name}.json").read_text()), expected, rtol=1e-3, err_msg=name
        )
    for ours, theirs in zip(finished.minima, whole.minima, strict=True):
        for name, tensor in theirs.point.items():
            np.testing.assert_allclose(ours.point[name], tensor, rtol=0, atol=1e-3 * float(tensor.abs().max()))
    assert finished.accuracy_matrix.shape == whole.accuracy_matrix.shape == (3, 3)
    assert not finished.accuracy_matrix.isna().any().any()


def test_a_finished_run_is_taken_as_finished(run, script, evaluations):
    folder = run("finished")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    flags = ("--strategy", "ilora", *TRAINED, "--save-trajectory", 2, "--output-dir", folder)
    code, out, err = script("train", *flags)
    assert code == 0 and "ilora / slow" in out, err
    assert evaluations == []
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p: c for p, c in after.items() if p.name != "manifest.json"} == {
        p: c for p, c in before.items() if p.name != "manifest.json"
    }
