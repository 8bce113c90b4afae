"""Certificates of barriers against closed forms, whole populations, and counted evaluations."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mcanalysis.connectivity.certificate import barrier_certificate
from mcanalysis.connectivity.module_objective import module_objective
from mcanalysis.connectivity.profile import profile
from mcanalysis.coverage.certificates import population
from mcanalysis.errors import UserError
from mcanalysis.metrics import chord_barrier, chord_dip, max_barrier, mean_barrier
from mcanalysis.params.point import snapshot
from mcanalysis.paths import Linear, PolyChain

LINE = Linear({"t": torch.zeros(1, dtype=torch.float64)}, {"t": torch.ones(1, dtype=torch.float64)})
DENSE = np.linspace(0, 1, 100_001)
MEASURES = {
    "chord_barrier": chord_barrier, "mean_barrier": mean_barrier, "max_barrier": max_barrier, "chord_dip": chord_dip,
}  # fmt: skip
ROUNDING = 1e-9


def along(function):
    return lambda point: torch.tensor(float(function(point["t"].item())), dtype=torch.float64)


def bump(place, width, height=0.5, slope=1.0):
    return lambda t: height * np.exp(-(((t - place) / width) ** 2)) + slope * t


class Counted:
    """Losses per example, counted: how many examples were evaluated at which t."""

    def __init__(self, losses, scores=None):
        self.losses, self.scores = losses, scores
        self.num_examples = len(losses(0.5))
        self.calls = []

    def __call__(self, point, rows):
        t = float(point["t"])
        self.calls.append((t, len(rows)))
        scores = None if self.scores is None else self.scores(t)[rows]
        return SimpleNamespace(nll=self.losses(t)[rows], targets=np.ones(len(rows)), scores=scores)

    @property
    def cost(self):
        return sum(n for _, n in self.calls) / self.num_examples


def answers(num, seed=0):
    """Right or wrong: thresholds of smooth curves."""
    rng = np.random.default_rng(seed)
    own, cut = rng.normal(size=(3, num)), rng.normal(size=num)
    return lambda t: (own[0] * (1 - t) + own[1] * t + own[2] * np.sin(np.pi * t) > cut + np.sin(np.pi * t)).astype(
        float
    )


@pytest.mark.parametrize("width", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
@pytest.mark.parametrize("barrier", MEASURES)
def test_what_is_proven_of_a_bump_is_never_wrong(width, barrier):
    for place, height in ((0.37, 0.5), (0.71, -0.4)):
        curve = bump(place, width, height)
        truth = float(MEASURES[barrier](DENSE, curve(DENSE)))
        bounds = (
            {"curvature": 2 * abs(height) / width**2},
            {"lipschitz": 1 + abs(height) * math.sqrt(2 / math.e) / width},
        )
        for bound in (*bounds, bounds[0] | bounds[1]):
            found = barrier_certificate(LINE, along(curve), 0.02, barrier=barrier, **bound)
            assert found.proven
            assert found.low - ROUNDING <= truth <= found.high + ROUNDING
            assert (found.proven_low, found.proven_high) == pytest.approx((found.low, found.high), abs=1e-12)
            assert found.reached == (found.high - found.low <= 0.02)
            assert found.cost == len(found.ts) <= 23.1
        estimated = barrier_certificate(LINE, along(curve), 0.02, barrier=barrier)
        assert not estimated.proven
        assert estimated.proven_low - ROUNDING <= truth
        assert estimated.proven_high == np.inf


@pytest.mark.parametrize("barrier", MEASURES)
def test_estimates_of_smooth_curves_hold_with_few_points(barrier):
    curve = lambda t: 0.6 * np.sin(np.pi * t) + 0.2 * np.sin(2 * np.pi * t) + t  # noqa: E731
    found = barrier_certificate(LINE, along(curve), 0.02, barrier=barrier)
    truth = float(MEASURES[barrier](DENSE, curve(DENSE)))
    assert found.reached
    assert found.low - ROUNDING <= truth <= found.high + ROUNDING
    assert found.cost <= 10


def test_a_quadratic_and_its_dip():
    """Chord dip of ½(θ−θ*)ᵀH(θ−θ*) is dᵀHd/8, its curvature dᵀHd."""
    found = barrier_certificate(LINE, along(lambda t: 3 * (t - 0.2) ** 2), 1e-3, barrier="chord_dip", curvature=6.0)
    assert found.low <= 6 / 8 <= found.high
    assert found.proven
    barrier = barrier_certificate(LINE, along(lambda t: 3 * (t - 0.2) ** 2), 1e-3)
    assert barrier.low == barrier.estimate == 0.0


def test_corners_at_the_knots_of_a_chain_are_found():
    a, bend, b = ({"t": torch.tensor([v], dtype=torch.float64)} for v in (0.0, 1.0, 0.0))
    chain = PolyChain(a, b, bends=[bend])
    found = barrier_certificate(chain, along(lambda t: t), 1e-6, curvature=0.0)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0), abs=1e-9)
    assert found.cost == 3


def test_measured_on_all_examples_nothing_is_left_to_chance():
    """The interval from sampling has width 0, and the values are those of a profile."""
    people = population("smooth", 3, 300)
    found = barrier_certificate(LINE, people, 1e-7, budget=400)
    whole = found.num_examples == 300
    assert whole[[0, -1]].all()
    assert whole.sum() > 4
    assert (found.losses_low[whole] == found.losses_high[whole]).all()
    exact = profile(LINE, lambda point: people(point, np.arange(300)), found.ts[whole]).losses
    assert found.losses[whole] == pytest.approx(exact, abs=1e-14)
    assert found.low <= people.barrier + ROUNDING


def test_samples_save_most_evaluations_and_every_one_is_counted():
    people = population("smooth", 1)
    counted = Counted(lambda t: people({"t": t}, np.arange(1000)).nll)
    found = barrier_certificate(LINE, counted, 0.02)
    assert found.reached
    assert found.low - ROUNDING <= people.barrier <= found.high + ROUNDING
    assert found.cost == pytest.approx(counted.cost)
    assert found.cost < 21 / 4
    assert found.sampling == "asymptotic intervals"
    assert not found.proven
    assert found.new_low <= found.low
    assert found.new_high >= found.high


@pytest.mark.parametrize("family", ["smooth", "kink", "bump of width 0.5", "bump of width 0.25"])
def test_certificates_hold_on_random_populations(family):
    """The small version of the table in docs/certificates.md."""
    held = []
    for seed in range(15):
        people = population(family, seed, 600)
        found = barrier_certificate(LINE, people, 0.03, seed=seed)
        held.append(found.low - ROUNDING <= people.barrier <= found.high + ROUNDING)
        assert found.proven_low <= people.barrier + ROUNDING
        assert found.cost <= 23.1
    assert np.mean(held) >= 0.93


def test_intervals_of_new_examples_hold_for_what_the_examples_were_drawn_from():
    held = []
    for seed in range(30):
        people = population("bump of width 0.5", seed, 300)
        shape = people.shape(DENSE)  # the mean of shares is 1 and that of the waves 0 where all are drawn from
        found = barrier_certificate(LINE, people, 0.05, seed=seed)
        held.append(found.new_low <= max(float(shape.max()), 0.0) <= found.new_high)
    assert np.mean(held) >= 0.9


def values_along(start, end, bump):
    """An objective of one target per example: a chord between start and end, and a bump in the middle."""

    class Own:
        num_examples = len(start)

        def __call__(self, point, rows=None):
            rows = np.arange(len(start)) if rows is None else rows
            t = float(point["t"])
            nll = (1 - t) * start[rows] + t * end[rows] + 4 * t * (1 - t) * bump[rows]
            return SimpleNamespace(nll=nll, targets=np.ones(len(rows)), scores=np.empty(0))

    return Own()


def test_an_interval_of_new_examples_counts_each_of_those_that_were_measured_whole():
    """A tenth of the examples change much between the ends, and bump: they are not less of the sample for it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        few = rng.random(500) < 0.1
        bump = np.where(few, rng.normal(3.0, 3.0, 500), 0.0)
        curve = values_along(np.full(500, 6.0), 6.0 + 5.0 * few, bump)
        found = barrier_certificate(LINE, lambda point, curve=curve: curve(point), 0.05)
        held += found.new_low <= 0.3 <= found.new_high
    assert held >= 91


