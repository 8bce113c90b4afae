"""Planes, slices and sharpness of small runs: tables against the engine and NumPy, reuse, stopping, refusals."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import PointMismatchError, RunDirectoryError, UnknownNameError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.landscape.grid import Node
from mcanalysis.landscape.slices import random_slice
from mcanalysis.paths.plane import Plane
from mcanalysis.runs.run import load_run
from mcanalysis.store.atomic import write_text_atomic
from mcanalysis.store.manifest import read_manifest, write_manifest
from mcanalysis.store.measurements import Measurement, MeasurementStore
from mcanalysis.studies.engine import Here
from mcanalysis.studies.executors.processes import Processes
from mcanalysis.studies.landscape.sharpness import KeptRows
from mcanalysis.studies.landscape.study import Landscape
from mcanalysis.studies.landscape.tables import node_rows
from mcanalysis.studies.study import carry_out
from mcanalysis.training.config import Execution
from mcanalysis.training.continual_trainer import train

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
SMALL = Landscape(
    transition=2, grid=(4, 3), num_examples=3, num_directions=2, slice_points=3, surface_grid=0, sharpness_samples=2
)
LAST = "3-JEC-QA"


@pytest.fixture(scope="module")
def make_run(run_config, tmp_path_factory):
    """make_run(strategy, tasks) -> the folder of a run with trajectories, trained once."""
    made = {}
    folder = tmp_path_factory.mktemp("runs")

    def make(strategy, tasks=TASKS):
        if (strategy, tasks) not in made:
            config = run_config(strategy, num_steps=4, tasks=tasks, sizes={"train": 12, "test": 4})
            target = folder / f"{strategy}-{len(tasks)}"
            train(config, target, device="cpu", execution=Execution(save_trajectory=1))
            made[strategy, tasks] = target
        return made[strategy, tasks]

    return make


@pytest.fixture
def copied(make_run, tmp_path):
    """copied("ilora") -> a run of one's own."""
    return lambda strategy: load_run(shutil.copytree(make_run(strategy), tmp_path / strategy), "cpu")


@pytest.fixture(scope="module")
def studied(make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studied")
    runs = [load_run(shutil.copytree(make_run(s), folder / s), "cpu") for s in ("sequential", "ilora")]
    return runs, study_of(runs, folder, SMALL), folder


@pytest.fixture
def calls(monkeypatch):
    """A list that grows by one with each evaluation of a point."""
    made = []
    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda self, *asked: made.append(1) or measure(self, *asked))
    return made


@pytest.fixture
def numbers_alone(monkeypatch):
    monkeypatch.setattr(Landscape, "pictures", lambda *_: ())


def study_of(runs, folder, settings, **options):
    return carry_out(settings, runs, folder, **options).tables


