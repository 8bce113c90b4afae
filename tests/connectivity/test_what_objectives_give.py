"""What an objective may give besides its loss is kept or refused, and what needs one fixed number gets it."""

import json
import random

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.connectivity.losses import WeightedSum
from mcanalysis.connectivity.simplex_grid import simplex_profile
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.landscape.grid import Axis, evaluate_grid
from mcanalysis.store.measurements import Measurement

A, B = {"x": torch.tensor([0.0]), "y": torch.tensor([1.0])}, {"x": torch.tensor([1.0]), "y": torch.tensor([3.0])}
LINE = mc.Linear(A, B)
HALVES = [0.0, 0.5, 1.0]


def with_score(point):
    """Score (x − ½)² + ½: ¾, ½, ¾ at the three places."""
    x = float(point["x"])
    return {"loss": 2 + x, "score": (x - 0.5) ** 2 + 0.5}


def with_examples(point):
    return {"nll": [1.0, 2.0], "targets": [1, 4], "score": with_score(point)["score"]}


class Drawing:
    """x plus a random number, with the state that `fit_curve` saves."""

    def __init__(self):
        self.generator = random.Random(0)

    def __call__(self, point):
        return (point["x"] - 2 - 0.01 * self.generator.random()).square().sum()

    def random_state(self):
        return self.generator.getstate()

    def set_random_state(self, state):
        version, numbers, last = state
        self.generator.setstate((version, tuple(numbers), last))


@pytest.mark.parametrize("word", ["Loss", "losses", "scores", "perplexity", "", None])
def test_a_quantity_that_is_none_is_no_score(word):
    found = mc.profile(LINE, with_score, HALVES)
    for ask in (found.chord_barrier, found.mean_barrier, found.max_barrier, found.chord_dip, found.summary,
                found.values, found.sample, found.estimate, found.chord_barrier_interval):  # fmt: skip
        with pytest.raises(UnknownNameError, match="Expected one of: loss, score"):
            ask(word)


@pytest.mark.parametrize("objective", [with_score, with_examples])
def test_one_score_beside_the_loss_is_kept_without_an_interval(objective):
    found = mc.profile(LINE, objective, HALVES)
    assert found.scores.tolist() == [0.75, 0.5, 0.75] == found.to_frame().score.tolist()
    assert found.chord_barrier("score") == found.max_barrier("score") == 0.25 and found.chord_dip("score") == 0
    assert found.summary("score")["mean_over_t"] == 0.625
    assert "score from 0.5 to 0.75" in repr(found) and "score" in found._repr_html_()
    with pytest.raises(UserError, match="per-example values"):
        found.chord_barrier_interval("score")
    on_simplex = simplex_profile(mc.Simplex(A, B), {"it": objective}, [(1.0, 0.0), (0.5, 0.5)])
    assert on_simplex.score.tolist() == [0.75, 0.5]
    table = mc.attribute(LINE, objective, {"x": ["x"]}, ts=HALVES)
    assert table[table.group == "all"].score.tolist() == [0.75, 0.5, 0.75]


class Fails:
    loss = 1.0

    @property
    def score(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "more",
    [{"score": {"f1": 0.5}}, {"score": "high"}, {"score": np.ones(3)}, {"score": len}, {"scores": len},
     {"scores": {"f1": 0.5}}, {"scores": np.ones((2, 2))}, {"score": None, "scores": []}],
)  # fmt: skip
def test_what_else_is_called_a_score_is_none_and_stops_nothing(more):
    assert mc.profile(LINE, lambda point: {"loss": 1.0, **more}, HALVES).scores is None
    assert mc.profile(LINE, lambda point: Fails(), HALVES).scores is None


def test_a_random_state_of_another_kind_is_no_draw():
    class Seeded:
        random_state = np.random.RandomState

        def __call__(self, point):
            return float(point["x"])

    class Asks(Seeded):
        def random_state(self, seed):
            raise AssertionError

    for loss in (Seeded(), Asks()):
        assert mc.profile(LINE, loss, HALVES).losses.tolist() == HALVES
    with pytest.raises(UserError, match="the same number"):
        evaluate_grid(lambda x, y: LINE(x), Drawing(), Axis(0, 1, 2), Axis(0, 1, 2))


