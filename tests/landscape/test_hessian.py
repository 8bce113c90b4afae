"""Products with the Hessian against `torch.func.hessian` in float64, on a network and on a LoRA adapter."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.evaluation.batch_losses import batch_losses
from mcanalysis.landscape.hessian import HessianOperator, module_losses
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import content_hash, flatten, unflatten


def dense(loss, point):
    """The matrix in the coordinates of `flatten`, by forward over reverse: another route than the operator's."""
    return torch.func.hessian(lambda x: loss(unflatten(x, point)))(flatten(point)).detach().numpy()


def matrix_of(operator):
    return operator @ np.eye(operator.num_coordinates)


@pytest.fixture
def network():
    """(module, batches, whole loss of a point): batches of different sizes, so that means of means are wrong."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    x = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (11,), generator=generator)

    def whole(point):
        plain = nn.Sequential(module[0], module[1], nn.Identity(), module[3])
        return nn.functional.cross_entropy(functional_call(plain, point, (x,)), y)

    return module, [(x[:7], y[:7]), (x[7:10], y[7:10]), (x[10:], y[10:])], whole


@pytest.mark.parametrize("memory_budget", [0, 1, 2**30])
def test_network_against_torch_func(network, memory_budget):
    module, batches, whole = network
    point = dict(module.named_parameters())
    losses = module_losses(module, nn.functional.cross_entropy, batches)
    operator = HessianOperator(losses, point, memory_budget)
    expected = dense(whole, {n: t.detach() for n, t in point.items()})
    assert operator.shape == expected.shape == (31, 31)
    for _ in range(2):  # the second time from kept graphs, where there is room
        np.testing.assert_allclose(matrix_of(operator), expected, rtol=0, atol=1e-12)
    assert (len(operator._kept) == 3) == (memory_budget > 1)
    gradient = torch.func.grad(whole)({n: t.detach() for n, t in point.items()})
    np.testing.assert_allclose(flatten(operator.gradient()).numpy(), flatten(gradient).numpy(), rtol=0, atol=1e-13)
    assert operator.loss() == pytest.approx(whole(point).item(), abs=1e-13)
    moved = {n: t.detach() + 0.1 for n, t in point.items()}
    assert operator.loss(moved) == pytest.approx(whole(moved).item(), abs=1e-13)


def test_batches_order_and_number_do_not_matter(network):
    module, batches, _ = network
    loss = nn.functional.cross_entropy
    point = dict(module.named_parameters())
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    one = matrix_of(HessianOperator(module_losses(module, loss, [(inputs, targets)]), point))
    reversed_ = matrix_of(HessianOperator(module_losses(module, loss, batches[::-1]), point))
    single = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(11)]
    np.testing.assert_allclose(reversed_, one, rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix_of(HessianOperator(module_losses(module, loss, single), point)), one, atol=1e-13)


def test_nothing_of_the_caller_changes(network):
    module, batches, _ = network
    module.train()
    before, state = content_hash(dict(module.named_parameters())), torch.get_rng_state()
    operator = HessianOperator(
        module_losses(module, nn.functional.cross_entropy, batches), dict(module.named_parameters())
    )
    operator.matvec(np.ones(31))
    operator.gradient()
    assert content_hash(dict(module.named_parameters())) == before
    assert all(m.training for m in module.modules())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        module[0].weight.zero_()
    assert content_hash(operator.point) == before, "the operator's point is a copy"


@pytest.mark.parametrize(
    ("architecture", "target", "tolerance"),
    [
        ("llama", "q_proj", 1e-5),
        ("gpt2", "c_attn", 1e-12),
    ],  # Llama's norms compute in float32 whatever the model's dtype
)
def test_lora_against_torch_func(tiny_base, tokenizer, encode_examples, architecture, target, tolerance):
    """On two tiny models: the loss of the whole set is the mean over target tokens, and B carries the scaling."""
    settings = LoraSettings(rank=1, target_modules=(target,))
    model, plain = (
        LoraModel.attach(tiny_base(architecture).double(), tokenizer, settings, 0, "tiny") for _ in range(2)
    )
    examples = encode_examples(5)
    generator = torch.Generator().manual_seed(3)
    point = {n: 0.3 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in model.point().items()}

    def whole(p):  # one example at a time, unpadded, the adapter added to the weights by hand
        total = torch.zeros((), dtype=torch.float64)
        weights = dict(plain.base.named_parameters())
        replaced = {}
        for name in p:
            if ".lora_A." in name:
                layer = name.removesuffix(".lora_A.weight")
                key = f"{layer}.base_layer.weight"
                update = p[f"{layer}.lora_B.weight"] @ p[name]
                replaced[key] = weights[key] + (update.T if architecture == "gpt2" else update)
        zero = {n: torch.zeros_like(w) for n, w in weights.items() if ".lora_B." in n}
        for e in examples:
            ids = torch.tensor([e.prompt_ids + e.answer_ids])
            out = functional_call(plain.base, {**replaced, **zero}, kwargs={"input_ids": ids, "use_cache": False})
            log_p = out.logits[0].double().log_softmax(-1)
            first = len(e.prompt_ids) - 1
            total = total - sum(log_p[first + i, token] for i, token in enumerate(e.answer_ids))
        return total / sum(len(e.answer_ids) for e in examples)

    operator = HessianOperator(batch_losses(model, [examples], token_budget=60), point)
    assert len(operator.losses) > 1
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel knows no forward mode
        expected, gradient = dense(whole, point), torch.func.grad(whole)(point)
    assert operator.loss() == pytest.approx(whole(point).item(), rel=tolerance)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(matrix_of(operator), expected, rtol=0, atol=tolerance * scale)
    expected = flatten(gradient).detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(flatten(operator.gradient()), expected, rtol=0, atol=tolerance * scale)


def test_lora_on_one_batch_or_many_at_any_rank(make_model, encode_examples, random_point):
    """Eigenvalues must not grow with the number of batches; rank 4 in the slot, the point of rank 2."""
    model = make_model(dtype="float64", dropout=0.5)  # its norms are float32's: what they round moves with the batch
    narrow = make_model(rank=2)
    point = {n: t.double() for n, t in random_point(narrow).items()}
    examples, other = encode_examples(6), encode_examples(3, seed=1)
    direction = np.random.default_rng(0).standard_normal(sum(t.numel() for t in point.values()))
    model.peft.train()
    before = content_hash(model.point())
    one = HessianOperator(batch_losses(model, [examples, other], token_budget=10**6), point)
    many = HessianOperator(batch_losses(model, [other[::-1], examples[::-1]], token_budget=1), point, memory_budget=0)
    assert (len(one.losses), len(many.losses)) == (2, 9)
    expected = one @ direction
    np.testing.assert_allclose(many @ direction, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    apart = [HessianOperator(batch_losses(model, [group]), point) @ direction for group in (examples, other)]
    np.testing.assert_allclose(np.mean(apart, axis=0), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert content_hash(model.point()) == before and model.peft.training


def test_parts_that_do_not_see_a_tensor_or_are_linear():
    point = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(1, dtype=torch.float64)}
    losses = [lambda p: p["a"].sum(), lambda p: (p["b"] ** 3).sum(), lambda p: p["a"].prod() + 2 * p["b"].sum()]
    operator = HessianOperator(losses, point)
    np.testing.assert_allclose(matrix_of(operator), [[0, 1, 0], [1, 0, 0], [0, 0, 6]])
    assert {n: t.tolist() for n, t in operator.gradient().items()} == {"a": [2, 2], "b": [5]}
    assert operator.num_products == 3


def test_names_decide_not_their_order():
    point = {"b": torch.tensor([2.0]), "a": torch.tensor([1.0])}
    operator = HessianOperator(lambda p: p["a"].sum() * p["b"].sum() ** 2, point)
    np.testing.assert_allclose(matrix_of(operator), [[0, 4], [4, 2]], rtol=1e-6)  # a before b
    assert list(operator.product({"b": torch.tensor([0.0]), "a": torch.tensor([1.0])})["b"]) == [4.0]


def test_bfloat16_points_are_differentiated_in_float32():
    operator = HessianOperator(lambda p: (p["w"] ** 3).sum(), {"w": torch.tensor([1.0], dtype=torch.bfloat16)})
    assert operator.point["w"].dtype == torch.float32
    np.testing.assert_allclose(operator @ np.array([1.001]), [6.006], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda p: p["w"].log().sum(), "finite loss"),
        (lambda p: p["w"].abs().sqrt().sum(), "finite derivative"),
        (lambda p: p["w"] * 2, "one number"),
        (lambda p: 3.0, "one number"),
        (lambda p: torch.tensor(3.0), "does not depend"),
    ],
)
def test_bad_losses(loss, words):
    operator = HessianOperator(loss, {"w": torch.tensor([-1.0, 0.0])})
    with pytest.raises(UserError, match=words):
        operator @ np.ones(2)


def test_bad_arguments():
    with pytest.raises(UserError, match="at least one loss"):
        HessianOperator([], {"w": torch.ones(1)})
    with pytest.raises(UserError, match="floating-point"):
        HessianOperator(lambda p: p["w"].sum(), {"w": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(UserError, match="at least one example"):
        module_losses(nn.Linear(1, 1), nn.functional.mse_loss, [])
    operator = HessianOperator(lambda p: p["w"].sum(), {"w": torch.ones(2)})
    with pytest.raises(PointMismatchError, match="shape"):
        operator.product({"w": torch.ones(3)})
    with pytest.raises(PointMismatchError, match="shape"):
        operator.loss({"w": torch.ones(3)})


def graph_bytes(loss, point, weights):
    """What autograd holds of one part while its product is made: all distinct storages but those of the weights."""
    held = {}

    def hold(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    leaves = {n: t.clone().requires_grad_() for n, t in point.items()}
    saving = torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t)
    with saving, sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
        del gradient
    return sum(size for place, size in held.items() if place not in weights)


def test_parts_are_as_large_as_their_graphs_may_be(monkeypatch, make_model, encode_examples, random_point):
    model, examples = make_model(), encode_examples(12)
    point = random_point(model)
    expected = HessianOperator(batch_losses(model, [examples], token_budget=10**6), point)
    weights = {p.untyped_storage().data_ptr() for p in model.peft.parameters()}
    base = sum(p.untyped_storage().nbytes() for p in model.peft.parameters())
    alone = graph_bytes(batch_losses(model, [[max(examples, key=len)]], 10**6)[0], point, weights)
    for most in (base, 3 * alone, 8 * alone):  # the first one is the least that is ever allowed
        monkeypatch.setattr("mcanalysis.evaluation.batch_losses.GRAPH_BYTES", most)
        parts = batch_losses(model, [examples])
        sizes = [graph_bytes(loss, point, weights) for loss in parts]
        assert max(sizes) <= 1.05 * max(most, alone), "but for one example, of which there is no half"
        assert max(sizes) > 0.4 * most
    assert 1 < len(parts) < len(examples)
    direction = np.random.default_rng(0).standard_normal(expected.num_coordinates)
    product = expected @ direction
    np.testing.assert_allclose(
        HessianOperator(parts, point) @ direction, product, rtol=0, atol=1e-5 * np.abs(product).max()
    )
    monkeypatch.undo()
    assert len(batch_losses(model, [examples])) == 1, "a small model's batches are as they were"


@pytest.mark.parametrize(("room", "kept"), [(0.4, 0), (0.6, 6), (2.0, 10)])
def test_graphs_are_kept_of_half_of_the_parts_or_of_none(room, kept):
    """Ten parts of one size, and room for a share of them."""
    point = {"w": torch.linspace(1, 2, 500, dtype=torch.float64)}
    losses = [lambda p, k=k: (p["w"].repeat(20, 1) ** 3 * ((k + 1) / 20)).sum() for k in range(10)]
    operator = HessianOperator(losses, point, memory_budget=int(room * 10 * graph_bytes(losses[0], point, ())))
    for _ in range(2):
        np.testing.assert_allclose(operator @ np.ones(500), 6 * 55 * point["w"].numpy(), rtol=1e-13)
    assert abs(len(operator._kept) - kept) <= (kept > 0)
