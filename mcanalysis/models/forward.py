"""One forward pass of a causal LM over a batch: log-likelihood of the answers, hidden states when asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mcanalysis.models.encoding import IGNORED, Batch


class Forward(NamedTuple):
    """`nll` (examples,): summed over each answer's tokens, in nats; `num_targets` (examples,); `correct` (examples,):
    whether every answer token is the most likely one; `hidden_states`: (examples, length, width) per layer, or ()."""

    nll: Tensor
    num_targets: Tensor
    correct: Tensor
    hidden_states: tuple[Tensor, ...]


def forward(
    model: torch.nn.Module,
    batch: Batch,
    hidden_states: bool = False,
    call: Callable[..., Any] | None = None,
) -> Forward:
    """Run the model once; logits are computed only for the columns that predict answers.

    `call` replaces `model(**inputs)` (a functional call at another point, say). The last hidden states carry no
    embedding layer: entry i is the output of block i+1.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
        "use_cache": False,
    }
    columns = batch.num_answer_columns + 1
    if accepts_logits_to_keep(model):
        inputs["logits_to_keep"] = columns
    if hidden_states:
        inputs["output_hidden_states"] = True
    output = (call or model)(**inputs)
    logits = output.logits[:, -columns:-1].float()
    labels = batch.labels[:, -batch.num_answer_columns :]
    flat = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    nll = flat.view(labels.shape).sum(1)
    kept = labels != IGNORED
    correct = ((logits.detach().argmax(-1) == labels) | ~kept).all(1)
    states = tuple(output.hidden_states[1:]) if hidden_states else ()
    return Forward(nll, kept.sum(1), correct, states)


@cache
def _accepts(kind: type) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def accepts_logits_to_keep(model: torch.nn.Module) -> bool:
    """Whether a model can be asked for the logits of its last columns only."""
    while hasattr(model, "get_base_model") or hasattr(model, "module"):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module  # type: ignore
    return _accepts(type(model))
