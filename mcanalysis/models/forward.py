"""One forward pass of a causal LM over a batch: log-likelihood of the answers, hidden states when asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from mcanalysis.models.causal_lm import causal_lm
from mcanalysis.models.encoding import IGNORED, Batch
from mcanalysis.models.output_layer import Predictions, predictions
from mcanalysis.models.passes import count_pass
from mcanalysis.models.positions import check_length


@dataclass(frozen=True)
class Forward:
    """`nll` (examples,): summed over each answer's tokens, in nats; `num_targets` (examples,); `hidden_states`:
    (examples, length, width) per layer, or (); `rows` (targets,) says which example each target belongs to."""

    nll: Tensor
    num_targets: Tensor
    hidden_states: tuple[Tensor, ...]
    predictions: Predictions
    rows: Tensor

    @property
    def logits(self) -> Tensor:
        """(targets, vocabulary), float32 at least, only where there is a label: the targets of the first example, then
        of the second, …; where they are many they are made when they are asked for."""
        return self.predictions.logits


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
    places = rows, kept.nonzero()[:, 1] - columns
    output, found = predictions(model, lambda: (call or model)(**inputs), *places)
    nll = found.losses(targets)
    nll = nll.new_zeros(len(labels)).index_add(0, rows, nll)
    states = tuple(output.hidden_states[1:]) if hidden_states else ()
    count_pass(len(labels), batch.input_ids.numel(), (found.source, *states))
    return Forward(nll, kept.sum(1), states, found, rows)


@cache
def _accepts(kind: type) -> bool:
    return "logits_to_keep" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model can be asked for the logits of its last columns only."""
    return _accepts(type(causal_lm(model)))
