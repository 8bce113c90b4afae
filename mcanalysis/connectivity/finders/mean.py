"""The curve whose mean loss over t is small (Garipov et al. 2018, arXiv 1802.10026)."""

from __future__ import annotations

import torch

from mcanalysis.connectivity.curve_gradient import set_gradients
from mcanalysis.connectivity.finders.base import Finder


class Mean(Finder):
    """The mean loss over t is minimised, one random t in each stratum of [0, 1] per step; for every kind of curve."""

    name = "mean"
    of_chains = False

    def set_gradients(self, step: int) -> float:
        """The gradient of the mean over the step's t."""
        fit = self.fit
        tensors = [tensor for bend in range(len(fit.bends)) for tensor in fit.trained(bend).values()]
        return set_gradients(tensors, fit.curve, fit.loss, _stratified(fit.ts_per_step, fit.generator), step)


def _stratified(num: int, generator: torch.Generator) -> list[float]:
    """One uniform draw in each of `num` equal strata of [0, 1]."""
    return [(i + u) / num for i, u in enumerate(torch.rand(num, generator=generator, dtype=torch.float64).tolist())]
