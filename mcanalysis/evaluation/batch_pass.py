"""One batch at one setting of the weights: likelihood of the answers and greedy answers, its prompts read once.

The prompts' keys and values are computed once. The reference answers are read on top of them for the loss; the cache is
then cut back to the prompts, and decoding goes on from there for the rows that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mcanalysis.models.encoding import IGNORED, EncodedExample, collate_prompts
from mcanalysis.models.forward import accepts_logits_to_keep


@dataclass(frozen=True)
class EvaluationBatch:
    """Prompts padded on the left, answers on the right; `rows` are the examples' numbers in the pool.

    `prompt_mask` is None where no prompt is padded. `labels` are the answers' ids and -100 on padding; `limits` the
    most tokens to generate per row.
    """

    rows: tuple[int, ...]
    prompt_ids: Tensor
    prompt_mask: Tensor | None
    prompt_positions: Tensor
    labels: Tensor
    limits: Tensor

    @classmethod
    def of(cls, rows: Sequence[int], examples: Sequence[EncodedExample], limits: Sequence[int], padding: int) -> Any:
        """Stack the examples of these rows."""
        prompts = collate_prompts(examples, padding)
        labels = torch.full((len(examples), max(len(e.answer_ids) for e in examples)), IGNORED)
        for i, e in enumerate(examples):
            labels[i, : len(e.answer_ids)] = torch.tensor(e.answer_ids)
        return cls(
            tuple(rows), prompts.input_ids, prompts.attention_mask, prompts.position_ids, labels, torch.tensor(limits)
        )

    def to(self, device: torch.device) -> EvaluationBatch:
        """The same batch on another device."""
        mask = None if self.prompt_mask is None else self.prompt_mask.to(device)
        return EvaluationBatch(
            self.rows,
            self.prompt_ids.to(device),
            mask,
            self.prompt_positions.to(device),
            self.labels.to(device),
            self.limits.to(device),
        )


@dataclass(frozen=True)
class BatchResult:
    """`nll`, `num_targets` (rows,); `outputs`: ids of the greedy answer per row, without the end token."""

    nll: Tensor
    num_targets: Tensor
    outputs: list[list[int]]


def run_batch(model: nn.Module, batch: EvaluationBatch, end: int) -> BatchResult:
    """Loss and greedy answers of a batch.

    Where every answer token is the most likely one, greedy decoding would write exactly the answer, so it is not run.
    """
    last = batch.prompt_positions[:, -1:]
    width = batch.labels.shape[1]
    logits, cache = _extend(model, batch.prompt_ids, batch.prompt_mask, batch.prompt_positions, None, 1)
    after_prompt = logits[:, -1]
    if width > 1:
        answers = batch.labels[:, :-1].clamp(min=0)
        positions = last + 1 + torch.arange(width - 1, device=last.device)
        mask = _longer(batch.prompt_mask, width - 1)
        more, cache = _extend(model, answers, mask, positions, cache, 0)
        logits = torch.cat([logits, more], dim=1)
    flat = logits.float().flatten(0, 1)
    nll = cross_entropy(flat, batch.labels.flatten(), ignore_index=IGNORED, reduction="none")
    nll = nll.view(batch.labels.shape).sum(1)
    kept = batch.labels != IGNORED
    num_targets = kept.sum(1)
    known = ((logits.argmax(-1) == batch.labels) | ~kept).all(1) & (num_targets <= batch.limits)
    outputs = [ids[: n - 1] for ids, n in zip(batch.labels.tolist(), num_targets.tolist(), strict=True)]
    wanted = (~known).nonzero().flatten()
    if len(wanted):
        if cache is not None and _can_be_cut_back(cache):
            cache.crop(1 - width)
            cache.batch_select_indices(wanted)
        else:  # a cache that cannot be cut back is built again
            _, cache = _extend(
                model,
                batch.prompt_ids[wanted],
                None if batch.prompt_mask is None else batch.prompt_mask[wanted],
                batch.prompt_positions[wanted],
                None,
                1,
            )
        written = _decode(model, batch, wanted, after_prompt[wanted], cache, end)
        for row, ids in zip(wanted.tolist(), written, strict=True):
            outputs[row] = ids
    return BatchResult(nll, num_targets, outputs)


def _can_be_cut_back(cache: Any) -> bool:
    """Whether the answers can be taken off again; a full sliding window has dropped what stood before them."""
    sliding = [layer for layer in cache.layers if getattr(layer, "is_sliding", False)]
    return cache.is_croppable and all(layer.get_seq_length() < layer.sliding_window for layer in sliding)


def _decode(
    model: nn.Module, batch: EvaluationBatch, rows: Tensor, logits: Tensor, cache: Any, end: int
) -> list[list[int]]:
    """Greedy decoding of some rows from their prompts' cache; a row that has ended leaves the batch."""
    written: list[list[int]] = [[] for _ in rows]
    alive = torch.arange(len(rows), device=rows.device)
    mask = None if batch.prompt_mask is None else batch.prompt_mask[rows]
    positions = batch.prompt_positions[rows, -1:]
    limits = batch.limits[rows]
    step = 0
    while True:
        chosen = logits.argmax(-1)
        step += 1
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            if token != end:
                written[row].append(token)
        going = ((chosen != end) & (limits > step)).nonzero().flatten()
        if not len(going):
            return written
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, limits, positions = alive[going], limits[going], positions[going]
            mask = None if mask is None else mask[going]
        positions = positions + 1
        mask = _longer(mask, 1)
        output, cache = _extend(model, chosen[going, None], mask, positions, cache, 1)
        logits = output[:, -1]


def _extend(
    model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any, keep: int
) -> tuple[Tensor, Any]:
    """Logits of the last `keep` columns (0: all) and the cache with these tokens in it."""
    inputs: dict[str, Any] = {"logits_to_keep": keep} if accepts_logits_to_keep(model) else {}
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **inputs,
    )
    return output.logits[:, -keep:], output.past_key_values


def _longer(mask: Tensor | None, columns: int) -> Tensor | None:
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), columns)], dim=1)
