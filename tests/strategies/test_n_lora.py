"""IncLoRA and N-LoRA: the penalty and its gradient against NumPy, once per step, and what it does to ΔW."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy


def factors(model):
    """(A, B, α/r) of each module, float64."""
    raw = {k: p.detach().double().numpy() for k, p in model.parameters.items()}
    return {m: (raw[f"{m}.lora_A.weight"], raw[f"{m}.lora_B.weight"], s) for m, s in model.scaling.items()}


def sum_of_sizes(model):
    return sum(s * np.abs(b @ a).sum() for a, b, s in factors(model).values())


@pytest.fixture
def model(make_model, random_point):
    model = make_model(alpha=12.0)  # rank 4: α/r is 3
    model.load_point(random_point(model, 1))
    return model


def test_the_penalty_is_the_sum_of_the_updates_sizes(model, encode_examples, make_step):
    step = make_step(model, encode_examples(3))
    entropy = make_strategy("inc_lora", 0).loss(step).item()
    assert entropy == make_strategy("sequential", 0).loss(step).item()
    found = make_strategy("n_lora", 0, lambda1=0.01).loss(step).item() - entropy
    expected = 0.01 * sum_of_sizes(model)
    assert found == pytest.approx(expected, rel=1e-4)
    of_factors = sum(np.abs(a).sum() + np.abs(b).sum() for a, b, _ in factors(model).values())
    assert expected != pytest.approx(0.01 * of_factors, rel=0.1)


def test_its_gradient_is_the_signs_of_the_update_times_the_other_factor(model, encode_examples, make_step):
    step = make_step(model, encode_examples(3))
    gradients = []
    for name, settings in (("inc_lora", {}), ("n_lora", {"lambda1": 0.5})):
        model.peft.zero_grad()
        make_strategy(name, 0, **settings).loss(step).backward()
        gradients.append({k: p.grad.double().numpy().copy() for k, p in model.parameters.items()})
    for module, (a, b, scaling) in factors(model).items():
        signs = 0.5 * scaling * np.sign(b @ a)
        for factor, expected in (("A", b.T @ signs), ("B", signs @ a.T)):
            entropy, found = (g[f"{module}.lora_{factor}.weight"] for g in gradients)
            np.testing.assert_allclose(found - entropy, expected, rtol=1e-4, atol=1e-4)


def test_it_counts_by_the_share_of_the_step(model, encode_examples, make_step):
    step, strategy = make_step(model, encode_examples(3)), make_strategy("n_lora", 0, lambda1=0.01)
    entropy = step.current_loss(step.forward()).item()
    whole = strategy.loss(step).item() - entropy
    object.__setattr__(step, "share", 0.25)
    assert strategy.loss(step).item() - entropy == pytest.approx(whole / 4, rel=1e-4)


def test_only_the_new_adapter_is_penalised(make_model, encode_examples, make_step, train_task):
    model, strategy = make_model(), make_strategy("n_lora", 0, lambda1=0.01)
    strategy.begin_task(model, 0, [])
    train_task(model, strategy, encode_examples(8), learning_rate=1e-2)
    strategy.begin_task(model, 1, [])  # B is zero
    step = make_step(model, encode_examples(3))
    assert strategy.loss(step).item() == step.current_loss(step.forward()).item()
    strategy.loss(step).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters.values())


def test_the_penalty_keeps_updates_small(make_model, encode_examples, train_task):
    sizes = []
    for weight in (0.0, 0.1):
        model, strategy = make_model(), make_strategy("n_lora", 0, lambda1=weight)
        strategy.begin_task(model, 0, [])
        train_task(model, strategy, encode_examples(8), num_steps=8, learning_rate=1e-2)
        sizes.append(sum_of_sizes(model))
    assert 0 < sizes[1] < 0.5 * sizes[0]


def test_four_times_four_is_sixteen(make_model, four_times_four):
    def start():
        torch.manual_seed(0)
        model, strategy = make_model(), make_strategy("n_lora", 0, lambda1=0.01)
        strategy.begin_task(model, 0, [])
        return model, strategy

    four_times_four(start)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_impossible_weights_are_named(value):
    with pytest.raises(UserError, match="lambda1"):
        make_strategy("n_lora", 0, lambda1=value)
