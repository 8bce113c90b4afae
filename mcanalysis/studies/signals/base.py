"""What a signal is, and the transition of a run that it is taken from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from mcanalysis.errors import UserError
from mcanalysis.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from mcanalysis.evaluation.representations import Comparison
    from mcanalysis.landscape.hessian import HessianOperator
    from mcanalysis.params.point import Point
    from mcanalysis.runs.run import Run

SPLIT = "train"
"""Signals are taken on train examples, outcomes on test examples: no signal sees what it is to predict."""


@dataclass(frozen=True)
class Signal:
    """A number, or several by the names of `parts`, that is known when a transition is over, or before.

    `measure`: of a `Move`; NaN where there is no such number. `cost`: passes per example, in words. `source`: of the
    formula. `needs_old_data`: whether examples of old tasks are used. `version` counts up when what is computed
    changes, so that results of before are not used.
    """

    name: str
    measure: Callable[[Move], float | Mapping[str, float]]
    cost: str
    source: str
    needs_old_data: bool = False
    parts: tuple[str, ...] = ()
    version: int = 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its numbers in tables: `name`, or `name_part`."""
        return tuple(f"{self.name}_{part}" for part in self.parts) or (self.name,)

    def of(self, move: Move) -> dict[str, float]:
        """Its numbers by column; raises `UserError` where `measure` does not give those it says."""
        found = self.measure(move)
        values = {f"{self.name}_{k}": v for k, v in found.items()} if isinstance(found, Mapping) else {self.name: found}
        if tuple(values) != self.columns:
            raise UserError(
                f"Expected the signal {self.name} to give {', '.join(self.columns)}, got {', '.join(values)}; name "
                "what it gives in its parts."
            )
        return {name: float(value) for name, value in values.items()}


