"""What a workload is: a file `bench_<name>.py` in this folder with `TITLE` and `measure(options) -> Section`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]


@dataclass(frozen=True)
class Options:
    """What the user asked for. `data_dir`: a folder of TRACE-form tasks, or None. `quick`: the least that runs at all,
    whose numbers mean nothing. `folder`: where the report lies, beside which pictures go."""

    data_dir: Path | None = None
    quick: bool = False
    folder: Path = REPOSITORY

    @property
    def repetitions(self) -> int:
        """How often the ways that are compared take turns."""
        return 1 if self.quick else 5

    @property
    def long_repetitions(self) -> int:
        """The same where a turn takes over 20 seconds."""
        return 1 if self.quick else 3


@dataclass(frozen=True)
class Aim:
    """A number that was aimed at; `value` None: not measured. `detail` is shown beside the value."""

    what: str
    limit: float
    value: float | None
    at_most: bool = True
    detail: str = ""
    digits: int = 2

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`.

        >>> Aim("a step", 1.3, 1.31).verdict, Aim("speed", 2.0, 2.5, at_most=False).verdict
        ('missed', 'met')
        """
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.limit if self.at_most else self.value >= self.limit) else "missed"

    def cells(self) -> list[str]:
        """As a row of the table of aims."""
        value = "–" if self.value is None else f"{self.value:.{self.digits}f}"
        sign = "≤" if self.at_most else "≥"
        limit = f"{self.limit:.{self.digits}f}"
        return [self.what, f"{sign} {limit}", f"{value} {self.detail}".strip(), self.verdict]


@dataclass(frozen=True)
class Table:
    """A small table: a line above it, and its rows, the first one the header."""

    caption: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """What a workload found: aims, tables, and notes on how it was measured. `ran_on`: the device, if not the CPU."""

    aims: Sequence[Aim]
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    ran_on: str = ""


class Workload(NamedTuple):
    """A workload by name."""

    name: str
    title: str
    measure: Callable[[Options], Section]


def workload_names() -> list[str]:
    """Names of all workloads, sorted; nothing is imported."""
    return sorted(f.stem.removeprefix("bench_") for f in FOLDER.glob("bench_*.py"))


def get_workload(name: str) -> Workload:
    """The workload of a name in `workload_names()`."""
    module = importlib.import_module(f"bench_{name}")
    return Workload(name, module.TITLE, module.measure)
