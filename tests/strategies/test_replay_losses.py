"""The losses of ER and I-LoRA against plain PyTorch on one unpadded example at a time."""

import pytest
import torch

from mcanalysis.strategies import make_strategy


@pytest.fixture
def current(encode_examples):
    return encode_examples(3, seed=1)


@pytest.fixture
def replay(encode_examples):
    return encode_examples(4, seed=2)


@pytest.fixture
def fast_and_slow(make_model, random_point):
    # The MLP as well: with attention alone fast and slow would agree on padding, and counting it would not show.
    model = make_model(alpha=12.0, target_modules=("all-linear",))
    model.load_point(random_point(model, 1))
    return model, random_point(model, 2)


def cross_entropy_by_hand(network, examples, alone):
    with torch.no_grad():
        return float(sum(alone(network, e)[0] for e in examples)) / sum(len(e.answer_ids) for e in examples)


def consistency_by_hand(fast, slow, replay, alone, layers=(0, 1), one_sided=False):
    """Mean over the layers of the mean over real tokens of the mean over the width."""
    per_layer = []
    for layer in layers:
        total, tokens = 0.0, 0
        for e in replay:
            with torch.no_grad():
                difference = (alone(slow, e)[1][layer] - alone(fast, e)[1][layer]).double()
            if one_sided:
                difference = difference.clamp(min=0)
            total += float((difference**2).mean(dim=-1).sum())
            tokens += len(e.prompt_ids) + len(e.answer_ids)
        per_layer.append(total / tokens)
    return sum(per_layer) / len(per_layer)


def test_er_is_the_mean_of_both_cross_entropies(fast_and_slow, current, replay, alone, plain_model_at, make_step):
    model, _ = fast_and_slow
    fast = plain_model_at(model.point())
    strategy = make_strategy("er", seed=0)
    parts = [cross_entropy_by_hand(fast, examples, alone) for examples in (current, replay)]
    assert abs(parts[0] - parts[1]) > 1e-3
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert strategy.loss(make_step(model, current)).item() == pytest.approx(parts[0], rel=1e-5)


def test_sequential_is_the_cross_entropy(fast_and_slow, current, alone, plain_model_at, make_step):
    model, _ = fast_and_slow
    expected = cross_entropy_by_hand(plain_model_at(model.point()), current, alone)
    loss = make_strategy("sequential", seed=0).loss(make_step(model, current))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({}, {}),
        ({"consistency_weight": 7.0}, {}),
        ({"consistency_layers": 1}, {"layers": (1,)}),
        ({"consistency_layers": 2}, {"layers": (0, 1)}),
        ({"consistency_form": "one_sided"}, {"one_sided": True}),
    ],
    ids=["default", "weight", "last layer", "last two layers", "one-sided"],
)
def test_ilora_adds_the_consistency_of_fast_and_slow_on_the_replayed_rows(
    fast_and_slow, current, replay, alone, plain_model_at, make_step, settings, how
):
    model, slow = fast_and_slow
    strategy = make_strategy("ilora", seed=0, **settings)
    strategy.slow = slow
    fast_alone, slow_alone = plain_model_at(model.point()), plain_model_at(slow)
    entropy = sum(cross_entropy_by_hand(fast_alone, examples, alone) for examples in (current, replay)) / 2
    consistency = consistency_by_hand(fast_alone, slow_alone, replay, alone, **how)
    assert consistency > 1e-3
    expected = entropy + settings.get("consistency_weight", 1.0) * consistency
    assert strategy.loss(make_step(model, current, replay)).item() == pytest.approx(expected, rel=1e-5)


def test_ilora_without_consistency_or_replay_is_er_or_cross_entropy(fast_and_slow, current, replay, make_step):
    model, slow = fast_and_slow
    er = make_strategy("er", seed=0)
    off, on = make_strategy("ilora", seed=0, consistency_weight=0.0), make_strategy("ilora", seed=0)
    off.slow = on.slow = slow
    both, alone = make_step(model, current, replay), make_step(model, current)
    assert off.loss(both).item() == er.loss(both).item()
    assert on.loss(alone).item() == er.loss(alone).item()


def test_consistency_is_zero_where_fast_and_slow_agree(fast_and_slow, current, replay, make_step):
    model, _ = fast_and_slow
    ilora, er = make_strategy("ilora", seed=0, consistency_weight=100.0), make_strategy("er", seed=0)
    ilora.slow = model.point()
    step = make_step(model, current, replay)
    assert ilora.loss(step).item() == pytest.approx(er.loss(step).item(), abs=1e-6)


def test_consistency_does_not_see_the_current_rows(fast_and_slow, replay, encode_examples, make_step):
    model, slow = fast_and_slow
    values = []
    for seed in (5, 6):
        step = make_step(model, encode_examples(3, seed=seed), replay)
        ilora, er = make_strategy("ilora", seed=0), make_strategy("er", seed=0)
        ilora.slow = slow
        values.append(ilora.loss(step).item() - er.loss(step).item())
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def test_the_gradient_is_that_of_the_loss_and_slow_gets_none(fast_and_slow, current, replay, make_step, check_gradient):
    model, slow = fast_and_slow
    strategy = make_strategy("ilora", seed=0, consistency_weight=20.0)
    strategy.slow = {k: v.requires_grad_() for k, v in slow.items()}
    step = make_step(model, current, replay)
    strategy.loss(step).backward()
    assert all(v.grad is None for v in slow.values())
    check_gradient(model, lambda: strategy.loss(step))


def test_slow_answers_without_dropout_and_training_goes_on(fast_and_slow, current, replay, make_step, monkeypatch):
    model, slow = fast_and_slow
    strategy = make_strategy("ilora", seed=0)
    strategy.slow = slow
    seen = []
    forward_at = model.forward_at
    monkeypatch.setattr(model, "forward_at", lambda *a, **k: seen.append(model.peft.training) or forward_at(*a, **k))
    model.peft.train()
    strategy.loss(make_step(model, current, replay))
    assert seen == [False]
    assert model.peft.training
    model.peft.eval()
