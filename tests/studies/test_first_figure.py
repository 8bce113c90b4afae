"""The first transition is measured and drawn before the rest is trained; what comes of it in the end is the same."""

from dataclasses import replace

import pytest

from mcanalysis.progress import silent
from mcanalysis.runs.run import RunSoFar, load_run
from mcanalysis.store.manifest import read_manifest
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Here
from mcanalysis.studies.strategies import run_name
from mcanalysis.studies.study import carry_out
from mcanalysis.studies.training import trainings
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
STUDY = Connectivity(num_points=3, num_examples=3, curve_steps=2, paths=("linear-factor", "bezier-factor"))


class Noting(Here):
    """Computes here, and notes the names of pieces in the order in which they begin, and the bars that they had."""

    def __init__(self):
        super().__init__(self.bar)
        self.names, self.bars = [], set()

    def bar(self, *, total, desc):
        self.bars.add(desc)
        return silent(total=total, desc=desc)

    def submit(self, piece):
        self.names.append(piece.name)
        return super().submit(piece)


@pytest.fixture(scope="module")
def configs(run_config):
    sizes = {"train": 8, "eval": 3, "test": 4}
    return [run_config(s, tasks=TASKS, sizes=sizes, num_test=3) for s in ("er", "sequential")]


@pytest.fixture(scope="module")
def studied(configs, tmp_path_factory):
    """A study from the training on: its folder, the order of its pieces, what was drawn when."""
    folder = tmp_path_factory.mktemp("studied")
    workers, drawn = Noting(), []

    def growing(file):
        words = file.with_suffix(".txt").read_text()
        status = read_manifest(file.parents[1])["status"]
        drawn.append((len(workers.names), status, words, file.read_bytes()))

    runs = trainings(configs, [folder / run_name(c) for c in configs])
    outcome = carry_out(STUDY, runs, folder, workers, on_growing=growing)
    return folder, workers.names, drawn, outcome, workers.bars


def test_what_a_first_figure_needs_goes_first(studied, configs):
    first, second = map(run_name, configs)
    kinds = ["training" if name.startswith("training") else "point" for name in studied[1]]
    owners = [first if first in name else second for name in studied[1]]
    assert kinds[:5] == ["training", "point", "point", "point", "training"] and set(owners[:5]) == {first}
    rest = owners[5:]
    assert kinds[5:].count("training") == 1 and owners[5 + kinds[5:].index("training")] == second
    points_of_first = [i for i, (kind, owner) in enumerate(zip(kinds, owners, strict=True)) if owner == first]
    assert points_of_first[:8] == list(range(8)), "what the figure needs of the first run comes before the second's"
    assert second in rest


def test_several_workers_train_before_they_measure_what_only_the_whole_figure_needs(configs, tmp_path):
    class Two(Noting):
        count = 2

    workers, study = Two(), replace(STUDY, num_points=2, num_examples=1, curve_steps=1)
    short = [replace(c, tasks=TASKS[:2], num_test=1, training=TrainingConfig(1, 4, max_length=128)) for c in configs]
    short.append(replace(short[1], seed=1))
    carry_out(study, trainings(short, [tmp_path / run_name(c) for c in short]), tmp_path, workers)
    trained = [i for i, name in enumerate(workers.names) if name.startswith("training")]
    curves = [i for i, name in enumerate(workers.names) if name.startswith("curve")]
    assert len(trained) == 3 and len(curves) == 1
    assert max(trained) < min(curves), "else the last training runs alone"


def test_the_figure_is_there_before_the_run_is_and_says_what_it_lacks(studied):
    pieces, status, words, _ = studied[2][0]
    assert (pieces, status) == (4, "running")
    assert words.startswith("Not whole yet, and drawn again as more is measured. Missing: 2-MedMCQA → 3-JEC-QA;")
    assert "bezier-factor on all that is shown" in words
    folder, _, drawn, outcome, _ = studied
    final = folder / "embedded-er-seed0/figures/connectivity_fast.txt"
    assert "Not whole" not in final.read_text() and final.with_suffix(".png") in outcome.figures
    assert all(image != final.with_suffix(".png").read_bytes() for *_, image in drawn)


def test_whatever_is_evaluated_has_a_bar(studied):
    assert studied[-1] >= {
        "er: scoring the base (tokens)", "er: scoring 2-MedMCQA/fast (tokens)", "train er (seed 0)",
        "train er (seed 0), from step 0 of task 3", "a point of embedded-er-seed0 (tokens)", "fit curve",
    }  # fmt: skip


def test_minima_tables_and_figures_are_those_of_a_run_trained_in_one_go(studied, configs, tmp_path, adapter_bytes):
    name = run_name(configs[0])
    train(configs[0], tmp_path / name, device="cpu")
    drawn = []
    carry_out(STUDY, [load_run(tmp_path / name, "cpu")], tmp_path / "out", on_growing=drawn.append)
    assert adapter_bytes(tmp_path / name) == adapter_bytes(studied[0] / name) != {}
    tables = [f"tables/{name}" for name in ("profiles.csv", "barriers.csv", "accuracy_matrix.csv", "metrics.json")]
    figures = [f"figures/connectivity_fast.{end}" for end in ("png", "pdf", "txt")]
    for file in (*tables, *figures, "generations/0-base.json"):
        assert (studied[0] / name / file).read_bytes() == (tmp_path / name / file).read_bytes(), file
    assert drawn, "of a finished run, too, the figure grows"
    drawn.clear()
    folder, whole = tmp_path / name / "figures", []
    (folder / "connectivity_fast.pdf").unlink()

    def again():
        outcome = carry_out(
            STUDY, [load_run(tmp_path / name, "cpu")], tmp_path / "out", on_growing=drawn.append, on_figure=whole.append
        )
        assert folder / "connectivity_fast.pdf" in outcome.figures and whole.pop() == folder / "connectivity_fast.png"
        assert not drawn, "where nothing is missing it is drawn once"
        return {file: file.stat().st_mtime_ns for file in folder.iterdir()}

    first = again()
    assert again() == first, "pictures that would be the same are left alone"


def test_a_run_that_trains_has_the_tasks_it_has_learned(configs, tmp_path):
    train(configs[0], tmp_path / "run", device="cpu", until=2)
    run = RunSoFar(tmp_path / "run", "cpu", num_tasks=2)
    assert run.task_names == list(TASKS[:2]) and run.answering_learner == "fast"
    assert [m.label for m in run.minima] == ["1-FOMC", "2-MedMCQA"] and run.opening.run is run
    assert read_manifest(run.directory)["status"] == "running" and not (run.directory / "minima/3-JEC-QA").exists()
    assert not (run.directory / "tables").exists(), "what goes on scores the minima"
