"""InfLoRA: each task's adapter reads only directions that earlier tasks did not use."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import Batch, EncodedExample, collate, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.gradient_subspace import GradientSubspace
from mcanalysis.params.lora import key_a
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import Strategy, StrategyConfig

logger = logging.getLogger(__name__)

_BATCH = 16  # examples per pass over the inputs; changes nothing but memory


@dataclass(frozen=True)
class InfLoraConfig(StrategyConfig):
    """Settings of InfLoRA.

    `threshold_start`, `threshold_end`: the part of the inputs' energy that counts as used rises between them over the
    sequence (0.95 and 1, the authors' for CIFAR-100; for T5-Large they have 0.995 and 1). The energy is of the
    squared singular values of the covariance, as in their code, which is far looser than that part of the variance.
    `num_covariance_examples`: of how many train examples, chosen by the seed, the covariance is; None for all.
    `design`: what A_t is, `covariance`, the leading directions of the new task's inputs (the paper, vision); or
    `random`, the rows of an ordinary random A (the authors' code for T5-Large), both in what is free.
    """

    threshold_start: float = 0.95
    threshold_end: float = 1.0
    num_covariance_examples: int | None = None
    design: Literal["covariance", "random"] = "covariance"

    def __post_init__(self) -> None:
        if not 0 < self.threshold_start <= self.threshold_end <= 1:
            raise UserError(
                "Expected 0 < threshold_start ≤ threshold_end ≤ 1, got "
                f"{self.threshold_start} and {self.threshold_end}; leave them out to use 0.95 and 1."
            )
        if self.num_covariance_examples is not None and self.num_covariance_examples < 1:
            raise UserError(
                f"Expected num_covariance_examples of at least 1, got {self.num_covariance_examples}; "
                "leave it out to use all."
            )
        if self.design not in ("covariance", "random"):
            raise UserError(f"Expected design to be covariance or random, got '{self.design}'; choose one of these.")

    def recorded(self) -> dict[str, Any]:
        found = super().recorded()
        if self.design == "covariance":
            del found["design"]  # as in runs of before there was a choice, which it leaves the same runs
        return found


class InfLora(Strategy):
    """ΔW = Σ_t B_t·A_t; A_t = U_rᵀ/√3 is designed before task t and fixed, B_t starts at 0 and alone is trained.

    U_r: the r leading left singular vectors of the covariance of the new task's inputs to the layer, projected onto
    what is orthogonal to the inputs of earlier tasks (`GradientSubspace`). So the new branch adds nothing where earlier
    tasks' inputs lie, as far as the threshold held them. 1/√3 gives rows the norm that an ordinary start of A has on
    average. Inputs are those of all tokens of prompt and answer, padding left out. After the task its inputs join.

    With `design` random, the authors' for language models (liangyanshuo/gainlora), the first A is an ordinary start and
    the rows of later ones are those of another draw, projected onto what is free and of norm 1/√3; the new task's
    inputs are not looked at before it.

    Branches are scaled by α/r as everywhere here and in the authors' code for T5; that for vision does not scale. That
    for T5 also counts padding, and keeps one direction fewer after the first task. The minimum is the sum of the
    branches, an adapter of rank r·t.

    >>> InfLora.config_class()
    InfLoraConfig(threshold_start=0.95, threshold_end=1.0, num_covariance_examples=None, design='covariance')
    """

    name = "inflora"
    reference = "Liang & Li 2024, arXiv 2404.00228"
    config_class = InfLoraConfig
    # The authors' for images, and theirs for T5-Large.
    searched = {"threshold_start": (0.95, 0.995), "design": ("covariance", "random")}

    def __init__(self, config: InfLoraConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.frozen: Point = {}
        self.used: dict[str, GradientSubspace] = {}
        self.num_tasks = 1

    def begin(self, model: LoraModel, num_tasks: int) -> None:
        self.num_tasks = num_tasks

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        if task_index > 0:
            self.frozen = model.whole_point()
            model.freeze(self.frozen)
        if self.config.design == "random":
            model.fresh(self.seed if not task_index else Random(f"inflora/{self.seed}/{task_index}").getrandbits(31))
            for module, used in self.used.items():
                factor = model.parameters[key_a(module)]
                rows = used.projected(factor.detach())
                with torch.no_grad():
                    factor.copy_(normalize(rows, eps=torch.finfo(rows.dtype).tiny) / math.sqrt(3))
        else:
            model.fresh(self.seed)  # B zero
            for module, covariance in self._covariances(model, examples).items():
                used = self.used.get(module) or GradientSubspace.empty(len(covariance), covariance.device)
                factor = model.parameters[key_a(module)]
                with torch.no_grad():
                    factor.copy_(used.leading(covariance, factor.shape[0]) / math.sqrt(3))
        model.train_only_b()
        rows = [model.parameters[key_a(m)].detach().any(dim=1) for m in self.used] if task_index else []
        if idle := sum(int((~of_module).sum()) for of_module in rows):
            logger.warning(
                "inflora: %d of %d rows of A are 0 in task %d, as earlier tasks' inputs leave no direction free, and "
                "learn nothing; lower threshold_start and threshold_end",
                idle,
                sum(map(len, rows)),
                task_index + 1,
            )

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        config, part = self.config, self.task_index / self.num_tasks
        threshold = config.threshold_start + (config.threshold_end - config.threshold_start) * part
        for module, covariance in self._covariances(model, examples).items():
            used = self.used.get(module) or GradientSubspace.empty(len(covariance), covariance.device)
            self.used[module] = used.extended(covariance, threshold)

    def _covariances(self, model: LoraModel, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        number = self.config.num_covariance_examples
        chosen = list(examples)
        if number is not None and number < len(chosen):
            chosen = Random(f"inflora/{self.seed}/{self.task_index}").sample(chosen, number)
        chosen.sort(key=len)

        def batches() -> Iterator[Batch]:
            for start in range(0, len(chosen), _BATCH):
                yield collate(chosen[start : start + _BATCH], pad_id(model.tokenizer)).to(model.device)

        return model.input_covariances(batches())

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, model.whole_point() if model.frozen else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"frozen/{k}": v for k, v in self.frozen.items()}
        tensors |= {f"basis/{m}": space.basis for m, space in self.used.items()}
        return tensors, {"holds_free": {m: space.holds_free for m, space in self.used.items()}}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        here = {k: v.to(model.device) for k, v in tensors.items()}
        self.frozen = {k.removeprefix("frozen/"): v for k, v in here.items() if k.startswith("frozen/")}
        self.used = {m: GradientSubspace(here[f"basis/{m}"], free) for m, free in values["holds_free"].items()}
        model.freeze(self.frozen)
        model.train_only_b()