def test_of_what_few_examples_do_nothing_is_told_of_new_ones():
    start = np.random.default_rng(0).normal(3.0, 1.0, 300)
    for bumping, told in ((3, False), (100, True)):
        bump = np.where(np.arange(300) < bumping, 2.0, 0.0)
        curve = values_along(start, start, bump)
        found = barrier_certificate(LINE, lambda point, curve=curve: curve(point), 0.05)
        assert math.isfinite(found.new_low) == math.isfinite(found.new_high) == told
    small = values_along(start[:40], start[:40], np.full(40, 1.0) + start[:40])
    assert math.isnan(barrier_certificate(LINE, lambda point: small(point), 0.05).new_high)


def test_rounding_of_a_straight_loss_is_no_variation():
    """All examples straight but ten of 1,000, which bump by 10 nats: most samples have none of them."""
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        start, end = rng.uniform(1.0, 3.0, (2, 1000))
        bump = np.zeros(1000)
        bump[rng.permutation(1000)[:10]] = 10.0
        found = barrier_certificate(LINE, values_along(start, end, bump), 0.04, seed=seed)
        held += found.low - ROUNDING <= 0.1 <= found.high + ROUNDING
    assert held >= 19


def test_a_gain_without_a_point_between_is_none():
    found = barrier_certificate(LINE, along(lambda t: t * (1 - t)), 0.01, barrier="interpolation_gain", budget=2)
    assert math.isnan(found.estimate) and math.isnan(found.t)
    assert found.low == -math.inf and found.high == math.inf


