"""Curve fitting against problems whose best curve is known, and what it must leave alone."""

from types import SimpleNamespace

import pytest
import torch

from mcanalysis.connectivity import curve_fitting
from mcanalysis.connectivity.convergence import Convergence
from mcanalysis.connectivity.curve_fitting import fit_curve
from mcanalysis.errors import UserError
from mcanalysis.params import (
    concatenate,
    content_hash,
    delta_distance,
    delta_norm,
    delta_weights,
    distance,
    norm,
)
from mcanalysis.paths import Bezier, Linear, PolyChain, SegmentedBezier

DIM = 4


def vector(*values):
    return {"w": torch.tensor(values, dtype=torch.float64)}


def quadratic(seed=0):
    """½(θ−θ*)ᵀH(θ−θ*) with a positive definite H, and θ*."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    H = root @ root.T / DIM + 0.5 * torch.eye(DIM, dtype=torch.float64)
    target = torch.randn(DIM, generator=generator, dtype=torch.float64)
    return lambda point: 0.5 * (point["w"] - target) @ H @ (point["w"] - target), target


def circle_loss(point):
    """0 on the unit circle, 1 in its middle: the straight path between opposite points crosses a barrier."""
    return (point["w"].square().sum() - 1.0) ** 2


def mean_loss(curve, loss, num=101):
    ts = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    return sum(float(loss(curve(float(t)))) for t in ts) / num


@pytest.mark.parametrize("seed", [0, 1])
def test_best_single_bend_of_a_quadratic(seed):
    loss, target = quadratic(seed)
    a, b = vector(1.0, 0.0, 0.0, 2.0), vector(0.0, -1.0, 3.0, 0.0)
    fitted = fit_curve(Bezier(a, b), loss, num_steps=300, learning_rate=0.3, ts_per_step=16, seed=seed)
    best = {"w": 2.5 * target - 0.75 * (a["w"] + b["w"])}
    assert distance(fitted.bends[0], best) <= 5e-3 * norm(best)


def test_best_bend_is_found_with_one_t_per_step_too():
    loss, target = quadratic(2)
    a, b = vector(1.0, 0.0, 0.0, 2.0), vector(0.0, -1.0, 3.0, 0.0)
    fitted = fit_curve(Bezier(a, b), loss, num_steps=3000, learning_rate=0.05)
    best = {"w": 2.5 * target - 0.75 * (a["w"] + b["w"])}
    assert distance(fitted.bends[0], best) <= 0.1 * norm(best)


@pytest.mark.parametrize("make", [Bezier, PolyChain, SegmentedBezier])
def test_curve_goes_round_a_barrier_from_a_saddle(make):
    """On the straight path the gradient has no part off the path: only the jitter can leave it."""
    curve = make(vector(-1.0, 0.0), vector(1.0, 0.0), num_bends=3)
    straight = mean_loss(curve, circle_loss)
    options = {"num_steps": 400, "learning_rate": 0.05, "ts_per_step": 4}
    assert mean_loss(fit_curve(curve, circle_loss, **options), circle_loss) < 0.1 * straight
    stuck = fit_curve(curve, circle_loss, jitter=0.0, **options)
    assert all(float(bend["w"][1]) == 0.0 for bend in stuck.bends)


def ring_loss(point):
    """0 on the unit circle, 20 in its middle."""
    return 20.0 * (point["w"].norm() - 1.0) ** 2


@pytest.mark.parametrize("seed", range(4))
def test_defaults_find_the_ring_and_say_so(seed, caplog):
    """A Bezier curve of one bend is no half circle: the best one in the mean over t has a barrier of about 0.3."""
    curve = Bezier(vector(-1.0, 0.0), vector(1.0, 0.0))
    fitted = fit_curve(curve, ring_loss, seed=seed)
    ts = [i / 100 for i in range(101)]
    assert max(float(ring_loss(Linear(*curve.anchors[::2])(t))) for t in ts) == 20.0
    assert max(float(ring_loss(fitted(t))) for t in ts) < 1.0
    assert fitted.converged and not caplog.records
    assert curve.history == () and curve.converged is None
    assert fitted.with_bends(fitted.bends).history == ()


@pytest.mark.parametrize(
    "options", [{"num_steps": 100, "learning_rate": 1e-2}, {"learning_rate": 1e-5}, {"num_steps": 5}]
)
def test_a_fit_that_is_not_at_rest_says_so_also_where_its_loss_stands_still(options, caplog):
    """With a tiny rate the loss does not fall either: it is the gradient that tells (off the saddle in the middle)."""
    curve_fitting._say_once.cache_clear()  # other tests of this process may have been told
    fitted = fit_curve(Bezier(vector(-1.0, 0.0), vector(1.0, 0.0), bends=[vector(0.1, 0.5)]), ring_loss, **options)
    assert not fitted.converged
    (record,) = caplog.records
    assert "not at rest after" in record.getMessage()
    fit_curve(Bezier(vector(-1.0, 0.0), vector(1.0, 0.0)), ring_loss, num_steps=6)
    assert caplog.records == [record], "said once, also of a fit of another number of steps"


def test_history_is_the_mean_loss_over_the_ts_of_each_step():
    seen = []

    def loss(point):
        seen.append(float(ring_loss(point).detach()))
        return ring_loss(point)

    fitted = fit_curve(Bezier(vector(-1.0, 0.0), vector(1.0, 0.0)), loss, num_steps=6, ts_per_step=3)
    assert list(fitted.history) == pytest.approx(torch.tensor(seen).reshape(6, 3).mean(1).tolist(), rel=1e-6)


def test_the_slope_is_the_mean_gradient_without_the_noise_of_steps():
    """Gradients of mean 0 and of mean (3, 4) with the same noise: relative slopes of about 0 and of 5·length/loss."""
    generator = torch.Generator().manual_seed(0)
    for mean, expected in ((torch.zeros(2), 0.0), (torch.tensor([3.0, 4.0]), 5.0 * 2.0 / 10.0)):
        parameter = torch.zeros(2, requires_grad=True)
        convergence = Convergence([parameter], 4000, length=2.0)
        for _ in range(4000):
            parameter.grad = mean + torch.randn(2, generator=generator)
            convergence.add(10.0, [parameter])
        # 1000 gradients tell the square of a mean of 0 to 2/1000, that is 0.009 in the slope.
        assert convergence.slope() == pytest.approx(expected, abs=0.05)


def test_scaling_all_weights_gives_the_same_curve_in_other_units():
    """The default rate goes with the distance of the ends (above its floor)."""
    ends = vector(-1.0, 0.0), vector(1.0, 0.0)
    far = vector(-100.0, 0.0), vector(100.0, 0.0)
    near = fit_curve(Bezier(*ends), ring_loss)
    wide = fit_curve(Bezier(*far), lambda point: ring_loss({"w": point["w"] / 100.0}))
    torch.testing.assert_close(wide.bends[0]["w"] / 100.0, near.bends[0]["w"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: {"loss": x}, lambda x: SimpleNamespace(loss=x), lambda x: x.reshape(1, 1)],
    ids=["dict", "object", "1x1"],
)
def test_something_with_a_loss_is_that_loss(wrap):
    curve = Bezier(vector(-1.0, 0.0), vector(1.0, 0.0))
    plain, wrapped = (fit_curve(curve, f, num_steps=9) for f in (ring_loss, lambda point: wrap(ring_loss(point))))
    assert content_hash(plain.bends[0]) == content_hash(wrapped.bends[0])


def test_everything_given_is_left_alone():
    module = torch.nn.Linear(3, 1)
    a = {name: p.detach().clone() for name, p in module.named_parameters()}
    b = {name: p.detach() + 1.0 for name, p in module.named_parameters()}
    x, y = torch.randn(8, 3), torch.randn(8, 1)

    def loss(point):
        # a module parameter in the graph that is not part of the point must not receive a gradient
        return (torch.func.functional_call(module, point, (x,)) - y).square().mean() + 0.0 * module.bias.sum()

    curve = Bezier(a, b, num_bends=2)
    kept = [content_hash(p) for p in (a, b, *curve.anchors, dict(module.named_parameters()))]
    random_state = torch.random.get_rng_state()
    fitted = fit_curve(curve, loss, num_steps=5)
    assert [content_hash(p) for p in (a, b, *curve.anchors, dict(module.named_parameters()))] == kept
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert type(fitted) is Bezier and distance(fitted.bends[0], curve.bends[0]) > 0.0
    assert content_hash(fitted(0.0)) == content_hash(a) and content_hash(fitted(1.0)) == content_hash(b)
    assert not any(tensor.requires_grad for bend in fitted.bends for tensor in bend.values())


def test_anchored_minima_stay_and_free_ones_move():
    minima = vector(-1.0, 0.0), vector(0.0, 0.5), vector(1.0, 0.0)
    anchored = fit_curve(SegmentedBezier(*minima), circle_loss, num_steps=20)
    free = fit_curve(SegmentedBezier(*minima, anchored=False), circle_loss, num_steps=20)
    assert content_hash(anchored(0.5)) == content_hash(minima[1]) != content_hash(free(0.5))
    assert content_hash(free(1.0)) == content_hash(minima[2])


def test_the_seed_decides():
    loss, _ = quadratic()
    curve = Bezier(vector(0.0, 0.0, 0.0, 0.0), vector(1.0, 1.0, 1.0, 1.0))
    first, again, other = (fit_curve(curve, loss, num_steps=10, seed=seed) for seed in (0, 0, 1))
    assert content_hash(first.bends[0]) == content_hash(again.bends[0]) != content_hash(other.bends[0])


def test_jitter_is_relative_to_the_distance_of_the_ends():
    curve = PolyChain(vector(0.0, 0.0), vector(300.0, 400.0), num_bends=2)
    seen = []

    def loss(point):
        seen.append(point)
        return 0.0 * point["w"].sum()

    fitted = fit_curve(curve, loss, num_steps=1, jitter=1e-2)
    for start, bend in zip(curve.bends, fitted.bends, strict=True):
        assert distance(start, bend) == pytest.approx(5.0, rel=1e-9)


def test_ts_are_drawn_one_per_stratum():
    curve = Bezier(vector(0.0), vector(1.0))
    drawn = []

    def loss(point):
        drawn.append(float(point["w"].detach()))
        return 0.0 * point["w"].sum()

    fit_curve(curve, loss, num_steps=20, ts_per_step=5, jitter=0.0)
    steps = torch.tensor(drawn).reshape(20, 5)
    assert torch.equal((steps * 5).floor().long(), torch.arange(5).expand(20, 5))
    assert len(set(drawn)) == 100


def test_a_step_follows_the_gradient_of_the_mean_over_t():
    """For the loss Σw the gradient is the mean weight of the bend, ∫2t(1−t)dt = 1/3."""
    fitted = fit_curve(
        Bezier(vector(0.0, 0.0), vector(0.0, 0.0)),
        lambda point: point["w"].sum(),
        num_steps=1,
        learning_rate=1.0,
        ts_per_step=200,
        warmup_fraction=0.0,
        optimizer=torch.optim.SGD,
    )
    assert fitted.bends[0]["w"].tolist() == pytest.approx([-1 / 3, -1 / 3], abs=1e-3)


def test_curve_in_delta_space_trains_both_factors_between_fixed_ends():
    torch.manual_seed(0)

    def adapter(rank):
        return {
            "q.lora_A.weight": torch.randn(rank, 5, dtype=torch.float64),
            "q.lora_B.weight": torch.randn(6, rank, dtype=torch.float64),
        }

    a, b = adapter(1), adapter(2)
    target = 3.0 * torch.randn(6, 5, dtype=torch.float64)

    def loss(point):
        return (delta_weights(point)["q"] - target).square().mean()

    curve = Bezier(a, b, space="delta")
    half = concatenate([a, b], [0.5, 0.5])
    assert delta_distance(curve.bends[0], half) <= 1e-12 * delta_norm(half)
    fitted = fit_curve(curve, loss, num_steps=150, learning_rate=0.05, ts_per_step=4)
    assert mean_loss(fitted, loss) < 0.8 * mean_loss(curve, loss)
    for name in half:
        assert not torch.allclose(fitted.bends[0][name], curve.bends[0][name], atol=1e-2)
    assert delta_distance(fitted(0.0), a) <= 1e-12 * delta_norm(a)
    assert delta_distance(fitted(1.0), b) <= 1e-12 * delta_norm(b)


def test_gradient_clipping_bounds_a_step():
    curve = Bezier(vector(0.0, 0.0), vector(1.0, 0.0))
    fitted = fit_curve(
        curve,
        lambda point: 1e6 * point["w"].sum(),
        num_steps=1,
        learning_rate=1.0,
        jitter=0.0,
        warmup_fraction=0.0,
        optimizer=torch.optim.SGD,
        max_grad_norm=0.1,
    )
    assert distance(fitted.bends[0], curve.bends[0]) == pytest.approx(0.1, rel=1e-4)


def test_low_precision_bends_are_trained_in_float32():
    a, b = ({"w": torch.full((2,), value, dtype=torch.bfloat16)} for value in (-1.0, 1.0))
    fitted = fit_curve(Bezier(a, b), lambda point: point["w"].square().sum(), num_steps=3)
    assert fitted.bends[0]["w"].dtype == torch.float32


def test_progress_is_told_of_every_step_and_closed():
    class Bar:
        def __init__(self, total, desc):
            self.total, self.desc, self.count, self.closed = total, desc, 0, False
            bars.append(self)

        def update(self, n):
            self.count += n

        def close(self):
            self.closed = True

    bars = []
    fit_curve(Bezier(vector(0.0), vector(1.0)), lambda p: p["w"].sum(), num_steps=7, progress=Bar)
    assert (bars[0].total, bars[0].count, bars[0].closed) == (7, 7, True)
    with pytest.raises(UserError):
        fit_curve(Bezier(vector(0.0), vector(1.0)), lambda p: p["w"].sum() * float("nan"), progress=Bar)
    assert bars[1].closed


def test_a_loss_that_is_not_finite_is_refused_with_its_step():
    calls = []

    def loss(point):
        calls.append(0)
        return point["w"].sum() * (float("inf") if len(calls) == 4 else 1.0)

    with pytest.raises(UserError, match="at step 4"):
        fit_curve(Bezier(vector(1.0), vector(1.0)), loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda point: 1.0, "got a float"),
        (lambda point: point["w"], r"got shape \(2,\)"),
        (lambda point: point["w"].detach().sum(), "without a gradient"),
        (lambda point: torch.ones(1, requires_grad=True).sum(), "does not use its tensors"),
    ],
)
def test_a_loss_that_cannot_be_followed_is_refused(loss, message):
    with pytest.raises(UserError, match=message):
        fit_curve(Bezier(vector(0.0, 0.0), vector(1.0, 1.0)), loss)


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 0},
        {"learning_rate": 0.0},
        {"ts_per_step": 0},
        {"jitter": -1.0},
        {"warmup_fraction": 1.0},
        {"max_grad_norm": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        fit_curve(Bezier(vector(0.0), vector(1.0)), lambda p: p["w"].sum(), **options)


def test_a_path_without_bends_is_refused():
    with pytest.raises(UserError, match="got Linear"):
        fit_curve(Linear(vector(0.0), vector(1.0)), lambda p: p["w"].sum())
