"""One batch at one setting of the weights: likelihood of the answers and greedy answers, its prompts read once.

Prompts and reference answers are read in one pass, for the loss. Where every token of an answer was the most likely
one, greedy decoding would write exactly that answer, so it is not run; for the other rows it goes on from the keys and
values of their prompts, which that pass has left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mcanalysis.evaluation.batch_plan import EvaluationBatch
from mcanalysis.evaluation.shared_prefix import SharedPrefix
from mcanalysis.models.forward import accepts_logits_to_keep, head_only_at


@dataclass(frozen=True)
class BatchResult:
    """`nll`, `num_targets` (rows,); `outputs`: per row the ids of the greedy answer, without the end token, or none."""

    nll: Tensor
    num_targets: Tensor
    outputs: list[list[int]]


def run_batch(
    model: nn.Module,
    batch: EvaluationBatch,
    ends: Collection[int],
    prefix: SharedPrefix | None = None,
    generate: bool = True,
    extra: Mapping[str, Any] | None = None,
    call: Callable[..., Any] | None = None,
) -> BatchResult:
    """Loss of a batch, and its greedy answers if `generate`, each up to the first of `ends`.

    `prefix` is what stands before every row; `extra` adds inputs to the first pass, which `call` makes if it is given.
    """
    number = len(batch.rows)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": None, **(extra or {})}
    inputs["use_cache"] = generate or prefix is not None
    if prefix is not None:
        inputs["past_key_values"] = prefix.cache(number)
    with head_only_at(model, batch.target_rows, batch.target_columns) as is_flat:
        output = (call or model)(**inputs)
    logits = output.logits if is_flat else output.logits[batch.target_rows, batch.target_columns]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    per_token = cross_entropy(logits, batch.targets, reduction="none").double()
    nll = per_token.new_zeros(number).index_add(0, batch.target_rows, per_token)
    num_targets = torch.bincount(batch.target_rows, minlength=number)
    if not generate:
        return BatchResult(nll, num_targets, [])
    missed = torch.zeros_like(num_targets).index_add(0, batch.target_rows, (logits.argmax(-1) != batch.targets).long())
    wanted = ((missed > 0) | (num_targets > batch.limits)).nonzero().flatten()
    outputs = [list(ids[:-1].tolist()) for ids in batch.targets.split(num_targets.tolist())]
    if len(wanted):
        first = num_targets.cumsum(0) - num_targets
        prompts = _Prompts.kept(output.past_key_values, batch, wanted, prefix)
        if prompts is None:
            prompts = _Prompts.read(model, batch, wanted, prefix)
        written = _decode(model, prompts, logits[first[wanted]], batch.limits[wanted], ends)
        for row, ids in zip(wanted.tolist(), written, strict=True):
            outputs[row] = ids
    return BatchResult(nll, num_targets, outputs)


@dataclass
class _Prompts:
    """Keys and values of prompts, padded on the left, so that all of them end where writing begins."""

    cache: Any
    mask: Tensor | None
    positions: Tensor  # (rows, 1) of the last token

    @classmethod
    def kept(cls, cache: Any, batch: EvaluationBatch, rows: Tensor, prefix: SharedPrefix | None) -> _Prompts | None:
        """What the pass over prompts and answers has left of some rows; None where it cannot be taken apart."""
        if cache is None or not all(_is_whole(layer) for layer in cache.layers):
            return None
        layers = cache.layers
        lengths = batch.prompt_lengths[rows]
        longest = int(lengths.max())
        before = cache.get_seq_length() - batch.input_ids.shape[1]  # a prefix, or trained prompts
        padding = longest - lengths
        columns = torch.arange(before + longest, device=rows.device)
        source = (columns - padding[:, None]).clamp(min=0)[:, None, :, None]
        cache.batch_select_indices(rows)
        for layer in layers:
            for name in ("keys", "values"):
                found = getattr(layer, name)
                at = source.to(found.device).expand(-1, found.shape[1], -1, found.shape[3])
                setattr(layer, name, found.gather(2, at))
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = before + longest
        read = longest + (0 if prefix is None else prefix.length)
        return cls(cache, _left_mask(padding, read), lengths[:, None] - 1 + read - longest)

    @classmethod
    def read(cls, model: nn.Module, batch: EvaluationBatch, rows: Tensor, prefix: SharedPrefix | None) -> _Prompts:
        """Read the prompts of some rows again, the prefix among them, padded on the left."""
        ids, lengths = batch.input_ids[rows], batch.prompt_lengths[rows]
        if prefix is not None:
            ids = torch.cat([prefix.ids.expand(len(ids), -1), ids], dim=1)
            lengths = lengths + prefix.length
        longest = int(lengths.max())
        padding = longest - lengths
        positions = (torch.arange(longest, device=rows.device) - padding[:, None]).clamp(min=0)
        mask = _left_mask(padding, longest)
        cache = _extend(model, ids.gather(1, positions), mask, positions, None)[1]
        return cls(cache, mask, positions[:, -1:])


def _is_whole(layer: Any) -> bool:
    """Whether a layer holds the keys and values of all tokens; a full sliding window has dropped the first."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return layer.get_seq_length() < layer.sliding_window
    return type(layer) is DynamicLayer


def _left_mask(padding: Tensor, columns: int) -> Tensor | None:
    if not bool(padding.any()):
        return None
    return (torch.arange(columns, device=padding.device) >= padding[:, None]).long()


def _decode(
    model: nn.Module, prompts: _Prompts, logits: Tensor, limits: Tensor, ends: Collection[int]
) -> list[list[int]]:
    """Greedy decoding from the prompts; a row that has ended leaves the batch."""
    written: list[list[int]] = [[] for _ in limits]
    alive = torch.arange(len(limits), device=limits.device)
    cache, mask, positions = prompts.cache, prompts.mask, prompts.positions
    stops = torch.tensor(list(ends), device=limits.device)
    step = 0
    while True:
        chosen = logits.argmax(-1)
        step += 1
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            if token not in ends:
                written[row].append(token)
        going = (~torch.isin(chosen, stops) & (limits > step)).nonzero().flatten()
        if not len(going):
            return written
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, limits, positions = alive[going], limits[going], positions[going]
            mask = None if mask is None else mask[going]
        positions = positions + 1
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _extend(model, chosen[going, None], mask, positions, cache)


def _extend(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits (rows, vocabulary) after the last column, and the cache with these tokens in it."""
    inputs: dict[str, Any] = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **inputs
    )
    return output.logits[:, -1], output.past_key_values
