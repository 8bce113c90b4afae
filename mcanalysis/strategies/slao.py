"""SLAO: one adapter, its A started orthonormal from the last one, its B averaged with falling weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.merging import orthonormal_rows
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import MergedAnswers


class Slao(MergedAnswers):
    """Train from (Qᵀ, B_{i−1}), Q·R = Aᵀ_{i−1}; then A_merged = A_i, B_merged += (B_i − B_merged)/√i.

    i counts tasks from 1; the first is ordinary LoRA. Training goes on from the fine-tuned A and B, not from the merged
    ones; the merged adapter answers. The start of a task is not the function the last one ended with: R is dropped.

    The rule was established from a published reproduction (backpropagate, `slao.py`) and from reviews, which agree but
    for where training starts (docs/strategies.md), not from Algorithm 1 itself. The merge leaves the scaling α/r alone.

    >>> Slao.learners, Slao(Slao.config_class(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "slao"
    reference = "Qiao & Mahdavi 2025, arXiv 2512.23017"

    def __init__(self, config: Any, seed: int) -> None:
        super().__init__(config, seed)
        self.merged: Point = {}

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        for name, parameter in model.parameters.items():
            if ".lora_A." in name:
                orthonormal_rows(parameter)  # a rank above a layer's width is refused now, not after the first task

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index > 0:
            with torch.no_grad():
                for name, parameter in model.parameters.items():
                    if ".lora_A." in name:
                        parameter.copy_(orthonormal_rows(parameter))

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        tuned = model.point()
        if self.task_index > 0:
            weight = 1 / math.sqrt(self.task_index + 1)
            tuned |= {k: torch.lerp(self.merged[k], v, weight) for k, v in tuned.items() if ".lora_B." in k}
        self.merged = tuned

    def merged_point(self) -> Point:
        return self.merged

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.merged, {}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.merged = {k: v.to(model.device) for k, v in tensors.items()}
