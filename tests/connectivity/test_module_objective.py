"""Objectives of networks with BatchNorm against plain PyTorch: load the interpolated state, loop by hand."""

import copy
import logging
from dataclasses import dataclass

import pytest
import torch
from torch import autograd, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import mcanalysis as mc
from mcanalysis.connectivity.losses import WeightedSum
from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.landscape.hessian import module_losses
from mcanalysis.params import content_hash

TS = [0.0, 0.3, 1.0]


def network(seed, activation=nn.ReLU):
    """A small convolutional network in float64 whose running statistics have moved away from 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), activation(), nn.Flatten(), nn.Dropout(0.5),
            nn.Linear(108, 6), nn.BatchNorm1d(6), activation(), nn.Linear(6, 3),
        ).double()  # fmt: skip
        for _ in range(4):
            net(seed**2 * torch.randn(16, 1, 8, 8, dtype=torch.float64) + seed)
    return net


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(22, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (22,), generator=generator)
    return [(x[:9], y[:9]), (x[9:], y[9:])]


def loss(net, batch):
    return cross_entropy(net(torch.as_tensor(batch[0])), torch.as_tensor(batch[1]), reduction="none")


def right(net, batch):
    return net(batch[0]).argmax(1) == batch[1]


def loaded(a, b, t):
    """The network whose whole state was interpolated by hand and loaded."""
    net = copy.deepcopy(a)
    first, second = a.state_dict(), b.state_dict()
    net.load_state_dict(
        {k: (1 - t) * v + t * second[k] if v.is_floating_point() else v for k, v in first.items()}
    )  # fmt: skip
    return net.eval()


def recalibrated(net, batches):
    """Statistics by a hand loop: forward passes with batch statistics, plain averages over batches."""
    seen = {n: [] for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for x, _ in batches:
        for name, part in net.named_children():
            if name in seen:
                dims = [d for d in range(x.dim()) if d != 1]
                shape = [1, -1] + [1] * (x.dim() - 2)
                mean, biased, var = x.mean(dims), x.var(dims, unbiased=False), x.var(dims)
                seen[name].append((mean, var))
                x = (x - mean.view(shape)) / (biased + part.eps).sqrt().view(shape)
                x = x * part.weight.view(shape) + part.bias.view(shape)
            else:
                x = part(x)
    for name, values in seen.items():
        layer = net.get_submodule(name)
        layer.running_mean.copy_(sum(m for m, _ in values) / len(values))
        layer.running_var.copy_(sum(v for _, v in values) / len(values))
    return net


def state(net):
    return content_hash(net.state_dict()), [m.training for m in net.modules()]


@pytest.mark.parametrize("recalibrate", [False, True])
def test_every_point_is_the_network_loaded_by_hand(data, recalibrate):
    a, b = network(1), network(2)
    net = network(3)  # its own weights and statistics play no part
    before, random = state(net), torch.random.get_rng_state()
    objective = mc.module_objective(net, loss, data, score=right, recalibrate=data if recalibrate else None)
    found = mc.profile(mc.Linear(mc.snapshot(a), mc.snapshot(b)), objective, TS)
    assert state(net) == before and torch.equal(torch.random.get_rng_state(), random)
    for i, t in enumerate(TS):
        with torch.no_grad():
            by_hand = loaded(a, b, t)
            by_hand = recalibrated(by_hand, data) if recalibrate else by_hand
            expected = torch.cat([loss(by_hand, batch) for batch in data])
            hits = torch.cat([right(by_hand, batch) for batch in data])
        torch.testing.assert_close(torch.from_numpy(found.nll[i]), expected, rtol=1e-10, atol=1e-12)
        assert found.losses[i] == pytest.approx(float(expected.mean()), rel=1e-10)
        assert found.example_scores[i].tolist() == hits.double().tolist()
    low, high = found.chord_barrier_interval()
    assert low <= high and found.targets.tolist() == [1] * 22


def test_the_example_of_the_issue_ends_are_the_networks_and_not_one_with_anothers_statistics(data, caplog):
    """What the docs' own recipe, `named_parameters`, made of the second end is said, and is wrong."""
    a, b = network(1), network(2)
    with torch.no_grad():
        truth = float(torch.cat([loss(b.eval(), batch) for batch in data]).mean())
    objective = mc.module_objective(a, loss, data)
    line = mc.Linear(dict(a.named_parameters()), dict(b.named_parameters()))
    with caplog.at_level(logging.WARNING):
        wrong = mc.profile(line, objective, TS)
    mixed = copy.deepcopy(b).eval()
    mixed.load_state_dict({n: t for n, t in a.state_dict().items() if "running_" in n}, strict=False)
    with torch.no_grad():
        by_hand = float(torch.cat([loss(mixed, batch) for batch in data]).mean())
    assert wrong.losses[-1] == pytest.approx(by_hand, rel=1e-10) and abs(by_hand - truth) > 1e-3
    (record,) = [r for r in caplog.records if "buffer" in r.getMessage()]  # once, though three points were measured
    assert "'1.running_mean' (4 in all)" in record.getMessage() and "mc.snapshot(module)" in record.getMessage()
    right_ends = mc.profile(mc.Linear(mc.snapshot(a), mc.snapshot(b)), mc.module_objective(a, loss, data), TS)
    assert right_ends.losses[-1] == pytest.approx(truth, rel=1e-12)


