"""Summaries along a path against integrals, the rows of paths.csv and front.csv, and barriers over seeds."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

import mcanalysis as mc
from mcanalysis.connectivity.profile import Profile, grid
from mcanalysis.errors import UserError
from mcanalysis.metrics.front import hypervolume
from mcanalysis.studies.connectivity.over_seeds import barriers_over_seeds
from mcanalysis.studies.connectivity.path_tables import front_rows, summary_rows
from mcanalysis.studies.connectivity.stored_path import Lengths

TS = grid(5)
LABELS = {
    "strategy": "er",
    "learner": "fast",
    "seed": 0,
    "space": "factor",
    "path": "linear",
    "start": "1-A",
    "end": "2-B",
}


def made(scores, losses, examples=40):
    scores, losses = np.asarray(scores, float), np.asarray(losses, float)
    cut = np.round(scores * examples).astype(int)
    each = (np.arange(examples)[None, :] < cut[:, None]).astype(float)
    return Profile(
        TS, losses, np.repeat(losses[:, None] * 2, examples, axis=1), np.full(examples, 2), each.mean(1), each
    )


OLD = made([1, 0.9, 0.5, 0.4, 0.1], [0, 1, 2, 3, 4])
NEW = made([0, 0.6, 0.5, 0.9, 1], [4, 2, 1, 1, 0])


def test_means_over_t_and_over_arc_are_integrals():
    point = [{"w": torch.tensor(v, dtype=torch.float64)} for v in ([0.0, 0.0], [3.0, 0.0], [3.0, 4.0])]
    curve = mc.Bezier(point[0], point[2], bends=[point[1]])
    found = mc.profile(curve, lambda p: float(p["w"].square().sum()), np.linspace(0, 1, 801)).summary()

    def loss(t):
        return float(curve(t)["w"].square().sum())

    def speed(t):
        return float(curve.derivative(t)["w"].norm())

    length = integrate.quad(speed, 0, 1)[0]
    assert found["mean_over_t"] == pytest.approx(integrate.quad(loss, 0, 1)[0], rel=1e-5)
    assert found["length"] == pytest.approx(length, rel=1e-5)
    over_arc = integrate.quad(lambda t: loss(t) * speed(t), 0, 1)[0] / length
    assert found["mean_over_arc"] == pytest.approx(over_arc, rel=1e-4)
    assert abs(found["mean_over_arc"] - found["mean_over_t"]) > 0.1, "the two are different numbers"
    assert (found["max"], found["arg_max"], found["min"], found["arg_min"]) == (25.0, 1.0, 0.0, 0.0)


def test_a_path_that_does_not_move_or_cannot_tell_its_length_has_no_mean_over_arc():
    point = {"w": torch.ones(2)}
    still = mc.profile(mc.Linear(point, point), lambda p: float(p["w"].sum())).summary()
    assert still["length"] == 0 and np.isnan(still["mean_over_arc"]) and still["mean_over_t"] == pytest.approx(2)
    unknown = mc.profile(lambda t: point, lambda p: float(p["w"].sum()), [0, 1]).summary()
    assert np.isnan(unknown["length"])
    lost = Profile(np.array([0.0, 1.0]), np.array([1.0, np.nan])).summary()
    assert np.isnan([lost["max"], lost["arg_max"], lost["arg_min"], lost["mean_over_t"]]).all()


def test_extrapolation_is_measured_where_the_path_allows_it():
    a, b = {"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}
    found = mc.profile(mc.Linear(a, b, extrapolate=True), lambda p: float(p["w"]), [-0.5, 0, 1, 1.5])
    assert found.losses.tolist() == [-0.5, 0, 1, 1.5]
    with pytest.raises(UserError, match="extrapolate=True"):
        mc.profile(mc.Linear(a, b), lambda p: float(p["w"]), [-0.5, 0, 1])
    with pytest.raises(UserError, match="increasing"):
        mc.profile(mc.Linear(a, b), lambda p: float(p["w"]), [0, 1, 0.5])


def test_rows_of_paths():
    lengths = Lengths(2 * TS, 2.0, 3.0, 1.5)
    rows = summary_rows({"test": {"A": OLD, "B": NEW}}, ["A"], "B", LABELS, lengths, 0.5 * TS * (1 - TS), np.nan)
    table = pd.DataFrame(rows).set_index(["task", "quantity"])
    assert set(table.index) == {(t, q) for t in ("A", "B", "mean_old", "mean") for q in ("loss", "score")}
    row = table.loc["mean", "score"]
    s_bar = (OLD.scores + NEW.scores) / 2
    assert (row["max"], row.arg_max) == (pytest.approx(s_bar.max()), TS[s_bar.argmax()])
    assert row.mean_over_arc == pytest.approx(np.trapezoid(s_bar, TS)) == pytest.approx(row.mean_over_t)
    assert (row.length, row.length_delta, row.distance_delta) == (2.0, 3.0, 1.5)
    assert (row.factor_delta_deviation, row.factor_delta_deviation_norm) == (0.125, 0.125 * 1.5)
    without = pd.DataFrame(summary_rows({"test": {"B": NEW}}, [], "B", LABELS, None, TS, 0.1))
    assert without.length.isna().all() and set(without.task) == {"B"} and (without.barrier_remaining == 0.1).all()


def test_rows_of_the_front():
    rows = pd.DataFrame(front_rows({"eval": {"A": OLD, "B": NEW}, "test": {"A": OLD, "B": NEW}}, ["A"], "B", LABELS))
    on_test = rows[rows.split == "test"]
    assert on_test.stability.tolist() == pytest.approx([1, 0.9, 0.5, 0.4, 0.1])
    assert on_test.on_front.tolist() == [True, True, False, True, True]  # (0.5, 0.5) is beaten by (0.9, 0.6)
    assert on_test.t[on_test.is_t_star].tolist() == [0.25]
    area = 0.1 * 0 + 0.4 * 0.6 + 0.1 * 0.6 + 0.3 * 0.9 + 0.1 * 1.0
    assert (
        on_test.hypervolume.iloc[0] == pytest.approx(area) == pytest.approx(float(hypervolume(OLD.scores, NEW.scores)))
    )
    assert on_test.hypervolume_gain.iloc[0] == pytest.approx(area - 0.1 * 1.0)
    assert (on_test.hypervolume_low <= area).all() and (on_test.hypervolume_high >= area).all()
    assert (on_test.hypervolume_gain_low >= 0).all()
    assert front_rows({"test": {"B": NEW}}, [], "B", LABELS) == []


def test_barriers_over_seeds_average_transitions_within_a_seed_first():
    rows = []
    values = {(0, "2-B"): 1.0, (0, "3-C"): 3.0, (1, "2-B"): 2.0, (1, "3-C"): 6.0, (2, "2-B"): 0.0, (2, "3-C"): 1.0}
    for (seed, end), value in values.items():
        for task in ("mean_old", end[2:], "A"):
            numbers = dict.fromkeys(("mean_barrier", "max_barrier", "chord_dip"), 0.0)
            where = {"seed": seed, "start": "1-A", "end": end, "task": task, "split": "test", "quantity": "loss"}
            rows.append({**LABELS, **where, "chord_barrier": value, "interpolation_gain": np.nan, **numbers})
    table = barriers_over_seeds(pd.DataFrame(rows))
    pooled = table[(table.start == "all")].set_index("task")
    assert set(pooled.index) == {"mean_old", "new"}
    expected = stats.ttest_1samp([2.0, 4.0, 0.5], 0).confidence_interval(0.95)
    for task in pooled.index:
        row = pooled.loc[task]
        assert (row.chord_barrier, row.chord_barrier_low, row.chord_barrier_high) == pytest.approx(
            (6.5 / 3, expected.low, expected.high)
        )
    one = table[(table.end == "3-C") & (table.task == "A")].iloc[0]
    assert one.chord_barrier == pytest.approx(10 / 3) and one.seeds == 3 and np.isnan(one.interpolation_gain)
    alone = barriers_over_seeds(pd.DataFrame(rows)[lambda t: t.seed == 0])
    assert alone.chord_barrier_low.isna().all() and alone.chord_barrier.notna().all()
