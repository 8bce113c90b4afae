"""The tokens that end an answer: what a model stops at, and how an answer that names one itself is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

_NAME = "mcanalysis_ends"  # on a tokenizer: that of the model it came with is told nowhere in it


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: the tokenizer's end token first, then those at which its model stops besides.

    The latter are known of tokenizers that `load_base` and `load_tokenizer` give.
    """
    return getattr(tokenizer, _NAME, (tokenizer.eos_token_id,))


def stops_at(tokenizer: Any, generation_config: Any) -> tuple[int, ...]:
    """The ids that end what is written: those of the tokenizer, and those that `model.generate` stops at.

    `generation_config.eos_token_id` is an id, a list of them (Llama 3, Qwen: the end of a turn and of a text), or None.

    >>> from types import SimpleNamespace as S
    >>> stops_at(S(eos_token_id=2), S(eos_token_id=[7, 2]))
    (2, 7)
    """
    stated = getattr(generation_config, "eos_token_id", None)
    stated = stated if isinstance(stated, (list, tuple)) else [stated]
    return tuple(dict.fromkeys(i for i in (*end_ids(tokenizer), *stated) if i is not None))


def remember_ends(tokenizer: Any, generation_config: Any) -> None:
    """Let `end_ids` know what the model that a tokenizer came with stops at."""
    setattr(tokenizer, _NAME, stops_at(tokenizer, generation_config))


def add_end(tokenizer: Any, end: int) -> None:
    """Let `end_ids` know one more: that with which a chat template ends an answer."""
    setattr(tokenizer, _NAME, tuple(dict.fromkeys((*end_ids(tokenizer), end))))


def text_until(tokenizer: Any, ids: Sequence[int], ends: Collection[int]) -> str:
    """The text of ids up to the first of `ends`, without special tokens (a reference may contain an end's text)."""
    return tokenizer.decode(list(takewhile(lambda i: i not in ends, ids)), skip_special_tokens=True)


def split_end(answer: str, tokenizer: Any) -> tuple[str, int]:
    """An answer without the end tokens written at its end, and the id of the first of them; else the tokenizer's own.

    White space behind an end token, which chat templates leave, goes with it. The text of an end token that the
    tokenizer does not read as one is left alone.
    """
    texts = {tokenizer.convert_ids_to_tokens(i): i for i in end_ids(tokenizer)}
    end = tokenizer.eos_token_id
    while True:
        stripped = answer.rstrip()
        text = next((t for t in texts if t and stripped.endswith(t)), None)
        if text is None or tokenizer(stripped, add_special_tokens=False)["input_ids"][-1:] != [texts[text]]:
            return answer, end
        answer, end = stripped.removesuffix(text), texts[text]


def reference(answer: str, tokenizer: Any) -> str:
    """What an output is scored against: an answer without special tokens at its edges, of which no output holds any.

    A start token, padding, or the end of a turn that the model does not stop at stay in the answer's tokens, and in the
    loss. White space beside what is taken off goes with it.
    """
    answer = split_end(answer, tokenizer)[0]
    if getattr(tokenizer, "split_special_tokens", False):  # to it they are text
        return answer
    special = {
        i: t.content for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if t.special and t.content
    }
    ends = end_ids(tokenizer)  # one in front is no edge: generation stops there
    while True:
        stripped = answer.strip()
        before = next((t for i, t in special.items() if stripped.startswith(t) and i not in ends), "")
        behind = next((t for t in special.values() if stripped.endswith(t)), "")
        if not (before or behind):
            return answer
        answer = stripped.removeprefix(before).removesuffix(behind).strip()
