"""The rows of one run's profiles and barriers, transition by transition, as the figure and its caption tell them."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from mcanalysis.errors import UserError
from mcanalysis.plotting.selection import (
    BARRIER_KEYS,
    MEANS,
    PROFILE_KEYS,
    are_from_base,
    new_task,
    only_value,
    require_columns,
    rows_of_test_split,
    trained_tasks,
    transitions,
    where,
)
from mcanalysis.plotting.style import whose

QUANTITIES = ("score", "loss")
_INTERVALS = ("loss_low", "loss_high", "score_low", "score_high")
_BARRIER_VALUES = tuple(
    f"{name}{end}" for name in ("chord_barrier", "interpolation_gain", "t_star") for end in ("", "_low", "_high")
)


class TransitionRows(NamedTuple):
    start: str
    end: str
    new: str
    rows: pd.DataFrame  # of profiles
    barriers: pd.DataFrame

    @property
    def has_old(self) -> bool:
        """Whether there are old tasks."""
        return "mean_old" in set(self.rows.task)

    def role_names(self) -> dict[str, str]:
        """The names of the roles `old` and `new` between two adapters: of the data files, the last one new."""
        named = [task for task in dict.fromkeys(self.rows.task) if task not in MEANS]
        return {"old": named[0], "new": self.new}

    @property
    def is_from_base(self) -> bool:
        """Whether the path starts at the base model."""
        return bool(are_from_base(self.rows).all())

    def curve(self, kind: tuple[str, str], task: str) -> pd.DataFrame:
        """The rows of one task on one path, by t."""
        return where(self.rows, path=kind[0], space=kind[1], task=task).sort_values("t")

    def number(self, kind: tuple[str, str], task: str, quantity: str, column: str) -> float:
        """One cell of the barriers, NaN where the table has none."""
        chosen = where(self.barriers, path=kind[0], space=kind[1], task=task, quantity=quantity)
        return math.nan if chosen.empty else float(chosen[column].iloc[0])


def transition_rows(
    profiles: pd.DataFrame, barriers: pd.DataFrame
) -> tuple[list[TransitionRows], list[tuple[str, str]]]:
    require_columns(profiles, [*PROFILE_KEYS, *QUANTITIES, *_INTERVALS], "profiles")
    require_columns(barriers, [*BARRIER_KEYS, *_BARRIER_VALUES], "barriers")
    rows = rows_of_test_split(trained_tasks(profiles), PROFILE_KEYS, "profiles")
    cells = rows_of_test_split(trained_tasks(barriers), BARRIER_KEYS, "barriers")
    for column in ("strategy", "learner", "seed"):
        value = only_value(rows, column, "profiles")
        if only_value(cells, column, "barriers") != value:
            raise UserError(
                f"Expected barriers of the {column} {value}, as in the profiles, got {cells[column].iloc[0]}; "
                "pass both tables of one run."
            )
    shown = []
    for start, end in transitions(rows):
        of_profiles = where(rows, start=start, end=end)
        of_barriers = where(cells, start=start, end=end)
        if of_barriers.empty:
            raise UserError(
                f"Expected barriers of the transition {start} to {end}, got none; pass both tables of one run."
            )
        shown.append(TransitionRows(start, end, new_task(of_profiles, end), of_profiles, of_barriers))
    return shown, list(dict.fromkeys(zip(rows.path, rows.space, strict=True)))


def are_adapters(rows: pd.DataFrame) -> bool:
    """Whether the paths are between two adapters or models trained elsewhere, not between the minima of a run."""
    return bool(rows.strategy.isin(["adapters", "models"]).all())


def whose_paths(rows: pd.DataFrame) -> str:
    """What is said above the panels of these rows."""
    if are_adapters(rows):
        is_fitted = not set(rows.path) <= {"linear"}
        return f"two {rows.strategy.iloc[0]}" + "; curve fitted on these examples" * is_fitted
    return f"{whose(rows.iloc[0])}, test split"
