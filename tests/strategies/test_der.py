"""DER++ against plain PyTorch: kept logits, their gap and what is kept of them, one unpadded example at a time."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy


def answer_logits(network, example):
    """(answer tokens, vocabulary), float64: what predicts each token of the answer."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([example.prompt_ids + example.answer_ids])).logits[0]
    first = len(example.prompt_ids) - 1
    return logits[first : first + len(example.answer_ids)].double().numpy()


def cross_entropy(network, examples, alone):
    with torch.no_grad():
        return float(sum(alone(network, e)[0] for e in examples)) / sum(len(e.answer_ids) for e in examples)


@pytest.fixture
def model(make_model, random_point):
    model = make_model(alpha=12.0)
    model.load_point(random_point(model, 1))
    return model


@pytest.fixture
def old(encode_examples):
    return encode_examples(4, seed=2)


def with_memory(model, old, **settings):
    """DER in its second task, which remembers these examples as the model answers them now."""
    strategy = make_strategy("der", 0, **settings)
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    strategy.after_step(model, old, [True] * len(old))
    strategy.end_task(model, [])
    strategy.begin_task(model, 1, [])
    return strategy


@pytest.mark.parametrize("settings", [{}, {"alpha": 2.0, "beta": 0.0}, {"alpha": 0.0, "beta": 0.7}])
def test_the_loss_is_its_formula(model, old, random_point, encode_examples, plain_model_at, alone, make_step, settings):
    strategy, before = with_memory(model, old, **settings), plain_model_at(model.point())
    model.load_point(random_point(model, 2))
    now, current = plain_model_at(model.point()), encode_examples(3, seed=1)
    replay = [old[2], old[0], old[3]]
    kept = np.concatenate([answer_logits(before, e).astype(np.float16).astype(float) for e in replay])
    gap = np.square(np.concatenate([answer_logits(now, e) for e in replay]) - kept).mean()
    expected = cross_entropy(now, current, alone)
    assert strategy.loss(make_step(model, current)).item() == pytest.approx(expected, rel=1e-5)  # nothing replayed
    expected += settings.get("alpha", 0.3) * gap + settings.get("beta", 0.5) * cross_entropy(now, replay, alone)
    assert gap > 0.1
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(expected, rel=2e-3)


def test_kept_are_the_logits_of_the_model_as_it_was_without_dropout(make_model, random_point, old, plain_model_at):
    model = make_model(alpha=12.0, dropout=0.5)
    model.load_point(random_point(model, 1))
    model.peft.train()
    strategy = with_memory(model, old)
    assert model.peft.training
    network = plain_model_at(model.point())
    assert strategy.logits.keys() == set(old)
    for example, logits in strategy.logits.items():
        assert logits.dtype == torch.float16 and logits.device.type == "cpu"
        np.testing.assert_allclose(logits.double().numpy(), answer_logits(network, example), rtol=1e-3, atol=1e-2)
    targets, vocabulary = sum(len(e.answer_ids) for e in old), logits.shape[1]
    assert strategy.report == {"logit_bytes": [2 * targets * vocabulary]}


def test_logits_stay_with_what_is_in_the_reservoir(make_model, encode_examples, train_task, monkeypatch):
    model, strategy = make_model(), make_strategy("der", 0, memory_size=5)
    strategy.begin(model, 2)
    held, after_step = [], strategy.after_step

    def watched(*args):
        before = dict(strategy.logits)
        after_step(*args)
        inside = {item.example for item in strategy.rehearsal.buffer.items}
        assert strategy.logits.keys() == inside
        assert all(strategy.logits[e] is v for e, v in before.items() if e in inside)  # never renewed
        held.append(len(inside))

    monkeypatch.setattr(strategy, "after_step", watched)
    for k in range(2):
        strategy.begin_task(model, k, [])
        train_task(model, strategy, encode_examples(12, seed=k), seed=k)
        strategy.end_task(model, [])
    assert held == [4, 5, 5, 5, 5, 5]


def test_without_alpha_no_logits_are_kept(model, old):
    strategy = with_memory(model, old, alpha=0.0)
    assert strategy.logits == {} and strategy.report == {"logit_bytes": [0]}
    assert len(strategy.rehearsal.buffer) == len(old)


def test_four_times_four_is_sixteen(make_model, random_point, encode_examples, four_times_four):
    def start():
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        strategy = with_memory(model, encode_examples(20, seed=3), alpha=1.0)
        model.load_point(random_point(model, 2))
        return model, strategy

    four_times_four(start, rel=1e-4)


def test_the_state_goes_through_files(model, old, random_point, encode_examples, make_step):
    old = [*old, old[0]]  # in memory twice, with one set of logits
    strategy, other = with_memory(model, old), make_strategy("der", 0)
    model.load_point(random_point(model, 2))
    step = make_step(model, encode_examples(3), old)
    tensors, values = strategy.state()
    other.begin(model, 2)
    other.load_state(model, load(save(tensors)), json.loads(json.dumps(values)))
    assert other.loss(step).item() == strategy.loss(step).item()
    assert other.report == strategy.report and list(other.logits) == list(strategy.logits)
    fresh = make_strategy("der", 0)
    fresh.load_state(model, *make_strategy("der", 0).state())
    assert fresh.logits == {}


@pytest.mark.parametrize("settings", [{"alpha": -0.1}, {"beta": float("inf")}, {"memory_size": 0}])
def test_impossible_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("der", 0, **settings)
