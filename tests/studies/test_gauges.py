"""Gauges and merging methods on a small run, through its store: against points made and measured by hand."""

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mcanalysis.errors import UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.metrics.barriers import BY_NAME
from mcanalysis.params.gauge import random_gauge
from mcanalysis.params.merging import magmax
from mcanalysis.paths import Linear
from mcanalysis.plotting.gauges import caption, plot_gauges
from mcanalysis.plotting.style import path_lines
from mcanalysis.runs.run import load_run
from mcanalysis.studies.connectivity.forecast import forecast
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.study import carry_out
from mcanalysis.training.continual_trainer import train


@dataclass(frozen=True)
class Undrawn(Connectivity):
    def pictures(self, tables, *words):
        return ()

    def pictures_of_all(self, tables):
        return ()


PATHS = ("linear-factor", "linear-delta", "slerp-delta", "magmax-delta")
STUDY = Undrawn(paths=PATHS, num_points=3, num_examples=3, gauges=2)


@pytest.fixture(scope="module")
def made(run_config, tmp_path_factory):
    """A run of two tasks, and the tables of the study."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = run_config("sequential", num_steps=6, tasks=("FOMC", "MedMCQA"), sizes={"train": 8, "test": 3}, num_test=3)
    train(config, folder, device="cpu")
    run = load_run(folder, "cpu")
    return run, carry_out(STUDY, [run], folder.parent).tables


def losses(run, points):
    """Mean loss of the two tasks' test examples at points, by task."""
    objectives = [run.task_objective(task, "test", 3) for task in ("FOMC", "MedMCQA")]
    measured = [run.engine.measure(point, objectives) for point in points]
    return {o.name: np.array([m[i].loss for m in measured]) for i, o in enumerate(objectives)}


def test_every_draw_has_the_barriers_of_its_own_path(made):
    run, tables = made
    first, last = (m.point for m in run.minima_of("fast"))
    gauges, barriers = tables["gauges"], tables["barriers"]
    assert set(gauges.task) == {"FOMC", "MedMCQA", "mean_old", "mean"} and set(gauges.space) == {"factor"}
    found = {}
    for number in (0, 1):
        path = Linear(first, random_gauge(last, number))
        for task, values in losses(run, [first, path(0.5), last]).items():
            row = gauges[(gauges.gauge == number) & (gauges.task == task) & (gauges.quantity == "loss")]
            for name, barrier in BY_NAME.items():
                expected = float(barrier([0, 0.5, 1], values))
                assert row[name].item() == pytest.approx(expected, abs=2e-5)
                found.setdefault((task, name), []).append(row[name].item())
    own = barriers[(barriers.path == "linear") & (barriers.space == "factor") & (barriers.quantity == "loss")]
    for (task, name), (one, two) in found.items():
        row = own[own.task == task]
        assert row[f"{name}_gauge_least"].item() == min(one, two)
        assert row[f"{name}_gauge_median"].item() == pytest.approx((one + two) / 2)
        assert row[f"{name}_gauge_most"].item() == max(one, two)
    others = barriers[~((barriers.path == "linear") & (barriers.space == "factor"))]
    assert others.filter(like="_gauge_").isna().all(axis=None)


def test_what_is_stored_is_not_measured_again_and_without_the_flag_nothing_is_added(made, tmp_path, monkeypatch):
    run, tables = made
    copy = load_run(shutil.copytree(run.directory, tmp_path / "run"), "cpu")
    calls = []
    measure = Engine.measure
    monkeypatch.setattr(Engine, "measure", lambda self, *asked: calls.append(1) or measure(self, *asked))
    again = carry_out(STUDY, [copy], tmp_path).tables
    assert not calls and again["gauges"].equals(tables["gauges"])
    without = carry_out(replace(STUDY, gauges=0), [copy], tmp_path).tables
    assert not calls and "gauges" not in without
    plain = tables["barriers"].drop(columns=tables["barriers"].filter(like="_gauge_").columns)
    assert without["barriers"].equals(plain)
    told = forecast(STUDY, [copy]).rows.set_index("work")
    assert told.to_do["points"] == 0 and told.stored["points"] == 3 + 1 + 1 + 3 + 2  # by kind of path; the draws


