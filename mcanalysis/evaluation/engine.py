"""Evaluating points: every objective at one setting of the weights, loss and greedy answers in few batches.

- The examples of all objectives asked for are pooled, sorted by length and batched by a token budget, once per set of
  objectives and not once per point.
- LoRA is merged in float32 and float64, unmerged where merging would round it away.
- Prompts are read once for the loss and for generation, and only answers that greedy decoding would not reproduce are
  decoded at all (`batch_pass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcanalysis.evaluation.batch_pass import EvaluationBatch, run_batch
from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.encoding import pad_id
from mcanalysis.store.measurements import Measurement


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One objective at one point: the numbers, what the model wrote, and how many outputs could not be parsed."""

    measurement: Measurement
    outputs: tuple[str, ...]
    num_unparsable: int


class Engine:
    """Evaluates points of one model; keeps tokenised batches between points.

    `token_budget` bounds the padded tokens of a batch (at least one example), hence the memory.
    """

    def __init__(self, model: AdaptedModel, token_budget: int = 2048) -> None:
        self.model = model
        self.token_budget = token_budget
        self._batches: dict[tuple[int, ...], list[EvaluationBatch]] = {}
        self._scored: dict[int, dict[tuple[int, str], float]] = {}
        self._kept: list[Objective] = []  # keeps the ids used as keys above from being reused

    def evaluate(self, point: Mapping[str, Tensor], objectives: Sequence[Objective]) -> list[Evaluation]:
        """Loss (nats per target token) and score (in [0, 1]) of every objective at a point, in the order given."""
        total = sum(len(o.encoded) for o in objectives)
        nll, targets = np.empty(total), np.empty(total, dtype=np.int64)
        outputs: list[str] = [""] * total
        tokenizer = self.model.tokenizer
        training = self.model.network.training
        self.model.network.eval()
        try:
            with torch.no_grad(), self.model.in_place(point) as network:
                for batch in self._batched(objectives):
                    result = run_batch(network, batch, tokenizer.eos_token_id)
                    rows = list(batch.rows)
                    nll[rows] = result.nll.double().cpu().numpy()
                    targets[rows] = result.num_targets.cpu().numpy()
                    for row, ids in zip(rows, result.outputs, strict=True):
                        outputs[row] = _text(tokenizer, ids)
        finally:
            self.model.network.train(training)
        results, start = [], 0
        for objective in objectives:
            part = slice(start, start + len(objective.encoded))
            start = part.stop
            results.append(self._evaluation(objective, outputs[part], nll[part], targets[part]))
        return results

    def _evaluation(
        self, objective: Objective, outputs: Sequence[str], nll: np.ndarray, targets: np.ndarray
    ) -> Evaluation:
        score = get_score(objective.task.score)
        known = self._scored.setdefault(id(objective), {})
        for row, output in enumerate(outputs):
            if (row, output) not in known:  # along a path outputs repeat
                example = objective.examples[row]
                known[row, output] = score.per_example(output, example.answer, objective.task.source(example.prompt))
        scores = np.array([known[row, output] for row, output in enumerate(outputs)])
        measurement = Measurement(
            loss=float(nll.sum() / targets.sum()),
            score=float(scores.mean()),
            num_examples=len(outputs),
            num_targets=int(targets.sum()),
            nll=nll,
            targets=targets,
            scores=scores,
        )
        return Evaluation(measurement, tuple(outputs), sum(not score.parses(o) for o in outputs))

    def _batched(self, objectives: Sequence[Objective]) -> list[EvaluationBatch]:
        key = tuple(id(o) for o in objectives)
        if key not in self._batches:
            encoded = [e for o in objectives for e in o.encoded]
            limits = [o.task.max_new_tokens for o in objectives for _ in o.encoded]
            padding, device = pad_id(self.model.tokenizer), self.model.device
            # Answers of like length share a batch, so that few of them are padding; then prompts of like length.
            order = sorted(
                range(len(encoded)), key=lambda i: (len(encoded[i].answer_ids).bit_length(), len(encoded[i].prompt_ids))
            )
            groups: list[list[int]] = []
            longest = 0
            for i in order:
                longest = max(longest, len(encoded[i])) if groups else len(encoded[i])
                if not groups or longest * (len(groups[-1]) + 1) > self.token_budget:
                    groups.append([])
                    longest = len(encoded[i])
                groups[-1].append(i)
            self._batches[key] = [
                EvaluationBatch.of(g, [encoded[i] for i in g], [limits[i] for i in g], padding).to(device)
                for g in groups
            ]
            self._kept += objectives
        return self._batches[key]


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text up to the first end token (a reference may contain its text)."""
    end = tokenizer.eos_token_id
    kept = list(ids[: ids.index(end)] if end in ids else ids)
    return tokenizer.decode(kept, skip_special_tokens=True)
