"""Permuted networks are the same functions, and specifications fit the architectures they claim to fit."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params import content_hash, distance
from mcanalysis.symmetry import (
    PermutationSpec,
    invert,
    mlp_spec,
    permute,
    random_permutations,
    transformer_mlp_spec,
)


def mlp(*sizes, seed=0, bias=True):
    """nn.Sequential of linear layers with GELU between them, in float64, and the names of its layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            parts += [nn.Linear(fan_in, fan_out, bias=bias), nn.GELU()]
    return nn.Sequential(*parts[:-1]).double(), [str(2 * i) for i in range(len(sizes) - 1)]


def parameters(net):
    return {name: p.detach() for name, p in net.named_parameters()}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=3, max_size=5),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_a_permuted_mlp_is_the_same_function_and_can_be_put_back(sizes, seed, bias):
    net, layers = mlp(*sizes, seed=seed, bias=bias)
    point = parameters(net)
    spec = mlp_spec(point, layers)
    assert list(spec.sizes(point).values()) == sizes[1:-1]
    permutations = random_permutations(point, spec, seed)
    permuted = permute(point, spec, permutations)
    x = torch.randn(7, sizes[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(functional_call(net, permuted, (x,)), net(x), rtol=0, atol=1e-12)
    assert content_hash(permute(permuted, spec, invert(permutations))) == content_hash(point)


ARCHITECTURES = [
    "llama", "gpt2", "gpt_neox", "opt", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3",
]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_permuted_transformer_is_the_same_function(tiny_base, architecture):
    model = tiny_base(architecture).double()
    with torch.no_grad():  # biases start at zero, where a forgotten permutation would not show
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    point = parameters(model)
    spec = transformer_mlp_spec(point)
    assert len(spec.names) == 2 and len(set(spec.sizes(point).values())) == 1
    permuted = permute(point, spec, random_permutations(point, spec, 3))
    moved = [name for name in point if not torch.equal(point[name], permuted[name])]
    assert set(moved) == {n for n, axes in spec.axes.items() if any(axes)}
    assert distance(point, permuted) > 1.0
    tokens = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens).logits
        after = functional_call(model, permuted, (tokens,)).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12 * float(before.abs().max().clamp(min=1.0)))


def test_the_same_names_stored_the_other_way_round_are_told_apart():
    """GPT-Neo has GPT-2's names and nn.Linear's orientation."""
    import transformers as t

    config = t.GPTNeoConfig(
        vocab_size=50, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24,
        attention_types=[[["global"], 1]], max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = t.GPTNeoForCausalLM(config).double().eval()
    point = parameters(model)
    spec = transformer_mlp_spec(point)
    assert set(spec.sizes(point).values()) == {24}
    permuted = permute(point, spec, random_permutations(point, spec, 1))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            functional_call(model, permuted, (tokens,)).logits, model(tokens).logits, rtol=0, atol=1e-12
        )


def test_phi3_fuses_gate_and_up_and_is_refused_by_name(tiny_base):
    with pytest.raises(UserError, match=r"got .*mlp\.gate_up_proj"):
        transformer_mlp_spec(parameters(tiny_base("phi3")))


BLOCK = {"mlp.gate_proj.weight": (6, 4), "mlp.up_proj.weight": (6, 4), "mlp.down_proj.weight": (4, 6)}
GPT2 = {"mlp.c_fc.weight": (4, 8), "mlp.c_fc.bias": (8,), "mlp.c_proj.weight": (8, 4), "mlp.c_proj.bias": (4,)}


