"""What a benchmark is, and how those that live in a folder of task folders are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mcanalysis.errors import UserError
from mcanalysis.tasks import TaskData

Load = Callable[[Sequence[str] | None, Path | None, Mapping[str, int]], list[TaskData]]
LoadFromHub = Callable[[Sequence[str] | None, Mapping[str, int], Mapping[str, str]], list[TaskData]]


@dataclass(frozen=True)
class Benchmark:
    """A named, ordered sequence of tasks and the way to load them.

    `load(names, data_dir, sizes)` returns the data of the tasks named, in that order, or of the benchmark's
    own choice where `names` is None; `sizes` maps a split to the most examples wanted of it, and a split it
    does not name has its usual size.

    `orders`: the orders that its papers publish, by name, each of some or all of the tasks. `load_from_hub(names,
    sizes, commits)` is called in place of `load` where there is no `data_dir`; `commits` maps tasks to the commits of
    their data sets, where they are to be those.
    """

    name: str
    tasks: tuple[str, ...]
    load: Load
    orders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    load_from_hub: LoadFromHub | None = None


def require_data_dir(benchmark: str, data_dir: Path | None) -> Path:
    """Return the folder a benchmark is read from; raises `UserError` when none was given.

    >>> require_data_dir("trace", Path("data")).name
    'data'
    """
    if data_dir is None:
        raise UserError(
            f"Expected a data directory for the benchmark '{benchmark}', got none; "
            "point --data-dir at a folder of <TASK>/{train,eval,test}.json, or at hub:OWNER/NAME that holds one."
        )
    return data_dir
