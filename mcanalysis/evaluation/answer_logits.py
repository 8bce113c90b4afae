"""Next-token logits at the positions that predict an answer, teacher-forced: what ensembles of points average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import IGNORED, Batch, collate, pad_id
from mcanalysis.models.lora_model import LoraModel

MOST_TOKENS = 4096  # of a padded batch
MOST_LOGITS = 2**25  # of a batch: 128 MiB in float32


def answer_batches(model: LoraModel, objective: Objective) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches of an objective's examples, the ids of their answers' tokens, and which example each belongs to."""
    vocabulary = len(model.tokenizer)
    group: list[int] = []
    order = sorted(range(len(objective.encoded)), key=lambda i: len(objective.encoded[i]))
    for i in order:
        longer = [*group, i]
        tokens = max(len(objective.encoded[j]) for j in longer) * len(longer)
        targets = sum(len(objective.encoded[j].answer_ids) for j in longer)
        if group and (tokens > MOST_TOKENS or targets * vocabulary > MOST_LOGITS):
            yield _labelled(model, objective, group)
            longer = [i]
        group = longer
    if group:
        yield _labelled(model, objective, group)


def answer_logits(model: LoraModel, point: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Logits (targets, vocabulary), float32, at a point of any rank, without dropout; `batch` from `answer_batches`."""
    with torch.no_grad(), model.without_dropout():
        return model.forward_at(point, batch).logits


def _labelled(model: LoraModel, objective: Objective, group: list[int]) -> tuple[Batch, Tensor, Tensor]:
    batch = collate([objective.encoded[i] for i in group], pad_id(model.tokenizer)).to(model.device)
    kept = batch.labels != IGNORED
    return batch, batch.labels[kept], kept.nonzero()[:, 0]
