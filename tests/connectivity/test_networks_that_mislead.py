"""Networks whose forward pass gave numbers that were not theirs: states of their own, fused kernels, statistics."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.landscape.basin_radius import Ray
from mcanalysis.paths.base import get_path

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(6, 3, generator=GENERATOR)
TS = [0.0, 0.5, 1.0]


def squares(net, batch):
    return net(batch).square().mean(1)


class Stateful(nn.Module):
    """Three outputs; what is drawn or counted in `extra` is added."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x) + self.extra(x)


class OwnGenerator(Stateful):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def extra(self, x):
        return torch.randn(x.shape, generator=self.generator)


class OfPython(Stateful):
    def extra(self, x):
        return random.random()


class OfNumpy(Stateful):
    def extra(self, x):
        return float(np.random.randn())


class Counter(Stateful):
    def __init__(self):
        super().__init__()
        self.calls = torch.zeros(3)

    def extra(self, x):
        return self.calls.add_(1).clone()


class Box:
    number = 0.0


class InObject(Stateful):
    def __init__(self):
        super().__init__()
        self.box = Box()

    def extra(self, x):
        self.box.number += 1
        return self.box.number


class InNested(Stateful):
    def __init__(self):
        super().__init__()
        self.deep = {"a": [0.0]}

    def extra(self, x):
        self.deep["a"][0] += 1
        return self.deep["a"][0]


@pytest.mark.parametrize("kind", [OwnGenerator, OfPython, OfNumpy, Counter])
def test_a_path_that_does_not_move_is_flat(kind):
    """And every state is afterwards what it was."""
    torch.manual_seed(0)
    net = kind()
    point = mc.snapshot(net)

    def states():
        own = [g.get_state().tolist() for g in vars(net).values() if isinstance(g, torch.Generator)]
        tensors = [t.tolist() for t in vars(net).values() if isinstance(t, torch.Tensor)]
        return own, tensors, random.getstate(), np.random.get_state()[1].tolist()

    before = states()
    objective = mc.module_objective(net, squares, [X[:3], X[3:]])
    found = mc.profile(mc.Linear(point, mc.snapshot(net)), objective, TS)
    assert found.losses.tolist() == [found.losses[0]] * 3 and found.chord_barrier() == 0.0
    assert states() == before


@pytest.mark.parametrize("kind", [InObject, InNested])
def test_what_a_forward_pass_leaves_elsewhere_is_refused(kind):
    net = kind()
    for use in (lambda o: o(mc.snapshot(net)), lambda o: list(o.terms(mc.snapshot(net))), lambda o: o.batch_losses()):
        with pytest.raises(UserError, match="the same losses of one batch at one point each time, got others"):
            use(mc.module_objective(net, squares, [X]))


class Decaying(Stateful):
    """A tensor in no slot that is written in place and takes part in the loss."""

    def __init__(self):
        super().__init__()
        self.state = self.alias = torch.ones(3)

    def extra(self, x):
        self.state.mul_(0.9)
        return self.head.weight.sum() * self.alias


@pytest.mark.parametrize("in_inference", [False, True])
def test_a_tensor_in_no_slot_can_be_differentiated_through(in_inference):
    with torch.inference_mode(in_inference):
        net = Decaying()
        state = net.state
    net.head = nn.Linear(3, 3)
    objective = mc.module_objective(net, squares, [X[:3], X[3:]])
    point = mc.snapshot(net)
    curve = mc.fit_curve(
        mc.Bezier(point, mc.snapshot(nn.ModuleDict({"head": nn.Linear(3, 3)}))), objective, num_steps=3
    )
    assert len(curve.history) == 3 and net.state is net.alias is state and state.tolist() == [1.0] * 3
    by_hand = X @ point["head.weight"].T + point["head.bias"] + 0.9 * point["head.weight"].sum()
    np.testing.assert_allclose(objective(point).nll, by_hand.square().mean(1).numpy(), rtol=1e-5)


