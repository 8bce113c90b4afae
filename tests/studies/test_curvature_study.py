"""The curvature of a run: each result computed once, the numbers those of the operator itself, refusals first."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import RunDirectoryError, UnknownNameError, UserError
from mcanalysis.landscape import eigenvalues as landscape_eigenvalues
from mcanalysis.landscape import hessian as landscape_hessian
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.landscape.trace import trace
from mcanalysis.params import combine, dot, subtract
from mcanalysis.runs.run import load_run
from mcanalysis.store.manifest import read_manifest, write_manifest
from mcanalysis.studies.curvature import Curvature
from mcanalysis.studies.curvature_tables import forgetting_correlations, with_means
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train

SETTINGS = Curvature(
    num_examples=4, num_forgetting_examples=3, num_eigenvalues=2, tolerance=0.05, num_trace_samples=4, num_lanczos=12
)
SIZES = {"train": 8, "eval": 3, "test": 4}
TASKS = ("FOMC", "MedMCQA", "JEC-QA")
FORGETTING = Curvature(2, 3, 1, num_trace_samples=2, num_lanczos=2, tolerance=0.2)  # the rest as rough as may be
STEPS = 30  # far enough apart for a finite difference
UNITS = 5 + 2 + 3  # own and mean_old, densities of the last minimum, (transition, old task) pairs


@pytest.fixture(scope="module")
def trained(run_config, tmp_path_factory):
    """The same, once for each, not to be written to."""
    folder = tmp_path_factory.mktemp("trained")

    def make(strategy, tasks, steps):
        directory = folder / f"{strategy}-{len(tasks)}-{steps}"
        if not directory.exists():
            train(run_config(strategy, num_steps=steps, tasks=tasks, sizes=SIZES), directory, device="cpu")
        return directory

    return make


@pytest.fixture
def finished(trained, tmp_path):
    """make(strategy="sequential", tasks=TASKS, steps=STEPS) -> the directory of a finished run on the tiny base."""

    def make(strategy="sequential", tasks=TASKS, steps=STEPS):
        return shutil.copytree(trained(strategy, tasks, steps), tmp_path / strategy)

    return make


@pytest.fixture(scope="module")
def study(trained, tmp_path_factory):
    """The directory of a run that was measured once for all tests, its tables, and the figures that grew."""
    directory = shutil.copytree(trained("sequential", TASKS, STEPS), tmp_path_factory.mktemp("study") / "sequential")
    drawn = []
    return directory, measured(directory, on_figure=drawn.append), drawn


@pytest.fixture
def measured_run(study, tmp_path):
    """A copy of it to do with as one likes."""
    return shutil.copytree(study[0], tmp_path / "sequential")


def measured(directory, settings=SETTINGS, **options):
    return carry_out(settings, [load_run(directory, "cpu")], directory.parent, **options).tables


def test_numbers_are_those_of_the_operator(study):
    directory, result, _ = study
    run = load_run(directory, "cpu")
    assert len(result["curvature"]) == 5
    row = result["curvature"].set_index(["minimum", "task"]).loc[("3-JEC-QA", "mean_old")]
    hessian = HessianOperator(run.batch_losses(TASKS[:2], "test", 2), run.minimum(3).point)
    losses = [run.objective(t, "test", 2)(run.minimum(3).point).loss for t in TASKS[:2]]
    assert row.num_examples == 4 and row.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert row.trace == pytest.approx(trace(hessian, 4, seed=0).value, rel=1e-4)
    assert row.top_1 >= row.top_2 > row.bottom_2 >= row.bottom_1
    last = result["spectrum"][result["spectrum"].task == "mean_old"]
    assert set(result["spectrum"].minimum) == {"3-JEC-QA"} and set(result["spectrum"].task) == {"JEC-QA", "mean_old"}
    assert np.trapezoid(last.density, last.eigenvalue) == pytest.approx(1.0, abs=1e-2)
    assert last.eigenvalue.min() < row.bottom_1 and last.eigenvalue.max() > row.top_1


def test_forgetting_against_the_engine_and_a_finite_difference(study):
    directory, result, _ = study
    table = result["predicted_forgetting"].set_index(["start", "task"])
    run = load_run(directory, "cpu")
    objective = run.objective("FOMC", "test", 3)
    start, end = run.minimum(2).point, run.minimum(3).point
    row = table.loc[("2-MedMCQA", "FOMC")]
    loss = objective(start).loss
    assert row.measured == pytest.approx(objective(end).loss - loss, abs=1e-4)
    step = subtract(end, start)
    hessian = HessianOperator(run.batch_losses("FOMC", "test", 3), start)
    assert row.first_order == pytest.approx(dot(hessian.gradient(), step), rel=1e-3, abs=1e-5)
    h = 0.05 / row.distance
    slopes = [dot(HessianOperator(hessian.losses, combine([start, step], [1, t])).gradient(), step) for t in (h, -h)]
    assert row.second_order == pytest.approx((slopes[0] - slopes[1]) / (4 * h), rel=0.05, abs=1e-4)
    mean = table.loc[("2-MedMCQA", "mean_old")]
    both = table.loc["2-MedMCQA"].loc[["FOMC", "MedMCQA"]]
    assert mean.predicted == pytest.approx(both.predicted.mean()) and mean.measured == pytest.approx(
        both.measured.mean()
    )
    assert mean.num_examples == 6
    assert set(table.loc["1-FOMC"].index) == {"FOMC", "mean_old"}


def test_a_second_call_computes_nothing_and_a_missing_result_alone_is_computed(study, measured_run, monkeypatch):
    directory, first = measured_run, study[1]
    files = sorted((directory / "curvature").glob("*/*.json"))
    assert len(files) == UNITS
    tables = {f.name: f.read_bytes() for f in (directory / "tables").glob("*.csv")}
    seen = []
    monkeypatch.setattr(
        landscape_hessian,
        "HessianOperator",
        lambda losses, point: seen.append(len(losses)) or HessianOperator(losses, point),
    )
    again = measured(directory)
    assert not seen
    pd.testing.assert_frame_equal(first["curvature"], again["curvature"])
    monkeypatch.setattr(Curvature, "pictures", lambda *_: ())  # numbers alone from here on
    next(f for f in files if f.name.endswith(".json") and "spectrum" in f.name).unlink()
    measured(directory)
    assert len(seen) == 1
    assert {f.name: f.read_bytes() for f in (directory / "tables").glob("*.csv")} == tables
    measured(directory, Curvature(**{**vars(SETTINGS), "num_trace_samples": 5}))
    assert len(seen) == 1 + 5, "other settings of the trace: the eigenvalues' five results, no density, no forgetting"
    measured(directory, Curvature(**{**vars(SETTINGS), "num_forgetting_examples": 2}))
    assert len(seen) == 1 + 5 + 3, "other data: the three of forgetting alone"


def test_figures_and_captions(study):
    directory, _, drawn = study
    for name in ("spectrum", "eigenvalues", "predicted_forgetting"):
        for ending in ("pdf", "png", "txt"):
            assert (directory / "figures" / f"curvature_{name}.{ending}").stat().st_size > 100
    assert drawn


def test_adapters_that_grow_are_filled_up(finished):
    directory = finished("o_lora", TASKS[:2], steps=4)
    result = measured(directory, FORGETTING)
    assert (result["predicted_forgetting"].first_order.abs() < 1e-6).all(), (
        "the new part starts where its gradient is 0"
    )
    assert (result["predicted_forgetting"].distance > 0).all()


def test_where_nothing_is_below_zero_only_the_top_is_given(measured_run, monkeypatch):
    directory = measured_run
    for file in (directory / "curvature").glob("*/*eigenvalues*"):
        file.unlink()  # what is left is measured already
    calls = []
    monkeypatch.setattr(Curvature, "pictures", lambda *_: ())  # numbers alone

    def stubborn(hessian, num, which, *rest):
        calls.append(which)
        if which == "both":
            raise landscape_eigenvalues.NotConvergedError("no")
        return eigenvalues(hessian, num, which, *rest)

    eigenvalues = landscape_eigenvalues.eigenvalues
    monkeypatch.setattr(landscape_eigenvalues, "eigenvalues", stubborn)
    table = measured(directory)["curvature"]
    assert set(calls) == {"both", "top"}
    assert table.bottom_1.isna().all() and table.top_2.notna().all()
    assert "NaN" not in next((directory / "curvature").glob("*/*eigenvalues*")).read_text()


def test_refusals_before_anything_is_computed(finished, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(landscape_hessian, "HessianOperator", None)
    with pytest.raises(RunDirectoryError, match="at least two minima, got 1"):
        measured(finished(tasks=("FOMC",), steps=1))
    three = shutil.copytree(trained("sequential", TASKS, STEPS), tmp_path / "three")
    with pytest.raises(UnknownNameError, match="minimum"):
        measured(three, Curvature(spectrum_minimum="9"))
    manifest = read_manifest(three)
    manifest["config"]["strategy"] = "l2p"
    write_manifest(three, manifest)
    with pytest.raises(UserError, match="one of l2p"):
        measured(three)
    assert not list(tmp_path.glob("*/curvature"))


def test_more_eigenvalues_than_coordinates(finished):
    with pytest.raises(UserError, match="num_eigenvalues of at most 100, got 100000"):
        measured(finished(), Curvature(num_examples=2, num_eigenvalues=100_000))


@pytest.mark.parametrize(
    "bad",
    [{"num_examples": 0}, {"num_eigenvalues": 0}, {"num_trace_samples": 1}, {"tolerance": 0.0}, {"num_lanczos": 1}],
)
def test_bad_settings(bad):
    with pytest.raises(UserError, match="Expected"):
        Curvature(**bad)


def test_correlations_are_over_ranks_and_leave_constants_undefined():
    rows = []
    for k in range(4):
        for task in ("A", "B"):
            value = float(k * 2 + (task == "B"))
            labels = {"strategy": "er", "learner": "fast", "seed": 0, "start": str(k), "end": str(k + 1), "task": task}
            rows.append(
                labels | {"num_examples": 5, "measured": value**3, "predicted": value, "first_order": -value}
                | {"second_order": 1.0, "distance": float(k), "curvature": 0.0}
            )  # fmt: skip
    table = forgetting_correlations(with_means(rows)).set_index(["over", "predictor"])
    assert table.loc[("tasks", "predicted")].rho == 1.0 and table.loc[("tasks", "predicted")].n == 8
    assert table.loc[("transitions", "first_order")].rho == -1.0 and table.loc[("transitions", "predicted")].n == 4
    assert np.isnan(table.loc[("tasks", "second_order")].rho)
    assert json.dumps(table.n.tolist())
