"""LwF against plain PyTorch: the softened distributions of one unpadded example at a time, in float64, no PEFT."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.special import log_softmax

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy


def target_logits(network, example):
    """(answer tokens, vocabulary), float64: what predicts each token of the answer."""
    with torch.no_grad():
        logits = network(input_ids=torch.tensor([example.prompt_ids + example.answer_ids])).logits[0]
    first = len(example.prompt_ids) - 1
    return logits[first : first + len(example.answer_ids)].double().numpy()


def divergence_by_hand(old, new, examples, temperature):
    """The mean over target tokens of KL(p_old ‖ p_new), both softened."""
    per_token = []
    for e in examples:
        log_p, log_q = (log_softmax(target_logits(n, e) / temperature, axis=-1) for n in (old, new))
        per_token += list((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
    return np.mean(per_token)


def after_a_task(model, **settings):
    """LwF in its second task: what the model answers now is what it must go on answering."""
    strategy = make_strategy("lwf", seed=0, **settings)
    strategy.begin(model, 2)
    strategy.begin_task(model, 0, [])
    strategy.end_task(model, [])
    strategy.begin_task(model, 1, [])
    return strategy


@pytest.fixture
def model(make_model, random_point):
    model = make_model(alpha=12.0)
    model.load_point(random_point(model, 1))
    return model


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0}, {"temperature": 5.0}, {"alpha": 3.0, "temperature": 0.5}],
    ids=["default", "unsoftened", "soft", "sharp"],
)
def test_the_loss_adds_the_divergence_from_the_old_answers(
    model, random_point, encode_examples, plain_model_at, make_step, settings
):
    strategy = after_a_task(model, **settings)
    old = plain_model_at(model.point())
    model.load_point(random_point(model, 2))
    new = plain_model_at(model.point())
    examples = encode_examples(4, seed=5)
    step = make_step(model, examples)
    alpha, temperature = settings.get("alpha", 0.5), settings.get("temperature", 2.0)
    divergence = divergence_by_hand(old, new, examples, temperature)
    assert divergence > 0.01
    assert divergence != pytest.approx(divergence_by_hand(new, old, examples, temperature), rel=1e-3)
    entropy = make_strategy("sequential", seed=0).loss(step).item()
    assert strategy.loss(step).item() == pytest.approx(entropy + alpha * temperature**2 * divergence, rel=1e-5)


def test_the_first_task_and_alpha_zero_are_the_cross_entropy(model, random_point, encode_examples, make_step):
    first, off, on = make_strategy("lwf", seed=0), after_a_task(model, alpha=0.0), after_a_task(model)
    step = make_step(model, encode_examples(3))
    entropy = make_strategy("sequential", seed=0).loss(step).item()
    assert first.loss(step).item() == entropy
    assert on.loss(step).item() == pytest.approx(entropy, abs=1e-5)  # where the model still is what it was
    model.load_point(random_point(model, 2))
    entropy = make_strategy("sequential", seed=0).loss(step).item()
    assert off.loss(step).item() == entropy


def test_the_old_answers_get_no_gradient_and_no_dropout(
    make_model, random_point, encode_examples, make_step, monkeypatch
):
    model = make_model(alpha=12.0, dropout=0.5)
    model.load_point(random_point(model, 1))
    strategy = after_a_task(model)
    strategy.old = {k: v.requires_grad_() for k, v in strategy.old.items()}
    model.load_point(random_point(model, 2))
    model.peft.train()
    seen, forward_at = [], model.forward_at

    def watched(*args, **kwargs):
        result = forward_at(*args, **kwargs)
        seen.append((model.peft.training, result.logits))
        return result

    monkeypatch.setattr(model, "forward_at", watched)
    step = make_step(model, encode_examples(3))
    for _ in range(2):
        strategy.loss(step).backward()
    assert [training for training, _ in seen] == [False, False]
    assert torch.equal(seen[0][1], seen[1][1])
    assert all(v.grad is None for v in strategy.old.values())
    assert all(p.grad is not None for p in model.parameters.values())
    assert model.peft.training


def test_the_gradient_is_that_of_the_loss(model, random_point, encode_examples, make_step, check_gradient):
    strategy = after_a_task(model, alpha=20.0)
    model.load_point(random_point(model, 2))
    step = make_step(model, encode_examples(3))
    strategy.loss(step).backward()
    check_gradient(model, lambda: strategy.loss(step))


def test_old_is_the_adapter_at_the_end_of_the_previous_task(make_model, encode_examples, train_task):
    model = make_model()
    strategy = make_strategy("lwf", seed=0)
    strategy.begin(model, 3)
    for task in range(3):
        strategy.begin_task(model, task, [])
        before = {k: v.clone() for k, v in strategy.old.items()}
        train_task(model, strategy, encode_examples(8, seed=task), num_steps=2, seed=task, learning_rate=1e-2)
        assert all(torch.equal(v, before[k]) for k, v in strategy.old.items())
        assert bool(before) == (task > 0)
        strategy.end_task(model, [])
        point = model.point()
        assert all(torch.equal(v, point[k]) for k, v in strategy.old.items())
        assert not before or any(not torch.equal(v, point[k]) for k, v in before.items())


def test_four_times_four_is_sixteen(make_model, random_point, four_times_four):
    def start():
        model = make_model(alpha=12.0)
        model.load_point(random_point(model, 1))
        strategy = after_a_task(model, alpha=5.0)
        model.load_point(random_point(model, 2))
        return model, strategy

    four_times_four(start)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_training_keeps_the_old_answers(make_model, random_point, encode_examples, train_task, plain_model_at, dtype):
    examples, divergences = encode_examples(16), []
    for alpha in (0.0, 20.0):
        model = make_model(alpha=12.0, dtype=dtype)
        model.load_point(random_point(model, 1))
        strategy = after_a_task(model, alpha=alpha)
        before = model.point()
        train_task(model, strategy, examples, num_steps=8, learning_rate=1e-2)
        after = model.point()
        assert not any(torch.equal(v, before[k]) for k, v in after.items())
        assert all(v.dtype == torch.float32 for v in strategy.old.values())
        divergences.append(divergence_by_hand(plain_model_at(before), plain_model_at(after), examples, 2.0))
    assert divergences[1] < 0.3 * divergences[0]


def test_the_state_goes_through_files_and_the_loss_is_the_same(model, random_point, encode_examples, make_step):
    strategy, other = after_a_task(model), make_strategy("lwf", seed=0)
    model.load_point(random_point(model, 2))
    step = make_step(model, encode_examples(3))
    tensors, values = strategy.state()
    other.begin(model, 2)
    other.load_state(model, load(save(tensors)), json.loads(json.dumps(values)))
    assert other.loss(step).item() == strategy.loss(step).item() > make_strategy("sequential", 0).loss(step).item()
    fresh = make_strategy("lwf", seed=0)
    fresh.load_state(model, *make_strategy("lwf", seed=0).state())
    assert fresh.old == {}


@pytest.mark.parametrize(
    "settings",
    [{"alpha": -0.5}, {"alpha": float("nan")}, {"temperature": 0.0}, {"temperature": float("inf")}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("lwf", seed=0, **settings)