WEIGHT_NORMS = {
    "parametrisation": lambda: parametrizations.weight_norm(nn.Linear(3, 2)),
    "other dimension": lambda: parametrizations.weight_norm(nn.Linear(3, 2), dim=1),
    "one norm": lambda: parametrizations.weight_norm(nn.Linear(3, 2), dim=None),
    "older": lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("which", WEIGHT_NORMS)
def test_curvature_of_weight_normalisation_is_that_of_differences_of_gradients(which):
    torch.manual_seed(0)
    net = nn.Sequential(WEIGHT_NORMS[which](), nn.Tanh()).double()
    objective = mc.module_objective(net, lambda net, x: net(x).square().sum(1), [X.double()])
    point = mc.snapshot(net)
    operator = mc.HessianOperator(objective, point)
    n = operator.num_coordinates
    matrix = np.stack([operator @ row for row in np.eye(n)])
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-10)
    columns = []
    for row in np.eye(n):
        step = operator.as_point(1e-5 * row)
        ends = [
            mc.HessianOperator(objective, {k: t + sign * step[k] for k, t in point.items()}).gradient()
            for sign in (1, -1)
        ]
        flat = [torch.cat([end[k].reshape(-1) for k in operator.coordinates]).numpy() for end in ends]
        columns.append((flat[0] - flat[1]) / 2e-5)
    np.testing.assert_allclose(matrix, np.stack(columns), atol=1e-7)


def test_eigenvalues_of_what_is_not_symmetric_are_warned_of(caplog):
    from scipy.sparse.linalg import aslinearoperator

    square = np.diag(np.arange(1.0, 31.0))
    mc.eigenvalues(aslinearoperator(square), num=2)
    assert not caplog.messages
    mc.eigenvalues(aslinearoperator(square + np.triu(np.ones((30, 30)), 1) * 4), num=2)
    assert "not those of a symmetric matrix" in caplog.text


class Pooled(nn.Module):
    """An encoder that pools over padded positions, as its training did."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, batch):
        x, padded = batch
        return self.encoder(x, src_key_padding_mask=padded).mean(1)


def test_a_profile_and_its_derivatives_are_of_one_loss_of_an_encoder():
    torch.manual_seed(0)
    net, x = Pooled(), torch.randn(5, 4, 4)
    padded = torch.zeros(5, 4, dtype=torch.bool)
    padded[:3, 2:] = True
    objective = mc.module_objective(net, squares, [(x, padded)])
    point = mc.snapshot(net)
    found = objective(point)
    net.eval()
    by_hand = squares(net, (x, padded)).detach()  # with gradients, hence the plain way
    np.testing.assert_allclose(found.nll, by_hand.numpy(), rtol=1e-5)
    terms = objective.terms({k: t.requires_grad_() for k, t in point.items()})
    assert float(sum(terms).detach()) == pytest.approx(found.loss)
    assert torch.backends.mha.get_fastpath_enabled()


class Renormed(nn.Module):
    """Writes into its weight as it computes, as EEGNet does."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        self.head.weight.data = torch.renorm(self.head.weight.data, 2, 0, 0.5)
        return self.head(x)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 3, max_norm=0.5)

    def forward(self, x):
        return self.words((x[:, 0].abs() * 3).long().clamp(max=5))


@pytest.mark.parametrize("kind", [Renormed, Words])
def test_a_forward_pass_that_writes_into_weights_does_not_write_into_the_point(kind):
    torch.manual_seed(0)
    net = kind()
    point = {name: t.requires_grad_() for name, t in mc.snapshot(net).items()}
    before = {name: t.detach().clone() for name, t in point.items()}
    objective = mc.module_objective(net, squares, [X])
    objective(point)
    operator = mc.HessianOperator(objective, point)
    operator.gradient()
    for name, tensor in before.items():
        assert torch.equal(point[name], tensor) and torch.equal(operator.point[name], tensor)


