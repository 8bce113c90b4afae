"""What a model writes, against one whole pass of a plain model per token, without padding and without a cache."""

import pytest
import torch

from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.writing import most_likely, one_of_the_likeliest, write


def written_by_hand(network, start, limit, ends):
    ids = list(start)
    while len(ids) < len(start) + limit and (len(ids) == len(start) or ids[-1] not in ends):
        with torch.no_grad():
            ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(start) :])


@pytest.fixture
def model(make_model, random_point):
    model = make_model(dropout=0.5)
    model.load_point(random_point(model, 3, 0.4))  # so far from the base that it does not write one token only
    model.peft.train()
    return model


def test_rows_of_any_length_are_written_as_each_alone(model, encode_examples, plain_model_at, monkeypatch):
    starts = [e.prompt_ids for e in encode_examples(6)]
    assert len({len(s) for s in starts}) > 2 and model.peft.training
    network = plain_model_at(model.point())
    alone = [written_by_hand(network, s, 12, ()) for s in starts]
    ends = (alone[0][3], alone[1][5])
    expected = [written_by_hand(network, s, 12, ends) for s in starts]
    assert len({len(w) for w in expected}) > 2 and max(map(len, expected)) == 12
    for tokens in (4096, 60):  # together and in groups
        monkeypatch.setattr("mcanalysis.models.writing._TOKENS", tokens)
        assert write(model, starts, 12, (), most_likely) == alone
        assert write(model, starts, 12, ends, most_likely) == expected
    assert model.peft.training
    assert write(model, [], 12, ends, most_likely) == []


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "mistral"])  # learned positions; a window of 8 tokens
def test_other_architectures(architecture, tiny_base, tokenizer, encode_examples):
    model = LoraModel.attach(tiny_base(architecture), tokenizer, LoraSettings(4, 8.0, 0.0, None), 0, architecture)
    starts = [e.prompt_ids for e in encode_examples(3)]
    network = tiny_base(architecture)
    assert write(model, starts, 8, (), most_likely) == [written_by_hand(network, s, 8, ()) for s in starts]


def test_tokens_are_drawn_from_the_likeliest_by_their_probability():
    logits = torch.tensor([[0.0, 1.0, 5.0, 1.0 + torch.log(torch.tensor(3.0)), -2.0]]).expand(4000, 5)
    drawn = one_of_the_likeliest(3, torch.Generator().manual_seed(0))(logits).bincount(minlength=5) / 4000
    weights = torch.tensor([0.0, 1.0, torch.e**4, 3.0, 0.0])
    torch.testing.assert_close(drawn, weights / weights.sum(), rtol=0, atol=0.01)
    assert torch.equal(one_of_the_likeliest(1, torch.Generator())(logits), most_likely(logits))


def test_the_same_seed_writes_the_same(model):
    def written(seed):
        choose = one_of_the_likeliest(20, torch.Generator().manual_seed(seed))
        return write(model, [(5,)] * 4, 10, (), choose)

    assert written(1) == written(1) != written(2)
    assert len(set(written(1))) > 1  # rows of one start differ