def test_scores_per_example_without_losses_per_example_have_their_mean():
    found = mc.profile(LINE, lambda point: {"loss": 1.0, "scores": [0.0, 1.0, 1.0, 1.0]}, HALVES)
    assert found.scores.tolist() == [0.75] * 3 and found.example_scores is None


def test_a_loss_is_no_score_of_a_basin():
    falls = {"score": lambda p: 1.0 - float(p["w"][0] - 1.0), "loss": lambda p: 5.0}
    point, step = {"w": torch.ones(4)}, {"w": torch.tensor([1.0, 0, 0, 0])}
    plain = mc.basin_radius(falls["score"], point, step)
    assert mc.basin_radius(lambda p: {n: f(p) for n, f in falls.items()}, point, step) == plain
    with pytest.raises(UserError, match="with a score, got losses alone"):
        mc.basin_radius(lambda p: {"loss": falls["score"](p)}, point, step)


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: WeightedSum([lambda p: p["x"].sum(), loss])])
def test_a_loss_that_draws_is_refused_where_one_number_is_needed(wrap):
    drawing = wrap(Drawing())
    for use in (
        lambda: mc.profile(LINE, drawing),
        lambda: simplex_profile(mc.Simplex(A, B), {"it": drawing}, [(1.0, 0.0)]),
        lambda: mc.attribute(LINE, drawing, {"x": ["x"]}),
        lambda: mc.HessianOperator(drawing, A),
        lambda: mc.HessianOperator([lambda p: p["x"].sum(), drawing], A),
        lambda: mc.expected_sharpness(drawing, A),
        lambda: mc.epsilon_sharpness(drawing, A),
        lambda: mc.basin_radius(drawing, A, B),
        lambda: mc.barrier_certificate(LINE, drawing, tolerance=0.1),
    ):
        with pytest.raises(UserError, match=r"the same number.*run\.objective\(task\).*run\.batch_losses"):
            use()
    fitted = mc.fit_curve(mc.Bezier(A, B), drawing, num_steps=3)
    assert len(fitted.history) == 3


def test_a_sum_of_fixed_losses_draws_nothing():
    both = WeightedSum([lambda p: p["x"].square().sum(), lambda p: p["y"].square().sum()])
    assert mc.epsilon_sharpness(both, B).loss == 5.0
    assert json.dumps(both.random_state()) == "[null, null]"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mc.profile(LINE, with_score, 11), r"values of t such as \[0, 0.5, 1\], got 11; leave ts out for 21"),
        (lambda: mc.profile(with_score, LINE), "objective behind the path, got the path Linear; swap"),
        (lambda: simplex_profile(mc.Simplex(A, B), with_score, [(1.0, 0.0)]), "objectives by name, got function"),
        (lambda: mc.fit_curve(mc.Bezier(A, B), lambda p: 1.0, num_steps=2), r"got a float, .*run\.loss"),
        (lambda: mc.HessianOperator(lambda p: {"loss": 1.0}, A).loss(), r"got a float.*run\.batch_losses"),
        (lambda: mc.epsilon_sharpness(lambda p: 1.0, A), "got a float, which has no gradient"),
    ],
)  # fmt: skip
def test_what_is_not_asked_for_is_named_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_profile_of_lists_is_one_of_arrays_and_is_shown_in_a_line():
    found = mc.Profile([0, 0.5, 1], [1.0, 5.0, 2.0])
    assert found.chord_barrier() == 3.5 and isinstance(found.ts, np.ndarray)
    assert repr(found) == "Profile(3 points, t from 0 to 1, loss from 1 to 5, no values per example)"
    measured = mc.module_objective(
        torch.nn.Linear(1, 1), lambda net, x: net(x)[:, 0].square(), [torch.ones(50, 1)]
    )(mc.snapshot(torch.nn.Linear(1, 1)))  # fmt: skip
    assert repr(mc.Profile([], [])) == "Profile(0 points, no values per example)"
    assert "array" not in repr(measured) and "loss=" in repr(measured)
    stored = Measurement.of(np.ones(2), np.array([1, 3]), np.array([0.0, 1.0]))
    assert repr(stored) == "Measurement(loss=0.5, score=0.5, num_examples=2, num_targets=4)"
