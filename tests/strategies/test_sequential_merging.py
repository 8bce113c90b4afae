"""MagMax and OPCM: adapters merged as the tasks come, against dense NumPy."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.lora import delta_weights
from mcanalysis.strategies import make_strategy


@pytest.fixture(scope="module")
def tasks(encode_examples):
    return [encode_examples(8, seed=s) for s in (1, 2, 3)]


@pytest.fixture
def through(make_model, tasks, train_task, tmp_path):
    """through(name, **settings) -> (strategy, model, starts, ΔW of the trained and of the saved merged adapters)."""

    def run(name, **settings):
        model, strategy = make_model(), make_strategy(name, 0, **settings)
        strategy.begin(model, len(tasks))
        starts, own, merged = [], [], []
        for k, examples in enumerate(tasks):
            strategy.begin_task(model, k, examples)
            starts.append(model.point())
            train_task(model, strategy, examples, learning_rate=1e-2, seed=k)
            strategy.end_task(model, examples)
            own.append(dense(model.point()))
            strategy.save_learner(model, "merged", tmp_path / f"{k}")
            merged.append(dense(load_adapter(tmp_path / f"{k}").point))
        return strategy, model, starts, own, merged

    return run


def dense(point):
    return {module: delta.double().numpy() for module, delta in delta_weights(point).items()}


def test_magmax_trains_one_adapter_and_merges_the_largest_changes_of_the_base(through):
    _, _, starts, own, merged = through("magmax", scale=0.7)
    for k in (1, 2):  # goes on where the last task ended
        for module, delta in dense(starts[k]).items():
            np.testing.assert_array_equal(delta, own[k - 1][module])
    for k in range(3):
        for module, found in merged[k].items():
            stack = np.stack([o[module] for o in own[: k + 1]])
            largest = np.take_along_axis(stack, np.abs(stack).argmax(0)[None], 0)[0]
            np.testing.assert_allclose(found, 0.7 * largest, atol=1e-6)


def test_opcm_is_its_formula(through):
    strategy, _, starts, own, merged = through("opcm")
    assert all(torch.equal(v, starts[0][k]) for start in starts for k, v in start.items())  # each from the same start
    total, norms = own[0], []
    for k, task in enumerate(own):
        norms.append(np.sqrt(sum((d**2).sum() for d in task.values())))
        if k:
            summed = {}
            for module, S in total.items():
                U, s, Vh = np.linalg.svd(S)
                kept = int((s > 1e-6 * s[0]).sum())
                leading = int((np.cumsum(s) <= 0.5 * s.sum()).sum())
                M = U[:, :kept].T @ task[module] @ Vh[:kept].T
                M[:leading, :leading] = 0
                np.fill_diagonal(M, 0)
                U, Vh = U[:, :kept], Vh[:kept]
                summed[module] = S + task[module] - U @ (U.T @ task[module] @ Vh.T - M) @ Vh
            total = summed
        factor = np.mean(norms) / np.sqrt(sum((d**2).sum() for d in total.values()))
        assert strategy.report["factors"][k] == pytest.approx(factor, rel=1e-4)
        for module, found in merged[k].items():
            np.testing.assert_allclose(found, factor * total[module], atol=2e-5 * np.abs(total[module]).max())


def test_a_merged_adapter_of_magmax_that_is_cut_says_how_far_it_is_off(through):
    strategy, _, _, own, merged = through("magmax", rank=2)
    for k, error in enumerate(strategy.report["truncation_error"]):
        stacks = {m: np.stack([o[m] for o in own[: k + 1]]) for m in own[0]}
        exact = {m: 0.5 * np.take_along_axis(s, np.abs(s).argmax(0)[None], 0)[0] for m, s in stacks.items()}
        lost = sum(((merged[k][m] - exact[m]) ** 2).sum() for m in exact)
        assert error == pytest.approx(np.sqrt(lost / sum((e**2).sum() for e in exact.values())), rel=1e-3)
        assert all(np.linalg.matrix_rank(d, tol=1e-6) <= 2 for d in merged[k].values())


@pytest.mark.parametrize(("name", "settings"), [("magmax", {"rank": 3}), ("opcm", {})])
def test_what_is_kept_goes_over_a_stop(name, settings, through, tmp_path):
    strategy, model, *_, merged = through(name, **settings)
    tensors, values = strategy.state()
    other = make_strategy(name, 0, **settings)
    other.load_state(model, load(save({k: v.contiguous() for k, v in tensors.items()})), json.loads(json.dumps(values)))
    other.save_learner(model, "merged", tmp_path / "again")
    assert other.report == strategy.report
    for module, delta in dense(load_adapter(tmp_path / "again").point).items():
        np.testing.assert_array_equal(delta, merged[-1][module])


def test_an_adapter_that_was_never_trained_merges_to_nothing(make_model, encode_examples, tmp_path):
    model, strategy = make_model(), make_strategy("opcm", 0)
    for k in range(2):
        strategy.begin_task(model, k, [])
        strategy.end_task(model, [])
    strategy.save_learner(model, "merged", tmp_path / "merged")
    assert not any(d.any() for d in dense(load_adapter(tmp_path / "merged").point).values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [("magmax", {"scale": float("inf")}), ("magmax", {"rank": 0}), ("opcm", {"alpha": -0.1}), ("opcm", {"alpha": 1.1})],
)
def test_impossible_settings_are_named(name, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy(name, 0, **settings)
