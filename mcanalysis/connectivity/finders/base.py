"""What a finder is: along what each step of a fit moves the bends of a curve; `fit_curve` does the rest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mcanalysis.connectivity.curve_gradient import Loss, set_gradients
from mcanalysis.errors import UserError
from mcanalysis.params.point import Point
from mcanalysis.paths.base import Curve
from mcanalysis.paths.polychain import PolyChain
from mcanalysis.registry import Registry


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit under way: `curve` goes through `bends`, whose tensors that require gradients are trained in place.

    `begun` are the bends that the fit was given, before the jitter that `bends` start with. `num_gradients`: how often
    the gradient of the loss at a point may be asked for (`ts_per_step` times as often by the finder `mean`).
    """

    curve: Curve
    begun: Sequence[Point]
    bends: Sequence[Point]
    loss: Loss
    num_gradients: int
    ts_per_step: int
    warmup_fraction: float
    generator: torch.Generator

    def trained(self, bend: int) -> Point:
        """The tensors of a bend (from 0) that are trained."""
        return {name: tensor for name, tensor in self.bends[bend].items() if tensor.requires_grad}

    def anchor(self, number: int) -> Point:
        """The same tensors of an anchor of the curve, in their dtype: 0 is the start, the last one the end."""
        like, anchor = self.trained(0), self.curve.anchors[number]
        return {name: anchor[name].detach().to(tensor.dtype) for name, tensor in like.items()}


class Finder(ABC):
    """A rule by which bends are found; `get_finder` finds a subclass under its class attribute `name`.

    `fit_curve` makes one per fit and calls `set_gradients` once per step, before its optimizer's; it draws the jitter,
    clips, counts, checkpoints and resumes. All that a step depends on are the bends, the number of the step and
    `fit.generator`, so that a fit that was stopped goes on exactly: a finder keeps nothing else from step to step.
    """

    name: ClassVar[str]
    of_chains: ClassVar[bool] = True
    """Whether it needs a `PolyChain`, whose bends are points of the path."""
    tells_rest: ClassVar[bool] = True
    """Whether all bends move in the last steps, so that their gradient tells if the fit came to rest."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _FINDERS.add(cls.name, cls)

    def __init__(self, fit: Fit) -> None:
        self.fit = fit

    @classmethod
    def check(cls, kind: type, num_bends: int, num_gradients: int) -> None:
        """Raise `UserError` for a kind of path that it cannot find, or fewer gradients than bends to move."""
        if cls.of_chains and not issubclass(kind, PolyChain):
            raise UserError(
                f"Expected a chain for the finder {cls.name}, which moves points of the path, got {kind.__name__}; "
                "take PolyChain (--paths polychain-factor) or the finder mean."
            )
        if cls.of_chains and num_gradients < num_bends:
            raise UserError(
                f"Expected at least one step for each of the {num_bends} bends that {cls.name} moves, got "
                f"{num_gradients}; raise num_steps (--curve-steps) or take fewer bends."
            )

    @property
    def num_steps(self) -> int:
        """The optimizer's steps."""
        return self.fit.num_gradients

    @abstractmethod
    def set_gradients(self, step: int) -> float:
        """Write what the bends are moved against into the `grad` of their tensors (None: not moved), and return a loss.

        `step` counts from 1 to `num_steps`. Bends may be placed anew here (under `torch.no_grad`, in place).
        """

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step counted from 0, in [0, 1]."""
        return warmup_then_cosine(step, self.num_steps, self.fit.warmup_fraction)


class StagedFinder(Finder):
    """Bends found one after another, each in an equal share of the steps with a schedule of its own."""

    tells_rest = False

    @abstractmethod
    def order(self) -> Sequence[int]:
        """The bends, from 0, in the order in which they are found."""

    @abstractmethod
    def place(self, stage: int, bend: int) -> None:
        """Put a bend where its stage begins, in place."""

    def hold(self, stage: int, bend: int) -> None:
        """Put it back onto what it may not leave, before each of its steps."""

    def set_gradients(self, step: int) -> float:
        """The gradient at one bend; the others stay."""
        stage = self._stage(step - 1)
        bend = self.order()[stage]
        with torch.no_grad():
            if step - 1 == self._begin(stage):
                self.place(stage, bend)
            self.hold(stage, bend)
        for other in self.fit.bends:
            for tensor in other.values():
                tensor.grad = None
        tensors = list(self.fit.trained(bend).values())
        return set_gradients(tensors, self.fit.curve, self.fit.loss, [self.fit.curve.knots[bend + 1]], step)

    def rate(self, step: int) -> float:
        """Warm-up and cosine within the stage."""
        stage = min(self._stage(step), len(self.fit.bends) - 1)  # the optimizer's schedule asks once past the end
        begin, end = self._begin(stage), self._begin(stage + 1)
        return warmup_then_cosine(min(step, end) - begin, end - begin, self.fit.warmup_fraction)

    def _stage(self, step: int) -> int:
        return step * len(self.fit.bends) // self.num_steps

    def _begin(self, stage: int) -> int:
        return -(-stage * self.num_steps // len(self.fit.bends))

    def _put(self, bend: int, place: Point) -> None:
        """Move a bend to a place, and from there by its jitter, which it still has from the start of the fit."""
        for name, tensor in self.fit.trained(bend).items():
            tensor.add_(place[name] - self.fit.begun[bend][name].to(tensor))


def warmup_then_cosine(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Return the factor of a learning rate at a step counted from 0: a linear rise, then a cosine to zero.

    >>> [round(warmup_then_cosine(step, 4, 0.0), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    num_warmup = math.floor(warmup_fraction * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def get_finder(name: str) -> type[Finder]:
    """Return the finder registered under a name; raises `UnknownNameError` if there is none.

    >>> get_finder("neb").of_chains
    True
    """
    return _FINDERS.get(name)


def finder_names() -> list[str]:
    """Return the names of all registered finders, sorted.

    >>> {"bisection", "layerwise", "mean", "neb"} <= set(finder_names())
    True
    """
    return _FINDERS.names()


_FINDERS: Registry[type[Finder]] = Registry("finder", "mcanalysis.connectivity.finders", group="mcanalysis.finders")
