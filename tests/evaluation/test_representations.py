"""Comparing points: a language model against one example at a time in plain PyTorch, and modules without one."""

import numpy as np
import pytest
import torch
from torch import nn

from mcanalysis.errors import PointMismatchError, UnknownNameError, UserError
from mcanalysis.evaluation.representations import compare_points, module_cka, num_parts
from mcanalysis.metrics.representation_similarity import CKA, linear_cka

PAIRS = [("a", "b"), ("base", "b")]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def points(model, random_point):
    return {"base": model.base_point(), "a": random_point(model, 1), "b": random_point(model, 2)}


@pytest.fixture(scope="module")
def examples(encode_examples):
    return encode_examples(13)


@pytest.fixture(scope="module")
def by_hand(points, examples, plain_model_at, alone):
    """Per point: hidden states at the prompt's last token (layer, example, width) and log-probabilities per example."""
    found = {}
    for name, point in points.items():
        plain = plain_model_at(point)
        states, log_p = [], []
        with torch.no_grad():
            for e in examples:
                _, hidden = alone(plain, e)
                states.append(torch.stack([h[len(e.prompt_ids) - 1] for h in hidden]))
                logits = plain(input_ids=torch.tensor([e.prompt_ids + e.answer_ids])).logits[0]
                log_p.append(logits[len(e.prompt_ids) - 1 : -1].double().log_softmax(-1))
        found[name] = torch.stack(states, dim=1).double().numpy(), log_p
    return found


@pytest.fixture(scope="module")
def compared(model, points, examples):
    return compare_points(model, points, PAIRS, examples)


@pytest.mark.parametrize("pair", PAIRS)
def test_cka_is_that_of_each_example_s_last_prompt_token(compared, by_hand, pair):
    first, second = (by_hand[name][0] for name in pair)
    assert len(compared[pair].cka) == len(first) == 2
    for layer, cka in enumerate(compared[pair].cka):
        assert cka.value() == pytest.approx(linear_cka(first[layer], second[layer]), abs=1e-4)
        assert cka.num_examples == 13
    assert abs(compared[pair].cka[0].value() - compared[pair].cka[1].value()) > 1e-3, "layers are told apart"


@pytest.mark.parametrize("pair", PAIRS)
def test_divergences_are_summed_over_the_answer_of_each_example(compared, by_hand, examples, pair):
    for i, e in enumerate(examples):
        p, q = (by_hand[name][1][i] for name in pair)
        m = torch.logaddexp(p, q) - np.log(2)
        kl = lambda a, b: float((a.exp() * (a - b)).sum())  # noqa: E731
        assert compared[pair].kl[i] == pytest.approx(kl(p, q), rel=1e-3, abs=1e-4)
        assert compared[pair].reverse_kl[i] == pytest.approx(kl(q, p), rel=1e-3, abs=1e-4)
        assert compared[pair].js[i] == pytest.approx((kl(p, m) + kl(q, m)) / 2, rel=1e-3, abs=1e-4)
        assert compared[pair].targets[i] == len(e.answer_ids)
    assert compared[pair].kl.min() > 0.01


def test_a_point_compared_with_itself(model, points, examples):
    again = {"a": points["a"], "same": dict(points["a"])}
    found = compare_points(model, again, [("a", "same")], examples)["a", "same"]
    assert [cka.value() for cka in found.cka] == pytest.approx([1.0, 1.0])
    assert (found.kl == 0).all() and (found.reverse_kl == 0).all() and (found.js < 1e-15).all()


def test_how_much_runs_at_once_changes_nothing(model, points, examples, compared):
    calls = []
    tiny = compare_points(model, points, PAIRS, examples, token_budget=1, on_batch=lambda: calls.append(1))
    assert len(calls) == len(examples) == num_parts(examples, token_budget=1)
    for pair in PAIRS:
        np.testing.assert_allclose(tiny[pair].kl, compared[pair].kl, rtol=1e-3, atol=1e-4)
        for one, other in zip(tiny[pair].cka, compared[pair].cka, strict=True):
            assert one.value() == pytest.approx(other.value(), abs=1e-4)


def test_batches_are_random_of_equal_size_and_seeded(model, points, examples, by_hand, monkeypatch):
    sizes = []
    update = CKA.update
    monkeypatch.setattr(CKA, "update", lambda self, x, y: sizes.append(len(x)) or update(self, x, y))
    values = {}
    for seed in (0, 0, 1):
        found = compare_points(model, points, PAIRS[:1], examples, batch_size=5, seed=seed)[PAIRS[0]]
        values.setdefault(seed, []).append([cka.value() for cka in found.cka])
    assert sorted(set(sizes)) == [4, 5] and len(sizes) == 3 * 3 * 2
    assert values[0][0] == values[0][1] != values[1][0]
    assert np.isfinite(values[0][0]).all()


