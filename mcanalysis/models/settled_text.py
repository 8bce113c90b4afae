"""What of a text is settled while it is being written, token by token.

The text of a few tokens need not be the beginning of the text of more: the bytes of a character may be spread over
tokens, and a decoder may take spaces away, or drop repeated tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_APPENDING = {"ByteLevel", "Metaspace", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder"}


def only_appends(tokenizer: Any) -> bool:
    """Whether more tokens only add to a text, the bytes of its last characters aside.

    True for the decoders of the `tokenizers` library of which this is known: byte-level and SentencePiece BPE, Unigram,
    WordPiece. Not for tokenizers in Python, nor where spaces are cleaned up behind the decoder.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    return _appends(_description(backend.decoder)) and not _cleans_up(tokenizer)


def settled_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """What the text of every sequence of tokens that begins with `ids` begins with, if the tokenizer `only_appends`.

    Left out are single bytes at the end, which may be the beginning of a character, and special tokens.
    """
    ids = list(ids)
    while ids and (_is_byte(tokenizer, ids[-1]) or not tokenizer.decode(ids[-1:], skip_special_tokens=True)):
        ids.pop()  # of a run of such bytes all characters are given up if one is not complete
    return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


def _is_byte(tokenizer: Any, token: int) -> bool:
    return bool(_BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token) or ""))


def _description(decoder: Any) -> dict[str, Any] | None:
    return None if decoder is None else json.loads(decoder.__getstate__())


def _appends(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:  # tokens with spaces between them
        return True
    match decoder["type"]:
        case "Sequence":
            return all(map(_appends, decoder["decoders"]))
        case "Replace":  # such as "▁" by a space
            return len(decoder["pattern"].get("String", "")) == 1
        case "Strip":
            return decoder["stop"] == 0
        case kind:
            return kind in _APPENDING


def _cleans_up(tokenizer: Any) -> bool:
    """Whether the spaces before punctuation are taken away; a tokenizer may say so and do nothing of the kind."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    return " ." not in tokenizer.decode(tokenizer("a .", add_special_tokens=False)["input_ids"])
