"""The sequence of the I-LoRA paper (Ren et al. 2024, arXiv 2402.18865), read from folders in TRACE's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcanalysis.benchmarks.benchmark import Benchmark, require_data_dir
from mcanalysis.errors import DataError
from mcanalysis.tasks import TaskData
from mcanalysis.tasks.trace_files import list_trace_tasks, load_trace_task

TASKS = ("C-STANCE", "FOMC", "MeetingBank", "ScienceQA", "NumGLUE-cm", "20Minuten", "MedMCQA", "JEC-QA")


def load(names: Sequence[str] | None, data_dir: Path | None, sizes: Mapping[str, int]) -> list[TaskData]:
    """Load the folders named; without names, all eight, since fewer would not be the paper's sequence."""
    root = require_data_dir("ilora", data_dir)
    if names is None:
        names = TASKS
        present = list_trace_tasks(root, TASKS)
        absent = [name for name in TASKS if name not in present]
        if absent:
            own = [name for name in present if name in TASKS]
            remedy = f" or pass --tasks {','.join(own)} for those that are there" if own else ""
            raise DataError(
                f"Expected the eight tasks of 'ilora' in {root}, got no {', no '.join(absent)}; "
                f"add these folders{remedy}."
            )
    return [load_trace_task(root, name).first(sizes) for name in names]


BENCHMARK = Benchmark("ilora", TASKS, load, {"paper": TASKS})
