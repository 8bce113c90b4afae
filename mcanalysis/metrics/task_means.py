"""Means over the tasks of a transition: `mean_old`, of the earlier tasks, and `mean`, half of it and half the new task.

Old and new weigh the same in `mean`, however many old tasks there are. General tasks, which were never trained, enter
neither mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mcanalysis.errors import UserError
from mcanalysis.metrics.intervals import Estimate, weighted

__all__ = ["MEAN", "MEANS", "MEAN_OLD", "Role", "role", "tasks_behind", "with_means"]

MEAN_OLD = "mean_old"
MEAN = "mean"
MEANS = (MEAN_OLD, MEAN)
"""What stands in the column `task` in the rows of the means."""

Role = Literal["old", "new", "mean", "general"]


@overload
def with_means(by_task: Mapping[str, Estimate], old: Sequence[str], new: str | None = None) -> dict[str, Estimate]: ...
@overload
def with_means(
    by_task: Mapping[str, ArrayLike], old: Sequence[str], new: str | None = None
) -> dict[str, NDArray[np.float64]]: ...
def with_means(by_task: Mapping[str, Any], old: Sequence[str], new: str | None = None) -> dict[str, Any]:
    """Return what was measured of each task, with `mean_old` and `mean` after it.

    Args:
        by_task: by the name of a task, an array-like of any shape, or an `Estimate`, from which the intervals of the
            means follow as well (tasks are independent samples). Tasks in neither `old` nor `new` stay as they are.
        old: the earlier tasks; without any there is no mean.
        new: the new task; without it there is no `mean`.

    Returns:
        A new dict in the order of `by_task`, float64 arrays or Estimates, in the unit of the input. A mean is NaN where
        one of its tasks is, and infinite where one is: none is left out.

    Raises:
        UserError: a task of `old` or `new` is missing or comes twice, or the tasks' shapes differ.

    >>> {name: float(value) for name, value in with_means({"A": 1.0, "B": 3.0, "C": 4.0}, ["A", "B"], "C").items()}
    {'A': 1.0, 'B': 3.0, 'C': 4.0, 'mean_old': 2.0, 'mean': 3.0}
    """
    found = {name: v if isinstance(v, Estimate) else np.asarray(v, dtype=np.float64) for name, v in by_task.items()}
    if old:
        _check(found, [*old, *([] if new is None else [new])])
        found[MEAN_OLD] = _mean([found[name] for name in old])
        if new is not None:
            found[MEAN] = _mean([found[MEAN_OLD], found[new]])
    return found


def tasks_behind(name: str, old: Sequence[str], new: str) -> list[str]:
    """Return the tasks that a row of the task or mean `name` rests on, whose numbers of examples are to be added up.

    >>> [tasks_behind(name, ["A", "B"], "C") for name in ("A", "mean_old", "mean")]
    [['A'], ['A', 'B'], ['A', 'B', 'C']]
    """
    return {MEAN_OLD: [*old], MEAN: [*old, new]}.get(name, [name])


def role(name: str, old: Sequence[str], new: str | None) -> Role:
    """Return what a row's task is in its transition: old, new, mean (both means), or general (none of these).

    >>> [role(name, ["A", "B"], "C") for name in ("A", "C", "mean_old", "mean", "MMLU")]
    ['old', 'new', 'mean', 'mean', 'general']
    """
    if name in MEANS:
        return "mean"
    if name == new:
        return "new"
    return "old" if name in old else "general"


def _check(found: Mapping[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"Expected values of {', '.join(names)}, got none of {', '.join(missing)}; measure every task of the mean."
        )
    if len(set(names)) < len(names):
        raise UserError(f"Expected each task once in a mean, got {', '.join(names)}; name each task once.")
    shapes = {name: np.shape(v.point if isinstance(v := found[name], Estimate) else v) for name in names}
    if len(set(shapes.values())) > 1:
        raise UserError(
            f"Expected the same points for every task, got the shapes {shapes}; measure all tasks at the same ones."
        )


def _mean(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Estimate):
        return weighted([(1 / len(parts), part) for part in parts])
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is NaN, and may be
        return np.mean(parts, axis=0)
