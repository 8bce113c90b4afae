"""One batched pass against one unpadded example at a time."""

import pytest
import torch

from mcanalysis.models.encoding import collate
from mcanalysis.models.forward import forward

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "opt", "qwen2", "gemma")


@pytest.fixture
def network(plain_model_at, tiny_base):
    return lambda name: plain_model_at() if name == "llama" else tiny_base(name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_rows_have_the_nll_and_hidden_states_of_unpadded_ones(architecture, network, encode_examples, alone):
    model, examples = network(architecture), encode_examples(6)
    batch = collate(examples, padding=0)
    assert len({len(e) for e in examples}) > 3
    with torch.no_grad():
        result = forward(model, batch, hidden_states=True)
        for row, example in enumerate(examples):
            nll, states = alone(model, example)
            assert float(result.nll[row]) == pytest.approx(float(nll), rel=1e-5, abs=1e-5)
            assert int(result.num_targets[row]) == len(example.answer_ids)
            assert len(result.hidden_states) == len(states) == 2
            for ours, theirs in zip(result.hidden_states, states, strict=True):
                torch.testing.assert_close(ours[row, -len(example) :], theirs, rtol=1e-4, atol=2e-5)


def test_the_pad_token_in_use_changes_nothing(plain_model_at, encode_examples):
    model, examples = plain_model_at(), encode_examples(4)
    with torch.no_grad():
        first, second = (forward(model, collate(examples, padding=p)).nll for p in (0, 77))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
