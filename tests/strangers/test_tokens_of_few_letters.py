"""Tokenizers that drop letters or read them as special tokens (those of DNA), against what they add themselves."""

import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from mcanalysis.models.encoding import encode
from mcanalysis.tasks.task import Example


def _tokenizer(unknown=None):
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "A", "C", "G", "T"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **({"unk_token": unknown} if unknown else {}))


@pytest.mark.parametrize("unknown", [None, "<s>"], ids=["dropped", "start-token"])
def test_the_start_token_stands_in_front_whatever_letters_there_are(unknown):
    tokenizer = _tokenizer(unknown)
    example, lost = encode(Example(prompt="ACG", answer="T"), tokenizer, max_length=16)
    assert list(example.prompt_ids) == tokenizer("ACG")["input_ids"] == [0, 2, 3, 4]
    assert (example.answer_ids, lost) == ((5, 1), 0)