def test_a_merge_from_the_base_has_points_of_its_own_and_no_barriers(made):
    run, tables = made
    first, last = (m.point for m in run.minima_of("fast"))
    merged = magmax([first, last])
    half = {n: x * 0.5 if "lora_B" in n else x for n, x in merged.items()}
    by_hand = losses(run, [run.model.base_point(), half, merged])
    profiles, barriers = (tables[n][(tables[n].path == "magmax") & (tables[n].split == "test")] for n in ("profiles", "barriers"))  # fmt: skip  # noqa: E501
    for task, values in by_hand.items():
        np.testing.assert_allclose(profiles[profiles.task == task].sort_values("t").loss, values, atol=2e-5)
    assert barriers[[*BY_NAME, "interpolation_gain"]].isna().all(axis=None) and not barriers.few_events.any()
    assert barriers.filter(regex="_(low|high)$").drop(columns=["t_star_low", "t_star_high"]).isna().all(axis=None)
    assert barriers[(barriers.task == "mean") & (barriers.quantity == "score")].t_star.item() == 0.5
    assert set(tables["front"].path) == {"linear", "slerp", "magmax"}
    assert set(tables["flips"].path) == {"linear", "slerp"}  # against the base nothing can be lost
    arc = tables["barriers"][tables["barriers"].path == "slerp"]
    assert arc.chord_barrier.notna().all()
    ends = {
        p: tables["profiles"][tables["profiles"].path == p].query("t in (0, 1)").loss.tolist()
        for p in ("slerp", "linear")
    }
    assert ends["slerp"] == ends["linear"][: len(ends["slerp"])]


def test_the_figure_shows_every_draw_and_its_words_say_them(made):
    _, tables = made
    figure = plot_gauges(tables["gauges"], tables["barriers"])
    (axes,) = figure.axes
    draws = {c.get_gid(): c.get_offsets()[:, 0] for c in axes.collections}
    loss = tables["gauges"][tables["gauges"].quantity == "loss"]
    for gid, task in (("draws 0", "mean_old"), ("draws 1", "MedMCQA")):
        np.testing.assert_allclose(draws[gid], loss[loss.task == task].chord_barrier)
    marks = {line.get_gid(): line.get_xdata()[0] for line in axes.lines}
    straight = tables["barriers"].query("path == 'linear' and task == 'MedMCQA' and quantity == 'loss'")
    for space in ("factor", "delta"):
        assert marks[f"{space} 1"] == straight[straight.space == space].chord_barrier.item()
    words = caption(tables["gauges"], tables["barriers"])
    assert "2 draws" in words and "FOMC → MedMCQA, new task" in words and "ΔW line" in words
    said = [line for line in STUDY.words(tables) if isinstance(line, list) and "random factors: least" in line[0]]
    assert [row[1] for row in said[0][1:]] == ["MedMCQA", "mean_old", "mean"]
    lines = path_lines({("slerp", "delta"), ("ties", "delta")})
    assert lines["slerp", "delta"].short == "slerp" and "base (t = 0)" in lines["ties", "delta"].label
    with pytest.raises(UserError, match="--gauges"):
        plot_gauges(tables["gauges"][:0], tables["barriers"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gauges": -1}, "--gauges"),
        ({"gauges": 5, "paths": ("linear-delta",)}, "linear-factor among --paths"),
        ({"gauges": 5, "num_points": 2}, "3 points or more"),
        ({"paths": ("ties-factor",)}, "choose ties-delta"),
        ({"paths": ("linear-factor", "dare-delta"), "tolerance": 0.02}, "got dare-delta"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Connectivity(**settings)
