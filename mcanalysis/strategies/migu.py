"""MIGU: a step changes only the weights behind the largest outputs of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.strategies.strategy import GradientOf, Step, Strategy, StrategyConfig


@dataclass(frozen=True)
class MiguConfig(StrategyConfig):
    """Settings of MIGU.

    `threshold` (T): the part of each matrix's rows that a step leaves alone (0.7, the best in the paper's ablation,
    for LoRA too, and the value of the authors' scripts); 0 is ordinary training.
    """

    threshold: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise UserError(
                f"Expected a threshold in [0, 1), got {self.threshold}; leave it out to use 0.7, or choose 0 to mask "
                "nothing."
            )


class Migu(Strategy):
    """From the second task on the gradient is g ⊙ M: of each matrix's d rows the ⌊T·d⌋ of least output stay masked.

    A row's output is Σ|h_i| over the tokens of the step, padding left out. Divided by the layer's sum it is the paper's
    L1-normalised magnitude, which orders the rows alike. For A (rows: ranks) h = A·x; for B (rows: outputs of the
    layer) it is the whole layer's output, W·x + (α/r)·B·A·x, as the paper says. One adapter is trained on task after
    task, as by `sequential`.

    The gradient of the whole accumulated batch is masked before it is clipped, as the authors do; Adam comes after, and
    moves a masked row on while its moments last. Their code counts padding too and cuts at a quantile, which may mask
    one row more. That masking starts with the second task is from that code; the paper is silent. (Its LoRA script,
    commit 3f3b9f0, imports a function that is not there, so no code of theirs for LoRA was followed.)

    >>> Migu.config_class()
    MiguConfig(threshold=0.7)
    """

    name = "migu"
    reference = "Du et al. 2024, arXiv 2406.17245"
    config_class = MiguConfig
    # 0.7 is the paper's and its scripts'; the others are ours.
    searched = {"threshold": (0.3, 0.5, 0.7, 0.9)}
    edits_gradient = True

    def __init__(self, config: MiguConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._sizes: dict[str, Tensor] = {}  # of the rows' outputs, in this process; of one step alone

    @property
    def _masks(self) -> bool:
        return self.task_index > 0 and self.config.threshold > 0

    def loss(self, step: Step) -> Tensor:
        if not self._masks:
            return super().loss(step)
        with step.model.summing_outputs(step.batch, self._sizes):
            return super().loss(step)

    def edit_gradient(self, gradient: dict[str, Tensor], gradient_of: GradientOf) -> dict[str, Tensor]:
        if not self._masks:
            return gradient
        sizes, self._sizes = _of_all_processes(self._sizes), {}
        if sizes.keys() != gradient.keys():
            raise UserError(
                f"Expected the outputs of all {len(gradient)} adapted matrices in a step, got {len(sizes)}; leave out "
                "--torch-compile, which may not see who listens, and layers that take no part in a step."
            )
        return {name: g * self._mask(sizes[name])[:, None] for name, g in gradient.items()}

    def _mask(self, size: Tensor) -> Tensor:
        num_masked = math.floor(self.config.threshold * len(size) + 1e-9)  # 0.7 · 90 is 62.999…
        return size >= size.kthvalue(num_masked + 1).values


def _of_all_processes(sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each process has seen its share of the rows, and all have to mask alike."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for name in sorted(sizes):
            torch.distributed.all_reduce(sizes[name])
    return dict(sizes)
