"""Numbers that should not be: losses that are none, scores beyond 1, one example, empty answers, one task and fifty."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mcanalysis.metrics.continual import continual_metrics
from mcanalysis.store.measurements import Measurement


def write(root, tasks):
    """Tasks by name, each with the rows of all its splits."""
    for name, rows in tasks.items():
        (root / "data" / name).mkdir(parents=True)
        for split in ("train", "eval", "test"):
            text = json.dumps([{"prompt": prompt, "answer": answer} for prompt, answer in rows])
            (root / "data" / name / f"{split}.json").write_text(text)


FLAGS = ("--benchmark", "trace", "--data-dir", "data", "--strategy", "sequential", "--batch-size", 2, "--lora-rank", 2)
MEASURED = ("--workers", 1, "--paths", "linear-factor", "--num-points", 3, "--num-examples", 2)


@pytest.fixture
def run(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(name, *flags, steps=1):
        return script(name, *FLAGS, "--steps", steps, *flags)

    return call


def one_line(result, *said):
    code, _, err = result
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err, (code, err)
    assert all(piece in errors[0] for piece in said), errors


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_training(run, tmp_path, monkeypatch, value):
    from mcanalysis.strategies.sequential import Sequential

    write(tmp_path, {"A": [("p", "x"), ("q", "y")]})
    original = Sequential.loss
    monkeypatch.setattr(Sequential, "loss", lambda self, step: original(self, step) * value)
    one_line(run("train", "--output-dir", "run"), "Expected a finite loss", "step 1 of task A")
    assert not (tmp_path / "run" / "minima").exists()


def test_a_training_whose_parameters_explode_saves_none_of_them(run, tmp_path, monkeypatch):
    from mcanalysis.strategies.sequential import Sequential

    write(tmp_path, {"A": [("p", "x"), ("q", "y")]})

    def explode(self, model, *others):
        for parameter in model.parameters.values():
            parameter.data.mul_(math.inf)

    monkeypatch.setattr(Sequential, "after_step", explode)
    one_line(
        run("train", "--output-dir", "run", "--save-trajectory", 0), "Expected finite parameters at step 1 of task A"
    )
    assert not (tmp_path / "run" / "minima").exists()


@pytest.mark.parametrize("value", [1.5, -0.5, math.nan])
def test_a_score_beyond_its_range_is_refused(run, tmp_path, monkeypatch, value):
    from mcanalysis.evaluation import engine

    write(tmp_path, {"A": [("p", "x"), ("q", "y")]})
    wrong = replace(engine.get_score("exact_match"), per_example=lambda *texts: value)
    monkeypatch.setattr(engine, "get_score", lambda name: wrong)
    one_line(run("train", "--output-dir", "run"), "Expected scores in [0, 1] of exact_match, got")


def test_one_example_of_each_split(run, tmp_path):
    """It has losses and scores; an interval would need more."""
    write(tmp_path, {"A": [("p", "x")], "B": [("q", "y")]})
    code, _, err = run("connectivity", *MEASURED)
    assert code == 0, err


def test_answers_without_a_letter(run, tmp_path):
    """Only the end of the answer is learned, of every example, or they are refused: never a traceback or NaN."""
    write(tmp_path, {"A": [("p", ""), ("q", "")], "B": [("q", "y"), ("p", "")]})
    code, _, err = run("train", "--output-dir", "run")
    if code:
        one_line((code, "", err))
    else:
        assert "NaN" not in (tmp_path / "run" / "tables" / "metrics.json").read_text()


def test_one_task_has_no_path(run, tmp_path):
    write(tmp_path, {"A": [("p", "x"), ("q", "y")]})
    one_line(run("connectivity", *MEASURED), "at least two")


@pytest.mark.slow  # fifty trainings, however small
def test_fifty_tasks(run, tmp_path):
    write(tmp_path, {f"T{i:02}": [(f"p{i}", "x"), (f"q{i}", "y")] for i in range(50)})
    code, _, err = run("train", "--output-dir", "run", "--save-trajectory", 0)
    assert code == 0, err
    rows = (tmp_path / "run" / "tables" / "accuracy_matrix.csv").read_text().splitlines()
    assert len(rows) == 52 and all(len(row.split(",")) == 51 for row in rows)


def test_metrics_of_a_matrix_with_gaps_are_undefined_and_not_wrong():
    """A cell that is missing makes what needs it undefined; by hand: average 0.5 of the last row."""
    matrix = np.array([[0.0, 0.0], [1.0, np.nan], [0.5, 0.5]])
    found = continual_metrics(matrix)
    assert found["average_accuracy"] == 0.5 and found["forward_transfer"] is None
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_an_example_without_a_loss_has_no_score_either():
    made = Measurement.of(np.array([1.0, np.nan]), np.array([1, 1]), np.array([1.0, 1.0]))
    assert math.isnan(made.loss) and math.isnan(made.score)
