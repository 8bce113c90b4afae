"""MIGU's masks against outputs that plain PyTorch gives, one unpadded example at a time."""

import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.strategies import make_strategy


@pytest.fixture
def trained(make_model, random_point):
    """A model whose B is not zero, so that the layers' outputs are not the base's."""
    model = make_model()
    model.load_point(random_point(model))
    return model


def outputs_alone(model, examples):
    """Σ|output| of A and of the whole layer, over all tokens, written out: A·x and W·x + (α/r)·B·A·x."""
    sums = {}

    def look(module):
        layer = model.peft.get_submodule("base_model.model." + module)
        A, B = (model.parameters[f"{module}.lora_{x}.weight"].detach().double() for x in "AB")
        W = layer.get_base_layer().weight.detach().double()

        def hook(_, inputs):
            x = inputs[0][0].double()
            inner = x @ A.T
            whole = x @ W.T + model.scaling[module] * inner @ B.T
            for name, value in ((f"{module}.lora_A.weight", inner), (f"{module}.lora_B.weight", whole)):
                sums[name] = sums.get(name, 0) + value.abs().sum(0)

        return layer.register_forward_pre_hook(hook)

    handles = [look(module) for module in model.scaling]
    with torch.no_grad():
        for e in examples:
            model.peft(input_ids=torch.tensor([e.prompt_ids + e.answer_ids]))
    for handle in handles:
        handle.remove()
    return sums


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_only_rows_of_large_outputs_keep_their_gradient(threshold, trained, encode_examples, make_step):
    model, examples = trained, encode_examples(6, seed=3)  # of different lengths: padded
    strategy = make_strategy("migu", 0, threshold=threshold)
    strategy.begin_task(model, 1, [])
    step = make_step(model, examples)
    strategy.loss(step).backward()
    gradient = {k: g.clone() for k, g in model.gradient().items()}
    found = strategy.edit_gradient(dict(gradient), None)
    for name, size in outputs_alone(model, examples).items():
        d = len(size)
        masked = set(size.argsort()[: int(threshold * d + 1e-9)].tolist())
        assert 0 < len(masked) < d
        for row in range(d):
            expected = torch.zeros_like(gradient[name][row]) if row in masked else gradient[name][row]
            assert torch.equal(found[name][row], expected)
    assert {n: g.shape for n, g in found.items()} == {n: g.shape for n, g in gradient.items()}


def test_micro_batches_and_steps_are_told_apart(trained, encode_examples, make_step):
    model, examples = trained, encode_examples(6, seed=4)
    strategy = make_strategy("migu", 0)
    strategy.begin_task(model, 1, [])
    ones = {name: torch.ones_like(p) for name, p in model.parameters.items()}
    strategy.loss(make_step(model, encode_examples(5, seed=9)))
    strategy.edit_gradient(dict(ones), None)  # a step before, whose outputs are forgotten
    for part in (examples[:2], examples[2:]):
        strategy.loss(make_step(model, part))
    in_parts = strategy.edit_gradient(dict(ones), None)
    strategy.loss(make_step(model, examples))
    at_once = strategy.edit_gradient(dict(ones), None)
    assert all(torch.equal(mask, at_once[name]) for name, mask in in_parts.items())


@pytest.mark.parametrize(("task", "threshold"), [(0, 0.7), (1, 0.0)])
def test_the_first_task_and_a_threshold_of_zero_mask_nothing(task, threshold, make_model, encode_examples, train_task):
    found = []
    for strategy in (make_strategy("migu", 0, threshold=threshold), make_strategy("sequential", 0)):
        model = make_model()
        strategy.begin_task(model, task, [])
        train_task(model, strategy, encode_examples(8))
        found.append(model.point())
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_a_row_that_is_never_among_the_largest_is_not_trained(trained, encode_examples, train_task):
    """One step, on one batch: what Adam moves is what the mask lets through."""
    model, examples = trained, encode_examples(4, seed=5)
    strategy, start = make_strategy("migu", 0), trained.point()
    strategy.begin_task(model, 1, examples)
    sums = outputs_alone(model, examples)
    train_task(model, strategy, examples, num_steps=1, batch_size=4)
    for name, value in model.point().items():
        moved = (value != start[name]).any(1)
        d = len(moved)
        assert set(moved.nonzero().flatten().tolist()) <= set(sums[name].argsort()[int(0.7 * d + 1e-9) :].tolist())
        assert moved.any()


def test_outputs_that_were_not_seen_are_refused(make_model):
    strategy = make_strategy("migu", 0)
    strategy.begin_task(make_model(), 1, [])
    with pytest.raises(UserError, match="--torch-compile"):
        strategy.edit_gradient({"q.lora_A.weight": torch.ones(2, 3)}, None)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_impossible_thresholds_are_named(threshold):
    with pytest.raises(UserError, match="threshold in"):
        make_strategy("migu", 0, threshold=threshold)
