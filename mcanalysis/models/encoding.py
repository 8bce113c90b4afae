"""Examples as token ids, and batches of them: left-padded, so that every answer ends at the same column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcanalysis.errors import DataError
from mcanalysis.models.chat_template import ChatTemplate
from mcanalysis.models.end_tokens import split_end
from mcanalysis.tasks.task import Example

IGNORED = -100  # the label PyTorch's cross entropy leaves out
GROUP_TOKENS = 128  # what a pass, and the steps of writing that follow it, cost beside the tokens that are read


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of prompt and answer; the answer ends with the end token and is what the loss is taken over."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Batch:
    """Left-padded tensors of shape (examples, length); `labels` is -100 on prompts and padding.

    `attention_mask` is None where no row is padded. `position_ids` count from the first real token, without which a
    left-padded model with learned positions computes something else.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    num_answer_columns: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return Batch(
            self.input_ids.to(device),
            self.labels.to(device),
            mask,
            self.position_ids.to(device),
            self.num_answer_columns,
        )

    def mask(self) -> Tensor:
        """The attention mask, of ones where it was left out."""
        return torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask

    def examples(self) -> list[EncodedExample]:
        """The examples that `collate` stacked.

        >>> examples = [EncodedExample((5, 6), (7,)), EncodedExample((8,), (9,))]
        >>> collate(examples, padding=0).examples() == examples
        True
        """
        found = []
        for ids, labels, mask in zip(self.input_ids.tolist(), self.labels.tolist(), self.mask().tolist(), strict=True):
            answer = sum(label != IGNORED for label in labels)
            row = ids[len(ids) - sum(mask) :]
            found.append(EncodedExample(tuple(row[: len(row) - answer]), tuple(row[len(row) - answer :])))
        return found

    def trimmed(self) -> Batch:
        """Without the columns in which every row is padded, of which part of a larger batch may have many.

        >>> batch = collate([EncodedExample((5, 6), (7,)), EncodedExample((8,), (9,))], padding=0)
        >>> last = Batch(batch.input_ids[1:], batch.labels[1:], batch.mask()[1:], batch.position_ids[1:], 1)
        >>> last.trimmed().input_ids
        tensor([[8, 9]])
        """
        if self.attention_mask is None:
            return self
        first = int(self.attention_mask.any(0).int().argmax())
        return Batch(
            self.input_ids[:, first:],
            self.labels[:, first:],
            self.attention_mask[:, first:],
            self.position_ids[:, first:],
            min(self.num_answer_columns, self.input_ids.shape[1] - first - 1),  # no prompt is empty
        )


def encode(
    example: Example, tokenizer: Any, max_length: int, template: ChatTemplate | None = None
) -> tuple[EncodedExample, int]:
    """Encode one example; returns it and how many tokens its prompt has lost.

    Prompt and answer are tokenised apart, so that the boundary is the same in training and in generation. A prompt has
    the tokenizer's start token once, whether its text brings it or not; an end token that its text brings is kept, one
    that the tokenizer adds is not. An answer ends with one end token, whether its text brings it or not (`split_end`).
    A too long example loses the middle of its *prompt* (instructions stand at its ends), never a token of its answer.
    In a `template` prompt and answer have the tokens that it gives them, and a prompt that is cut loses none of those.
    Raises `DataError` where the answer alone does not fit, and for an empty prompt, after which nothing predicts an
    answer.
    """
    return encode_each([example], tokenizer, max_length, template)[0]


def _encode(
    example: Example, tokenizer: Any, max_length: int, front: list[int], back: list[int]
) -> tuple[EncodedExample, int]:
    own = list(tokenizer(example.prompt, add_special_tokens=False)["input_ids"])
    prompt = (own if own[: len(front)] == front else front + own) + back
    if not prompt:
        raise DataError(
            f"Expected a prompt of at least one token before the answer {example.answer[:40]!r}, got an empty one; "
            "write one, or remove the example."
        )
    text, end = split_end(example.answer, tokenizer)
    answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
    room = max_length - len(answer)
    if room < 1:
        raise DataError(
            f"Expected answers of at most {max_length - 2} tokens, got one of {len(answer) - 1} "
            f"({example.answer[:40]!r}…); raise --max-length."
        )
    lost = max(len(prompt) - room, 0)
    if lost:
        prompt = _without_middle(prompt, room)
    return EncodedExample(tuple(prompt), tuple(answer)), lost


def encode_text(example: Example, tokenizer: Any, max_length: int) -> tuple[EncodedExample, int]:
    """Encode an answer without a prompt as plain text; returns it and how many tokens it has lost.

    Every token is predicted from those before it. The tokenizer's start token stands in front, or, without one, the
    text's own first token, which nothing predicts. No end is added: a text may be a piece of a longer one. A too long
    text loses its end. Raises `DataError` where no token is left to predict.
    """
    text, (front, _) = example.answer, added_tokens(tokenizer)
    own = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = own if own[: len(front)] == front else front + own
    start = max(len(front), 1)
    if len(ids[:max_length]) <= start:
        raise DataError(
            f"Expected text with a token to predict, got {text[:40]!r} and at most {max_length} tokens of it; write "
            "more, remove it, or raise --max-length."
        )
    return EncodedExample(tuple(ids[:start]), tuple(ids[start:max_length])), max(len(ids) - max_length, 0)


