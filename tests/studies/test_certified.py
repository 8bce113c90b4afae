"""The search along a stored path: what it asks for, from closed forms; nothing is evaluated twice."""

from types import SimpleNamespace

import numpy as np
import pytest

from mcanalysis.coverage.certificates import population
from mcanalysis.errors import UserError
from mcanalysis.metrics.barriers import BY_NAME
from mcanalysis.store.measurements import Measurement
from mcanalysis.studies.connectivity.certified import BARRIERS, certified, coarse

NUM = 400


class Path:
    """Stands in for a stored path between two minima."""

    knots = (0.0, 1.0)

    def __init__(self, tolerance, old=("A", "B"), num_points=21):
        self.transition = SimpleNamespace(old=old, new="C", tasks=(*old, "C"))
        self.settings = SimpleNamespace(tolerance=tolerance, num_points=num_points)


class Evaluations:
    """Losses of closed forms, through a store that is a dict: what was asked for of it, and what was evaluated."""

    def __init__(self, path):
        names = path.transition.tasks
        self.people = {name: population("smooth", seed, NUM) for seed, name in enumerate(names)}
        self.objectives = [
            SimpleNamespace(name=n, split=split, encoded=[None] * NUM) for n in names for split in ("eval", "test")
        ]
        self.store, self.measured, self.evaluated = {}, {}, []

    def losses(self, name, t, rows):
        key = (name, t, tuple(rows))
        if key not in self.store:
            self.evaluated.append((name, t, len(rows)))
            found = self.people[name]({"t": t}, np.asarray(rows))
            self.store[key] = Measurement.of(found.nll, found.targets)
        return self.store[key]

    def at(self, ts):
        for t in ts:
            self.measured[float(t)] = [self.losses(o.name, float(t), range(NUM)) for o in self.objectives]
        return
        yield

    def some(self, t, chosen):
        return [self.losses(o.name, t, rows) for o, rows in chosen]
        yield


def run(path, evaluations):
    evaluations.measured.clear()
    steps = certified(path, evaluations.objectives, evaluations.at, evaluations.some, evaluations.measured)
    with pytest.raises(StopIteration) as end:  # it wants no pieces: everything is there at once
        next(steps)
    return end.value.value


DENSE = np.linspace(0, 1, 401)


def curve_of(evaluations, names):
    return np.mean([[evaluations.people[n].mean({"t": t}) for t in DENSE] for n in names], axis=0)


def test_barriers_of_the_old_tasks_and_the_new_one_lie_where_it_says():
    path = Path(0.03)
    evaluations = Evaluations(path)
    found = run(path, evaluations)
    for name, tasks in (("mean_old", ("A", "B")), ("C", ("C",))):
        columns, curve = found.columns[name], curve_of(evaluations, tasks)
        assert columns["tolerance_reached"]
        for barrier in BARRIERS:
            low, high = columns[f"{barrier}_at_least"], columns[f"{barrier}_at_most"]
            assert low - 1e-4 <= BY_NAME[barrier](DENSE, curve) <= high + 1e-6
            assert high - low <= 0.03
        assert columns["evaluations"] < 0.6 * 21
    assert 0 <= found.remaining <= 0.03
    assert set(coarse([0.0, 1.0])) <= set(evaluations.measured)
    sizes = {row["num_examples"] for row in found.rows if row["task"] == "mean_old"}
    assert {0, 2 * NUM} < sizes  # some points on samples, places between, and all examples of both tasks


def test_what_was_measured_is_taken_from_the_store_by_a_tighter_search():
    path = Path(0.1)
    evaluations = Evaluations(path)
    run(path, evaluations)
    before = len(evaluations.evaluated)
    run(path, evaluations)
    assert len(evaluations.evaluated) == before  # the same search again evaluates nothing
    run(Path(0.02), evaluations)
    tighter = evaluations.evaluated[before:]
    fresh = Evaluations(path)
    run(Path(0.02), fresh)
    assert 0 < sum(n for *_, n in tighter) < 0.6 * sum(n for *_, n in fresh.evaluated)


class Dip:
    """Losses of 200 examples that fall far below their chords, each in waves of its own."""

    waves = np.random.default_rng(0).normal(0, 0.1, (2, 200))

    def __call__(self, point, rows):
        t, (second, third) = point["t"], self.waves[:, rows]
        nll = 2 - 2 * t * (1 - t) + second * np.sin(2 * np.pi * t) + third * np.sin(3 * np.pi * t)
        return SimpleNamespace(nll=nll + np.asarray(rows) / 400, targets=np.ones(len(rows)))


def test_a_plain_dip_takes_three_points_and_seven_samples(monkeypatch):
    monkeypatch.setitem(globals(), "NUM", 200)
    path = Path(0.04, old=())
    evaluations = Evaluations(path)
    evaluations.people["C"] = Dip()
    found = run(path, evaluations).columns["C"]
    assert found["tolerance_reached"] and found["chord_barrier_at_most"] < 1e-9
    inside = [(t, n) for _, t, n in evaluations.evaluated if 0 < t < 1]
    assert sorted(t for t, n in inside if n == 200) == [0.5]  # ends and the middle on all examples
    assert [n for _, n in inside if n < 200] == [50] * 7  # six eighths, and one more that tries the estimate, once
    assert found["evaluations"] == pytest.approx(3 + 7 * 50 / 200)


def test_the_highest_point_was_measured_on_all_examples():
    path = Path(0.05, old=())
    evaluations = Evaluations(path)
    found = run(path, evaluations)
    assert set(found.columns) == {"C"}
    best = max(
        m[1].loss - (1 - t) * evaluations.measured[0.0][1].loss - t * evaluations.measured[1.0][1].loss
        for t, m in evaluations.measured.items()
    )
    low, high = (found.columns["C"][f"chord_barrier_at_{end}"] for end in ("least", "most"))
    assert low - 1e-9 <= max(best, 0.0) <= high + 1e-9


def test_a_tolerance_below_the_rounding_of_the_losses_is_refused():
    path = Path(1e-6)
    with pytest.raises(UserError, match="above the rounding"):
        run(path, Evaluations(path))