def test_a_curve_between_one_point_and_itself_has_not_converged():
    ends = [{"w": torch.tensor([1.0, 0.0])} for _ in range(2)]
    fitted = mc.fit_curve(mc.Bezier(*ends), lambda p: (p["w"] - 5).square().sum(), num_steps=20)
    assert fitted.history[-1] < fitted.history[0] and not fitted.converged
    assert mc.fit_curve(mc.Bezier(*ends), lambda p: p["w"].sum() * 0 + 1, num_steps=20).converged


def test_an_n_by_n_loss_is_told_where_it_comes_from():
    net, y = nn.Linear(3, 1), torch.ones(6)
    with pytest.raises(UserError, match=r"an output of shape \(n, 1\) met targets of shape \(n,\)"):
        mc.module_objective(net, lambda net, x: (net(x) - y) ** 2, [X])(mc.snapshot(net))


def test_batches_in_double_precision_for_a_float32_network():
    net = nn.Linear(3, 1)
    with pytest.raises(UserError, match=r"the precision of the point, got float64.*float32"):
        mc.module_objective(net, squares, [X.double()])(mc.snapshot(net))
    with pytest.raises(UserError, match=r"the precision of the point, got float64"):
        mc.module_objective(net, lambda n, b: squares(n, b["x"]), [{"x": X.double()}])(mc.snapshot(net))


def of_batchnorm(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        for _ in range(60):
            net(20 * torch.randn(16, 3))
    return net


def test_running_statistics_do_not_count_as_length():
    """Measured statistics of inputs of size 20 are 100 times as long as the weights that were trained."""
    nets = [of_batchnorm(seed) for seed in (1, 2)]
    ends = [mc.snapshot(net) for net in nets]
    held = {"1.running_mean", "1.running_var"}
    weights = [{name: t for name, t in end.items() if name not in held} for end in ends]
    apart = float(sum((weights[0][n] - weights[1][n]).square().sum() for n in weights[0]) ** 0.5)
    objective = mc.module_objective(nets[0], squares, [X], recalibrate=[X], score=lambda n, x: 1 - squares(n, x))
    line = mc.Linear(*ends)
    assert objective.held_names >= held
    assert line.length(held=objective.held_names) == pytest.approx(apart, rel=1e-5) and line.length() > 10 * apart
    found, plain = (mc.profile(mc.Linear(*pair), objective, TS) for pair in (ends, weights))
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-6)
    assert found.arc_lengths[-1] == pytest.approx(apart, rel=1e-5)
    assert found.summary()["mean_over_arc"] == pytest.approx(plain.summary()["mean_over_arc"], rel=1e-6)
    slerp = get_path("slerp")
    assert slerp(*ends).length(held=held) == pytest.approx(slerp(*weights).length(), rel=1e-6)

    direction = {name: ends[1][name] - t for name, t in ends[0].items()}
    both = [
        mc.basin_radius(objective, start, {n: direction[n] for n in start}, steps=[0.1, 0.5, 1.0, 3.0], keep=0.999)
        for start in (ends[0], weights[0])
    ]
    assert both[0].value == pytest.approx(both[1].value, rel=1e-4) and both[0].value < 3.0
    with pytest.raises(UserError, match="a direction with a length"):
        Ray(ends[0], {n: t if n in held else 0 * t for n, t in direction.items()}, held)


def test_a_direction_without_buffers_is_told_how_to_hold_them():
    """That of an eigenvector, say, whose coordinates are no buffers."""
    point = mc.snapshot(of_batchnorm(1))
    operator = mc.HessianOperator(mc.module_objective(of_batchnorm(1), squares, [X]), point)
    direction = operator.as_point(np.ones(operator.num_coordinates))
    with pytest.raises(UserError, match=r"one without '1.running_mean' \(2 in all\); add zeros for what is to stay"):
        mc.Slice(point, direction)
    line = mc.Slice(point, {n: direction.get(n, 0 * t) for n, t in point.items()})
    assert torch.equal(line(0.5)["1.running_var"], point["1.running_var"])
    torch.testing.assert_close(line(0.5)["0.weight"], point["0.weight"] + 0.5)
