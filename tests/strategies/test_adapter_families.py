"""Strategies that keep several adapters: O-LoRA, InfLoRA, SLAO and merging."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.models.encoding import collate
from mcanalysis.params.lora import delta_weights
from mcanalysis.strategies import make_strategy

FAMILIES = ("o_lora", "inflora", "slao", "merge")


def through(name, model, tasks, train_task, learning_rate=1e-2, num_steps=3, **settings):
    """The strategy after these tasks, and the points after each: (trained, whole)."""
    strategy = make_strategy(name, 0, **settings)
    strategy.begin(model, len(tasks))
    points = []
    for k, examples in enumerate(tasks):
        strategy.begin_task(model, k, examples)
        start = model.point()
        train_task(model, strategy, examples, num_steps=num_steps, learning_rate=learning_rate, seed=k)
        strategy.end_task(model, examples)
        points.append((start, model.point(), model.whole_point()))
    return strategy, points


@pytest.fixture
def tasks(encode_examples):
    return [encode_examples(8, seed=s) for s in (1, 2, 3)]


@pytest.mark.parametrize(("form", "size"), [("l1", np.abs), ("squared", np.square)])
def test_o_lora_penalises_overlap_with_each_old_adapter(
    form, size, make_model, tasks, train_task, make_step, random_point
):
    model = make_model()
    strategy, points = through("o_lora", model, tasks, train_task, lambda1=0.3, lambda2=0.2, form=form)
    step = make_step(model, tasks[0])
    with torch.no_grad():
        found = float(strategy.loss(step) - step.current_loss(step.forward()))
    expected = 0.0
    for name, parameter in model.parameters.items():
        value = parameter.detach().double().numpy()
        expected += 0.2 * np.linalg.norm(value)
        if ".lora_A." in name:
            for _, old, _ in points[:2]:
                expected += 0.3 * size(value @ old[name].double().numpy().T).sum()
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["o_lora", *(pytest.param(n, marks=pytest.mark.slow) for n in ("inc_lora", "n_lora"))])
def test_adapters_are_summed_and_only_the_new_one_is_trained(name, make_model, tasks, train_task, tmp_path):
    model = make_model()
    strategy, points = through(name, model, tasks, train_task)
    expected = {}
    for start, own, whole in points:
        assert all(not v.any() for k, v in start.items() if ".lora_B." in k)
        for module, delta in delta_weights(own).items():
            expected[module] = expected.get(module, 0) + delta
        for module, delta in delta_weights(whole).items():
            torch.testing.assert_close(delta, expected[module], rtol=1e-5, atol=1e-6)
    strategy.save_learner(model, "fast", tmp_path / "saved")
    saved = load_adapter(tmp_path / "saved").point
    assert {v.shape[0] for k, v in saved.items() if ".lora_A." in k} == {3 * 4}  # three tasks of rank 4
    for module, delta in delta_weights(saved).items():
        torch.testing.assert_close(delta, expected[module], rtol=1e-5, atol=1e-6)


def test_inflora_reads_only_what_earlier_tasks_did_not_use(make_model, tasks, train_task):
    model = make_model()
    strategy = make_strategy("inflora", 0, threshold_start=1.0)
    strategy.begin(model, 3)
    for k, examples in enumerate(tasks[:2]):
        if k:
            covariances = model.input_covariances([collate(tasks[0], 0)])
        strategy.begin_task(model, k, examples)
        start = model.point()
        train_task(model, strategy, examples, learning_rate=1e-2)
        strategy.end_task(model, examples)
        for name, value in model.point().items():
            if ".lora_A." in name:
                assert torch.equal(value, start[name])  # designed, not trained
                norms = value.norm(dim=1)
                assert all(abs(float(n) * 3**0.5 - 1) < 1e-4 or float(n) == 0 for n in norms)
            else:
                assert not start[name].any() and (value.any() or k)
    for module in model.scaling:
        A = model.point()[f"{module}.lora_A.weight"].double()
        C = covariances[module]
        assert float((A @ C).abs().max()) < 1e-3 * float(C.abs().max())


def test_slao_is_its_formula(make_model, tasks, train_task):
    model = make_model()
    strategy, points = through("slao", model, tasks, train_task)
    merged = {k: v.double().numpy() for k, v in points[0][1].items()}
    for i, (start, own, _) in enumerate(points[1:], start=2):
        before = points[i - 2][1]
        for name in start:
            if ".lora_A." in name:
                Q, R = np.linalg.qr(before[name].double().numpy().T)
                np.testing.assert_allclose(start[name], (Q * np.sign(np.diag(R))).T, atol=1e-5)
                merged[name] = own[name].double().numpy()
            else:
                assert torch.equal(start[name], before[name])
                merged[name] += (own[name].double().numpy() - merged[name]) / np.sqrt(i)
    for name, value in strategy.merged.items():
        np.testing.assert_allclose(value.numpy(), merged[name], atol=1e-5)


def test_merging_starts_afresh_and_saves_what_it_merged(make_model, tasks, train_task, tmp_path):
    model = make_model()
    trained, points = through("merge", model, tasks, train_task)
    first = points[0][0]
    assert all(torch.equal(v, first[k]) for start, _, _ in points for k, v in start.items())
    for method in ("average", "task_arithmetic", "ties"):
        strategy = make_strategy("merge", 0, method=method, scale=0.5, density=1.0)
        strategy.load_state(model, *trained.state())
        strategy.save_learner(model, "merged", tmp_path / method)
        for module, delta in delta_weights(load_adapter(tmp_path / method).point).items():
            stack = torch.stack([delta_weights(own)[module] for _, own, _ in points])
            sign = stack.sum(0).sign()
            agrees = stack * sign > 0
            expected = {
                "average": stack.mean(0),
                "task_arithmetic": 0.5 * stack.sum(0),
                "ties": 0.5 * (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1),
            }[method]
            torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)


def test_a_truncated_merge_reports_how_far_it_is_off(make_model, tasks, train_task):
    strategy, _ = through("merge", make_model(), tasks, train_task, rank=2)
    errors = strategy.report["truncation_error"]
    assert len(errors) == 3 and all(0 < e < 1 for e in errors)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("o_lora", {"lambda1": -1.0}),
        ("o_lora", {"form": "l3"}),
        ("inflora", {"threshold_start": 0.0}),
        ("inflora", {"num_covariance_examples": 0}),
        ("inflora", {"design": "free"}),
        ("merge", {"method": "mean"}),
        ("merge", {"density": 0.0}),
        ("merge", {"rank": 0}),
    ],
)
def test_impossible_settings_are_named(name, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy(name, 0, **settings)
