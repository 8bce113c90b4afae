"""Networks that keep caches, write into their weights, share layers or recompute, against plain PyTorch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.landscape.hessian import module_losses
from mcanalysis.params import content_hash

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [(torch.randn(n, 4, generator=GENERATOR), torch.randn(n, 2, generator=GENERATOR)) for n in (5, 3)]


def loss(net, batch):
    return (net(batch[0]) - batch[1]).square().mean(1)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(x)


class SharedLayer(nn.Module):
    """One layer under two names, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight, self.third = self.first.weight, self.first

    def forward(self, x):
        return self.head(self.third(torch.tanh(self.second(torch.tanh(self.first(x))))))


class CachedInAttribute(Base):
    cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = 2 * self.head.weight
        return x @ self.cache.T


class CachedInBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None)

    def forward(self, x):
        return CachedInAttribute.forward(self, x)


class CachedInDict(Base):
    def __init__(self):
        super().__init__()
        self.caches, self.seen = {}, []

    def forward(self, x):
        self.seen.append(1)
        return x @ self.caches.setdefault("weight", 2 * self.head.weight).T * len(self.seen)


class CountsCalls(Base):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(x) * (1 + self.calls)


class MovingMean(Base):
    """Updated in place, and by assignment."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("square", torch.ones(4))

    def forward(self, x):
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.square = 0.9 * self.square + 0.1 * x.square().mean(0)
        return self.head((x - self.mean) / self.square.sqrt())


class Clipping(Base):
    def forward(self, x):
        self.head.weight.data.clamp_(-0.1, 0.1)
        return self.head(x)


class MergesWhenEvaluated(nn.Module):
    """As the linear layers of loralib do."""

    def __init__(self):
        super().__init__()
        self.weight, self.A, self.B = (nn.Parameter(torch.randn(s)) for s in ((2, 4), (1, 4), (2, 1)))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.B @ self.A).data
            self.merged = not mode
        return self

    def forward(self, x):
        return x @ self.weight.T if self.merged else x @ self.weight.T + x @ self.A.T @ self.B.T


class SwitchesItself(Base):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        self.train()
        return self.head(x)


class DoubleHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2).double()
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).double() * self.scale)


class Recomputing(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.body, self.head, self.use_reentrant = nn.Linear(4, 3), nn.Linear(3, 2), use_reentrant

    def forward(self, x):
        x = x.clone().requires_grad_(torch.is_grad_enabled())
        return self.head(
            checkpoint(lambda x: torch.tanh(self.body(x)).square().exp(), x, use_reentrant=self.use_reentrant)
        )


class Words(nn.Module):
    """Gradients of a sparse layout, for which second derivatives are not to be had."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.words((x.abs() * 2).long().clamp(max=4)).sum(1))


class OfTwoLSTMs(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.head = nn.LSTM(2, 3, num_layers=2, batch_first=True, dropout=0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rows(x.view(-1, 2, 2))[0][:, -1])


NETWORKS = [
    SharedLayer, CachedInAttribute, CachedInBuffer, CachedInDict, CountsCalls, MovingMean, Clipping,
    MergesWhenEvaluated, SwitchesItself, DoubleHead, Words, OfTwoLSTMs,
    lambda: Recomputing(True), lambda: Recomputing(False),
    lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)),
    lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)),
    lambda: nn.DataParallel(Base()),
    lambda: torch.compile(Base(), backend="eager"),
]  # fmt: skip


