"""How the examples of several objectives are read: batches of like length, padded on the right, prefixes apart.

What stands on the right of an example is never seen by it, because a causal model looks to the left only. So a batch
padded there needs no mask and no positions, and its attention takes the fastest kernel; what padding costs is kept
small by putting examples of like length together. An answer's last token predicts nothing that is asked for, so it is
not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mcanalysis.evaluation.objective import Objective
from mcanalysis.models.encoding import EncodedExample, cut_by_length

SHARED_FROM_TOKENS = 4
STEP_TOKENS = 32  # what a step of writing, for all rows of a batch, counts as; a guess, for the time left alone
SHARED_FROM_PART = 0.12  # of the tokens; `tests/performance --only shared_prefix` measures what sharing gains


@dataclass(frozen=True)
class EvaluationBatch:
    """Examples padded on the right; `rows` are their numbers in the pool, `input_ids` (rows, length).

    `prompt_lengths` (rows,) are those of the prompts without the shared prefix, at least 1. `targets` (targets,) are
    the answers' tokens, the first row's, then the second's, …; `target_rows` their rows and `target_columns` the
    columns that predict them, counted from the end (negative). `limits` (rows,): the most tokens to generate. `work`:
    about how much there is to do, in tokens read: those of the batch, and for writing an answer as long as the longest.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    prompt_lengths: Tensor
    targets: Tensor
    target_rows: Tensor
    target_columns: Tensor
    limits: Tensor
    work: int = 0

    def to(self, device: torch.device) -> EvaluationBatch:
        """The same batch on another device."""
        return replace(self, **{n: v.to(device) for n, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Reading:
    """Batches that go on from one prefix: `prefix_ids` (1, length), or None where nothing is shared."""

    prefix_ids: Tensor | None
    batches: Sequence[EvaluationBatch]


def plan_readings(
    objectives: Sequence[Objective], token_budget: int, share: bool | None, padding: int, device: torch.device
) -> list[Reading]:
    """Cut the pooled examples of all objectives into batches of at most `token_budget` padded tokens.

    Objectives of one task whose prompts begin alike go on from a common prefix where that saves enough (`share` None),
    wherever they do (True), or never (False); all others are pooled. An example longer than the budget is alone.
    """
    encoded = [e for o in objectives for e in o.encoded]
    limits = [o.task.max_new_tokens for o in objectives for _ in o.encoded]
    by_task: dict[str, list[int]] = {}
    for i, name in enumerate(o.name for o in objectives for _ in o.encoded):
        by_task.setdefault(name, []).append(i)
    pools: dict[tuple[int, ...], list[int]] = {}
    for members in by_task.values():
        prefix = common_prefix([encoded[i] for i in members])
        if share is False or (share is None and not _pays(len(prefix), [encoded[i] for i in members])):
            prefix = ()
        pools.setdefault(prefix, []).extend(members)
    readings = []
    for prefix, members in pools.items():
        lengths = [len(encoded[i]) - 1 - len(prefix) for i in members]
        batches = [
            _batch([members[j] for j in group], encoded, limits, len(prefix), padding).to(device)
            for group in cut_by_length(lengths, token_budget)
        ]
        readings.append(Reading(torch.tensor([prefix], device=device) if prefix else None, batches))
    return readings


def common_prefix(examples: Sequence[EncodedExample]) -> tuple[int, ...]:
    """The tokens that all prompts begin with, of each prompt at least the last left out; a single example shares none.

    >>> common_prefix([EncodedExample((5, 6, 7), (1,)), EncodedExample((5, 6, 8), (1,)), EncodedExample((5, 6), (2,))])
    (5,)
    """
    if len(examples) < 2:
        return ()
    first, last = (chosen(e.prompt_ids for e in examples) for chosen in (min, max))
    most = min(len(e.prompt_ids) for e in examples) - 1
    length = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:length]


def longest(objectives: Sequence[Objective]) -> int:
    """Tokens that are read of the longest example."""
    return max(len(e) - 1 for o in objectives for e in o.encoded)


def _pays(length: int, examples: Sequence[EncodedExample]) -> bool:
    saved = length * (len(examples) - 1)
    return length >= SHARED_FROM_TOKENS and saved >= SHARED_FROM_PART * sum(len(e) - 1 for e in examples)


def _batch(
    members: Sequence[int], encoded: Sequence[EncodedExample], limits: Sequence[int], skipped: int, padding: int
) -> EvaluationBatch:
    read = [encoded[i].prompt_ids[skipped:] + encoded[i].answer_ids[:-1] for i in members]
    length = max(map(len, read))
    ids = torch.full((len(members), length), padding, dtype=torch.long)
    for row, tokens in enumerate(read):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    prompts = [len(encoded[i].prompt_ids) - skipped for i in members]
    answers = [encoded[i].answer_ids for i in members]
    columns = [range(n - 1 - length, n - 1 - length + len(a)) for n, a in zip(prompts, answers, strict=True)]
    return EvaluationBatch(
        tuple(members),
        ids,
        torch.tensor(prompts),
        torch.tensor([token for answer in answers for token in answer]),
        torch.tensor([row for row, answer in enumerate(answers) for _ in answer]),
        torch.tensor([column for of_row in columns for column in of_row]),
        torch.tensor([limits[i] for i in members]),
        ids.numel() + STEP_TOKENS * max(min(limits[i], len(encoded[i].answer_ids)) for i in members),
    )