def test_scores_have_intervals_that_hold_for_every_population():
    curve = answers(3000)
    truth = float(chord_barrier(DENSE[::100], [curve(t).mean() for t in DENSE[::100]], higher_is_better=True))
    counted = Counted(lambda t: np.ones(3000), curve)
    found = barrier_certificate(LINE, counted, 0.1, of="score")
    assert found.sampling == "confidence intervals for every population"
    assert found.low <= truth <= found.high
    assert found.proven_low <= truth <= found.proven_high <= 1.0
    assert found.proven_low == found.low > 0  # nothing is assumed of points, only of what lies between them
    assert (found.num_examples[1:-1] < 3000).any()
    for t, low, high in zip(found.ts, found.losses_low, found.losses_high, strict=True):
        assert low - ROUNDING <= curve(t).mean() <= high + ROUNDING


def test_the_best_point_between_the_ends_and_where_it_is():
    def scores(t):
        rng = np.random.default_rng(0)
        return np.clip(0.5 + 0.3 * math.sin(math.pi * t) + 0.1 * t + 0.1 * rng.normal(size=500), 0, 1)

    counted = Counted(lambda t: np.ones(500), scores)
    found = barrier_certificate(LINE, counted, 0.02, barrier="interpolation_gain", of="score")
    curve = np.array([scores(t).mean() for t in DENSE[::100]])
    inner = curve[50:951]
    truth = inner.max() - max(curve[0], curve[-1])
    assert found.low - ROUNDING <= truth <= found.high + ROUNDING
    assert found.t_low <= DENSE[::100][50:951][inner.argmax()] <= found.t_high
    assert 0.05 <= found.t <= 0.95
    falling = barrier_certificate(LINE, along(lambda t: 1 + 3 * t * (1 - t)), 0.01, barrier="interpolation_gain")
    assert falling.high < 0.0  # nowhere as good as the ends
    assert falling.low == pytest.approx(-3 * 0.05 * 0.95, abs=0.01)


def test_a_tighter_call_takes_what_an_earlier_one_measured():
    people = population("smooth", 5)
    losses = lambda t: people({"t": t}, np.arange(1000)).nll  # noqa: E731
    first = Counted(losses)
    loose = barrier_certificate(LINE, first, 0.1)
    second = Counted(losses)
    tight = barrier_certificate(LINE, second, 0.01, known=loose)
    assert tight.reached
    assert tight.cost == pytest.approx(second.cost)
    assert not {0.0, 1.0} & {t for t, _ in second.calls}
    together = {}
    for t, n in (*first.calls, *second.calls):
        together[t] = together.get(t, 0) + n
    assert together == dict(zip(tight.ts.tolist(), tight.num_examples.tolist(), strict=True))  # nothing twice
    with pytest.raises(UserError, match="leave known out"):
        barrier_certificate(LINE, second, 0.01, of="score", known=loose)
    third = Counted(losses)
    again = barrier_certificate(LINE, third, 0.01, known=tight)
    assert third.calls == []
    assert (again.low, again.high) == (tight.low, tight.high)


