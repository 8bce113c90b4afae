"""One forward pass of a causal LM over a batch: log-likelihood of the answers, hidden states when asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mcanalysis.models.causal_lm import causal_lm
from mcanalysis.models.encoding import IGNORED, Batch
from mcanalysis.models.positions import check_length


class Forward(NamedTuple):
    """`nll` (examples,): summed over each answer's tokens, in nats; `num_targets` (examples,); `hidden_states`:
    (examples, length, width) per layer, or (). `logits` (targets, vocabulary), float32 at least, only where there is a
    label: the targets of the first example, then of the second, …; `rows` (targets,) says which example each belongs
    to."""

    nll: Tensor
    num_targets: Tensor
    hidden_states: tuple[Tensor, ...]
    logits: Tensor
    rows: Tensor


def forward(
    model: nn.Module,
    batch: Batch,
    hidden_states: bool = False,
    call: Callable[..., Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Forward:
    """Run the model once; logits are computed only at the positions that predict a token of an answer.

    `call` replaces `model(**inputs)` (a functional call at another point, say); `extra` adds inputs of a network of
    one's own. The last hidden states carry no embedding layer: entry i is the output of block i+1. Raises `UserError`
    for more tokens than the model has positions for.
    """
    check_length(model, batch.input_ids.shape[1])
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
        **(extra or {}),
    }
    columns = batch.num_answer_columns + 1
    if accepts_logits_to_keep(model):
        inputs["logits_to_keep"] = columns
    if hidden_states:
        inputs["output_hidden_states"] = True
    labels = batch.labels[:, batch.labels.shape[1] - batch.num_answer_columns :]
    kept = labels != IGNORED
    targets, rows = labels[kept], kept.nonzero()[:, 0]
    with head_only_at(model, rows, kept.nonzero()[:, 1] - columns) as is_flat:
        output = (call or model)(**inputs)
    logits = output.logits if is_flat else output.logits[:, -columns:-1][kept]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    nll = cross_entropy(logits, targets, reduction="none")
    nll = nll.new_zeros(len(labels)).index_add(0, rows, nll)
    states = tuple(output.hidden_states[1:]) if hidden_states else ()
    return Forward(nll, kept.sum(1), states, logits, rows)


@contextmanager
def head_only_at(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[bool]:
    """Let the output layer see only the hidden states at these rows and columns; yields whether it can be done.

    The columns are counted from the end (negative). The logits are then (places, vocabulary).

    In a small model with a large vocabulary the head is half of the work, and answers are a fraction of a batch.
    """
    head = getattr(causal_lm(model), "get_output_embeddings", lambda: None)()
    if head is None:
        yield False
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows, columns],))
    try:
        yield True
    finally:
        handle.remove()


@cache
def _accepts(kind: type) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model can be asked for the logits of its last columns only."""
    return _accepts(type(causal_lm(model)))