def zeros(shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (BLOCK | {"mlp.ffn_sub_norm.weight": (6,)}, "'ffn_sub_norm.weight', which may tell hidden units apart"),
        (BLOCK | {"mlp.gate_proj.lora_A.weight": (2, 4)}, r"'gate_proj.lora_A.weight'"),
        (BLOCK | {"mlp.down_proj.weight": (4, 5)}, "Expected 6 units of 'mlp units' in 'mlp.down_proj.weight'"),
        ({"h.q_proj.weight": (4, 4)}, "got h.q_proj; write a PermutationSpec"),
        ({"h.fc1.weight": (6, 4), "h.fc2.weight": (4, 6), "h.ffn_norm.weight": (6,)}, "'ffn_norm.weight'"),
        (GPT2 | {"mlp.c_fc.weight": (8, 8), "mlp.c_proj.weight": (8, 8), "mlp.c_proj.bias": (8,)}, "which axis"),
        (GPT2 | {"mlp.c_fc.weight": (4, 9)}, "mirrored shapes, got"),
        (GPT2 | {"mlp.c_fc.bias": (5,)}, "which axis"),
        ({"mlp.c_fc.weight": (4, 8), "mlp.c_proj.weight": (8, 4)}, "which axis"),
    ],
)
def test_what_might_not_be_the_same_function_is_refused(shapes, message):
    with pytest.raises(UserError, match=message) as refusal:
        transformer_mlp_spec(zeros(shapes))
    assert str(refusal.value).startswith("Expected ") and "\n" not in str(refusal.value)


POINT = zeros({"0.weight": (3, 2), "0.bias": (3,), "2.weight": (4, 3)})
SPEC = mlp_spec(POINT, ["0", "2"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp_spec(POINT, ["0"]), "at least two different layers"),
        (lambda: mlp_spec(POINT, ["0", "1"]), "matrix '1.weight', got none"),
        (lambda: mlp_spec(POINT | {"1.weight": torch.zeros(3)}, ["0", "2"]), "got also '1.weight'"),
        (lambda: mlp_spec(POINT | {"2.weight": torch.zeros(4, 5)}, ["0", "2"]), r"3 units of .*'2.weight'.*\(4, 5\)"),
        (lambda: PermutationSpec({"w": ("h", "h")}), "different permutations on the axes of 'w'"),
        (lambda: PermutationSpec({"w": (None, None)}), "at least one permutation"),
        (lambda: SPEC.sizes({"0.weight": torch.zeros(3, 2)}), "a tensor '0.bias'"),
        (lambda: SPEC.sizes(POINT | {"0.bias": torch.zeros(3, 1)}), "'0.bias' with 1 axes"),
        (lambda: permute(POINT, SPEC, {"x": torch.arange(3)}), "among units of 0, got 'x'"),
        (lambda: permute(POINT, SPEC, {"units of 0": torch.tensor([0, 1, 1])}), "permutation of 0 … 2"),
        (lambda: permute(POINT, SPEC, {"units of 0": torch.arange(4)}), "permutation of 0 … 2"),
        (lambda: permute(POINT, SPEC, {"units of 0": torch.arange(3.0)}), "got torch.float32"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value) and ";" in str(refusal.value)


def test_shapes_that_do_not_chain_are_a_mismatch_of_points():
    with pytest.raises(PointMismatchError):
        mlp_spec(POINT | {"2.weight": torch.zeros(4, 5)}, ["0", "2"])


def test_a_permutation_left_out_is_the_identity_and_gradients_flow():
    net, layers = mlp(3, 4, 5, 2)
    point = dict(net.named_parameters())
    spec = mlp_spec(point, layers)
    first, second = spec.names
    permuted = permute(point, spec, {second: torch.tensor([4, 3, 2, 1, 0])})
    assert torch.equal(permuted["0.weight"], point["0.weight"]) and first in spec.sizes(point)
    permuted["2.bias"][0].backward()
    assert point["2.bias"].grad.tolist() == [0, 0, 0, 0, 1]


def test_the_seed_decides_and_the_global_state_is_left_alone():
    net, layers = mlp(3, 9, 2)
    point = parameters(net)
    spec = mlp_spec(point, layers)
    state = torch.random.get_rng_state()
    (first,), (again,), (other,) = (random_permutations(point, spec, s).values() for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
