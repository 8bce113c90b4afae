"""What a benchmark is, and how those that live in a folder of task folders are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcanalysis.errors import UserError
from mcanalysis.tasks import TaskData

Load = Callable[[Sequence[str] | None, Path | None, Mapping[str, int]], list[TaskData]]


@dataclass(frozen=True)
class Benchmark:
    """A named, ordered sequence of tasks and the way to load them.

    `load(names, data_dir, sizes)` returns the data of the tasks named, in that order, or of the benchmark's
    own choice where `names` is None; `sizes` maps a split to the most examples wanted of it, and a split it
    does not name has its usual size.
    """

    name: str
    tasks: tuple[str, ...]
    load: Load


def require_data_dir(benchmark: str, data_dir: Path | None) -> Path:
    """Return the folder a benchmark is read from; raises `UserError` when none was given.

    >>> require_data_dir("trace", Path("data")).name
    'data'
    """
    if data_dir is None:
        raise UserError(
            f"Expected a data directory for the benchmark '{benchmark}', got none; "
            "point --data-dir at a folder of <TASK>/{train,eval,test}.json."
        )
    return data_dir
