"""Forks, radii and simplices of small runs, against training and measuring by hand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.landscape.basin_radius import Ray, basin_radius, radius_of, towards, worst_direction
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.point import content_hash
from mcanalysis.runs.run import load_run
from mcanalysis.studies.basin import Basin, OnRay, half_table, radius_summary, stable_table
from mcanalysis.studies.engine import Here
from mcanalysis.studies.study import carry_out
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.continual_trainer import train
from mcanalysis.training.data_order import forked, steps_of_examples

TASKS = ("FOMC", "MedMCQA", "JEC-QA")
STEPS = 4
FORKS = Basin(after=(0.0, 0.5, 1.0), forked=(2,), num_directions=0, num_samples=0, num_points=3, num_examples=3)
PLACES = Basin(num_forks=0, radii=(0.5, 2.0), num_directions=1, num_samples=3, num_examples=3)


def dense(point):
    """ΔW of all modules as one vector."""
    names = sorted(name for name in point if name.endswith("lora_A.weight"))
    pairs = [(point[name.replace("lora_A", "lora_B")], point[name]) for name in names]
    return np.concatenate([(b.double() @ a.double()).numpy().ravel() for b, a in pairs])


@pytest.fixture(scope="module")
def config(run_config):
    training = TrainingConfig(num_steps=STEPS, batch_size=3, learning_rate=0.05)
    sizes = {"train": 12, "eval": 3, "test": 4}
    return dataclasses.replace(run_config("er", tasks=TASKS, sizes=sizes), training=training)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "er"
    train(config, folder, device="cpu", execution=Execution(save_trajectory=1))
    return load_run(folder, "cpu")


@pytest.fixture(scope="module")
def forks(run):
    """The tables of forks, and how many pieces a second call computes."""
    tables = carry_out(FORKS, [run], run.directory.parent).tables

    class Nothing(Here):
        def submit(self, piece):
            raise AssertionError(f"computed again: {piece.name}")

    again = carry_out(FORKS, [load_run(run.directory, "cpu")], run.directory.parent, Nothing()).tables
    pd.testing.assert_frame_equal(tables["basin_forks"], again["basin_forks"])
    return tables


def test_a_fork_keeps_the_first_steps_and_sees_the_same_examples_in_another_order():
    lengths = [1 + i % 4 for i in range(10)]
    steps = steps_of_examples(lengths, 9, 4, "a")
    fork = forked(steps, 3, 10, lengths, "b")
    assert fork[:3] == steps[:3] and fork[3:] != steps[3:] and list(map(len, fork)) == [4] * 9
    flat, of_fork = ([pair for step in s[3:] for pair in step] for s in (steps, fork))
    assert sorted(flat) == sorted(of_fork)
    steps = steps_of_examples([1] * 10, 9, 4, "a")  # of one length, so that steps are not sorted
    alike, other = ([p for step in s[3:] for p in step] for s in (steps, forked(steps, 3, 10, [1] * 10, "b")))
    for start in range(0, 24, 10):  # of every stretch of a pass's length
        assert sorted(alike[start : start + 10]) == sorted(other[start : start + 10])
    assert sorted(i for step in fork for i, first in step if first) == list(range(10))
    lengths = [1] * 10
    assert forked(steps, 9, 10, lengths, "b") == steps
    assert forked(steps, 0, 10, lengths, "b") != forked(steps, 0, 10, lengths, "c")


def test_a_trunk_ends_in_the_runs_minimum_and_so_does_a_fork_after_all_steps(run, forks):
    table = forks["basin_forks"].set_index("after")
    assert table.index.tolist() == [0, 2, STEPS] and set(table.task) == {"2-MedMCQA"}
    assert table.trunk_is_run.all()
    assert table.loc[STEPS, "distance"] == 0.0 and table.loc[STEPS, "chord_barrier"] == 0.0
    assert table.distance[0] > 0 and table.distance[2] > 0


def test_a_fork_is_the_training_with_that_setting_and_its_barrier_that_of_the_line(run, forks, config, tmp_path):
    row = forks["basin_forks"].query("after == 2").iloc[0]
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, fork=("MedMCQA", 2, 1)))
    train(other, tmp_path / "alone", device="cpu", execution=Execution(save_trajectory=1), until=2)
    end = load_adapter(tmp_path / "alone" / "minima" / "2-MedMCQA" / "fast").point
    kept = run.directory / "basin" / "2-MedMCQA" / "after2-seed1" / "minima" / "2-MedMCQA" / "fast"
    assert content_hash(end) == content_hash(load_adapter(kept).point)
    for step in range(1, 3):  # what they have in common, and what not
        one, two = (load_file(f / "trajectory" / "2-MedMCQA" / "fast" / f"{step}.safetensors") for f in
                    (run.directory, tmp_path / "alone"))  # fmt: skip
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    losses = [
        run.objective("MedMCQA", "test", 3)(mc.Linear(run.minimum(2).point, end)(t)).loss for t in (0.0, 0.5, 1.0)
    ]
    assert row.chord_barrier == pytest.approx(max(0.0, losses[1] - (losses[0] + losses[2]) / 2), abs=1e-6)
    assert (row.loss_trunk, row.loss_fork) == pytest.approx((losses[0], losses[2]), abs=1e-6)


def test_manifests_are_what_they_were_and_know_a_fork(config):
    assert "fork" not in config.resolved()["training"]
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, fork=("FOMC", 2, 1)))
    resolved = other.resolved()
    assert resolved["training"]["fork"] == ["FOMC", 2, 1]
    assert RunConfig.from_resolved(resolved).training.fork == ("FOMC", 2, 1)


def test_radii_and_volumes_are_those_of_the_functions(run):
    outcome = carry_out(PLACES, [run], run.directory.parent)
    radii, volume = outcome.tables["basin_radius"], outcome.tables["basin_volume"].iloc[0]
    assert radii.groupby("task", sort=False).direction.agg(list).tolist() == [
        ["random", "worst", "forgetting"], ["random", "worst", "forgetting"], ["random", "worst"]
    ]  # fmt: skip
    first, second = run.minimum(1).point, run.minimum(2).point
    ends, there = ([dense(p) for p in (first, second)], dense(OnRay(1, "forgetting", 0, 3, 0.01, 0.5).point(run)))
    ahead = ends[1] - ends[0]
    exact = ends[0] + 0.5 * np.linalg.norm(ends[0]) / np.linalg.norm(ahead) * ahead
    assert there == pytest.approx(exact, abs=1e-6 * np.linalg.norm(exact))
    measure = run.objective("FOMC", "test", 3)
    row = radii[(radii.task == "1-FOMC") & (radii.direction == "forgetting")].iloc[0]
    if row.score > 0:
        expected = basin_radius(measure, first, towards(first, second), PLACES.radii, PLACES.keep)
        assert (row.radius, row.last_held, row.first_lost) == pytest.approx(tuple(expected))
    else:
        assert math.isnan(row.radius)
    assert (radii.radius.isna() == (radii.score == 0)).all()
    corners, told = (
        np.array([np.mean([run.objective(t, split, 3)(m.point).score for t in TASKS]) for m in run.minima])
        for split in ("test", "eval")
    )
    best = corners[told == told.max()].mean()  # the best on eval, judged on test
    assert volume.best_corner == pytest.approx(best) and (volume.num_minima, volume.chosen_on) == (3, "eval")
    assert volume.threshold == pytest.approx(0.9 * best)
    assert [f.name for f in outcome.figures][:1] == ["basin.pdf"]
    assert any("Share of the simplex" in part for part in PLACES.words(outcome.tables) if isinstance(part, str))


def test_numbers_of_several_tasks():
    base = {"strategy": "er", "learner": "fast", "seed": 0, "space": "factor", "num_steps": 10, "threshold": 0.05}
    barriers = {"1-A": (0.1, 0.0, 0.0), "2-B": (0.1, 0.2, 0.0), "3-C": (0.1, 0.1, 0.1)}
    rows = [
        base | {"task": task, "after": after, "chord_barrier": b}
        for task, found in barriers.items()
        for after, b in zip((0, 5, 10), found, strict=True)
    ]
    stable = stable_table(pd.DataFrame(rows))
    assert stable.stable_from.tolist() == [5, 10, math.inf] and stable.unstable_at.tolist() == [0, 5, 10]
    half = half_table(stable).iloc[0]
    assert (half.half, half.half_before, half.never, half.units) == (1.0, 0.5, 1, 3)
    assert (half.half_low, half.half_high) == (-math.inf, math.inf)  # three say nothing of a median
    base |= {"task": "1-A", "direction": "random"}
    summary = radius_summary(pd.DataFrame([base | {"radius": r} for r in (3, 1, 2, 5, 4, math.inf)])).iloc[0]
    assert (summary.radius, summary.radius_low, summary.radius_high) == (3, 1, math.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Basin(after=(0.5, 0.1)), "that increase"),
        (lambda: Basin(after=(0.5, 1.1)), r"in \[0, 1\]"),
        (lambda: Basin(keep=0.0), "keep"),
        (lambda: Basin(num_forks=0, num_directions=0, num_samples=0), "something to measure"),
        (lambda: FORKS.check(1), "tasks 1 to 1, got 2"),
        (lambda: TrainingConfig(fork=("A", 1, 0), group_by_length=True), "group_by_length"),
        (lambda: radius_of([1.0, 0.5], [1.0], 1.0), "that increase"),
        (lambda: radius_of([1.0], [1.0], 0.0), "positive score"),
        (lambda: radius_of([1.0, 2.0], [1.0], 1.0), "at each of 2 steps"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_radii_of_plain_networks():
    import torch

    theta = {"w": torch.tensor([3.0, 4.0]).double()}
    with pytest.raises(UserError, match="loss that rises"):
        worst_direction(lambda p: 0.0 * p["w"].sum(), theta)
    with pytest.raises(UserError, match="length to measure"):
        Ray({"w": torch.zeros(2)}, theta)
    assert Ray(theta, {"w": torch.tensor([0.0, 9.0]).double()})(0.4)["w"].tolist() == [3.0, 6.0]
    assert basin_radius(lambda p: 1.0, theta, theta).value == math.inf
