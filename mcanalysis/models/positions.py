"""How many tokens a model can read: refused where it has no position for one, said where it was not made for so many.

GPT-2, OPT, GPT-Neo, … look each position up in a table and fail beyond its last row; on a GPU that ends the process.
Rotary models go on, and what they then compute means little.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import nn

from mcanalysis.errors import UserError
from mcanalysis.models.causal_lm import causal_lm
from mcanalysis.models.encoding import EncodedExample

logger = logging.getLogger(__name__)

_warned: set[tuple] = set()  # of which models this process has warned


class Positions(NamedTuple):
    """`number` of positions that a model was made for (None: it does not say); `is_table`: there are no more.

    `first` is where the model counts them from, if they are not given to it: not from 0 in RoBERTa and its like.
    `unscaled`: beyond how many tokens in one row all rows of a batch get other positions; None where that never
    happens.
    """

    number: int | None
    is_table: bool
    first: int = 0
    unscaled: int | None = None


class Texts(NamedTuple):
    """Examples that are read, and whose they are; where they are answered, `max_new_tokens` is the most written."""

    name: str
    examples: Sequence[EncodedExample]
    max_new_tokens: int = 0


SCALED = {"dynamic", "longrope"}
"""Kinds of rotary positions that depend on the longest row of a batch, once that is longer than the model's first
training had it."""


def rope_kinds(config: Any) -> list[tuple[str, Any]]:
    """The kinds of rotary positions that a configuration names, for all layers or for each kind of them, each with its
    settings."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [(r["rope_type"], r) for r in (rope, *rope.values()) if isinstance(r, dict) and r.get("rope_type")]


def _unscaled(lm: Any) -> int | None:
    text = _text_config(lm)
    name, known = "max_position_embeddings", []
    for kind, settings in rope_kinds(text):
        own = [settings.get(f"original_{name}"), getattr(text, f"original_{name}", None)] * (kind == "longrope")
        if kind in SCALED:
            known.append(next(filter(None, own), None) or getattr(text, name, None))
    return min((int(n) for n in known if n), default=None)


_known: WeakKeyDictionary[nn.Module, Positions] = WeakKeyDictionary()


def positions_of(model: nn.Module) -> Positions:
    """The positions of a causal LM, of its shapes and its configuration alone (it may lie on the meta device).

    A table is an embedding beside that of the tokens, or a buffer (GPT-J, CTRL), with a row for each position of the
    configuration and, in OPT and its like, a few in front that none is written to (`offset`). MPT builds its biases for
    so many positions and no more.
    """
    lm = causal_lm(model)
    if lm not in _known:
        _known[lm] = _find(lm)._replace(unscaled=_unscaled(lm))
    return _known[lm]


def _text_config(lm: Any) -> Any:
    config: Any = getattr(lm, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _find(lm: Any) -> Positions:
    text = _text_config(lm)
    number = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    if not isinstance(number, int) or number < 1:  # XLNet says -1
        return Positions(None, False)
    tokens = lm.get_input_embeddings() if hasattr(lm, "get_input_embeddings") else None
    for module in lm.modules():
        if not isinstance(module, nn.Embedding) or module is tokens:
            continue
        if module.num_embeddings - getattr(module, "offset", 0) == number:
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return Positions(number - first, True, first)
    buffers = any(b.dim() == 2 and b.shape[0] == number for b in lm.buffers())
    return Positions(number, buffers or getattr(text, "model_type", None) == "mpt")


def check_length(model: nn.Module, columns: int) -> None:
    """Raise `UserError` for a batch of more columns than the model has positions for."""
    number, is_table, _, most = positions_of(model)
    if most is not None and columns > most:
        raise UserError(
            f"Expected at most the {most} tokens up to which the model's positions do not depend on the other rows of "
            f"a batch, got an example of {columns}; lower --max-length to {most}."
        )
    if is_table and number is not None and columns > number:
        raise UserError(
            f"Expected at most the {number} tokens that the model has positions for, got an example of {columns}; "
            f"lower --max-length to {number}."
        )


def check_positions(model: nn.Module, texts: Sequence[Texts], num_prompts: int = 0) -> None:
    """Raise `UserError` where a model has no position for a token that is read; warn once where it was made for fewer.

    So it does beyond the length from which on rotary positions are scaled by the longest row (`SCALED`): one example's
    loss would depend on which others are in its batch.

    Read are `num_prompts` trained vectors, a prompt, and its answer or all that is written but the last token. The
    remedies named are the largest limits at which every example fits: of what is written, where that leaves room for
    all answers, and of the length.
    """
    number, is_table, first, most = positions_of(model)
    if first:  # padded rows and what is written are given positions that count from 0
        raise UserError(
            f"Expected a model that counts positions from 0, got {type(causal_lm(model)).__name__}, which counts them "
            f"from {first}; choose another model."
        )
    if number is None:
        return
    number = number if most is None else min(most, number)
    room = number - num_prompts
    longest, fitting, written, worst = 0, number, number, None
    for name, examples, max_new_tokens in texts:
        for example in examples:
            prompt, answer = len(example.prompt_ids), len(example.answer_ids)
            behind = max(answer, max_new_tokens - 1)
            longest, written = max(longest, answer), min(written, room - prompt + 1)
            if prompt + behind > room:
                fitting = min(fitting, room - behind + answer)  # the prompt is then cut to what is left of the room
                if worst is None or prompt + behind > worst[1] + worst[2]:
                    worst = name, prompt, behind
    if worst is None:
        return
    name, prompt, behind = worst
    trained = f"{num_prompts} trained vectors, " if num_prompts else ""
    got = f"{trained}a prompt of {prompt} tokens and {behind} behind it in {name}"
    limits = (("--max-new-tokens", written), ("--max-length", fitting))
    less = ", or ".join(f"{flag} to {limit}" for flag, limit in limits if limit > longest)
    remedy = f"lower {less}" if less else "choose a model with more positions"
    if most is not None:
        raise UserError(
            f"Expected at most the {number} tokens up to which the model's positions do not depend on the other rows "
            f"of a batch, got {got}; {remedy}."
        )
    if is_table:
        raise UserError(f"Expected at most the {number} tokens that the model has positions for, got {got}; {remedy}.")
    key = (type(causal_lm(model)).__name__, number)
    if key not in _warned:
        _warned.add(key)
        logger.warning("the model was made for %d tokens, got %s: such numbers mean little; %s", number, got, remedy)
