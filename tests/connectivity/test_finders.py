"""Path finders: rules against NumPy and exact places, resuming bit for bit, what they refuse; a finder of one's own."""

import math

import numpy as np
import pytest
import torch

import mcanalysis as mc
from mcanalysis.closed_forms.finders import highest, mountain_pass, place, product, ring
from mcanalysis.connectivity.finders import Finder, finder_names, get_finder
from mcanalysis.connectivity.finders.bisection import halving
from mcanalysis.connectivity.finders.neb import forces, tangent
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.params import content_hash
from mcanalysis.paths import Bezier, Linear, PolyChain, SegmentedBezier

CHAINS = sorted(set(finder_names()) - {"mean"})


def valley_chain(num_bends=3):
    return PolyChain(place(-1, 0), place(1, 0), num_bends=num_bends)


def test_valleys_are_what_they_are_said_to_be():
    """The straight path's barrier, and the lowest that any path has: the pass is the lowest place where u = 0.3."""
    straight = Linear(place(-1, 0), place(1, 0))
    assert highest(straight, ring) == 20.0 and highest(Linear(place(0.5, 2), place(2, 0.5)), product) > 0.31
    wall = [float(mountain_pass(place(0.3, v))) for v in np.linspace(-1, 2, 3001)]
    assert min(wall) == pytest.approx(1.0, abs=1e-5) and np.argmin(wall) == 1728
    assert float(mountain_pass(place(-1, 0))) == 0.0 < float(mountain_pass(place(1, 0))) < 1.0
    gradient = torch.autograd.functional.jacobian(
        lambda x: mountain_pass({"u": x[:1], "v": x[1:]}), torch.tensor([0.3, 0.728], dtype=torch.float64)
    )
    assert gradient.abs().max() < 1e-9, "the saddle is stationary"
    assert highest(straight, mountain_pass) > 4


@pytest.mark.parametrize("finder", CHAINS)
def test_each_lowers_the_barrier_and_leaves_ends_and_curve_alone(finder):
    curve = valley_chain()
    before = [content_hash(anchor) for anchor in curve.anchors]
    found = mc.fit_curve(curve, ring, finder=finder, num_steps=90, seed=1)
    assert [content_hash(anchor) for anchor in curve.anchors] == before
    assert [content_hash(found(t)) for t in (0.0, 1.0)] == [before[0], before[-1]]
    assert highest(found, ring) < 2.0 and len(found.bends) == 3 and isinstance(found, PolyChain)
    assert (found.converged is None) == (finder != "neb") and len(found.history) == (30 if finder == "neb" else 90)
    again = mc.fit_curve(curve, ring, finder=finder, num_steps=90, seed=1)
    assert [content_hash(b) for b in again.bends] == [content_hash(b) for b in found.bends]