def test_module_losses_warn_too_and_take_buffers(data, caplog):
    a, b = network(1), network(2)
    with torch.no_grad():
        truth = float(torch.cat([loss(b.eval(), batch) for batch in data]).mean())
    assert mc.HessianOperator(module_losses(a, cross_entropy, data), mc.snapshot(b)).loss() == pytest.approx(truth)
    assert not caplog.records
    mc.HessianOperator(module_losses(a, cross_entropy, data), dict(b.named_parameters())).loss()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("recalibrate", [False, True])
def test_gradients_are_those_of_the_function_that_profiles_measure(data, recalibrate):
    """Central differences of the measured loss, statistics moving along; three ways to differentiate agree."""
    net = network(1, nn.Tanh)
    objective = mc.module_objective(net, loss, data, recalibrate=data if recalibrate else None)
    point = mc.Linear(mc.snapshot(net), mc.snapshot(network(2, nn.Tanh)))(0.4)
    operator = mc.HessianOperator(objective, point)
    assert "1.running_mean" not in operator.coordinates and "0.weight" in operator.coordinates
    gradient = operator.gradient()
    direction = {
        n: torch.randn(t.shape, generator=torch.Generator().manual_seed(3)).double() for n, t in gradient.items()
    }
    moved = {s: {n: t + s * direction[n] if n in direction else t for n, t in point.items()} for s in (-1e-5, 1e-5)}
    slope = (objective(moved[1e-5]).loss - objective(moved[-1e-5]).loss) / 2e-5
    assert sum(float((gradient[n] * direction[n]).sum()) for n in gradient) == pytest.approx(slope, rel=1e-6)
    bend = (
        mc.HessianOperator(objective, moved[1e-5]).gradient(),
        mc.HessianOperator(objective, moved[-1e-5]).gradient(),
    )
    product = operator.product(direction)
    for name in product:
        torch.testing.assert_close(product[name], (bend[0][name] - bend[1][name]) / 2e-5, rtol=1e-4, atol=2e-6)
    leaves = {n: t.clone().requires_grad_(n in gradient) for n, t in point.items()}
    for value in (objective(leaves).loss, sum(objective.terms(leaves)), sum(WeightedSum([objective])(leaves))):
        (one,) = torch.autograd.grad(value, [leaves["0.weight"]])
        torch.testing.assert_close(one, gradient["0.weight"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("recalibrate", [False, True])
def test_one_objective_serves_curves_curvature_and_ensembles(data, recalibrate):
    a, b = network(1), network(2)
    objective = mc.module_objective(network(3), loss, data, recalibrate=data if recalibrate else None)
    curve = mc.Bezier(mc.snapshot(a), mc.snapshot(b))
    fitted = mc.fit_curve(curve, objective, num_steps=12, ts_per_step=4)
    assert fitted.history[-1] < fitted.history[0] and len(fitted.history) == 12
    (before,), (after,) = curve.bends, fitted.bends
    assert torch.equal(before["1.running_var"], after["1.running_var"])  # not trained, not shaken
    assert not torch.equal(before["0.weight"], after["0.weight"])
    assert mc.eigenvalues(mc.HessianOperator(objective, fitted(0.5)), num=1).values[0] > 0
    found = mc.ensemble_along(fitted, [0.0, 1.0], objective, data)
    assert found.rows()[1]["loss"] == pytest.approx(objective(fitted(1.0)).loss, rel=1e-6)
    with torch.no_grad():
        by_hand = loaded(a, b, 1.0)
        logits = (recalibrated(by_hand, data) if recalibrate else by_hand)(data[0][0])
    torch.testing.assert_close(objective.predict(mc.snapshot(b), data[0][0]), logits, rtol=1e-10, atol=1e-12)


def test_sharpness_leaves_buffers_where_they_are(data):
    seen = []

    class Watching(type(mc.module_objective(network(1), loss, data))):
        def terms(self, point):
            seen.append(point["1.running_var"].detach().clone())
            return super().terms(point)

    point = mc.snapshot(network(2))
    found = mc.epsilon_sharpness(Watching(network(1), loss, data), point, num_steps=2, num_starts=2)
    assert found.value > 0 and all(torch.equal(var, point["1.running_var"]) for var in seen)


def test_a_loss_of_ones_own_that_cannot_be_differentiated_by_statistics_is_told_the_remedy(data):
    a, b = network(1).eval(), mc.snapshot(network(2))

    def own(point):
        return cross_entropy(torch.func.functional_call(a, point, (data[0][0],)), data[0][1])

    for use in (
        lambda: mc.fit_curve(mc.Bezier(mc.snapshot(a), b), own, num_steps=2),
        lambda: mc.HessianOperator(own, b).gradient(),
        lambda: mc.epsilon_sharpness(own, b),
    ):
        with pytest.raises(UserError, match=r"running statistics of BatchNorm.*mc\.module_objective"):
            use()


def test_predicted_forgetting_measures_each_end_with_its_own_statistics(data):
    a, b = network(1), network(2)
    operator = mc.HessianOperator(mc.module_objective(a, loss, data), mc.snapshot(a))
    found = mc.predicted_forgetting(operator, mc.snapshot(b))
    with torch.no_grad():
        first, second = (float(torch.cat([loss(n.eval(), batch) for batch in data]).mean()) for n in (a, b))
    assert found.measured == pytest.approx(second - first, rel=1e-10)


def test_the_module_is_as_it_was_after_an_error_and_with_counting_buffers(data):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return self.inner(x)

    net = Counting()
    net.inner[2].train(False)
    before = state(net)
    point = {n: t + 1 for n, t in mc.snapshot(net).items()}

    def broken(module, batch):
        module(batch[0])
        raise RuntimeError("mine")

    for recalibrate in (None, data):
        mc.module_objective(net, loss, data, recalibrate=recalibrate)(point)
        assert state(net) == before
        with pytest.raises(RuntimeError, match="mine"):
            mc.module_objective(net, broken, data, recalibrate=recalibrate)(point)
        assert state(net) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_shuffling_loader_gives_one_order_and_leaves_the_random_state_alone(data):
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    objective = mc.module_objective(network(1), loss, loader, recalibrate=loader)
    before, point = torch.random.get_rng_state(), mc.snapshot(network(2))
    first, again = objective(point), objective(point)
    assert first.nll.tolist() == again.nll.tolist() and torch.equal(torch.random.get_rng_state(), before)


class Changing:
    """Another order in every pass, from a generator of its own."""

    def __init__(self, batches, again=lambda *batch: batch):
        self.batches, self.passes = [again(*batch) for batch in batches], 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches if self.passes % 2 else self.batches[::-1])


class Growing(Changing):
    """One batch more in every pass but the first."""

    def __iter__(self):
        self.passes += 1
        return iter(self.batches if self.passes == 1 else [*self.batches, self.batches[0]])


@dataclass
class Labelled:
    x: torch.Tensor
    y: torch.Tensor

    def __getitem__(self, i):
        return (self.x, self.y)[i]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": lambda d: (b for b in d)}, r"more than once, got a generator.*pass list\(batches\)"),
        ({"recalibrate": lambda d: iter(d)}, r"recalibrate that can be gone.*list\(recalibrate\)"),
        ({"batches": lambda d: []}, "at least one batch in batches, got none"),
        ({"batches": Changing}, "the same batches in the same order"),
        ({"batches": lambda d: Changing(d, again=Labelled)}, "the same batches in the same order"),
        ({"batches": lambda d: Changing([(x.numpy(), y.numpy()) for x, y in d])}, "the same batches in the same order"),
        ({"batches": lambda d: Growing(d)}, "the same batches .* got another batch 3"),
        ({"recalibrate": lambda d: Growing(d)}, "the same recalibrate .* got another batch 3"),
        ({"batches": lambda d: d[0]}, "a list of batches or a DataLoader, got a tuple, which looks like one batch"),
        ({"batches": lambda d: d[0][0]}, "got a Tensor, which looks like one batch"),
        ({"recalibrate": lambda d: {"x": d[0][0]}}, "recalibrate to be a list .* got a dict, which looks like one"),
        ({"loss": lambda n, b: autograd.grad(n(b[0]).sum(), [*n.parameters()])}, r"put torch.enable_grad\(\) around"),
        ({"loss": lambda n, b: cross_entropy(n(b[0]), b[1])}, r'one loss per example.*reduction="none"'),
        ({"loss": lambda n, b: 1.0}, "one loss per example.*got float"),
        ({"score": lambda n, b: right(n, b)[:3]}, "as many scores as losses, got 3 and 9"),
        ({"loss": None}, "loss to be a function.*got NoneType"),
        ({"recalibrate": lambda d: [(d[0][0][:1], d[0][1][:1])]}, "at least 2 values per channel to recalibrate '6'"),
    ],
)
def test_what_cannot_be_measured_is_refused(data, options, message):
    given = {"loss": loss, "score": None, **options}
    batches = options.get("batches", lambda d: d)(data)
    recalibrate = options.get("recalibrate", lambda d: None)(data)
    point = mc.snapshot(network(2))
    with pytest.raises(UserError, match=message):
        objective = mc.module_objective(
            network(1), given["loss"], batches, score=given["score"], recalibrate=recalibrate
        )
        objective(point), objective(point)


