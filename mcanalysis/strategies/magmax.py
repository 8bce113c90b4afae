"""MagMax: sequential fine-tuning, and one adapter of the largest change that each weight has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.merging import magmax, with_one_rank
from mcanalysis.params.point import Point
from mcanalysis.strategies.strategy import Strategy, StrategyConfig


@dataclass(frozen=True)
class MagMaxConfig(StrategyConfig):
    """Settings of MagMax.

    `scale`: what the merged ΔW is multiplied by; 0.5 in all evaluations of the authors' code, which are of vision
    models. `rank`: of the merged adapter, which is then the nearest one; None for an exact one, whose rank is a layer's
    whole width.
    """

    scale: float = 0.5
    rank: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UserError(f"Expected a finite scale, got {self.scale}; leave it out to use 0.5.")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"Expected a rank of at least 1, got {self.rank}; leave it out to merge exactly.")


class MagMax(Strategy):
    """ΔW_merged = scale · ΔW_{i*}, i* per entry the task after which |ΔW_i| was largest (the last of equal ones).

    One adapter is trained on task after task, as by `sequential`; ΔW_i = B_i·A_i is its whole change of the base after
    task i, not that of task i alone. The authors merge all weights of a model; here it is done in ΔW, those weights
    that an adapter changes, and never on the factors: (B·R, R⁻¹·A) is the same adapter, and has to merge alike.
    Training goes on from the trained adapter, not from the merged one, which answers.

    Where `rank` cuts the merged adapter, `report` says how far it is off, ‖ΔW − ΔW_rank‖ / ‖ΔW‖ after each task.

    The paper's text was not read; the rule is that of the authors' code (danielm1405/magmax, `merge_max_abs`).

    >>> MagMax.learners, MagMax(MagMaxConfig(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "magmax"
    reference = "Marczak et al. 2024, arXiv 2407.06322"
    config_class = MagMaxConfig
    learners = ("fast", "merged")
    resting_learners = ("merged",)

    def __init__(self, config: MagMaxConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.adapters: list[Point] = []  # low ranks; the largest entries themselves would be as large as the layers

    @property
    def answering_learner(self) -> str:
        return "merged"

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        self.adapters.append(model.point())
        if self.config.rank is not None:
            self.report.setdefault("truncation_error", []).append(self._merged()[1])

    def _merged(self) -> tuple[Point, float]:
        """The merged adapter and how far it is off."""
        merged, rank = magmax(self.adapters, self.config.scale), self.config.rank
        cut, error = (merged, 0.0) if rank is None else truncate(merged, rank)
        return with_one_rank(cut), error

    def save_learner(self, model: LoraModel, learner: str, directory: Any) -> None:
        model.save(directory, self._merged()[0] if learner == "merged" else None)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"{i}/{k}": v for i, adapter in enumerate(self.adapters) for k, v in adapter.items()}
        return tensors, {"report": self.report}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        number = len(tensors) // len(model.parameters)
        self.adapters = [{k: tensors[f"{i}/{k}"].to(model.device) for k in model.parameters} for i in range(number)]
        self.report = dict(values["report"])