@pytest.mark.parametrize("budget", [2, 3.5, 8])
def test_a_budget_that_runs_out_leaves_what_is_known_so_far(budget):
    curve = bump(0.4, 0.02)
    found = barrier_certificate(LINE, along(curve), 1e-3, curvature=2 * 0.5 / 0.02**2, budget=budget)
    assert not found.reached
    assert found.cost <= budget
    assert found.low <= 0.5 <= found.high
    assert found.proven
    assert "so far" in found.guarantee


def test_slopes_are_those_of_the_loss_and_make_points_worth_more():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    x, y = torch.randn(40, 3).double(), torch.randn(40).double()
    objective = module_objective(net, lambda n, batch: (n(batch[0])[:, 0] - batch[1]) ** 2, [(x, y)])
    start = snapshot(net)
    end = {name: tensor + 0.5 * torch.randn_like(tensor) for name, tensor in start.items()}
    path = Linear(start, end)
    found = barrier_certificate(path, objective, 0.01, barrier="chord_dip", derivatives=True)
    assert found.cost == 3 * len(found.ts) <= 23.1
    losses = profile(path, lambda p: objective(p).loss, np.linspace(0, 1, 401)).losses
    truth = float(chord_dip(np.linspace(0, 1, 401), losses))
    assert found.low - 1e-6 <= truth <= found.high + 1e-6
    for t in (t for t in found.ts if 0 < t < 1):
        step = (objective(path(t + 1e-5)).loss - objective(path(t - 1e-5)).loss) / 2e-5
        assert found.measured[float(t)][1] == pytest.approx(step, rel=1e-4)


def test_of_a_plain_float_nothing_is_proven():
    """Whatever is stated of it: nobody can check the statement."""
    plain = lambda point: float(point["t"] * (1 - point["t"]))  # noqa: E731
    found = barrier_certificate(LINE, plain, 0.01, barrier="max_barrier", curvature=2.0)
    assert found.reached
    assert found.low <= 0.25 <= found.high
    assert not found.proven
    assert found.proven_high == np.inf
    assert "estimate" in found.guarantee
    again = barrier_certificate(LINE, plain, 0.02, barrier="max_barrier", curvature=2.0, known=found)
    assert not again.proven


def test_a_number_that_cannot_be_differentiated_has_no_slope():
    with pytest.raises(UserError, match="can be differentiated"):
        barrier_certificate(LINE, along(lambda t: t), 0.1, derivatives=True)
    found = barrier_certificate(LINE, along(lambda t: t * (1 - t)), 0.01)
    assert found.sampling == "one number"
    assert not found.proven
    assert math.isnan(found.new_low)
    assert "estimate" in found.guarantee
    assert "confidence" not in found.guarantee


def test_bounds_that_measured_values_break_are_refused():
    with pytest.raises(UserError, match="Lipschitz bound"):
        barrier_certificate(LINE, along(lambda t: t), 0.01, lipschitz=0.1)
    with pytest.raises(UserError, match="curvature of at most"):
        barrier_certificate(LINE, along(lambda t: 9 * t * t), 1e-3, curvature=1.0)


def test_values_that_are_not_finite_are_named():
    found = barrier_certificate(LINE, along(lambda t: math.nan if 0.4 < t < 0.6 else t), 0.01)
    assert math.isnan(found.low)
    assert not found.proven
    assert not found.reached
    assert "t = 0.5" in found.guarantee


def test_a_tolerance_below_rounding_is_refused():
    coarse = Linear({"t": torch.zeros(1)}, {"t": torch.ones(1)})
    with pytest.raises(UserError, match="above the rounding"):
        barrier_certificate(coarse, along(lambda t: 3.0 + t), 1e-6)
    assert barrier_certificate(LINE, along(lambda t: 3.0 + t), 1e-6).reached  # in float64 it is none


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"tolerance": 0.0}, "positive tolerance"),
        ({"tolerance": float("nan")}, "positive tolerance"),
        ({"budget": 1.5}, "budget of at least 2"),
        ({"budget": float("nan")}, "budget of at least 2"),
        ({"confidence": 1.0}, "confidence"),
        ({"barrier": "chord"}, "chord"),
        ({"of": "accuracy"}, "accuracy"),
        ({"of": "score"}, "values per example"),
    ],
)
def test_refused(chosen, words):
    with pytest.raises(UserError, match=words):
        barrier_certificate(LINE, along(lambda t: t), **{"tolerance": 0.1} | chosen)
