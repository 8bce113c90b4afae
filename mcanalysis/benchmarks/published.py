"""Benchmarks whose tasks are published data sets: which folder is a task's, and loading from folders or the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from mcanalysis.benchmarks.benchmark import Benchmark
from mcanalysis.errors import DataError, UnknownNameError
from mcanalysis.tasks.raw.rows import split_files
from mcanalysis.tasks.task import SPLITS, Task, TaskData
from mcanalysis.tasks.trace_files import is_trace_task, load_trace_task


class Published(Protocol):
    """A published data set."""

    @property
    def task(self) -> Task: ...

    @property
    def folder_names(self) -> tuple[str, ...]: ...

    def from_folder(self, folder: Path) -> TaskData: ...

    def from_hub(self, commit: str | None = None) -> TaskData: ...


def published_benchmark(
    name: str, known: Mapping[str, Published], orders: Mapping[str, tuple[str, ...]], extra: tuple[str, ...] = ()
) -> Benchmark:
    """A benchmark of published data sets; without names it loads the tasks of its first order.

    `extra`: tasks that no order has, and that can be named. A folder holds one folder per task, as `known` calls it, at
    the top or one level below, in TRACE's form or in one of those that `known` reads.
    """
    first = next(iter(orders.values()))

    def chosen(names: Sequence[str] | None) -> list[Published]:
        for task in names or ():
            if task not in tasks:
                raise UnknownNameError(f"task of the benchmark '{name}'", task, tasks)
        return [known[task] for task in names or first]

    def load(names: Sequence[str] | None, data_dir: Path | None, sizes: Mapping[str, int]) -> list[TaskData]:
        if data_dir is None:
            return load_from_hub(names, sizes, {})
        wanted = chosen(names)
        folders = {data.task.name: _folder(data_dir, data) for data in wanted}
        absent = [task for task, folder in folders.items() if folder is None]
        if absent:
            there = [task for task, data in known.items() if task in tasks and _folder(data_dir, data)]
            remedy = f" or pass --tasks with some of {','.join(there)}" if there else ""
            raise DataError(
                f"Expected a folder for each task of '{name}' in {data_dir}, got none for {', '.join(absent)}; add "
                f"them{remedy}."
            )
        return [_loaded(data, folder).first(sizes) for data in wanted if (folder := folders[data.task.name])]

    def load_from_hub(
        names: Sequence[str] | None, sizes: Mapping[str, int], commits: Mapping[str, str]
    ) -> list[TaskData]:
        return [data.from_hub(commits.get(data.task.name)).first(sizes) for data in chosen(names)]

    tasks = (*dict.fromkeys(task for order in orders.values() for task in order), *extra)
    return Benchmark(name, tasks, load, orders, load_from_hub)


def _folder(root: Path, data: Published) -> Path | None:
    """The folder of a task that holds files of its splits, at the top or one level below."""
    if not root.is_dir():
        raise DataError(f"Expected a folder of tasks at {root}, got none; check --data-dir.")
    wanted = {name.lower() for name in data.folder_names}
    for depth in ("*", "*/*"):
        for folder in sorted(f for f in root.glob(depth) if f.name.lower() in wanted and f.is_dir()):
            if any(split_files(folder, split) for split in SPLITS):
                return folder
    return None


def _loaded(data: Published, folder: Path) -> TaskData:
    if is_trace_task(folder):
        return replace(load_trace_task(folder.parent, folder.name), task=data.task)
    return data.from_folder(folder)