def made(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def of_module(net):
    """Everything that a module is, for comparison."""
    tensors = {n: t.clone() for n, t in net.state_dict().items()}
    attributes = [
        {k: copy.copy(v) if isinstance(v, bool | int | dict | list) else None for k, v in vars(m).items()}
        for m in net.modules()
    ]
    return content_hash(tensors), attributes, [id(p) for p in net.parameters()], torch.get_rng_state().tolist()


@pytest.mark.parametrize("make", NETWORKS)
def test_values_and_gradients_are_those_of_a_new_network_loaded_by_hand(make):
    ends = [mc.snapshot(made(make, seed)) for seed in (1, 2)]
    hashes = [content_hash(end) for end in ends]
    net = made(make, 3)
    before = of_module(net)
    objective = mc.module_objective(net, loss, BATCHES)
    profile = mc.profile(mc.Linear(*ends), objective, [0.0, 0.3, 1.0])
    objective(ends[0])
    for t, found in zip(profile.ts, profile.nll, strict=True):
        point, values, gradients = mc.Linear(*ends)(t), [], {}
        for batch in BATCHES:
            by_hand = made(make, 4)
            by_hand.load_state_dict(point, strict=False)
            by_hand.train(make is MergesWhenEvaluated)  # whose gradients are lost where it is merged
            values.append(loss(by_hand, batch))
            (values[-1].sum() / 8).backward()
            for name, parameter in by_hand.named_parameters():
                if parameter.grad is not None:
                    gradients[name] = gradients.get(name, 0) + parameter.grad.to_dense()
        np.testing.assert_allclose(found, torch.cat(values).detach().double().numpy(), rtol=2e-5, atol=1e-6)
        if make is Clipping:  # which cannot be differentiated
            continue
        operator = mc.HessianOperator(objective, point)
        for name, gradient in operator.gradient().items():
            torch.testing.assert_close(gradient, gradients.get(name, 0 * gradient), rtol=1e-4, atol=1e-5)
        assert operator.loss() == pytest.approx(found.mean(), rel=1e-5)
        assert np.isfinite(operator @ np.ones(operator.num_coordinates)).all()
    assert of_module(net) == before and [content_hash(end) for end in ends] == hashes


def test_random_draws_of_a_forward_pass_are_the_same_at_every_point_and_leave_the_state_alone():
    class Sampling(Base):
        def forward(self, x):
            return dropout(self.head(x), 0.5, training=True)

    net = Sampling()
    objective = mc.module_objective(net, loss, [*BATCHES, BATCHES[0]])
    point, state = mc.snapshot(net), torch.get_rng_state()
    first = objective(point).nll
    torch.rand(3)
    assert objective(point).nll.tolist() == first.tolist() and first[:5].tolist() == first[8:].tolist()
    assert float(sum(objective.terms(point))) == pytest.approx(first.mean(), rel=1e-6)
    torch.set_rng_state(state)
    objective(point)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_module_is_as_it_was_after_an_error_in_the_middle():
    net, point = CachedInDict(), mc.snapshot(CachedInDict())
    before = of_module(net)

    def broken(net, batch):
        net.train()
        torch.rand(1)
        net.extra = net(batch[0])
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        mc.module_objective(net, broken, BATCHES)(point)
    assert of_module(net) == before


def test_a_float32_network_takes_float64_points_with_batches_to_match():
    net, double = Base(), {n: t.double() for n, t in mc.snapshot(Base()).items()}
    wide = [(x.double(), y.double()) for x, y in BATCHES]
    expected = loss(lambda x: x @ double["head.weight"].T + double["head.bias"], wide[0])
    assert mc.module_objective(net, loss, wide[:1])(double).nll.tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    with pytest.raises(UserError, match=r"batches in float64 like the point.*the point to float32"):
        mc.module_objective(net, loss, BATCHES)(double)
    with pytest.raises(UserError, match="batches in float64"):
        mc.module_objective(net, loss, BATCHES)({"head.weight": double["head.weight"]})


class WithActivation(nn.BatchNorm1d):
    """As BatchNormAct2d of timm."""

    def forward(self, input):
        return torch.tanh(super().forward(input))


def test_recalibrated_gradients_of_a_batchnorm_class_of_ones_own():
    """Central differences of what is measured, which sees the activation inside the layer."""
    net = nn.Sequential(nn.Linear(4, 3), WithActivation(3), nn.Linear(3, 2)).double()
    wide = [(x.double(), y.double()) for x, y in BATCHES]
    objective = mc.module_objective(net, loss, wide, recalibrate=wide)
    point = mc.snapshot(made(lambda: copy.deepcopy(net), 1))
    operator = mc.HessianOperator(objective, point)
    assert operator.loss() == pytest.approx(objective(point).loss, rel=1e-12)
    gradient = operator.gradient()["0.weight"]
    for i, j in ((0, 0), (1, 3), (2, 2)):
        values = []
        for step in (1e-5, -1e-5):
            moved = {n: t.clone() for n, t in point.items()}
            moved["0.weight"][i, j] += step
            values.append(objective(moved).loss)
        assert float(gradient[i, j]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


class Masked(nn.Module):
    """A causal mask as nanoGPT keeps it: a floating-point buffer of two dimensions."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x):
        return x @ (self.mix.weight + self.mask).softmax(1)


@pytest.mark.parametrize("measure", [mc.expected_sharpness, mc.epsilon_sharpness])
def test_buffers_stay_where_they_are_in_slices_and_sharpness(measure):
    net = Masked()
    objective = mc.module_objective(net, lambda net, x: net(x).square().mean(1), [BATCHES[0][0]])
    point, held = mc.snapshot(net), {"mask"}
    alone = measure(mc.module_objective(net, lambda net, x: net(x).square().mean(1), [BATCHES[0][0]]), point)
    by_hand = measure(lambda p: (BATCHES[0][0] @ (p["mix.weight"] + net.mask).softmax(1)).square().mean(),
                      {"mix.weight": point["mix.weight"]})  # fmt: skip
    assert alone.value == pytest.approx(by_hand.value, rel=1e-2)
    assert torch.equal(mc.random_slice(point, held=objective.held_names)(0.5, 2.0)["mask"], net.mask)
    assert objective.held_names == held


def test_means_of_half_precision_losses_are_taken_in_float32():
    """The mean of 2048 and 2050 is no number of float16."""
    net, rows = nn.Linear(1, 1), [torch.tensor([[2048.0], [2050.0]])]
    objective = mc.module_objective(net, lambda net, x: (net(x) * 0 + x).half()[:, 0], rows)
    assert float(objective({n: t.requires_grad_() for n, t in mc.snapshot(net).items()}).loss.detach()) == 2049.0


class LazyOrNot(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.weight = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def test_what_has_no_point_is_refused():
    with pytest.raises(UserError, match="'weight' of a lazy layer; call the module on a batch once"):
        mc.snapshot(nn.LazyLinear(3))
    with pytest.raises(UserError, match=r"'0.weight' of a lazy layer; call it on a batch once"):
        mc.module_objective(nn.Sequential(nn.LazyLinear(3)), loss, BATCHES)
    with pytest.raises(UserError, match=r"real tensors, got torch.complex64 at 'weight'.*view_as_real"):
        mc.snapshot(LazyOrNot(torch.zeros(2, dtype=torch.complex64)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda v: v[:, None], r"got shape \(5, 1\); take the mean or the sum over the other dimensions"),
        (lambda v: v.to(torch.complex64), "real values of the loss, got torch.complex64"),
    ],
)
def test_losses_of_other_shapes_and_kinds(values, message):
    net = Base()
    with pytest.raises(UserError, match=message):
        mc.module_objective(net, lambda net, batch: values(loss(net, batch)), BATCHES)(mc.snapshot(net))


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad])
def test_curvature_is_to_be_had_without_gradients_around_it(around):
    net = Base()
    operator = mc.HessianOperator(mc.module_objective(net, loss, BATCHES), mc.snapshot(net))
    expected = operator @ np.ones(10)
    with around():
        again = mc.HessianOperator(mc.module_objective(net, loss, BATCHES), mc.snapshot(net))
        assert (again @ np.ones(10)).tolist() == expected.tolist()
        assert again.gradient()["head.bias"].tolist() == operator.gradient()["head.bias"].tolist()
    with torch.inference_mode(), pytest.raises(UserError, match=r"got torch.inference_mode\(\)"):
        mc.HessianOperator(mc.module_objective(net, loss, BATCHES), mc.snapshot(net)).gradient()


@pytest.mark.parametrize(
    "batches",
    [[{"x": BATCHES[0][0], "y": BATCHES[0][1]}], BATCHES[0], [(*BATCHES[0], 1)], [(BATCHES[0][0], torch.ones(()))]],
)
def test_batches_of_module_losses_are_pairs(batches):
    with pytest.raises(UserError, match=r"pairs \(inputs, targets\)"):
        module_losses(Base(), nn.functional.mse_loss, batches)


def test_modules_and_objectives_in_the_place_of_points_paths_and_hessians():
    net = Base()
    objective, point = mc.module_objective(net, loss, BATCHES), mc.snapshot(net)
    with pytest.raises(UserError, match=r"Expected a point .* got Base; take mc.snapshot"):
        mc.Linear(net, Base())
    with pytest.raises(UserError, match="a path that can be called, got tuple"):
        mc.profile((point, point), objective)
    with pytest.raises(UserError, match="the Hessian of the old task's loss, got ModuleObjective"):
        mc.predicted_forgetting(objective, point)
    with pytest.raises(UserError, match=r"values of t such as \[0, 0.5, 1\], got 0.5"):
        mc.profile(mc.Linear(point, mc.snapshot(Base())), objective, ts=0.5)
