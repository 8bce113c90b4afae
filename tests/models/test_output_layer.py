"""Losses of many targets without all their logits: against all logits, in float64, twice differentiated."""

import numpy as np
import pytest
import torch
import transformers as t
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcanalysis.evaluation.batch_losses import batch_losses
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import make_objective
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.models import output_layer
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel

ROWS = 3


@pytest.fixture
def few_rows(monkeypatch):
    """Logits of three places at once, whatever the vocabulary."""
    monkeypatch.setattr(output_layer, "FEWEST_ROWS", ROWS)
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 1)


@pytest.fixture
def texts(tokenizer):
    """Encoded texts all of whose tokens are predicted."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, len(tokenizer), (n,), generator=generator).tolist() for n in (9, 14, 6, 11)]
    return [EncodedExample((first,), tuple(rest)) for first, *rest in ids]


def is_part_by_part(result):
    return isinstance(result.predictions, output_layer._PartByPart)


def random_layer(width, vocabulary, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Linear(width, vocabulary, bias).double().requires_grad_(False)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("number", [4, 11, 12])  # the last part has one row, two, all three
def test_value_gradient_and_hessian_product_are_those_of_all_logits(few_rows, number, with_bias):
    generator = torch.Generator().manual_seed(1)
    layer = random_layer(5, 40, bias=with_bias)
    hidden = torch.randn(number, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(40, (number,), generator=generator)
    weights = torch.randn(number, generator=generator, dtype=torch.float64)
    direction = torch.randn(number, 5, generator=generator, dtype=torch.float64)

    def ours(h):
        return (weights * output_layer._PartByPart(h.tanh(), layer).losses(targets)).sum()

    def plain(h):
        return (weights * cross_entropy(layer(h.tanh()), targets, reduction="none")).sum()

    found = []
    for loss in (ours, plain):
        leaf = hidden.clone().requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        (product,) = torch.autograd.grad(gradient, leaf, direction)
        found.append((value.detach(), gradient.detach(), product))
    for one, other in zip(*found, strict=True):
        assert float(other.abs().max()) > 0.01
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_multiplies_the_losses_is_differentiated_too(few_rows):
    layer = random_layer(4, 30)
    hidden = torch.randn(7, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    targets = torch.arange(7)

    def squared(h):  # its second derivative has the slopes' product and the losses' own curvature
        return output_layer._PartByPart(h, layer).losses(targets).square()

    assert torch.autograd.gradcheck(squared, hidden)
    assert torch.autograd.gradgradcheck(squared, hidden)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "gemma", "gemma2", "gemma3", "phi3"]
)
def test_every_architecture_has_the_losses_and_gradients_of_all_logits(
    few_rows, architecture, tiny_base, tokenizer, texts, random_point
):
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4, 12.0), 0, architecture)
    model.load_point(random_point(model))
    model.peft.eval()
    parameters = list(model.parameters.values())
    batch = collate(texts, padding=0)
    output = model.peft(input_ids=batch.input_ids, attention_mask=batch.mask(), position_ids=batch.position_ids)
    expected = cross_entropy(output.logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none").sum(1)
    result = forward(model.peft, batch)
    assert is_part_by_part(result) == (architecture != "gemma2")  # which bends its logits
    torch.testing.assert_close(result.nll, expected, rtol=1e-5, atol=1e-5)
    kept = batch.labels[:, 1:] != -100
    torch.testing.assert_close(result.logits, output.logits[:, :-1][kept], rtol=1e-5, atol=1e-4)
    ours, theirs = (torch.autograd.grad(nll.sum(), parameters) for nll in (result.nll, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert float(other.norm()) > 0 and float((one - other).norm()) <= 1e-4 * float(other.norm())
    with torch.no_grad():
        torch.testing.assert_close(forward(model.peft, batch).nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [(t.GraniteConfig, "logits_scaling", 4.0), (t.CohereConfig, "logit_scale", 0.5)],
)
def test_scaled_logits_are_left_to_the_model(few_rows, config, name, value, tokenizer, texts):
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(config(**shape, **ids, **{name: value})).eval()
    batch = collate(texts, padding=0)
    with torch.no_grad():
        result = forward(model, batch)
        output = model(input_ids=batch.input_ids, attention_mask=batch.mask(), position_ids=batch.position_ids)
    assert not is_part_by_part(result)
    expected = cross_entropy(output.logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none").sum(1)
    torch.testing.assert_close(result.nll, expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_left_behind(few_rows, tiny_base, texts):
    model = tiny_base("llama").requires_grad_(False).train()
    state = torch.get_rng_state()
    result = forward(model, collate(texts, padding=0))
    assert is_part_by_part(result)
    assert "forward" not in vars(model.model)
    assert not model.lm_head._forward_hooks and not model.lm_head._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_output_layer_has_its_gradient(few_rows, tiny_base, texts):
    model = tiny_base("gpt2")
    model.requires_grad_(True)
    result = forward(model, collate(texts, padding=0))
    assert not is_part_by_part(result)
    (gradient,) = torch.autograd.grad(result.nll.sum(), [model.lm_head.weight])
    assert float(gradient.norm()) > 0


class Largest(TorchDispatchMode):
    """The most entries that a tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))])
        return made


