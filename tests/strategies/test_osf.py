"""OSF in PEFT's tuner against the rule written out in NumPy, and what its minima are."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import LoraSettings, load_adapter
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.loading import load_base
from mcanalysis.params.lora import delta_weights
from mcanalysis.runs.run import load_run
from mcanalysis.strategies import make_strategy
from mcanalysis.training.continual_trainer import train


@pytest.fixture
def attached(base_folder):
    """attached(**settings) -> (the strategy, its model over a fresh copy of the tiny base)."""

    def make(dtype="auto", **settings):
        base, tokenizer = load_base(str(base_folder), dtype)
        strategy = make_strategy("osf", 0, **settings)
        return strategy, strategy.attach(base, tokenizer, LoraSettings(), str(base_folder))

    return make


def weights(model):
    return {
        m: model.peft.get_submodule("base_model.model." + m).get_base_layer().weight.detach() for m in modules(model)
    }


def modules(model):
    return sorted({name.rpartition(".")[0] for name in model.parameters})


def dense(point):
    return {m: d.double().numpy() for m, d in delta_weights(point).items()}


def test_a_step_moves_the_small_directions_alone_and_by_the_projected_gradient(attached, encode_examples):
    """One step of gradient descent, from the gradient of the whole weight: U·S·V by the chain rule, then projected."""
    strategy, model = attached(preserved=0.25)
    strategy.begin_task(model, 0, [])
    examples = encode_examples(4)
    batch = collate(examples, model.tokenizer.pad_token_id)
    W = {m: w.clone() for m, w in weights(model).items()}
    forward(model.network, batch).nll.sum().backward()
    found = model.gradient()
    base, _ = load_base(model.name, "auto")  # the gradient of the weights of the plain model
    for m in W:
        base.get_submodule(m).weight.requires_grad_(True)
    forward(base, batch).nll.sum().backward()
    for m, weight in W.items():
        G = base.get_submodule(m).weight.grad.double().numpy()
        U, S, Vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
        k = int(0.25 * len(S))
        signs = np.sign((U[:, k:] * model.parameters[f"{m}.U_low"].detach().numpy()).sum(0))
        U_low, S_low, V_low = U[:, k:] * signs, S[k:], Vh[k:] * signs[:, None]
        dU, dS, dV = G @ V_low.T * S_low, np.diag(U_low.T @ G @ V_low.T), S_low[:, None] * (U_low.T @ G)
        dU, dV = dU - U[:, :k] @ (U[:, :k].T @ dU), dV - (dV @ Vh[:k].T) @ Vh[:k]
        for name, expected in (("U_low", dU), ("S_low", dS), ("V_low", dV)):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found[f"{m}.{name}"], expected, atol=1e-3 * scale, err_msg=f"{m}.{name}")


def test_what_a_task_trained_joins_the_weights_which_are_then_decomposed_anew(attached, encode_examples, train_task):
    strategy, model = attached(preserved=0.5)
    W = {m: w.double().numpy() for m, w in weights(model).items()}
    before = {m: np.zeros_like(w) for m, w in W.items()}
    for k in range(3):
        examples = encode_examples(8, seed=k)
        strategy.begin_task(model, k, examples)
        start = {m: w.double().numpy() for m, w in weights(model).items()}
        started = {name: p.detach().clone() for name, p in model.parameters.items()}
        train_task(model, strategy, examples, learning_rate=0.1, seed=k)
        strategy.end_task(model, examples)
        after = dense(model.point())
        for m in W:
            np.testing.assert_allclose(start[m], W[m] + before[m], atol=1e-5)
            assert np.abs(after[m] - before[m]).max() > 1e-3
            S = np.linalg.svd(start[m], compute_uv=False)
            singular = started[f"{m}.S_low"].numpy()
            np.testing.assert_allclose(singular, S[len(S) // 2 :], rtol=1e-3, atol=1e-5 * S[0])
        before = after


def test_a_minimum_is_an_adapter_with_which_the_base_answers_as_in_training(
    attached, encode_examples, train_task, plain_model_at, alone, tmp_path
):
    strategy, model = attached()
    for k in range(2):
        strategy.begin_task(model, k, [])
        train_task(model, strategy, encode_examples(8, seed=k), learning_rate=0.1, seed=k)
    strategy.save_learner(model, "fast", tmp_path / "fast")
    saved = load_adapter(tmp_path / "fast").point
    examples = encode_examples(3, seed=9)
    plain, base = plain_model_at(saved), plain_model_at()
    with torch.no_grad():
        batch = collate(examples, model.tokenizer.pad_token_id)
        trained = forward(model.network.eval(), batch).nll
        with model.in_place(saved) as network:
            placed = forward(network, batch).nll
        with model.in_place(model.base_point()) as network:
            untouched = forward(network, batch).nll
        again = forward(model.network, batch).nll
        for i, example in enumerate(examples):
            expected = float(alone(plain, example)[0])
            assert float(trained[i]) == pytest.approx(expected, rel=1e-4) == float(placed[i])
            assert float(untouched[i]) == pytest.approx(float(alone(base, example)[0]), rel=1e-5)
            assert abs(expected - float(untouched[i])) > 1e-2
    assert torch.equal(trained, again)


@pytest.fixture(scope="module")
def finished(run_config, make_tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("osf") / "run"
    tasks = make_tasks(("zeta", "alpha"), num_train=10, num_test=2)
    train(run_config("osf", num_steps=2), folder, device="cpu", tasks=tasks)
    return folder


def test_paths_are_lines_in_the_weights_and_refused_by_name_elsewhere(finished):
    run = load_run(finished)
    first, second = (dense(m.point) for m in run.minima)
    halfway = dense(run.path(1, 2, space="delta")(0.5))
    for module, delta in halfway.items():
        np.testing.assert_allclose(delta, (first[module] + second[module]) / 2, atol=1e-6)
    for space in ("factor", "aligned"):
        with pytest.raises(UserError, match=f"delta for minima of osf.* got {space}; choose delta"):
            run.path(1, 2, space=space)
    with pytest.raises(UserError, match="minima of osf"):
        run.curve(1, 2, space="factor")


def test_the_explorer_offers_the_space_that_there_is(finished):
    from mcanalysis.explore.walk import start_walk, walkable_kinds

    run = load_run(finished)
    assert walkable_kinds(run, *run.minima) == ["linear-delta"]
    with pytest.raises(UserError, match="minima of osf"):
        start_walk(run)


@pytest.mark.parametrize("name", ["connectivity", "landscape", "attribution"])
def test_scripts_name_the_space_that_there_is(name, finished, script, tmp_path):
    code, _, err = script(name, "--run", finished, "--output-dir", tmp_path / "out", "--device", "cpu")
    assert code == 2 and "delta for minima of osf" in err and "--space delta" in err
    code, _, err = script(name, "--strategy", "osf", "--output-dir", tmp_path / "new")  # before anything is trained
    assert code == 2 and "delta for minima of osf" in err and not (tmp_path / "new").exists()


def test_layers_that_peft_would_pass_over_are_refused(attached, tiny_base, tokenizer):
    strategy = make_strategy("osf", 0)
    with pytest.raises(UserError, match="got Conv1D"):
        strategy.attach(tiny_base("gpt2"), tokenizer, LoraSettings(), "gpt2")
    with pytest.raises(UserError, match=r"got Linear in torch[.]bfloat16"):
        attached(dtype="bfloat16")
    with pytest.raises(UserError, match="keep one direction"):
        attached(preserved=0.01)


@pytest.mark.parametrize("settings", [{"preserved": 0.0}, {"preserved": 1.0}, {"learning_rate_factor": 0.0}])
def test_impossible_settings_are_named(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        make_strategy("osf", 0, **settings)


def test_a_dry_run_counts_what_is_trained(run_config, make_tasks, attached):
    from mcanalysis.training.dry_run import dry_run

    plan = dry_run(run_config("osf", num_steps=1), tasks=make_tasks(("zeta",)))
    _, model = attached()
    assert plan.num_trained == sum(p.numel() for p in model.parameters.values())
