"""Walking along a path: what is stored is not measured again, what is not is measured right, answers are live."""

import numpy as np
import pandas as pd
import pytest

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.explore.walk import start_walk, walkable_kinds
from mcanalysis.paths import Linear


@pytest.fixture
def no_engine(monkeypatch):
    """Anything that asks for the engine fails."""
    from mcanalysis.runs.run import Run

    monkeypatch.setattr(Run, "engine", property(lambda self: pytest.fail("the engine was asked for")))


def test_stored_values_come_from_the_table(run, no_engine):
    walk = start_walk(run)
    assert walk.known_ts == [0.0, 0.5, 1.0] and walk.num_examples == 4
    table = pd.read_csv(run.directory / "tables" / "profiles.csv")
    rows = table[(table.path == "linear") & (table.end == "2-FOMC") & (table.split == "test") & (table.t == 0.5)]
    reading = walk.read(0.5)
    assert not reading.is_new
    assert set(reading.values.index) == {"C-STANCE", "FOMC", "mean_old", "mean"}
    for row in rows.itertuples():
        assert reading.values.loc[row.task].tolist() == [row.loss, row.score]


def test_what_is_not_stored_is_measured_and_found_again(run, no_engine, monkeypatch):
    walk = start_walk(run, 2, 3, space="delta")
    monkeypatch.undo()
    reading = walk.read(0.3)
    assert reading.is_new
    point = Linear(run.minimum(2).point, run.minimum(3).point, space="delta")(0.3)
    for task in ("C-STANCE", "FOMC", "MeetingBank"):
        wanted = run.objective(task, "test", 50)(point)  # by hand
        assert reading.values.loc[task].tolist() == pytest.approx([wanted.loss, wanted.score], rel=1e-5)
    old = reading.values.loc[["C-STANCE", "FOMC"]].mean()
    assert reading.values.loc["mean_old"].tolist() == pytest.approx(old.tolist())
    mean = (old + reading.values.loc["MeetingBank"]) / 2
    assert reading.values.loc["mean"].tolist() == pytest.approx(mean.tolist())
    assert not walk.read(0.3).is_new and walk.known_ts == [0.3]
    monkeypatch.setattr(type(run), "engine", property(lambda self: pytest.fail("measured twice")))
    again = start_walk(run, 2, 3, space="delta").read(0.3)
    pd.testing.assert_frame_equal(again.values, reading.values)


def test_the_ends_are_the_minima_and_share_their_measurements(unmeasured_run, no_engine):
    """The store has both ends from the analysis; a path in another space begins and ends at the same points."""
    walk = start_walk(unmeasured_run, space="delta")
    walk.num_examples = 4
    for t, minimum in ((0.0, unmeasured_run.minimum(1)), (1.0, unmeasured_run.minimum(2))):
        assert all(np.array_equal(walk.point(t)[n], minimum.point[n]) for n in minimum.point)
        assert walk.read(t).values.notna().all(axis=None)


def test_a_store_that_cannot_be_written_stops_nobody(run):
    (run.directory / "measurements.sqlite").unlink()
    (run.directory / "measurements.sqlite").mkdir()
    walk = start_walk(run)
    assert walk.read(0.25).is_new and not walk.read(0.25).is_new


def test_what_the_model_writes_is_generated_at_the_point(run):
    walk = start_walk(run)
    written = walk.write("FOMC", [0.0, 0.4], first=1, num=2)
    objective = run.task_objective("FOMC", "test")
    for t in (0.0, 0.4):
        evaluation = run.engine.evaluate(walk.point(t), [objective])[0]
        for i, example in enumerate(written, start=1):
            assert (example.prompt, example.answer) == (objective.examples[i].prompt, objective.examples[i].answer)
            assert example.outputs[t] == evaluation.outputs[i]
            assert example.scores[t] == evaluation.measurement.scores[i]
    last = walk.write("FOMC", [0.0], first=5, num=2)
    assert [e.prompt for e in last] == [objective.examples[i].prompt for i in (5, 0)]  # it goes on with the first
    with pytest.raises(UnknownNameError, match="Did you mean 'FOMC'"):
        walk.write("FOMCC", [0.0])


@pytest.mark.parametrize(
    ("start", "end", "labels", "old", "new"),
    [
        (None, None, ("1-C-STANCE", "2-FOMC"), ["C-STANCE"], "FOMC"),
        (2, None, ("2-FOMC", "3-MeetingBank"), ["C-STANCE", "FOMC"], "MeetingBank"),
        (None, "3-MeetingBank", ("2-FOMC", "3-MeetingBank"), ["C-STANCE", "FOMC"], "MeetingBank"),
        (3, 1, ("3-MeetingBank", "1-C-STANCE"), ["C-STANCE", "FOMC"], "MeetingBank"),
    ],
)
def test_from_where_to_where(run, start, end, labels, old, new):
    walk = start_walk(run, start, end)
    assert (walk.start.label, walk.end.label) == labels and walk.old == old and walk.new == new


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"start": 3}, "Expected a minimum after 3-MeetingBank"),
        ({"start": 1, "end": 1}, "two different minima"),
        ({"start": 9}, "Unknown minimum '9'"),
        ({"space": "factr"}, "Did you mean 'linear-factor'"),
        ({"path": "segmented_bezier"}, "a path between two minima"),
        ({"path": "polychain"}, "fit it with connectivity.py --paths polychain-factor"),
    ],
)
def test_what_cannot_be_walked_is_refused(run, arguments, words):
    with pytest.raises(UserError, match=words):
        start_walk(run, **arguments)


def test_kinds_that_can_be_walked(run):
    kinds = walkable_kinds(run, run.minimum(1), run.minimum(2))
    assert kinds == ["linear-factor", "linear-aligned", "linear-delta", "bezier-factor"]
    assert "bezier-factor" not in walkable_kinds(run, run.minimum(1), run.minimum(3))
    for kind in kinds:
        path, _, space = kind.rpartition("-")
        assert start_walk(run, 1, 2, space, path).point(0.5)