def _framed(example: Example, max_length: int, template: ChatTemplate) -> tuple[EncodedExample, int]:
    text, first, last = template.prompt(example.prompt)
    prompt, answer = template.ids(text), template.answer_ids(example.answer)
    lost = len(prompt) + len(answer) - max_length
    if lost <= 0:
        return EncodedExample(tuple(prompt), answer), 0
    front, back = template.frame_sizes(text, first, last)
    own = prompt[front : len(prompt) - back]
    if lost >= len(own):
        needed = front + back + len(answer) + 1
        raise DataError(
            f"Expected room for the {front + back} tokens of the chat template, an answer of {len(answer)} "
            f"({example.answer[:40]!r}…) and one token of its prompt, got --max-length {max_length}; raise it to "
            f"{needed} or more."
        )
    own = _without_middle(own, len(own) - lost)
    return EncodedExample((*prompt[:front], *own, *prompt[len(prompt) - back :]), answer), lost


def _without_middle(ids: list[int], room: int) -> list[int]:
    """The first and the last ids, half of the room each."""
    tail = room // 2
    return ids[: room - tail] + ids[len(ids) - tail :]


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and behind every text, without an end token behind it.

    Found on a text that brings no special token itself. Nothing is written behind an end, so a prompt has none there.
    """
    text = _plain_text(tokenizer)
    own, framed = (list(tokenizer(text, add_special_tokens=adds)["input_ids"]) for adds in (False, True))
    start = next((i for i in range(len(framed)) if framed[i : i + len(own)] == own), 0)
    front, back = framed[:start], framed[start + len(own) :]
    return front, back[:-1] if back[-1:] == [tokenizer.eos_token_id] else back


def _plain_text(tokenizer: Any) -> str:
    """A text that has tokens, none of them special: "a", or a token of a vocabulary that drops it, as those of DNA."""
    special = set(getattr(tokenizer, "all_special_ids", ()))

    def is_plain(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(ids) and special.isdisjoint(ids)

    if is_plain("a"):
        return "a"
    return next((text for text, i in sorted(tokenizer.get_vocab().items()) if i not in special and is_plain(text)), "a")


def encode_each(
    examples: Iterable[Example], tokenizer: Any, max_length: int, template: ChatTemplate | None = None
) -> list[tuple[EncodedExample, int]]:
    """Encode examples in order, each with the number of tokens that its prompt has lost; see `encode`."""
    if template is not None:
        return [_framed(e, max_length, template) for e in examples]
    added = added_tokens(tokenizer)
    return [_encode(e, tokenizer, max_length, *added) for e in examples]


def encode_all(examples: Iterable[Example], tokenizer: Any, max_length: int) -> tuple[list[EncodedExample], int]:
    """Encode examples in order; returns them and how many prompts were cut. None is ever dropped."""
    pairs = encode_each(examples, tokenizer, max_length)
    return [e for e, _ in pairs], sum(lost > 0 for _, lost in pairs)


def pad_id(tokenizer: Any) -> int:
    """The id to pad with: the pad token, or the end token where there is none (the mask hides either)."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def cut_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices in groups of like length, each of at most `token_budget` padded tokens, at least one index.

    Of all such groups those with the fewest padded tokens, a group itself counting as `GROUP_TOKENS`.

    >>> cut_by_length([5, 2, 3, 9], token_budget=6)
    [[1, 2], [0], [3]]
    >>> cut_by_length([10, 200, 11, 210], token_budget=2048)
    [[0, 2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cost, start = np.zeros(len(order) + 1), [0] * (len(order) + 1)  # of the first ones; where their last group starts
    for end, index in enumerate(order, start=1):
        longest = lengths[index]
        first = min(max(end - token_budget // longest, 0), end - 1) if longest else 0
        costs = cost[first:end] + longest * np.arange(end - first, 0, -1)
        best = int(costs.argmin())
        cost[end], start[end] = costs[best] + GROUP_TOKENS, first + best
    groups, end = [], len(order)
    while end:
        groups.append(order[start[end] : end])
        end = start[end]
    return groups[::-1]


def collate(examples: Sequence[EncodedExample], padding: int) -> Batch:
    """Stack examples, padded on the left: ids with `padding`, labels with -100, the mask with 0.

    >>> batch = collate([EncodedExample((5, 6), (7,)), EncodedExample((8,), (9,))], padding=0)
    >>> batch.input_ids.tolist(), batch.labels.tolist()
    ([[5, 6, 7], [0, 8, 9]], [[-100, -100, 7], [-100, -100, 9]])
    """
    length = max(len(e) for e in examples)
    # In NumPy, which fills short rows faster than torch.
    ids = np.full((len(examples), length), padding, dtype=np.int64)
    labels = np.full((len(examples), length), IGNORED, dtype=np.int64)
    for row, e in enumerate(examples):
        ids[row, length - len(e) :] = e.prompt_ids + e.answer_ids
        labels[row, length - len(e.answer_ids) :] = e.answer_ids
    starts = np.array([length - len(e) for e in examples])[:, None]
    positions = np.arange(length, dtype=np.int64) - starts
    mask = torch.from_numpy((positions >= 0).astype(np.int64)) if starts.any() else None
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        mask,
        torch.from_numpy(positions.clip(min=0)),
        max(len(e.answer_ids) for e in examples),
    )