def at(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def test_the_plane_is_that_of_the_three_minima_node_by_node(studied):
    (_, ilora), result, _ = studied
    minima = [ilora.minimum(2, "fast"), ilora.minimum(3, "fast"), ilora.minimum(3, "slow")]
    plane = Plane(*(m.point for m in minima))
    rows = at(result["landscape"], strategy="ilora", kind="plane")
    assert len(rows) == (4 * 3 + 3) * (3 + 2)
    objectives = [ilora.task_objective(t, "test", 3) for t in TASKS]
    for (x, y), of_node in rows[rows.anchor == ""].groupby(["x", "y"]):
        for evaluation, task in zip(ilora.engine.evaluate(plane(x, y), objectives), TASKS, strict=True):
            row = at(of_node, task=task).iloc[0]
            assert (row.loss, row.score) == (evaluation.measurement.loss, evaluation.measurement.score)
            assert (row.num_examples, row.num_targets) == (3, evaluation.measurement.num_targets)
        by_task = of_node.set_index("task").loss
        assert by_task.mean_old == pytest.approx((by_task.FOMC + by_task.MedMCQA) / 2)
        assert by_task["mean"] == pytest.approx((by_task.mean_old + by_task["JEC-QA"]) / 2)
    exact = rows[rows.anchor != ""]
    assert list(dict.fromkeys(exact.anchor)) == ["2-MedMCQA fast", f"{LAST} fast", f"{LAST} slow"]
    for minimum, (x, y) in zip(minima, plane.anchor_coordinates.tolist(), strict=True):
        own = at(exact, anchor=f"{minimum.label} {minimum.learner}")
        assert set(own.x) == {x} and set(own.y) == {y}
        for evaluation, task in zip(ilora.engine.evaluate(minimum.point, objectives), TASKS, strict=True):
            assert at(own, task=task).loss.item() == evaluation.measurement.loss  # exactly
    box = rows[rows.anchor == ""]
    for column, sign in (("x", 1), ("y", 1), ("x", -1), ("y", -1)):
        assert (sign * box[column]).max() > (sign * exact[column]).max()


def test_trajectories_start_and_end_at_minima(studied):
    (_, ilora), result, _ = studied
    walk = at(result["trajectory"], strategy="ilora")
    assert set(walk.step) == set(range(5)) and set(walk.learner) == {"fast", "slow"}
    plane = Plane(ilora.minimum(2, "fast").point, ilora.minimum(3, "fast").point, ilora.minimum(3, "slow").point)
    where = plane.anchor_coordinates.numpy()
    for learner, step, place in (("fast", 0, where[0]), ("fast", 4, where[1]), ("slow", 4, where[2])):
        row = at(walk, learner=learner, step=step).iloc[0]
        np.testing.assert_allclose([row.x, row.y, row.distance], [*place, 0], atol=1e-6 * where.max())
    start = at(walk, learner="slow", step=0).iloc[0]
    expected = plane.project(ilora.minimum(2, "slow").point)
    np.testing.assert_allclose([start.x, start.y, start.distance], expected)
    assert at(result["landscape"], kind="plane", strategy="ilora").x.max() >= walk.x.max()


def test_without_a_slow_learner_the_third_is_the_next_or_previous_minimum(studied, copied, numbers_alone):
    _, result, _ = studied
    exact = at(result["landscape"], strategy="sequential", kind="plane")
    assert list(dict.fromkeys(exact[exact.anchor != ""].anchor))[2] == "1-FOMC fast"
    run = copied("sequential")
    settings = replace(SMALL, transition=1, num_directions=0, sharpness_samples=0)
    first = study_of([run], run.directory, settings)
    anchors = first["landscape"][first["landscape"].anchor != ""].anchor
    assert list(dict.fromkeys(anchors)) == ["1-FOMC fast", "2-MedMCQA fast", f"{LAST} fast"]
    assert set(first["landscape"].task) == {"FOMC", "MedMCQA", "mean_old", "mean"}


def test_slices_are_filter_normalised_and_their_mean_has_an_interval(studied):
    (_, ilora), result, _ = studied
    rows = at(result["landscape"], strategy="ilora", kind="slice", learner="slow")
    assert set(rows.direction) == {"0", "1", "mean"} and set(rows.start) == {LAST} and set(rows.space) == {"delta"}
    objective = ilora.task_objective("FOMC", "test", 3)
    point = ilora.minimum(3, "slow").point
    for direction in (0, 1):
        line = random_slice(point, 1, seed=direction)
        for x in (-1.0, 1.0):
            expected = ilora.engine.evaluate(line(x), [objective])[0].measurement
            assert at(rows, direction=str(direction), x=x, task="FOMC").loss.item() == expected.loss
    middle = at(rows, x=0.0, task="FOMC")
    assert len(set(middle.loss)) == 1  # the minimum itself, in every direction
    for task in ("FOMC", "mean_old", "mean"):
        ends = at(rows, x=1.0, task=task).set_index("direction")
        assert ends.loss["mean"] == pytest.approx((ends.loss["0"] + ends.loss["1"]) / 2)
        assert ends.loss_low["mean"] <= ends.loss["mean"] <= ends.loss_high["mean"]
        assert math.isnan(ends.loss_low["0"])


def test_sharpness_is_that_of_the_slices_directions(studied):
    (_, ilora), result, _ = studied
    assert len(result["sharpness"]) == 3 * 2 * 2  # minima after the transition, tasks, measures
    row = at(result["sharpness"], learner="slow", task="JEC-QA", measure="expected").iloc[0]
    objective = ilora.task_objective("JEC-QA", "test", 3)
    minimum = ilora.minimum(3, "slow").point
    assert row.loss == pytest.approx(ilora.engine.evaluate(minimum, [objective])[0].measurement.loss, rel=1e-5)
    assert math.isfinite(row.standard_error)
    assert (at(result["sharpness"], measure="epsilon").value >= 0).all()


def test_tables_figures_and_captions_lie_where_they_belong(studied):
    runs, result, folder = studied
    for run in runs:
        for name in ("landscape", "trajectory", "sharpness"):
            own = pd.read_csv(run.directory / "tables" / f"{name}.csv")
            assert len(own) == len(at(result[name], strategy=run.strategy))
        stem = run.directory / "figures" / f"plane_2-MedMCQA--{LAST}"
        assert all(stem.with_suffix(s).stat().st_size > 500 for s in (".pdf", ".png", ".txt"))
    assert (folder / "comparison" / "figures" / "slices.pdf").exists()
    assert "sequential, fast" in (folder / "comparison" / "figures" / "slices.txt").read_text()
    table = pd.read_csv(runs[0].directory / "tables" / "landscape.csv")
    head = "strategy learner seed space kind start end direction x y anchor task split loss score num_examples"
    assert list(table.columns)[:16] == head.split()


def test_a_second_study_computes_nothing_and_writes_the_same_bytes(studied, calls, monkeypatch):
    runs, _, folder = studied
    files = [f for f in sorted(folder.rglob("*")) if f.suffix in (".csv", ".png", ".pdf", ".txt")]
    before = {f: f.read_bytes() for f in files}
    monkeypatch.setattr(Here, "submit", lambda *_: pytest.fail("there is nothing to do"))
    study_of([load_run(r.directory, "cpu") for r in runs], folder, SMALL)
    assert calls == []
    assert [f for f, content in before.items() if f.read_bytes() != content] == []


def test_a_stopped_study_goes_on_where_it_was(copied, monkeypatch, calls):
    run = copied("sequential")
    settings = replace(SMALL, num_directions=0, sharpness_samples=0)
    put = MeasurementStore.put_many

    def put_or_stop(self, items):
        if len(calls) == 6:
            raise KeyboardInterrupt
        put(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(MeasurementStore, "put_many", put_or_stop)
        with pytest.raises(KeyboardInterrupt):
            study_of([run], run.directory, settings)
    assert not (run.directory / "tables" / "landscape.csv").exists()
    assert not (run.directory / "figures").exists()
    study_of([run], run.directory, settings)
    assert len(calls) == 4 * 3 + 3 + 1  # only what was being evaluated is evaluated twice


@pytest.mark.slow
def test_other_processes_find_the_same_numbers(studied, copied, tmp_path):
    _, result, _ = studied
    runs = [copied("sequential"), copied("ilora")]
    with Processes(2) as workers:
        parallel = study_of(runs, tmp_path, SMALL, workers=workers)
    pd.testing.assert_frame_equal(parallel["landscape"], result["landscape"], rtol=1e-4, atol=1e-6)
    pd.testing.assert_frame_equal(parallel["trajectory"], result["trajectory"])
    keys = ["strategy", "learner", "task", "measure"]
    columns = [*keys, "value"]
    assert len(parallel["sharpness"]) == len(result["sharpness"])
    merged = parallel["sharpness"][columns].merge(result["sharpness"][columns], on=keys)
    np.testing.assert_allclose(merged.value_x, merged.value_y, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("space", ["delta", "aligned"])
def test_other_spaces_have_the_same_minima_at_other_distances(copied, space, numbers_alone):
    run = copied("sequential")
    settings = replace(SMALL, space=space, grid=(2,), num_directions=0, sharpness_samples=0)
    rows = study_of([run], run.directory, settings)["landscape"]
    labels = ["2-MedMCQA", LAST, "1-FOMC"]
    plane = Plane(*(run.minimum(label).point for label in labels), space=space)
    for label, (x, y) in zip(labels, plane.anchor_coordinates.tolist(), strict=True):
        row = at(rows, anchor=f"{label} fast", task="FOMC").iloc[0]
        assert (row.x, row.y) == (x, y)
        objective = run.task_objective("FOMC", "test", 3)
        expected = run.engine.evaluate(run.minimum(label).point, [objective])[0].measurement.loss
        assert row.loss == expected  # the minimum itself, whatever the space made of it


def test_a_row_of_sharpness_that_is_there_is_kept_and_a_stop_loses_none(copied, monkeypatch, numbers_alone):
    run = copied("ilora")
    settings = replace(SMALL, grid=(2,), num_directions=0)
    keep, kept = KeptRows.keep, []

    def keep_or_stop(self, rows):
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(self, rows))

    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "keep", keep_or_stop)
        with pytest.raises(KeyboardInterrupt):
            study_of([run], run.directory, settings)
    table = run.directory / "tables" / "sharpness.csv"
    assert list(pd.read_csv(table).learner) == ["fast"] * 4
    marked = table.read_text().replace("nats/token", "marked")  # as another version may have found it
    write_text_atomic(table, marked)
    found = study_of([run], run.directory, settings)["sharpness"]
    assert list(at(found, measure="expected").unit) == ["marked", "marked", "nats/token", "nats/token"]
    study_of([run], run.directory, replace(settings, sharpness_samples=0))
    assert table.read_text().startswith(marked)


def test_adapters_of_growing_rank_are_joined_in_delta_space_only(copied, numbers_alone):
    run = copied("o_lora")
    settings = replace(SMALL, grid=(2,), num_directions=1, sharpness_samples=0)
    with pytest.raises(PointMismatchError, match="space='delta'"):
        study_of([run], run.directory, settings)
    assert not (run.directory / "tables" / "landscape.csv").exists()
    result = study_of([run], run.directory, replace(settings, space="delta"))
    assert result["landscape"].measured.all() and len(result["trajectory"]) == 5


def test_the_third_may_be_the_minimum_of_a_joint_run(copied, make_run, numbers_alone):
    run, joint = copied("sequential"), load_run(make_run("joint"), "cpu")
    settings = replace(SMALL, grid=(2,), num_directions=1, sharpness_samples=0)
    rows = study_of([run], run.directory, replace(settings, third=str(joint.directory)))["landscape"]
    planes = at(rows, kind="plane")
    assert list(dict.fromkeys(planes.anchor))[-1] == "joint 3-JOINT fast"
    assert set(at(rows, kind="slice").learner) == {"fast"} and set(at(rows, kind="slice").start) == {LAST}


def test_refusals_come_before_anything_is_measured(copied, make_run, calls, tmp_path):
    run = copied("sequential")
    other, prompts = (shutil.copytree(run.directory, tmp_path / name) for name in ("other", "prompts"))
    one, two = (load_run(make_run("sequential", TASKS[:n]), "cpu") for n in (1, 2))
    calls.clear()  # those of training
    with pytest.raises(UnknownNameError, match="--transition '3'"):
        study_of([run], tmp_path, replace(SMALL, transition=3))
    with pytest.raises(UserError, match="three different points to span a plane, got b and c equal"):
        study_of([run], tmp_path, replace(SMALL, third=str(run.directory)))
    with pytest.raises(RunDirectoryError, match="at least two minima, got 1"):
        study_of([one], tmp_path, SMALL)
    with pytest.raises(UserError, match="third minimum to span a plane, got only 1-FOMC and 2-MedMCQA"):
        study_of([two], tmp_path, replace(SMALL, transition=1))
    manifest = read_manifest(other)
    manifest["hashes"]["base"] = "another"
    write_manifest(other, manifest)
    with pytest.raises(PointMismatchError, match="third minimum on the base of"):
        study_of([run], tmp_path, replace(SMALL, third=str(other)))
    manifest = read_manifest(prompts)
    manifest["config"]["strategy"] = "progressive_prompts"
    write_manifest(prompts, manifest)
    with pytest.raises(UserError, match="got one of progressive_prompts"):
        study_of([load_run(prompts, "cpu")], tmp_path, SMALL)
    assert calls == []


def test_nan_is_measured_and_what_is_absent_is_not():
    objectives = [SimpleNamespace(name=n, split="test") for n in ("A", "B", "C")]
    nodes = [Node(0.0, 0.0, "nan"), Node(1.0, 0.0, "part"), Node(2.0, 0.0, "inf")]
    none = np.array([])
    losses = {"nan": (math.nan, 1.0, 2.0), "part": (1.0, None, 2.0), "inf": (math.inf, 1.0, 2.0)}
    measured = {
        key: [None if loss is None else Measurement(loss, 0.5, 3, 7, none, none, none) for loss in of_node]
        for key, of_node in losses.items()
    }
    rows = pd.DataFrame(node_rows(measured, nodes, objectives, {})).set_index(["x", "task"])
    assert list(rows.measured[0.0]) == [True] * 5 and list(rows.loss[0.0].isna()) == [True, False, False, True, True]
    assert dict(rows.measured[1.0]) == {"A": True, "B": False, "C": True, "mean_old": False, "mean": False}
    assert rows.measured[2.0].all() and math.isinf(rows.loss[2.0]["mean"])
    assert list(rows.num_targets[2.0]) == [7, 7, 7, 14, 21]


@pytest.mark.parametrize(
    ("values", "piece"),
    [
        ({"grid": (1,)}, "at least 2 points on each axis of a grid, got 1"),
        ({"grid": (5, 1)}, "at least 2 points"),
        ({"grid": (5, 5, 5)}, "one or two numbers of nodes, got 3; give --grid N or N,M"),
        ({"space": "facto"}, "Did you mean 'factor'"),
        ({"num_examples": 0}, "num_examples of at least 1"),
        ({"num_directions": -1}, "at least 0 directions"),
        ({"slice_points": 1}, "at least 2 points"),
        ({"sharpness_samples": 1}, "0 or at least 2 directions for sharpness"),
    ],
)
def test_bad_settings(values, piece):
    with pytest.raises(UserError, match=piece):
        Landscape(**values)
