"""EWC against plain PyTorch: one unpadded example at a time, LoRA written out as W + 3·B·A, no PEFT."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.func import functional_call

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy

ALPHA, SCALING = 12.0, 3.0  # of rank 4


@pytest.fixture
def squares_by_hand(plain_model_at, alone):
    """squares_by_hand(model, examples) -> per example the squared gradient of its log p by name of the raw factor."""
    plain = plain_model_at()

    def squares(model, examples):
        raw = {k: p.detach().clone().requires_grad_() for k, p in model.parameters.items()}
        weights = {}
        for name in raw:
            if ".lora_A." in name:
                module = name.removesuffix(".lora_A.weight")
                update = SCALING * raw[f"{module}.lora_B.weight"] @ raw[name]
                weights[f"{module}.weight"] = plain.get_submodule(module).weight.detach() + update

        def squared(example):
            nll, _ = alone(lambda **inputs: functional_call(plain, weights, kwargs=inputs), example)
            gradients = torch.autograd.grad(nll, list(raw.values()), retain_graph=True)
            return {k: g.double().numpy() ** 2 for k, g in zip(raw, gradients, strict=True)}

        return [squared(e) for e in examples]

    return squares


def mean(squares):
    return {k: np.mean([s[k] for s in squares], axis=0) for k in squares[0]}


def assert_close(got, expected, rtol=1e-4):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].numpy(), value, rtol=rtol, atol=1e-5 * value.max(), err_msg=name)


def at_task(strategy, model, task_index):
    if task_index == 0:
        strategy.begin(model, 3)
    strategy.begin_task(model, task_index, [])
    return strategy


@pytest.fixture
def model(make_model, random_point):
    model = make_model(alpha=ALPHA)
    model.load_point(random_point(model, 1))
    return model


def test_the_fisher_is_the_mean_of_each_examples_squared_gradient(model, encode_examples, squares_by_hand):
    examples = encode_examples(5, seed=3)
    strategy = at_task(make_strategy("ewc", seed=0, fisher_examples=None), model, 0)
    strategy.end_task(model, examples)
    assert_close(strategy.fisher, mean(squares_by_hand(model, examples)))
    assert all(torch.equal(strategy.anchor[k], p) for k, p in model.parameters.items())
    assert all(strategy.anchor[k].data_ptr() != p.data_ptr() for k, p in model.parameters.items())
    assert all(p.grad is None for p in model.parameters.values())


def test_dropout_is_off_for_the_fisher_and_on_again_after_it(
    make_model, random_point, encode_examples, squares_by_hand
):
    model = make_model(alpha=ALPHA, dropout=0.5)
    model.load_point(random_point(model, 1))
    model.peft.train()
    strategy = at_task(make_strategy("ewc", seed=0), model, 0)
    strategy.end_task(model, encode_examples(3))
    assert_close(strategy.fisher, mean(squares_by_hand(model, encode_examples(3))))
    assert model.peft.training


def test_a_part_of_the_examples_is_chosen_by_seed_and_task(model, encode_examples, squares_by_hand):
    examples = encode_examples(6)
    squares = squares_by_hand(model, examples)
    triples = list(itertools.combinations(range(6), 3))

    def chosen(seed, task_index):
        strategy = make_strategy("ewc", seed=seed, fisher_examples=3)
        strategy.task_index = task_index
        strategy.end_task(model, examples)

        def off(triple):
            expected = mean([squares[i] for i in triple])
            return max(np.abs(strategy.fisher[k].numpy() / v.max() - v / v.max()).max() for k, v in expected.items())

        best = min(triples, key=off)
        assert off(best) < 1e-4
        return best

    assert chosen(0, 0) == chosen(0, 0)
    assert len({chosen(seed, 0) for seed in range(4)}) > 1 < len({chosen(0, task) for task in range(4)})


def test_the_loss_adds_half_lambda_times_the_weighted_square_and_its_gradient(
    model, random_point, encode_examples, make_step
):
    strategy = at_task(make_strategy("ewc", seed=0, ewc_lambda=7.0), model, 0)
    strategy.end_task(model, encode_examples(4))
    anchor = {k: p.detach().double().numpy().copy() for k, p in model.parameters.items()}
    fisher = {k: v.double().numpy() for k, v in strategy.fisher.items()}
    model.load_point(random_point(model, 2))
    moved = {k: p.detach().double().numpy() for k, p in model.parameters.items()}
    penalty = 3.5 * sum((fisher[k] * (moved[k] - anchor[k]) ** 2).sum() for k in fisher)

    step = make_step(model, encode_examples(3, seed=1))
    entropy = make_strategy("sequential", seed=0).loss(step)
    without = torch.autograd.grad(entropy, list(model.parameters.values()))
    assert penalty > 0.1 * entropy.item()
    for share in (1.0, 0.25):
        object.__setattr__(step, "share", share)
        loss = strategy.loss(step)
        assert loss.item() == pytest.approx(entropy.item() + share * penalty, rel=1e-5)
        gradient = torch.autograd.grad(loss, list(model.parameters.values()))
        for name, g, before in zip(model.parameters, gradient, without, strict=True):
            expected = before.double().numpy() + share * 7.0 * fisher[name] * (moved[name] - anchor[name])
            np.testing.assert_allclose(g.numpy(), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_first_task_and_lambda_zero_are_the_cross_entropy(model, random_point, encode_examples, make_step):
    step = make_step(model, encode_examples(3))
    entropy = make_strategy("sequential", seed=0).loss(step).item()
    first, off = make_strategy("ewc", seed=0), make_strategy("ewc", seed=0, ewc_lambda=0.0)
    assert first.loss(step).item() == entropy
    off.end_task(model, encode_examples(3))
    model.load_point(random_point(model, 4))
    entropy = make_strategy("sequential", seed=0).loss(step).item()
    assert off.loss(step).item() == entropy


@pytest.mark.parametrize("gamma", [1.0, 0.3, 0.0])
def test_online_the_old_fisher_fades_and_the_anchor_is_the_latest(
    model, random_point, encode_examples, squares_by_hand, gamma
):
    strategy = make_strategy("ewc", seed=0, gamma=gamma)
    expected = {k: 0.0 for k in model.parameters}
    for task in range(3):
        at_task(strategy, model, task)
        model.load_point(random_point(model, task))
        strategy.end_task(model, encode_examples(2, seed=task))
        new = mean(squares_by_hand(model, encode_examples(2, seed=task)))
        expected = {k: gamma * expected[k] + v for k, v in new.items()}
    assert_close(strategy.fisher, expected)
    assert all(torch.equal(strategy.anchor[k], p) for k, p in model.parameters.items())


def after_a_task(model, encode_examples, **settings):
    strategy = at_task(make_strategy("ewc", seed=0, **settings), model, 0)
    strategy.end_task(model, encode_examples(8, seed=7))
    return at_task(strategy, model, 1)


def test_four_times_four_is_sixteen(make_model, random_point, encode_examples, four_times_four):
    def start():
        model = make_model(alpha=ALPHA)
        model.load_point(random_point(model, 1))
        strategy = after_a_task(model, encode_examples, ewc_lambda=50.0)
        model.load_point(random_point(model, 2))
        return model, strategy

    four_times_four(start)


def test_training_stays_nearer_where_it_matters(make_model, random_point, encode_examples, train_task):
    distances = []
    for ewc_lambda in (0.0, 100.0):
        model = make_model(alpha=ALPHA)
        model.load_point(random_point(model, 1))
        strategy = after_a_task(model, encode_examples, ewc_lambda=ewc_lambda)
        train_task(model, strategy, encode_examples(16), num_steps=8, learning_rate=1e-2)
        assert not any(torch.equal(p, strategy.anchor[k]) for k, p in model.parameters.items())
        distances.append(
            sum(float((f * (model.raw()[k] - strategy.anchor[k]) ** 2).sum()) for k, f in strategy.fisher.items())
        )
    assert distances[1] < 0.3 * distances[0]


def test_a_base_in_low_precision_has_a_float32_fisher(make_model, encode_examples, train_task):
    model = make_model(dtype="bfloat16")
    strategy = at_task(make_strategy("ewc", seed=0), model, 0)
    for task in range(2):
        at_task(strategy, model, task)
        train_task(model, strategy, encode_examples(8), num_steps=2)
        strategy.end_task(model, encode_examples(8))
    assert all(f.dtype == torch.float32 and f.isfinite().all() for f in strategy.fisher.values())
    assert sum(float(f.sum()) for f in strategy.fisher.values()) > 0


def test_the_state_goes_through_files_and_the_penalty_is_the_same(model, random_point, encode_examples, make_step):
    step = make_step(model, encode_examples(3))
    strategy = after_a_task(model, encode_examples)
    model.load_point(random_point(model, 3))
    tensors, values = strategy.state()
    other = make_strategy("ewc", seed=0)
    other.begin(model, 3)
    other.load_state(model, load(save({k: v.contiguous() for k, v in tensors.items()})), json.loads(json.dumps(values)))
    assert other.loss(step).item() == strategy.loss(step).item() > make_strategy("sequential", 0).loss(step).item()
    fresh = make_strategy("ewc", seed=0)
    fresh.load_state(model, *make_strategy("ewc", seed=0).state())
    assert fresh.fisher == fresh.anchor == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"ewc_lambda": -1.0},
        {"ewc_lambda": float("inf")},
        {"ewc_lambda": float("nan")},
        {"gamma": 1.5},
        {"gamma": -0.1},
        {"fisher_examples": 0},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("ewc", seed=0, **settings)
