"""The benchmark that needs no files: the I-LoRA paper's eight tasks in miniature, generated from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcanalysis.benchmarks.benchmark import Benchmark
from mcanalysis.benchmarks.ilora import TASKS
from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.tasks import TaskData


def load(names: Sequence[str] | None, data_dir: Path | None, sizes: Mapping[str, int]) -> list[TaskData]:
    """Generate the tasks named, or all eight; raises `UserError` for an unknown one or a data directory."""
    return generated("embedded", names, data_dir, sizes)


def generated(
    benchmark: str,
    names: Sequence[str] | None,
    data_dir: Path | None,
    sizes: Mapping[str, int],
    test_seed: int | None = None,
) -> list[TaskData]:
    """The tasks named, or all eight, for a benchmark of that name; `test_seed` as of `generate_task`."""
    if data_dir is not None:
        raise UserError(
            f"Expected no data directory for the benchmark '{benchmark}', which is generated, got {data_dir}; "
            "drop --data-dir or pass --benchmark trace."
        )
    names = TASKS if names is None else names
    for name in names:
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)

    from mcanalysis.tasks.embedded import generate_task

    numbers = {f"num_{split}": size for split, size in sizes.items()}
    return [generate_task(name, **numbers, test_seed=test_seed) for name in names]


BENCHMARK = Benchmark("embedded", TASKS, load, {"paper": TASKS})