class Move:
    """The `number`-th transition of a run's answering learner, from 1, with what signals share, made when asked for.

    `start` and `end` are adapters filled up to one rank, `update` is ΔW_end − ΔW_start as an adapter, `previous` the
    update before it (from the base, for the first transition). About `num_examples` train examples of the new task, and
    as many of the old tasks together.
    """

    def __init__(self, run: Run, number: int, num_examples: int = 40) -> None:
        from mcanalysis.landscape.predicted_forgetting import same_ranks
        from mcanalysis.runs.transitions import nth_transition

        self.run, self.number, self.num_examples = run, number, num_examples
        self.transition = nth_transition(run, run.answering_learner, number)
        self.start, self.end = same_ranks(*self.transition.points)

    @property
    def old(self) -> tuple[str, ...]:
        """The old tasks."""
        return self.transition.old

    @property
    def num_old_examples(self) -> int:
        """Examples of each old task."""
        return max(1, self.num_examples // len(self.old))

    @cached_property
    def update(self) -> Point:
        return _difference(self.end, self.start)

    @cached_property
    def previous(self) -> Point:
        """The update that led to the start."""
        if self.number == 1:
            return self.start
        return _difference(self.start, self.run.minimum(self.number - 1).point)

    @cached_property
    def base(self) -> Point:
        """The base in the coordinates of the start."""
        from mcanalysis.params.lora import base_point

        return base_point(self.start)

    @cached_property
    def new_loss(self) -> HessianOperator:
        """The new task's loss, with gradient and Hessian at the start."""
        return self._loss([self.transition.new], self.num_examples)

    @cached_property
    def old_loss(self) -> HessianOperator:
        """The mean loss of the old tasks, with gradient and Hessian at the start."""
        return self._loss(list(self.old), self.num_old_examples)

    def new_loss_at(self, point: Point) -> float:
        """The new task's loss at an adapter of any rank."""
        return self._loss_at(point, [self.transition.new], self.num_examples)

    def old_loss_at(self, point: Point) -> float:
        """The mean loss of the old tasks at an adapter of any rank."""
        return self._loss_at(point, list(self.old), self.num_old_examples)

    @cached_property
    def on_new(self) -> Comparison:
        """Start and end compared by what they compute on the new task."""
        return self._compared([self.transition.new], self.num_examples)

    @cached_property
    def on_old(self) -> Comparison:
        """Start and end compared by what they compute on the old tasks."""
        return self._compared(self.old, self.num_old_examples)

    def base_weight(self, module: str) -> Tensor:
        """The base's weight (out, in) of an adapted module; raises `UserError` for a quantised one."""
        from mcanalysis.models.adapter_tensors import PREFIX

        layer: Any = self.run.model.peft.get_submodule(PREFIX + module)
        weight = layer.get_base_layer().weight.detach()
        if not weight.is_floating_point():
            raise UserError(f"Expected weights of floating point in '{module}', got {weight.dtype}; load another base.")
        return weight.T if getattr(layer, "fan_in_fan_out", False) else weight  # GPT-2's Conv1D keeps its weight so

    def early(self) -> tuple[Point, Point] | None:
        """The learner before the first step of the new task and after 5 % of its steps, as stored while training.

        The first snapshot at 5 % or later; None where there is none, or the first one is beyond 10 %.
        """
        from mcanalysis.landscape.predicted_forgetting import same_ranks
        from mcanalysis.runs.snapshots import read_snapshot, snapshot_files

        files = snapshot_files(self.run.directory, self.transition.end, self.run.answering_learner)
        last = max(files, default=0)
        step = next((step for step in files if step >= 0.05 * last and step), None)
        if step is None or step > 0.1 * last or 0 not in files:
            return None
        return same_ranks(read_snapshot(files[0]), read_snapshot(files[step]))

    def _loss_at(self, point: Point, tasks: list[str], num_examples: int) -> float:
        with torch.no_grad():
            return sum(float(loss(point)) for loss in self.run.batch_losses(tasks, SPLIT, num_examples))

    def _loss(self, tasks: list[str], num_examples: int) -> HessianOperator:
        from mcanalysis.landscape.hessian import HessianOperator

        return HessianOperator(self.run.batch_losses(tasks, SPLIT, num_examples), self.start)

    def _compared(self, tasks: Sequence[str], num_examples: int) -> Comparison:
        from mcanalysis.evaluation.representations import compare_points

        examples = [e for t in tasks for e in self.run.task_objective(t, SPLIT, num_examples).encoded]
        points = {"start": self.start, "end": self.end}
        return compare_points(self.run.model, points, [("start", "end")], examples)["start", "end"]


def mean(values: Mapping[str, float]) -> float:
    """The mean over modules of those that are numbers; NaN where none is.

    >>> mean({"q": 1.0, "k": float("nan"), "v": 2.0})
    1.5
    """
    found = [value for value in values.values() if not math.isnan(value)]
    return fmean(found) if found else math.nan


def signals(run: Run, k: int, names: Sequence[str] = (), num_examples: int = 40) -> dict[str, float]:
    """Return the signals of a run's `k`-th transition, from minimum k to k + 1, by column; nothing is stored.

    What each is, what it costs and which need old data: `docs/predictors.md`, or `get_signal(name)`. They are taken on
    `num_examples` train examples of the new task and as many of the old tasks together; NaN where a run has not got
    what a signal is made of.

    Args:
        run: a finished run with adapters.
        k: from 1.
        names: of the signals; () for all.

    Raises:
        UserError: for a transition that the run does not have, or fewer than 4 examples.
        UnknownNameError: no signal has one of the names.
    """
    check_examples(num_examples)
    chosen = [get_signal(name) for name in names or signal_names()]
    move = Move(run, k, num_examples)
    return {column: value for signal in chosen for column, value in signal.of(move).items()}


def check_examples(number: int) -> None:
    """Raise `UserError` for fewer examples than CKA is defined for."""
    if number < 4:
        raise UserError(f"Expected at least 4 examples, which CKA needs, got {number}; raise --num-examples.")


def get_signal(name: str) -> Signal:
    """Return the signal of a name; raises `UnknownNameError` if there is none.

    >>> get_signal("gradient_conflict").needs_old_data
    True
    """
    return _SIGNALS.get(name)


def signal_names() -> list[str]:
    """Return the names of all signals, sorted."""
    return _SIGNALS.names()


def _difference(end: Point, start: Point) -> Point:
    from mcanalysis.params.low_rank import concatenate

    return concatenate([end, start], [1.0, -1.0])


_SIGNALS: Registry[Signal] = Registry("signal", "mcanalysis.studies.signals", "SIGNAL", group="mcanalysis.signals")