def test_points_of_other_networks_and_modules_without_statistics_are_refused(data):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    objective = mc.module_objective(net, loss, data)
    with pytest.raises(PointMismatchError, match=r"got 'module.1.weight' \(2 unknown in all\)"):
        objective({f"module.{name}": t for name, t in net.named_parameters()})
    with pytest.raises(PointMismatchError, match=r"'1.weight' with shape \(3, 64\)"):
        objective({"1.weight": torch.zeros(3, 65, dtype=torch.float64)})
    with pytest.raises(UserError, match="BatchNorm layers that keep running statistics to recalibrate, got none"):
        mc.module_objective(net, loss, data, recalibrate=data)
    with pytest.raises(UserError, match="got InstanceNorm1d at '0'"):
        mc.module_objective(nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True)), loss, data, recalibrate=data)
    with pytest.raises(UserError, match=r"torch.nn.Module, got function"):
        mc.module_objective(loss, loss, data)


class _WithExtraState(torch.nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_is_no_part_of_a_point_and_half_precision_losses_are_summed_in_float32():
    """The oracle is the mean in float64; 40 losses of 4,000 make more than float16 holds, 65,504."""
    module = _WithExtraState(1, 1)
    rows = torch.full((40, 1), 4000.0)
    objective = mc.module_objective(module, lambda net, x: (net(x) * 0 + x).half()[:, 0], [rows])
    (term,) = objective.terms(mc.snapshot(module))
    assert float(term.detach()) == 4000.0 and float(objective.batch_losses()[0](mc.snapshot(module)).detach()) == 4000.0


def test_another_order_is_seen_where_the_first_tensor_is_the_same_for_all_examples():
    data = TensorDataset(torch.ones(12, 1), torch.arange(12.0)[:, None])
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
    module = nn.Linear(1, 1)
    objective = mc.module_objective(module, lambda net, batch: net(batch[1])[:, 0].square(), loader)
    point = mc.snapshot(module)
    with pytest.raises(UserError, match="same batches in the same order"):
        objective(point)
        objective(point)


def test_another_order_is_seen_where_a_column_is_the_same_for_all_examples():
    """122 rows of 784 pixels, the first of which is always dark: every 1568th value is one of these."""
    x = torch.rand(122, 784, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    order = torch.randperm(122, generator=torch.Generator().manual_seed(1))
    objective = mc.module_objective(
        nn.Linear(784, 1), lambda net, x: net(x)[:, 0], Changing([(x,), (x[order],)], torch.Tensor)
    )
    point = mc.snapshot(nn.Linear(784, 1))
    with pytest.raises(UserError, match="same batches in the same order"):
        objective(point), objective(point)


def test_values_keep_no_graph_where_the_point_needs_no_gradient():
    def of_a_derivative(net, x):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad(net(x).square().sum(), x, create_graph=True)[0].square()[:, 0]

    objective = mc.module_objective(nn.Linear(1, 1), of_a_derivative, [torch.ones(3, 1)])
    found = objective({"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])})
    assert found.loss == 144.0 and isinstance(found.loss, float)  # d/dx (2x + 1)² = 12 at 1
