"""What of a text is settled, against the texts of all longer sequences of tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mcanalysis.models.settled_text import only_appends, settled_text

LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
PIECES = ["▁a", "b", "▁", ".", "▁n", "'t", "中", "é", "\u0301", " ", "##c", "'s", "d</w>", "Ġx", "\ufffd", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0x42, 0xE4, 0xB8, 0xAD, 0xC3, 0xA9, 0xFF, 0xF0, 0x9F)]
CHARACTERS = [
    "Ġ",
    "a",
    "B",
    "ä",
    "¸",
    "Ń",
    "Ã",
    "©",
    "ÿ",
    "ðŁ",
    "Ċ",
    "Ġä",
    "</s>",
]  # bytes as byte-level BPE writes them


def make(decoder, pieces=(*PIECES, *BYTES), kind="bpe", **settings):
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = {
        "bpe": lambda: models.BPE(vocab=vocabulary, merges=[], byte_fallback=True),
        "words": lambda: models.WordLevel(vocab=vocabulary, unk_token="▁"),
    }[kind]()
    backend = Tokenizer(model)
    if decoder is not None:
        backend.decoder = decoder
    if isinstance(decoder, decoders.ByteLevel):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **settings)


APPENDING = {
    "byte-level": make(decoders.ByteLevel(), CHARACTERS),
    "Llama's, with bytes": make(decoders.Sequence(LLAMA)),
    "Metaspace": make(decoders.Metaspace()),
    "WordPiece": make(decoders.WordPiece(), kind="words"),
    "BPE with suffixes": make(decoders.BPEDecoder(suffix="</w>")),
    "none": make(None),
    "cleaning up in name only": make(decoders.ByteLevel(), ["a", "Ġ", "."], clean_up_tokenization_spaces=True),
}
OTHERS = {
    "CTC": make(decoders.CTC(pad_token="▁")),
    "stripping at the end": make(decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)])),
    "replacing over tokens": make(decoders.Sequence([decoders.Fuse(), decoders.Replace("bb", "a")])),
    "cleaning up": make(
        decoders.WordPiece(cleanup=False), ["a", ".", "▁"], kind="words", clean_up_tokenization_spaces=True
    ),
    "in Python": object(),
}


@pytest.mark.parametrize("kind", APPENDING)
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_every_longer_text_begins_with_what_is_settled(kind, data):
    tokenizer = APPENDING[kind]
    assert only_appends(tokenizer)
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    texts = [tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)]
    for start in range(len(ids) + 1):
        settled = settled_text(tokenizer, ids[:start])
        assert all(text.startswith(settled) for text in texts[start:]), (settled, texts[start:])


@pytest.mark.parametrize("kind", OTHERS)
def test_tokenizers_that_may_change_what_is_written_are_told(kind):
    assert not only_appends(OTHERS[kind])


def test_half_a_character_is_not_settled_and_all_else_is(tokenizer):
    assert only_appends(tokenizer)
    ids = tokenizer("green 中", add_special_tokens=False)["input_ids"]
    assert settled_text(tokenizer, ids) == "green 中"
    assert settled_text(tokenizer, ids[:-1]) == "green "
    llama = APPENDING["Llama's, with bytes"]
    ids = llama.convert_tokens_to_ids(["▁a", "b", "<0xE4>", "<0xB8>", "<0xAD>"])
    assert [llama.decode(ids), settled_text(llama, ids)] == ["ab中", "ab"]
    # the reason: one more byte, and the character is gone
    assert llama.decode(ids + llama.convert_tokens_to_ids(["<0xFF>"])) == "ab" + 4 * "\ufffd"