@pytest.mark.parametrize("finder", CHAINS)
@pytest.mark.parametrize("num_steps", [7, 20])
def test_a_finder_takes_no_more_gradients_than_it_is_given(finder, num_steps):
    calls = []

    def counted(point):
        calls.append(torch.is_grad_enabled())
        return ring(point)

    mc.fit_curve(valley_chain(), counted, finder=finder, num_steps=num_steps)
    assert sum(calls) == (num_steps // 3 * 3 if finder == "neb" else num_steps)
    assert len(calls) - sum(calls) == (2 * (num_steps // 3) if finder == "neb" else 0), "the ends, without gradient"


class Noisy:
    """A ring with minibatch noise from a stream of its own; stops the program at a call."""

    def __init__(self, stop_at=None):
        self.generator, self.calls, self.stop_at = torch.Generator().manual_seed(5), 0, stop_at
        self.drawn = []

    def __call__(self, point):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.drawn.append(float(torch.randn(1, generator=self.generator)))
        return ring(point) + self.drawn[-1] * point["u"].sum()

    def random_state(self):
        return self.generator.get_state().tolist()

    def set_random_state(self, state):
        self.generator.set_state(torch.tensor(state, dtype=torch.uint8))


@pytest.mark.parametrize("finder", CHAINS)
@pytest.mark.parametrize("stop_at", [4, 17, 31])
def test_resumed_bends_are_the_same_bits(finder, stop_at, tmp_path):
    """Stopped within a stage and at its borders (stages of 7 steps; sweeps of 5 calls)."""
    file, options = tmp_path / "fit.checkpoint", {"finder": finder, "num_steps": 21, "checkpoint_steps": 2}
    whole = mc.fit_curve(valley_chain(), Noisy(), finder=finder, num_steps=21)
    with pytest.raises(KeyboardInterrupt):
        mc.fit_curve(valley_chain(), Noisy(min(stop_at, 20)), checkpoint=file, **options)
    resumed = mc.fit_curve(valley_chain(), Noisy(), checkpoint=file, **options)
    assert [content_hash(b) for b in resumed.bends] == [content_hash(b) for b in whole.bends]
    assert resumed.history == whole.history and not file.exists()


def test_the_checkpoint_of_another_finder_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        mc.fit_curve(valley_chain(), Noisy(15), checkpoint=tmp_path / "c", checkpoint_steps=2)
    with pytest.raises(UserError, match="another curve, seed or setting"):
        mc.fit_curve(valley_chain(), Noisy(), finder="bisection", checkpoint=tmp_path / "c")


def test_all_bends_of_a_sweep_see_one_minibatch():
    loss = Noisy()
    mc.fit_curve(valley_chain(), loss, finder="neb", num_steps=6)
    assert len(loss.drawn) == 10 and len(set(loss.drawn[:5])) == len(set(loss.drawn[5:])) == 1
    assert loss.drawn[0] != loss.drawn[5]


def test_forces_are_those_of_henkelman_and_jonsson_in_numpy():
    """R: places, V: energies, g: gradients; F = −g + (g·τ)τ + k(|R₊ − R| − |R − R₋|)τ with their tangent."""
    rng = np.random.default_rng(0)
    for V in ([0.0, 1.0, 3.0, 0.5, 2.0], [5.0, 4.0, 4.0, 4.0, 4.0], [0.0, 2.0, 1.0, 2.5, 0.0]):
        R, g = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
        found = forces([torch.tensor(r) for r in R], V, [torch.tensor(x) for x in g])
        steps = np.diff(R, axis=0)
        lengths = np.linalg.norm(steps, axis=1)
        k = np.linalg.norm(g, axis=1).mean() / lengths.mean()
        for i in (1, 2, 3):
            plus, minus = R[i + 1] - R[i], R[i] - R[i - 1]
            most, least = np.sort([abs(V[i + 1] - V[i]), abs(V[i - 1] - V[i])])[::-1]
            if V[i + 1] > V[i] > V[i - 1]:
                tau = plus
            elif V[i + 1] < V[i] < V[i - 1]:
                tau = minus
            elif most == 0:
                tau = plus + minus  # level: theirs is undefined
            elif V[i + 1] > V[i - 1]:
                tau = plus * most + minus * least
            else:
                tau = plus * least + minus * most
            tau = tau / np.linalg.norm(tau)
            force = -g[i - 1] + (g[i - 1] @ tau) * tau + k * (lengths[i] - lengths[i - 1]) * tau
            np.testing.assert_allclose(found[i - 1].numpy(), force, rtol=1e-12, atol=1e-12)
    assert not tangent(torch.zeros(2), torch.zeros(2), 0.0, 1.0, 2.0).any()


def test_a_band_neither_slides_into_the_minima_nor_cuts_the_corner():
    found = mc.fit_curve(valley_chain(5), mountain_pass, finder="neb", num_steps=500)
    gaps = np.diff([[float(a["u"]), float(a["v"])] for a in found.anchors], axis=0)
    lengths = np.linalg.norm(gaps, axis=1)
    assert lengths.max() < 1.3 * lengths.min()
    # Where the chain rests the slope across it is nil: at the foot of a path of steepest descent.
    for bend in found.bends[1:-1]:
        u, v = float(bend["u"]), float(bend["v"])
        assert abs(v - 0.8 * (1 - u * u)) < 0.1


def test_halves_are_halved_in_order_and_bends_stay_across_the_line_of_their_neighbours():
    assert halving(4) == [(0, 2, 5), (0, 1, 2), (2, 3, 5), (3, 4, 5)]
    assert sorted(m for _, m, _ in halving(11)) == list(range(1, 12))
    lowest = lambda point: ring(point) + 3.0 * point["u"].sum()  # all would slide to the left  # noqa: E731
    found = mc.fit_curve(valley_chain(), lowest, finder="bisection", num_steps=90)
    assert abs(float(found.bends[1]["u"])) < 0.05 and abs(float(found.bends[1]["v"])) > 0.8


def layers(scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"h.{i}.w": scale * torch.randn(4, 4, generator=generator, dtype=torch.float64) for i in (0, 1, 2, 10)}


def test_the_walk_moves_layer_after_layer_in_their_order_and_keeps_their_spread():
    """With a loss that is level nothing but the moves and the scaling acts: where each tensor is follows by hand."""
    a, b = layers(1.0, 0), layers(2.0, 1)
    level = lambda point: 0.0 * sum(x.sum() for x in point.values())  # noqa: E731
    found = mc.fit_curve(PolyChain(a, b, num_bends=4), level, finder="layerwise", num_steps=8, jitter=0.0)
    expected = {name: x.numpy() for name, x in a.items()}
    for stage, bend in enumerate(found.bends):
        for number, name in enumerate(("h.0.w", "h.1.w", "h.2.w", "h.10.w")):
            if number <= stage:
                expected[name] = expected[name] + (b[name].numpy() - expected[name]) / (5 - stage)
            x, t = expected[name], (stage + 1) / 5
            wanted = (1 - t) * a[name].numpy().std(ddof=1) + t * b[name].numpy().std(ddof=1)
            expected[name] = x.mean() + (x - x.mean()) * wanted / x.std(ddof=1)
            np.testing.assert_allclose(bend[name].numpy(), expected[name], rtol=1e-10)


def test_held_buffers_stay_where_the_curve_had_them():
    class Loss:
        held_names = frozenset({"v"})

        def __call__(self, point):
            return (point["u"] - 3.0).square().sum() + 0.0 * point["v"].sum()

    for finder in CHAINS:
        curve = PolyChain(place(0, 5), place(1, 6), num_bends=3)
        found = mc.fit_curve(curve, Loss(), finder=finder, num_steps=6)
        assert [float(b["v"]) for b in found.bends] == pytest.approx([5.25, 5.5, 5.75])
        assert any(float(b["u"]) > float(c["u"]) + 1e-3 for b, c in zip(found.bends, curve.bends, strict=True))


@pytest.mark.parametrize(
    ("curve", "options", "words"),
    [
        (
            Bezier(place(-1, 0), place(1, 0)),
            {"finder": "neb"},
            "a chain for the finder neb.* got Bezier; take",
        ),
        (SegmentedBezier(place(-1, 0), place(1, 0)), {"finder": "layerwise"}, "got SegmentedBezier"),
        (valley_chain(), {"finder": "bisection", "num_steps": 2}, "each of the 3 bends .* got 2; raise num_steps"),
        (valley_chain(), {"finder": "nbe"}, "Unknown finder 'nbe'. Did you mean 'neb'"),
        (Linear(place(-1, 0), place(1, 0)), {"finder": "neb"}, "a curve with bends"),
    ],
)
def test_what_does_not_fit_is_refused(curve, options, words):
    with pytest.raises(UserError, match=words):
        mc.fit_curve(curve, ring, **options)


def test_a_finder_of_ones_own_is_one_class():
    class Random(Finder):
        """A bend is tried along a random direction."""

        name = "random_direction"

        def set_gradients(self, step):
            for bend in range(len(self.fit.bends)):
                for tensor in self.fit.trained(bend).values():
                    tensor.grad = torch.randn(tensor.shape, generator=self.fit.generator, dtype=tensor.dtype)
            return math.nan

    assert get_finder("random_direction") is Random
    found = [mc.fit_curve(valley_chain(), ring, finder="random_direction", num_steps=5) for _ in range(2)]
    assert content_hash(found[0].bends[0]) == content_hash(found[1].bends[0]) != content_hash(valley_chain().bends[0])
    with pytest.raises(UnknownNameError):
        get_finder("random")