def test_only_one_point_is_in_place_and_each_runs_once(model, points, examples, monkeypatch):
    placed = []
    in_place = type(model).in_place

    def placing(self, point):
        placed.append(next(name for name, known in points.items() if known is point))
        return in_place(self, point)

    monkeypatch.setattr(type(model), "in_place", placing)
    compare_points(model, points, [("a", "b"), ("a", "base"), ("base", "b")], examples)
    parts = num_parts(examples)
    assert placed == ["base", "a", "b"] * parts
    placed.clear()
    compare_points(model, points, PAIRS[:1], examples)
    assert placed == ["a", "b"] * parts, "a point of no pair is left out"


def test_model_and_random_state_are_left_as_they_were(model, points, examples):
    before = {n: p.clone() for n, p in model.network.named_parameters()}
    model.network.train()
    state = torch.get_rng_state()
    compare_points(model, points, PAIRS, examples)
    assert model.network.training and torch.equal(state, torch.get_rng_state())
    model.network.eval()
    assert all(torch.equal(p, before[n]) for n, p in model.network.named_parameters())


def test_bad_input_is_named(model, points, examples):
    with pytest.raises(UserError, match=r"at least 4 examples, .* got 3 examples"):
        compare_points(model, points, PAIRS, examples[:3])
    with pytest.raises(UserError, match="batches of 2"):
        compare_points(model, points, PAIRS, examples, batch_size=2)
    with pytest.raises(UnknownNameError, match="Unknown point to compare 'c'"):
        compare_points(model, points, [("a", "c")], examples)
    lacking = {"a": points["a"], "b": {k: v for k, v in points["b"].items() if "q_proj" not in k}}
    with pytest.raises(PointMismatchError, match="differing"):
        compare_points(model, lacking, PAIRS[:1], examples)


# Any module.


class Net(nn.Module):
    """A small network with what could be disturbed: batch statistics, dropout, a tuple as an output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.pair = Pair()
        self.unused = nn.Linear(2, 2)

    def forward(self, x, scale=1.0):
        return self.pair(self.drop(self.norm(self.first(x * scale)).tanh()))[0]


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.weight, "more"


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().double()
    net.norm.eval()  # a mode of its own, to be given back
    return net


def inputs(n=40, seed=0):
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_module_cka_is_that_of_the_outputs(net):
    a = {n: p.detach().clone() for n, p in net.named_parameters()}
    b = {
        n: p + 0.7 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5), dtype=p.dtype)
        for n, p in a.items()
    }
    x = inputs()
    found = module_cka(net, a, b, [x], ["first", "pair"])

    def outputs(p):
        first = x @ p["first.weight"].T + p["first.bias"]
        normed = first / np.sqrt(1 + net.norm.eps) * p["norm.weight"] + p["norm.bias"]  # running mean 0, variance 1
        return {"first": first, "pair": normed.tanh() * p["pair.weight"]}

    for name in ("first", "pair"):
        assert found[name].value() == pytest.approx(linear_cka(outputs(a)[name], outputs(b)[name]), abs=1e-9)
    assert found["first"].value() < 0.99


def test_module_is_left_as_it_was(net):
    net.train()
    net.norm.eval()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state()
    b = {"first.weight": torch.zeros(6, 3, dtype=torch.float64)}  # a part of the parameters is enough
    module_cka(net, {}, b, [inputs()], ["first", "norm"])
    assert net.training and net.drop.training and not net.norm.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(m._forward_hooks for m in net.modules())


def test_batches_may_be_tuples_or_mappings(net):
    b = {"first.weight": torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    values = [
        module_cka(net, {}, b, [batch], ["norm"])["norm"].value()
        for batch in ((inputs(), 2.0), {"x": inputs(), "scale": 2.0}, 2.0 * inputs())
    ]
    assert values[0] == values[1] == pytest.approx(values[2], abs=1e-12)


def test_features_of_any_shape_and_the_biased_form():
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU())
    x = torch.randn(20, 1, 8, generator=torch.Generator().manual_seed(0))
    b = {"0.weight": torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(1))}
    found = module_cka(net, {}, b, [x], ["1"], unbiased=False)["1"]
    with torch.no_grad():
        first = net(x)
        second = torch.nn.functional.conv1d(x, b["0.weight"], net[0].bias).relu()
    assert found.value() == pytest.approx(linear_cka(first.flatten(1), second.flatten(1), unbiased=False), abs=1e-6)


def test_bad_modules_and_points_are_named(net):
    x = [inputs()]
    with pytest.raises(UnknownNameError, match=r"Unknown submodule 'frist'\. Did you mean 'first'"):
        module_cka(net, {}, {}, x, ["frist"])
    wrong = {"first.weight": torch.zeros(2, 2), "new": torch.zeros(1)}
    with pytest.raises(
        PointMismatchError, match=r"'first.weight' of shape \(2, 2\) where it has shape \(6, 3\) \(2 diff"
    ):
        module_cka(net, {}, wrong, x, ["first"])
    with pytest.raises(UserError, match="'unused' to run"):
        module_cka(net, {}, {}, x, ["unused"])
    twice = nn.Sequential(layer := nn.Linear(3, 3), layer)
    with pytest.raises(UserError, match="second run"):
        module_cka(twice, {}, {}, [inputs().float()], ["0"])
    assert not layer._forward_hooks
    with pytest.raises(UserError, match="at least 4"):
        module_cka(net, {}, {}, [inputs(3)], ["first"])