@pytest.mark.parametrize("at_once", [False, True])
def test_a_hessian_product_never_makes_all_logits(at_once, monkeypatch, tiny_base, tokenizer, texts, random_point):
    """GPT-2 in float64, whole texts: the product is that of all logits, of which a few rows are there at a time."""
    model = LoraModel.attach(tiny_base("gpt2").double(), tokenizer, LoraSettings(2, 4.0), 0, "tiny")
    point = {name: tensor.double() for name, tensor in random_point(model).items()}
    direction = np.random.default_rng(0).standard_normal(sum(tensor.numel() for tensor in point.values()))
    expected = HessianOperator(batch_losses(model, [texts]), point)
    if not at_once:
        monkeypatch.setattr(output_layer, "FEWEST_ROWS", ROWS)
        monkeypatch.setattr(output_layer, "MOST_LOGITS", 1)
    operator = HessianOperator(batch_losses(model, [texts]), point)
    targets = sum(len(text.answer_ids) for text in texts)
    with Largest() as largest:
        found, loss, gradient = operator @ direction, operator.loss(), operator.gradient()
    assert (largest.most < targets * len(tokenizer)) == (not at_once)
    monkeypatch.undo()
    product = expected @ direction
    np.testing.assert_allclose(found, product, rtol=0, atol=1e-12 * np.abs(product).max())
    assert loss == pytest.approx(expected.loss(), rel=1e-13)
    for name, slope in expected.gradient().items():
        torch.testing.assert_close(gradient[name], slope, rtol=1e-12, atol=1e-12)


def test_the_engine_measures_and_writes_the_same(monkeypatch, make_model, make_tasks, random_point):
    model = make_model(dtype="float64")
    data = make_tasks(("zeta",), num_test=8)[0]
    objective = make_objective(data, "test", model.tokenizer, 128)
    point = random_point(model)
    expected = Engine(model).evaluate(point, [objective])[0]
    calls, own = [], output_layer._PartByPart.losses_and_greedy
    monkeypatch.setattr(output_layer, "FEWEST_ROWS", ROWS)
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 1)
    monkeypatch.setattr(output_layer._PartByPart, "losses_and_greedy", lambda *a: calls.append(len(a[1])) or own(*a))
    found = Engine(model).evaluate(point, [objective])[0]
    losses = Engine(model).losses(point, [objective])[0]
    assert len(calls) == 2 and min(calls) > ROWS
    assert found.outputs == expected.outputs and any(found.outputs)
    np.testing.assert_allclose(found.measurement.nll, expected.measurement.nll, rtol=1e-6)
    np.testing.assert_allclose(losses.nll, expected.measurement.nll, rtol=1e-6)
