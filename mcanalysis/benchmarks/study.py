"""The embedded benchmark with a test split that nothing was chosen on: what the study of STUDY.md is made on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mcanalysis.benchmarks.benchmark import Benchmark
from mcanalysis.benchmarks.embedded import generated
from mcanalysis.benchmarks.ilora import TASKS
from mcanalysis.tasks import TaskData

TEST_SEED = 20261129
"""Of the test examples; train and eval splits are those of `embedded`."""


def load(names: Sequence[str] | None, data_dir: Path | None, sizes: Mapping[str, int]) -> list[TaskData]:
    """Generate the tasks named, or all eight; raises `UserError` for an unknown one or a data directory."""
    return generated("study", names, data_dir, sizes, test_seed=TEST_SEED)


BENCHMARK = Benchmark("study", TASKS, load, {"paper": TASKS})
