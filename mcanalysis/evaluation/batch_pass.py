"""One batch at one setting of the weights: likelihood of the answers and greedy answers, its prompts read once.

Prompts and reference answers are read in one pass, for the loss. That pass also tells what greedy decoding would write
as far as it agrees with the answer, and the first token that differs. Where this is all that is asked for, nothing is
decoded; the other rows go on from the keys and values of what that pass has read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mcanalysis.evaluation.batch_plan import EvaluationBatch
from mcanalysis.evaluation.shared_prefix import SharedPrefix
from mcanalysis.models.forward import accepts_logits_to_keep
from mcanalysis.models.output_layer import predictions

Enough = Callable[[int, Sequence[int]], bool]
"""Whether a row, by its number in the pool, needs no more than the ids that are written for it."""


def to_the_end(row: int, ids: Sequence[int]) -> bool:
    """Nothing is enough: an answer is written up to an end token, or to its limit."""
    return False


@dataclass(frozen=True)
class BatchResult:
    """`nll`, `num_targets` (rows,); `outputs`: per row the ids of the greedy answer, without the end token, or none.

    An answer of which enough was written ends there.
    """

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
    enough: Enough = to_the_end,
) -> BatchResult:
    """Loss of a batch, and its greedy answers if `generate`, each up to the first of `ends`, or until it is `enough`.

    `prefix` is what stands before every row; `extra` adds inputs to the first pass, which `call` makes if it is given.
    """
    number = len(batch.rows)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": None, **(extra or {})}
    inputs["use_cache"] = generate or prefix is not None
    if prefix is not None:
        inputs["past_key_values"] = prefix.cache(number)
    output, found = predictions(model, lambda: (call or model)(**inputs), batch.target_rows, batch.target_columns)
    per_token, greedy = found.losses_and_greedy(batch.targets) if generate else (found.losses(batch.targets), None)
    nll = per_token.new_zeros(number, dtype=torch.double).index_add(0, batch.target_rows, per_token.double())
    num_targets = torch.bincount(batch.target_rows, minlength=number)
    if greedy is None:
        return BatchResult(nll, num_targets, [])
    texts = _Texts(batch, greedy, num_targets, ends, enough)
    if texts.going:
        rows = torch.tensor(texts.going, device=batch.input_ids.device)
        prompts = _Prompts.kept(output.past_key_values, batch, rows, texts.agreed, prefix)
        if prompts is None:
            texts.begin_anew()
            prompts = _Prompts.read(model, batch, rows, prefix)
        _decode(model, prompts, texts)
    return BatchResult(nll, num_targets, texts.outputs)


class _Texts:
    """What is written for each row of a batch; `going` are the rows of which more is wanted.

    It starts with what the pass over the answers has told of it: `greedy` (targets,) are the most likely tokens where
    the answers' tokens are predicted, which holds for what was written up to the first that differs. `agreed`: how many
    tokens before that one are in the answer too, and have been read.
    """

    def __init__(
        self, batch: EvaluationBatch, greedy: Tensor, num_targets: Tensor, ends: Collection[int], enough: Enough
    ) -> None:
        self.outputs: list[list[int]] = []
        self.agreed: list[int] = []
        self._rows, self._limits, self._ends, self._enough = batch.rows, batch.limits.tolist(), ends, enough
        answers, chosen, start = batch.targets.tolist(), greedy.tolist(), 0
        for count in num_targets.tolist():
            same = next((i for i in range(count) if answers[start + i] != chosen[start + i]), count)
            self.outputs.append(chosen[start : start + count][: same + 1])
            self.agreed.append(same)
            start += count
        self.going = [row for row in range(len(self.outputs)) if not self._is_finished(row)]

    def begin_anew(self) -> None:
        """Go back to the first token of the rows that go on."""
        for row in self.going:
            self.outputs[row] = self.outputs[row][:1]

    def append(self, tokens: Sequence[int]) -> list[int]:
        """Add a token to each row that goes on; returns the places, among these rows, of those that still do."""
        for row, token in zip(self.going, tokens, strict=True):
            self.outputs[row].append(token)
        places = [place for place, row in enumerate(self.going) if not self._is_finished(row)]
        self.going = [self.going[place] for place in places]
        return places

    def _is_finished(self, row: int) -> bool:
        ids, limit = self.outputs[row], self._limits[row]
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        self.outputs[row] = ids[: min(end, limit)]
        return end < len(ids) or limit <= len(ids) or self._enough(self._rows[row], ids)


@dataclass
class _Prompts:
    """Keys and values of prompts and what is agreed of the answers, padded on the left, so that all of them end where
    writing goes on."""

    cache: Any
    mask: Tensor | None
    positions: Tensor  # (rows, 1) of the last token

    @classmethod
    def kept(
        cls, cache: Any, batch: EvaluationBatch, rows: Tensor, agreed: Sequence[int], prefix: SharedPrefix | None
    ) -> _Prompts | None:
        """What the pass over prompts and answers has left of some rows; None where it cannot be taken apart."""
        if cache is None or not all(_is_whole(layer) for layer in cache.layers):
            return None
        layers = cache.layers
        lengths = (batch.prompt_lengths + torch.tensor(agreed, device=rows.device))[rows]
        longest = int(lengths.max())
        before = cache.get_seq_length() - batch.input_ids.shape[1]  # a prefix, or trained prompts
        padding = longest - lengths
        columns = torch.arange(before + longest, device=rows.device)
        source = (columns - padding[:, None]).clamp(min=0)[:, None, :, None]
        cache.batch_select_indices(rows.cpu())  # its layers may be on several devices
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
    if type(layer) is DynamicSlidingWindowLayer:  # not its subclass that also holds a recurrent state
        return layer.get_seq_length() < layer.sliding_window
    return type(layer) is DynamicLayer


def _left_mask(padding: Tensor, columns: int) -> Tensor | None:
    if not bool(padding.any()):
        return None
    return (torch.arange(columns, device=padding.device) >= padding[:, None]).long()


def _decode(model: nn.Module, prompts: _Prompts, texts: _Texts) -> None:
    """Greedy decoding of the rows that go on, whose last tokens have not been read; a finished row leaves the batch."""
    cache, mask, positions = prompts.cache, prompts.mask, prompts.positions
    while True:
        last = torch.tensor([texts.outputs[row][-1:] for row in texts.going], device=positions.device)
        positions = positions + 1
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = _extend(model, last, mask, positions, cache)
        places = texts.append(logits.argmax(-1).tolist())
        if not places:
            return
        if len(places) < len(positions):
            kept = torch.tensor(places)
            cache.batch_select_indices(kept)
            positions = positions[kept]
            mask = None if mask is None else mask[kept]


def _extend(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Logits (rows, vocabulary) after the last column, and the cache with these tokens in it."""
    inputs: dict[str, Any] = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
    output = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **inputs
    )
    return output.logits[:, -1], output.past_key_values
