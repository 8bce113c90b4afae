"""Benchmarks, one file per sequence of tasks: a module of this folder with a `BENCHMARK` is one.

So is one that an installed package declares under the entry point group `mcanalysis.benchmarks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mcanalysis.benchmarks.benchmark import Benchmark, require_data_dir
from mcanalysis.benchmarks.orders import in_order, tasks_to_load
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.registry import Registry
from mcanalysis.tasks import SPLITS, TaskData
from mcanalysis.tasks.names import check_distinct

__all__ = ["Benchmark", "benchmark_names", "get_benchmark", "load_benchmark", "require_data_dir"]

_HUB = "hub:"
_BENCHMARKS: Registry[Benchmark] = Registry("benchmark", __name__, "BENCHMARK", group="mcanalysis.benchmarks")


def get_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name; raises `UnknownNameError` that suggests the nearest name.

    >>> get_benchmark("ilora").tasks[-2:]
    ('MedMCQA', 'JEC-QA')
    """
    return _BENCHMARKS.get(name)


def benchmark_names() -> list[str]:
    """Return the names of all benchmarks, sorted.

    >>> benchmark_names()
    ['embedded', 'ilora', 'long', 'standard', 'study', 'superni', 'trace']
    """
    return _BENCHMARKS.names()


def load_benchmark(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    tasks: Sequence[str] | None = None,
    score_overrides: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    max_new_tokens: Mapping[str, int] | None = None,
    order: str | None = None,
    commits: Mapping[str, str] | None = None,
) -> list[TaskData]:
    """Load the tasks of a benchmark, in the order they are to be learned.

    `tasks` names them and sets their order; without it the benchmark chooses (`embedded`, `study` and `ilora` all
    eight, `trace` the folders present, `standard`, `long` and `superni` their first order). `order` is one of the
    benchmark's published orders or `shuffledN` (`benchmarks.orders`); `tasks` then only names them. `data_dir`: a
    folder, or `hub:OWNER/NAME[@REVISION]`, a data set of the hub that holds such folders; without it benchmarks of
    published data sets are loaded from the hub. `score_overrides` maps a loaded task to another score. `sizes` maps
    a split to a number of examples: `embedded` and `study` generate that many, others keep that many from the
    start, or all where there are fewer. `max_new_tokens` maps a loaded task to the most tokens generated for an
    answer, by default the task's own (64 for a folder of an unknown name). `commits` maps tasks to the commits of the
    hub to load them at, as `TaskData.origin` has told them; without one, that of now.

    Raises `UserError` or a subclass: `UnknownNameError` for an unknown benchmark, order, embedded task, split or
    score or an override of a task not loaded; `DataError` for folders and files that are absent or
    malformed; `UserError` for a missing or superfluous `data_dir`, a hub out of reach, a task named twice, no task, a
    task that the order does not have, or a size or limit below 1.

    >>> load_benchmark("embedded", tasks=["FOMC", "FOMC"])
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected each task once, got FOMC 2 times; name it once.
    """
    benchmark = get_benchmark(name)
    if tasks is not None:
        if not tasks:
            raise UserError(
                "Expected at least one task, got an empty list; name at least one, or leave the choice out to take all."
            )
        check_distinct(tasks)
    overrides = dict(score_overrides or {})
    _check_scores(overrides.values())
    wanted = dict(sizes or {})
    _check_sizes(wanted)
    loaded = _load(benchmark, data_dir, tasks_to_load(benchmark, order, tasks), wanted, commits or {})
    check_distinct([data.task.name for data in loaded])  # of a benchmark that chooses by itself
    by_name = {data.task.name: data for data in loaded}
    names = in_order(benchmark, order, list(by_name))
    loaded = [by_name[name] for name in names]
    limits = dict(max_new_tokens or {})
    for task in (*overrides, *limits):
        if task not in names:
            raise UnknownNameError("task", task, names)
    scored = [replace(d, task=d.task.with_score(overrides.get(d.task.name, d.task.score))) for d in loaded]
    scored = [replace(d, task=d.task.with_limit(limits.get(d.task.name, d.task.max_new_tokens))) for d in scored]
    for data in scored:
        if overrides or data_dir is not None:  # our own tasks with their own scores need no check
            data.check_answers()
    return scored


def _load(
    benchmark: Benchmark,
    data_dir: str | os.PathLike[str] | None,
    tasks: Sequence[str] | None,
    sizes: Mapping[str, int],
    commits: Mapping[str, str],
) -> list[TaskData]:
    """The data as the benchmark reads it, from a folder, a data set of the hub, or where it finds it by itself."""
    if data_dir is None:
        if benchmark.load_from_hub is not None:
            return benchmark.load_from_hub(tasks, sizes, commits)
        return benchmark.load(tasks, None, sizes)
    if not str(data_dir).startswith(_HUB):
        return benchmark.load(tasks, Path(data_dir), sizes)
    from mcanalysis.tasks.published.hub import download

    source = str(data_dir).removeprefix(_HUB)
    folder, commit = download(source, next(iter(commits.values()), None))
    origin = f"{source.partition('@')[0]}@{commit}"
    return [replace(data, origin=origin) for data in benchmark.load(tasks, folder, sizes)]


def _check_scores(scores: Iterable[str]) -> None:
    from mcanalysis.metrics.scores import get_score  # brings in the scorers' libraries: only when named

    for score in scores:
        get_score(score)


def _check_sizes(sizes: Mapping[str, int]) -> None:
    for split, size in sizes.items():
        if split not in SPLITS:
            raise UnknownNameError("split", split, SPLITS)
        if size < 1:
            raise UserError(f"Expected at least 1 example for the split {split}, got {size}; raise its size.")
