"""Text that a model writes on from given tokens, the same on every machine that computes the same logits.

`model.generate` takes whatever a base's own generation settings say and draws on the device; here each next token is
chosen by a given function of the logits, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from mcanalysis.models.encoding import cut_by_length, pad_id
from mcanalysis.models.forward import accepts_logits_to_keep
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.passes import count_pass

Choice = Callable[[Tensor], Tensor]
"""From logits (rows, vocabulary), float32 on the CPU, to the next token of each row, (rows,)."""

_TOKENS = 4096  # of rows written at a time, starts and limits together; changes nothing but memory


def most_likely(logits: Tensor) -> Tensor:
    """The likeliest token of each row.

    >>> most_likely(torch.tensor([[0.0, 2.0, 1.0]]))
    tensor([1])
    """
    return logits.argmax(-1)


def one_of_the_likeliest(number: int, generator: torch.Generator) -> Choice:
    """Draws of each row one of so many likeliest tokens, by their probability among these (Fan et al. 2018).

    >>> choose = one_of_the_likeliest(2, torch.Generator().manual_seed(0))
    >>> {int(choose(torch.tensor([[1.0, 1.0, 0.0]]))) for _ in range(50)} == {0, 1}
    True
    """

    def choose(logits: Tensor) -> Tensor:
        values, tokens = logits.double().topk(min(number, logits.shape[-1]))
        place = torch.multinomial(values.softmax(-1), 1, generator=generator)
        return tokens.gather(1, place)[:, 0]

    return choose


@torch.no_grad()
def write(
    model: LoraModel, starts: Sequence[tuple[int, ...]], limit: int, ends: Collection[int], choose: Choice
) -> list[tuple[int, ...]]:
    """What the model writes behind each start, without dropout: up to the first of `ends`, and at most `limit` tokens.

    An end is part of what was written. Rows of like length are written together; `choose` is asked for those that have
    not ended.
    """
    written: dict[int, list[int]] = {i: [] for i in range(len(starts))}
    with model.without_dropout():
        for group in cut_by_length([len(start) + limit for start in starts], _TOKENS):
            for i, tokens in zip(group, _write(model, [starts[i] for i in group], limit, ends, choose), strict=True):
                written[i] = tokens
    return [tuple(written[i]) for i in range(len(starts))]


def _write(
    model: LoraModel, starts: Sequence[tuple[int, ...]], limit: int, ends: Collection[int], choose: Choice
) -> list[list[int]]:
    padding, width = pad_id(model.tokenizer), max(map(len, starts))
    ids = torch.tensor([[padding] * (width - len(s)) + list(s) for s in starts], device=model.device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in starts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    last = {"logits_to_keep": 1} if accepts_logits_to_keep(model.network) else {}
    written: list[list[int]] = [[] for _ in starts]
    going, past = list(range(len(starts))), None
    for _ in range(limit):
        output = model.network(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True, **last
        )
        count_pass(0 if past else len(starts), ids.numel())
        past = output.past_key_values
        tokens = choose(output.logits[going, -1].float().cpu()).tolist()
        for row, token in zip(going, tokens, strict=True):
            written[row].append(token)
        going = [row for row in going if written[row][-1] not in ends]
        if not going:
            break
        ids = torch.tensor([[w[-1]] for w in written], device=model.device)  # a row that has ended repeats its end
        mask = torch.cat([mask, mask.new_ones(len(starts), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return written
