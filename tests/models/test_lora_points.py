"""A model at a point: merged, unmerged and functional evaluation, each against weights added by hand."""

import pytest
import torch

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.params.low_rank import concatenate


@pytest.fixture
def model(make_model):
    return make_model(alpha=12.0)  # a scaling of 3: forgetting it shows


@pytest.fixture
def batch(encode_examples):
    return collate(encode_examples(5), padding=0)


def nll_by_hand(plain_model_at, point, batch):
    with torch.no_grad():
        return forward(plain_model_at(point), batch).nll


def test_merged_functional_and_trainable_evaluation_agree_with_weights_added_by_hand(
    model, batch, random_point, plain_model_at
):
    point = random_point(model)
    expected = nll_by_hand(plain_model_at, point, batch)
    base = nll_by_hand(plain_model_at, None, batch)
    assert float((expected - base).abs().max()) > 0.1  # the point matters
    with torch.no_grad():
        torch.testing.assert_close(model.forward_at(point, batch).nll, expected, rtol=1e-5, atol=1e-5)
        with model.merged(point) as network:
            torch.testing.assert_close(forward(network, batch).nll, expected, rtol=1e-5, atol=1e-5)
        with model.unmerged(point) as network:
            torch.testing.assert_close(forward(network, batch).nll, expected, rtol=1e-5, atol=1e-5)
        model.load_point(point)
        torch.testing.assert_close(model.forward(batch).nll, expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_and_the_base_point_are_the_base(model, batch, random_point, plain_model_at):
    expected = nll_by_hand(plain_model_at, None, batch)
    with torch.no_grad():
        assert torch.equal(model.forward(batch).nll, expected)
        model.load_point(random_point(model))
        with model.merged(model.base_point()) as network:
            assert torch.equal(forward(network, batch).nll, expected)
        torch.testing.assert_close(model.forward_at(model.base_point(), batch).nll, expected, rtol=1e-5, atol=1e-5)


def test_the_seed_and_nothing_else_decides_where_the_adapter_starts(make_model):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make_model(seed=5).point()
    torch.manual_seed(2)
    second = make_model(seed=5).point()
    other = make_model(seed=6).point()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    torch.manual_seed(1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_point_is_a_copy_and_loads_back(model, random_point):
    point = random_point(model)
    model.load_point(point)
    taken = model.point()
    for name in point:
        torch.testing.assert_close(taken[name], point[name], rtol=1e-6, atol=1e-7)
    before = {k: v.clone() for k, v in taken.items()}
    with torch.no_grad():
        for parameter in model.parameters.values():
            parameter.zero_()
    assert all(torch.equal(before[k], taken[k]) for k in taken)


@pytest.mark.parametrize("place", ["merged", "unmerged"])
def test_weights_come_back_bit_for_bit_even_after_an_exception(model, batch, random_point, place):
    model.load_point(random_point(model, seed=1))
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.peft.state_dict().items()}
    gradients = {k: p.requires_grad for k, p in model.peft.named_parameters()}
    point = random_point(model, seed=2, scale=3.0)
    with pytest.raises(RuntimeError, match="inside"), getattr(model, place)(point) as network:
        assert any(not torch.equal(v, before[k][1]) for k, v in model.peft.state_dict().items())
        forward(network, batch)
        raise RuntimeError("inside")
    for name, tensor in model.peft.state_dict().items():
        assert torch.equal(tensor, before[name][1]), name
        assert tensor.data_ptr() == before[name][0], name
    assert gradients == {k: p.requires_grad for k, p in model.peft.named_parameters()}
    with model.merged(point):
        pass
    model.forward(batch).nll.sum().backward()  # the adapter is active again and trains
    assert all(p.grad is not None for p in model.parameters.values())


def test_a_merge_that_fails_half_way_leaves_the_weights_alone(model, random_point):
    before = {k: v.clone() for k, v in model.peft.state_dict().items()}
    point = random_point(model)
    last = list(point)[-1]
    assert ".lora_B." in last
    point[last] = torch.ones(7, 4)
    with pytest.raises(RuntimeError), model.merged(point):
        pass
    assert all(torch.equal(v, before[k]) for k, v in model.peft.state_dict().items())


def test_a_functional_pass_leaves_the_trainable_adapter_alone(model, batch, random_point):
    before = {k: v.detach().clone() for k, v in model.parameters.items()}
    model.forward_at(random_point(model), batch)
    assert all(torch.equal(before[k], v) for k, v in model.parameters.items())
    assert all(p.requires_grad for p in model.parameters.values())


def test_the_gradient_of_a_functional_pass_is_that_of_the_weights(model, batch, random_point, plain_model_at):
    # dL/dB = scale-free: with W = W0 + B·A, dL/dB = (dL/dW)·Aᵀ and dL/dA = Bᵀ·(dL/dW), from a plain model.
    point = {k: v.requires_grad_() for k, v in random_point(model).items()}
    model.forward_at(point, batch).nll.sum().backward()
    plain = plain_model_at({k: v.detach() for k, v in point.items()})
    forward(plain, batch).nll.sum().backward()
    weights = dict(plain.named_parameters())
    for module in model.scaling:
        A, B = point[f"{module}.lora_A.weight"], point[f"{module}.lora_B.weight"]
        dW = weights[f"{module}.weight"].grad
        torch.testing.assert_close(B.grad, dW @ A.detach().T, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(A.grad, B.detach().T @ dW, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in model.parameters.values())


def test_points_of_another_rank_evaluate_right(model, batch, random_point, plain_model_at):
    a, b = random_point(model, 1), random_point(model, 2)
    both = concatenate([a, b], [0.7, -0.4])
    plain = plain_model_at()
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for module in model.scaling:
            for w, p in ((0.7, a), (-0.4, b)):
                weights[f"{module}.weight"] += w * p[f"{module}.lora_B.weight"] @ p[f"{module}.lora_A.weight"]
        expected = forward(plain, batch).nll
        torch.testing.assert_close(model.forward_at(both, batch).nll, expected, rtol=1e-5, atol=1e-5)
        for place in (model.merged, model.unmerged):
            with place(both) as network:
                torch.testing.assert_close(forward(network, batch).nll, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(PointMismatchError, match="rank"):
        model.load_point(both)


def test_points_of_other_modules_are_refused_by_name(model, make_model, batch, random_point):
    narrow = make_model(target_modules=("q_proj",))
    point = random_point(narrow)
    for use in (model.load_point, lambda p: model.forward_at(p, batch), lambda p: model.save("unused", p)):
        with pytest.raises(PointMismatchError, match=r"k_proj\.lora_A.*only in this model's adapter"):
            use(point)
    with pytest.raises(PointMismatchError, match="only in the point"), narrow.merged(random_point(model)):
        pass


def test_low_precision_weights_are_never_merged_into(make_model, random_point, batch):
    model = make_model(dtype="bfloat16")
    assert not model.can_merge()
    assert {p.dtype for p in model.parameters.values()} == {torch.float32}  # what is averaged keeps its digits
    with pytest.raises(UserError, match="bfloat16"), model.merged(random_point(model)):
        pass
    assert make_model().can_merge()


def test_a_model_without_layers_to_adapt_names_what_it_has(tokenizer, make_model, base_folder):
    from mcanalysis.models.adapter_files import LoraSettings
    from mcanalysis.models.loading import load_base

    embedding = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.LayerNorm(4))
    with pytest.raises(UserError, match=r"LoRA-able.*\(none\).*--target-modules"):
        LoraModel.attach(embedding, tokenizer, LoraSettings(), 0, "none")
    base, _ = load_base(str(base_folder))
    with pytest.raises(UserError, match=r"c_attn.*gate_proj.*--target-modules"):
        find_target_modules(base, ("c_attn",))


def test_a_wanted_layer_that_is_nowhere_is_an_error_even_beside_one_that_is(make_model):
    with pytest.raises(UserError, match="v_porj"):
        make_model(target_modules=("q_proj", "v_porj"))


def test_default_targets_are_the_attention_projections(tiny_base, make_model):
    ends = {m.rsplit(".", 1)[-1] for m in make_model().scaling}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj"}
    expected = {
        "gpt2": {"attn.c_attn", "attn.c_proj"},
        "gpt_neox": {"attention.query_key_value", "attention.dense"},
        "opt": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
        "qwen2": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
    }
    for architecture, wanted in expected.items():
        names = find_target_modules(tiny_base(architecture))
        assert {".".join(n.split(".")[-2:]) for n in names} == wanted


def test_every_linear_layer_but_the_output_can_be_asked_for(make_model):
    model = make_model(target_modules=("all-linear",))
    ends = {m.rsplit(".", 1)[-1] for m in model.scaling}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
