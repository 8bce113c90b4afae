"""When a task leaves the basin: forks of its training, the radius of its minimum, the good share of a simplex.

With no flag: every task of sequential fine-tuning on the embedded base and benchmark. What it takes is said first.
"""

from __future__ import annotations

import argparse
from typing import Any

from start import run_script

from mcanalysis.cli.console import say
from mcanalysis.cli.run_flags import study_runs
from mcanalysis.cli.studies import run_study
from mcanalysis.studies.basin import Basin


def say_cost(study: Any, args: argparse.Namespace, _: object = None) -> None:
    """Say what each run takes."""
    for run in study_runs(args):
        num_tasks = run.num_tasks or len(run.task_names)  # type: ignore[union-attr]
        say(f"{run.directory}, if nothing of it is there: {study.cost(num_tasks)}")


def main() -> None:
    run_study(Basin, __doc__, unsaid=("basin_forks", "basin_radius"), instead=say_cost, dry_run=say_cost)


if __name__ == "__main__":
    run_script(main)
