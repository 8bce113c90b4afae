"""Evaluating points: every objective at one setting of the weights, loss and greedy generation in few batches.

- All examples of all objectives asked for are pooled, sorted by length and batched by a token budget, once per set of
  objectives and not once per point.
- LoRA is merged in float32 and float64, unmerged where merging would round it away.
- The pass that gives the loss also says where every answer token is the most likely one. There greedy decoding would
  write exactly the reference, end token included, so only the other examples are generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mcanalysis.evaluation.objective import Objective
from mcanalysis.metrics.scores import get_score
from mcanalysis.models.encoding import Batch, EncodedExample, collate, collate_prompts, pad_id
from mcanalysis.models.forward import forward
from mcanalysis.models.lora_model import LoraModel
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

    def __init__(self, model: LoraModel, token_budget: int = 4096) -> None:
        self.model = model
        self.token_budget = token_budget
        self._merge = model.can_merge()
        self._batches: dict[tuple[int, ...], list[tuple[list[int], Batch]]] = {}
        self._kept: list[Objective] = []  # keeps the ids used as keys above from being reused

    def evaluate(self, point: Mapping[str, Tensor], objectives: Sequence[Objective]) -> list[Evaluation]:
        """Loss (nats per target token) and score (in [0, 1]) of every objective at a point, in the order given."""
        encoded = [e for o in objectives for e in o.encoded]
        owners = [o for o in objectives for _ in o.encoded]
        place = self.model.merged if self._merge else self.model.unmerged
        training = self.model.peft.training
        self.model.peft.eval()
        try:
            with torch.inference_mode(), place(point) as base:
                nll, targets, correct = self._losses(base, objectives, encoded)
                written = [
                    bool(c) and len(e.answer_ids) <= o.task.max_new_tokens
                    for c, e, o in zip(correct, encoded, owners, strict=True)
                ]
                generated = self._generate(base, encoded, owners, [i for i, w in enumerate(written) if not w])
        finally:
            self.model.peft.train(training)
        results, start = [], 0
        for objective in objectives:
            indices = range(start, start + len(objective.encoded))
            start += len(objective.encoded)
            outputs = [objective.examples[n].answer if written[i] else generated[i] for n, i in enumerate(indices)]
            results.append(_score(objective, outputs, nll[indices], targets[indices]))
        return results

    def _losses(
        self, base: nn.Module, objectives: Sequence[Objective], encoded: Sequence[EncodedExample]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        nll = np.empty(len(encoded))
        targets = np.empty(len(encoded), dtype=np.int64)
        correct = np.empty(len(encoded), dtype=bool)
        for indices, batch in self._batched(objectives, encoded):
            result = forward(base, batch)
            nll[indices] = result.nll.double().cpu().numpy()
            targets[indices] = result.num_targets.cpu().numpy()
            correct[indices] = result.correct.cpu().numpy()
        return nll, targets, correct

    def _batched(
        self, objectives: Sequence[Objective], encoded: Sequence[EncodedExample]
    ) -> list[tuple[list[int], Batch]]:
        key = tuple(id(o) for o in objectives)
        if key not in self._batches:
            padding, device = pad_id(self.model.tokenizer), self.model.device
            order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), len(encoded[i].answer_ids)))
            self._batches[key] = [
                (group, collate([encoded[i] for i in group], padding).to(device))
                for group in self._groups(order, [len(e) for e in encoded])
            ]
            self._kept += objectives
        return self._batches[key]

    def _groups(self, order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Cut an order of rising length into groups whose padded size keeps within the budget."""
        groups: list[list[int]] = []
        for i in order:
            if not groups or lengths[i] * (len(groups[-1]) + 1) > self.token_budget:
                groups.append([])
            groups[-1].append(i)
        return groups

    def _generate(
        self,
        base: nn.Module,
        encoded: Sequence[EncodedExample],
        owners: Sequence[Objective],
        indices: Sequence[int],
    ) -> dict[int, str]:
        tokenizer, device = self.model.tokenizer, self.model.device
        padding = pad_id(tokenizer)
        texts: dict[int, str] = {}
        for limit in sorted({owners[i].task.max_new_tokens for i in indices}):
            chosen = [i for i in indices if owners[i].task.max_new_tokens == limit]
            chosen.sort(key=lambda i: len(encoded[i].prompt_ids))
            for group in self._groups(chosen, [len(e.prompt_ids) + limit for e in encoded]):
                batch = collate_prompts([encoded[i] for i in group], padding).to(device)
                new = greedy(base, batch, limit, tokenizer.eos_token_id, padding)
                for i, ids in zip(group, new.tolist(), strict=True):
                    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
                    texts[i] = tokenizer.decode(ids[:end], skip_special_tokens=True)
        return texts


def greedy(model: nn.Module, prompts: Batch, max_new_tokens: int, end: int, padding: int) -> Tensor:
    """The most likely continuation, token by token, with the KV cache; rows that have ended are padded.

    A plain `generate` call with every sampling option switched off, whatever the model's own defaults are.
    Returns (examples, at most max_new_tokens) ids.
    """
    from transformers import GenerationConfig

    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=padding
    )
    output = model.generate(  # type: ignore[operator]
        input_ids=prompts.input_ids, attention_mask=prompts.mask(), generation_config=config
    )
    return output[:, prompts.input_ids.shape[1] :]


def _score(objective: Objective, outputs: Sequence[str], nll: np.ndarray, targets: np.ndarray) -> Evaluation:
    score = get_score(objective.task.score)
    scores = np.array(
        [
            score.per_example(output, example.answer, objective.task.source(example.prompt))
            for output, example in zip(outputs, objective.examples, strict=True)
        ]
    )
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
