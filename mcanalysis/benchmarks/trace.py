"""TRACE (Wang et al. 2023, arXiv 2310.06762): its eight tasks in its order, or whatever folders are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcanalysis.benchmarks.benchmark import Benchmark, require_data_dir
from mcanalysis.errors import DataError
from mcanalysis.tasks import TaskData
from mcanalysis.tasks.trace_files import list_trace_tasks, load_trace_task

TASKS = ("C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten")


def load(names: Sequence[str] | None, data_dir: Path | None, sizes: Mapping[str, int]) -> list[TaskData]:
    """Load the folders named; without names, every task folder present, TRACE's own first, in its order."""
    root = require_data_dir("trace", data_dir)
    if names is None:
        names = list_trace_tasks(root, TASKS)
        if not names:
            raise DataError(
                f"Expected at least one task folder in {root}, got none; "
                "add a folder with train.json, eval.json and test.json per task."
            )
    return [load_trace_task(root, name).first(sizes) for name in names]


BENCHMARK = Benchmark("trace", TASKS, load, {"paper": TASKS})
