"""OPCM: adapters trained apart are merged one after another, each clear of the directions that are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.lora import delta_norm
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.merging import with_one_rank
from mcanalysis.params.point import Point
from mcanalysis.params.projected_sum import projected_sum
from mcanalysis.strategies.strategy import MergedAnswers, StrategyConfig


@dataclass(frozen=True)
class OpcmConfig(StrategyConfig):
    """Settings of OPCM.

    `alpha` (α): the share of the singular values' sum whose leading directions a new ΔW has to keep clear of (0.5, the
    authors' configuration, for vision models and for Flan-T5).
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"Expected alpha in [0, 1], got {self.alpha}; leave it out to use 0.5.")


class Opcm(MergedAnswers):
    """S_1 = ΔW_1, S_t = S_{t−1} + P_{t−1}(ΔW_t); ΔW_merged = S_t·(mean_{i≤t} ‖ΔW_i‖) / ‖S_t‖, which answers.

    Every task trains from the same fresh adapter, as the authors' models from one base, so its result does not depend
    on its place; that of the merge does. P takes out of ΔW_t what lies among the leading directions of S_{t−1}
    (`projected_sum`, which says where it differs from the authors' code). Norms are over all modules together; the
    factor, 1/λ_t in the paper, keeps the merged adapter as far from the base as a task's own is on average. Only S_t,
    of rank r·t, and a number are kept of the tasks before; `report` has the factors.

    The authors merge all parameters of a model and add those of other layers than linear ones without P; an adapter
    has none. Of the paper only the abstract was read; the rule is that of its authors' code in FusionBench.

    >>> Opcm.learners, Opcm(OpcmConfig(), seed=0).answering_learner
    (('fast', 'merged'), 'merged')
    """

    name = "opcm"
    reference = "Tang et al. 2025, arXiv 2501.09522"
    config_class = OpcmConfig
    # 0.5 is the authors'; the others are ours.
    searched = {"alpha": (0.25, 0.5, 0.75)}

    def __init__(self, config: OpcmConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.total: Point = {}
        self.report = {"norms": [], "factors": []}

    def begin_task(self, model: LoraModel, task_index: int, examples: Sequence[EncodedExample]) -> None:
        super().begin_task(model, task_index, examples)
        model.fresh(self.seed)

    def end_task(self, model: LoraModel, examples: Sequence[EncodedExample]) -> None:
        own, norms = model.point(), self.report["norms"]
        self.total = projected_sum(self.total, own, self.config.alpha) if self.total else own
        norms.append(delta_norm(own))
        size = delta_norm(self.total)
        self.report["factors"].append(sum(norms) / len(norms) / size if size else 1.0)

    def merged_point(self) -> Point:
        return with_one_rank(concatenate([self.total], [self.report["factors"][-1]]))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.total, {"report": self.report}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.total = {k: v.to(model.device) for k, v in tensors.items()}
        self.report = dict(values["report"])
