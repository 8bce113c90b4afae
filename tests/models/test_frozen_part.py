"""A fixed part beside the trained adapter: it counts in training, and nowhere that another point is put in place."""

import pytest
import torch

from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.low_rank import concatenate


@pytest.fixture
def batch(encode_examples):
    return collate(encode_examples(5), padding=0)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_the_fixed_part_adds_its_weights(architecture, tiny_base, tokenizer, batch, random_point, add_by_hand):
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(rank=4), 0, "tiny")
    old, new = random_point(model, 1), random_point(model, 2)
    both = concatenate([old, old], [0.5, -1.0])  # of another rank than the adapter
    model.load_point(new)
    model.freeze(both)
    with torch.no_grad():
        expected = forward(add_by_hand(add_by_hand(tiny_base(architecture), both), new), batch).nll
        torch.testing.assert_close(model.forward(batch).nll, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward_at(model.whole_point(), batch).nll, expected, rtol=1e-5, atol=1e-5)
        alone = forward(add_by_hand(tiny_base(architecture), new), batch).nll
        for place in (model.merged, model.unmerged):
            with place(new) as network:
                torch.testing.assert_close(forward(network, batch).nll, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward_at(new, batch).nll, alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.forward(batch).nll, expected, rtol=1e-5, atol=1e-5)
        model.freeze({})
        torch.testing.assert_close(model.forward(batch).nll, alone, rtol=1e-5, atol=1e-5)


def test_a_low_precision_base_takes_it_too(make_model, batch, random_point):
    model = make_model(dtype="bfloat16")
    before = model.forward(batch).nll
    model.freeze(random_point(model, 1, scale=0.5))
    assert (model.forward(batch).nll - before).abs().max() > 0.1


def test_fresh_is_a_seeded_zero_update_and_trainable(make_model):
    model = make_model()
    model.train_only_b()
    torch.manual_seed(1)
    model.fresh(7)
    drawn, first = torch.rand(1), model.point()
    torch.manual_seed(1)
    assert drawn == torch.rand(1)
    model.fresh(7)
    assert all(torch.equal(v, first[k]) for k, v in model.point().items())
    assert all(not v.any() for k, v in first.items() if ".lora_B." in k)
    assert all(p.requires_grad for p in model.parameters.values())
    model.fresh(8)
    assert any(not torch.equal(v, first[k]) for k, v in model.point().items())


def test_covariances_are_of_the_tokens_that_are_there(make_model, encode_examples, plain_model_at):
    model, examples = make_model(dropout=0.5), encode_examples(5)
    model.peft.train()
    found = model.input_covariances([collate(examples[:3], 0), collate(examples[3:], 0)])
    assert model.peft.training
    plain, rows = plain_model_at(), []
    layer = plain.get_submodule("model.layers.1.self_attn.q_proj")
    layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][0]))
    with torch.no_grad():
        for e in examples:
            plain(input_ids=torch.tensor([e.prompt_ids + e.answer_ids]))
    x = torch.cat(rows).double()
    torch.testing.assert_close(found["model.layers.1.self_attn.q_proj"], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
