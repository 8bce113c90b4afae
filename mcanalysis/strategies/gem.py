"""Gradient episodic memory: the step must not raise the loss on the memory of any earlier task, to first order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import dot
from mcanalysis.replay.task_memory import TaskMemory
from mcanalysis.strategies.strategy import GradientOf, Strategy, StrategyConfig


@dataclass(frozen=True)
class GemConfig(StrategyConfig):
    """Settings of GEM.

    `memory_per_task`: examples remembered of each task (256) and `margin` (m), 0.5, are those of the authors' runs.
    `examples_per_step`: how many of each past task's memory its gradient is taken of, drawn anew each step; None, the
    authors' way, takes all, and a step of the eighth task then costs 7 · 256 examples more.
    """

    memory_per_task: int = 256
    margin: float = 0.5
    examples_per_step: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise UserError(
                f"Expected a finite margin of at least 0, got {self.margin}; choose 0 to forbid conflict only."
            )
        if self.examples_per_step is not None and self.examples_per_step < 1:
            raise UserError(
                f"Expected examples_per_step of at least 1, got {self.examples_per_step}; leave it out to use the "
                "whole memory."
            )


def solve_dual(P: NDArray[np.float64], q: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """Return argmin ½vᵀPv + qᵀv subject to v ≥ margin, where P = GGᵀ and q = Gg.

    With D = diag(√P_kk) and v = margin + D⁻¹y the problem is ½yᵀCy + cᵀy, y ≥ 0, for the matrix C of the cosines: a
    non-negative least-squares problem in the root of C, solved by the (finite) active-set method of Lawson & Hanson.
    The scaling keeps a task whose gradient has nearly vanished from being lost in rounding.

    Args:
        P: shape (k, k), symmetric, positive semi-definite.
        q: shape (k,), in the range of P.
        margin: at least 0.

    Returns:
        shape (k,). Where P is singular several v are optimal; Gᵀv is the same for all of them.

    >>> solve_dual(np.eye(2), np.array([-3.0, 1.0]), margin=0.0)
    array([3., 0.])
    """
    there = np.diag(P) > 0  # a gradient of zero adds nothing, whatever its v
    v = np.full(len(q), float(margin))
    if there.any():
        v[there] = _of_gradients(P[np.ix_(there, there)], q[there], margin)
    return v


def _of_gradients(P: NDArray[np.float64], q: NDArray[np.float64], margin: float) -> NDArray[np.float64]:
    """`solve_dual` where no gradient is 0."""
    D = np.sqrt(np.diag(P))
    values, vectors = np.linalg.eigh(P / np.outer(D, D))
    kept = values > len(P) * np.finfo(np.float64).eps * values[-1]
    root = np.sqrt(values[kept])
    c = vectors[:, kept].T @ ((margin * P.sum(axis=1) + q) / D)
    y, _ = nnls(root[:, None] * vectors[:, kept].T, -c / root, maxiter=100 * len(P))
    return margin + y / D


class Gem(Strategy):
    """If g·g_k < 0 for any past task k: g ← g + Gᵀv, v = argmin ½vᵀGGᵀv + (Gg)ᵀv subject to v ≥ m.

    The rows g_k of G are the gradients on the memories of the past tasks, computed anew at each step; each is one
    vector over all trained parameters and of the mean loss per target token, as is g, which is of the whole accumulated
    batch and edited before it is clipped. At m = 0 the result is the nearest vector with no negative product; m > 0
    adds at least m·g_k of *every* past task once one conflicts. Adam and clipping come after, so it is the gradient
    that does not conflict, not the step. A memory holds its task's last examples, each once.

    >>> Gem.config_class()
    GemConfig(memory_per_task=256, margin=0.5, examples_per_step=None)
    """

    name = "gem"
    reference = "Lopez-Paz & Ranzato 2017, arXiv 1706.08840"
    config_class = GemConfig
    # 0.5 is the authors', 0.1 LLMCL's, 0 the rule without a margin; 1 is ours.
    searched = {"margin": (0.0, 0.1, 0.5, 1.0)}
    edits_gradient = True

    def __init__(self, config: GemConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.memory = TaskMemory(config.memory_per_task, seed)
        self.num_steps = 0

    def edit_gradient(self, gradient: dict[str, Tensor], gradient_of: GradientOf) -> dict[str, Tensor]:
        G = [gradient_of(examples) for examples in self._draw()]
        q = np.array([dot(gradient, g) for g in G])
        if not (q < 0).any():
            return gradient
        P = np.array([[dot(a, b) for b in G] for a in G])
        if not np.isfinite([*P.flat, *q]).all():  # let the trainer stop, which knows the step and the task
            return gradient
        edited = dict(gradient)
        for g, v in zip(G, solve_dual(P, q, self.config.margin), strict=True):
            edited = {name: e.add(g[name], alpha=float(v)) for name, e in edited.items()}
        return edited

    def kept_examples(self) -> list[EncodedExample]:
        return [example for memory in self.memory.examples.values() for example in memory]

    def _draw(self) -> list[list[EncodedExample]]:
        """Examples of each past task; by seed and step alone, so that there is no random state to save."""
        number = self.config.examples_per_step
        rng = Random(f"gem/{self.seed}/{self.num_steps}")
        past = self.memory.before(self.task_index)
        return [m if number is None or len(m) <= number else rng.sample(m, number) for m in past]

    def after_step(self, model: LoraModel, examples: Sequence[EncodedExample], first_pass: Sequence[bool]) -> None:
        self.memory.remember(examples, first_pass, self.task_index)
        self.num_steps += 1

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"num_steps": self.num_steps, "memory": self.memory.state()}

    def load_state(self, model: LoraModel, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.num_steps = int(values["num_steps"])
        self.memory.load_state(values["memory"])
