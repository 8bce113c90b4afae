"""Model merging: an adapter for each task, trained apart, and one made of what they do to the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.merging import average, task_arithmetic, ties, with_one_rank
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class MergeConfig(StrategyConfig):
    """Settings of merging.

    `method`: the mean of the ΔW; `task_arithmetic`, `scale` times their sum; or `ties`. `scale`: both papers choose it
    on validation data (0.1 to 1 for task arithmetic, 0.8 to 2.5 for TIES); 1 leaves it out. `density`: the part of a
    ΔW's entries that TIES keeps (0.2, the paper's). `rank`: of the merged adapter, which is then the nearest one; None
    for an exact one, whose rank is the sum of ranks, and for TIES a layer's whole width.
    """

    method: Literal["average", "task_arithmetic", "ties"] = "average"
    scale: float = 1.0
    density: float = 0.2
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.method not in ("average", "task_arithmetic", "ties"):
            raise UserError(
                f"Expected method to be average, task_arithmetic or ties, got '{self.method}'; choose one of these."
            )
        if not math.isfinite(self.scale):
            raise UserError(f"Expected a finite scale, got {self.scale}; choose 1 for no scaling.")
        if not 0 < self.density <= 1:
            raise UserError(f"Expected a density in (0, 1], got {self.density}; leave it out to use 0.2.")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"Expected a rank of at least 1, got {self.rank}; leave it out to merge exactly.")


class Merge(Strategy):
    """After each task the merged adapter is made anew of the adapters so far, in ΔW = B·A, and answers.

    Every task trains from the same fresh adapter, so its result does not depend on its place. Where `rank` cuts the
    merged adapter, `report` says how far it is off, ‖ΔW − ΔW_rank‖ / ‖ΔW‖ after each task.

    >>> Merge.learners, Merge(MergeConfig(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "merge"
    reference = "task arithmetic: Ilharco et al. 2023, arXiv 2212.04089; TIES: Yadav et al. 2023, arXiv 2306.01708"
    config_class = MergeConfig
    learners = ("fast", "merged")
    resting_learners = ("merged",)

    def __init__(self, config: MergeConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.adapters: list[Point] = []

    @property
    def answering_learner(self) -> str:
        return "merged"

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        model.fresh(self.seed)

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        self.adapters.append(model.point())
        if self.config.rank is not None:
            self.report.setdefault("truncation_error", []).append(self._merged()[1])

    def _merged(self) -> tuple[Point, float]:
        """The merged adapter and how far it is off."""
        config = self.config
        if config.method == "average":
            merged = average(self.adapters)
        elif config.method == "task_arithmetic":
            merged = task_arithmetic(self.adapters, config.scale)
        else:
            merged = ties(self.adapters, config.density, config.scale)
        error = 0.0
        if config.rank is not None:
            merged, error = truncate(merged, config.rank)
        return with_one_rank(merged), error

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self._merged()[0] if learner == "merged" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{i}/{k}": v for i, adapter in enumerate(self.adapters) for k, v in adapter.items()}
        return tensors, {"report": self.report}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.adapters = []
        number = len(tensors) // len(model.parameters)
        for i in range(number):
            self.adapters.append({k: tensors[f"{i}/{k}"].to(model.device) for k in model.parameters})
        self.report = dict(values["report"])
