"""How long one path of a finished run takes, point by point, alone or on the ranks of a launch; prints JSON.

    python tests/distributed/time_ranks.py RUN
    torchrun --nproc-per-node 2 -- tests/distributed/time_ranks.py RUN

The run is copied and its store emptied. The path is measured twice; the second time counts, when all processes have
loaded model and data. `seconds`: from handing out the first point to storing the last; `processor_seconds`: of the
evaluations in each process, by its id.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from mcanalysis.studies.connectivity.analysis import path_objectives, run_path
from mcanalysis.studies.connectivity.path_jobs import OnPath, PathName
from mcanalysis.studies.connectivity.settings import ConnectivitySettings

from mcanalysis.progress import Progress, silent
from mcanalysis.runs.run import load_run
from mcanalysis.studies.jobs import Job, run_jobs
from mcanalysis.studies.launch import Launch
from mcanalysis.studies.point_jobs import PointJobs, evaluate
from mcanalysis.studies.ranks import Ranks, serve


def timed(*arguments, progress: Progress) -> tuple:
    before = time.process_time()
    measured = evaluate(*arguments, progress=progress)
    return measured, time.process_time() - before, os.getpid()


def main(directory: Path, num_points: int = 21, num_examples: int = 50) -> dict:
    run = load_run(directory, "cpu")
    learner, settings = run.answering_learner, ConnectivitySettings(num_points=num_points, num_examples=num_examples)
    name = PathName(learner, "linear-factor", len(run.task_names) - 2)
    path = run_path(run, learner, name.kind, name.number, settings)
    objectives = path_objectives(run, path)
    seconds, of_process = 0.0, {}
    for _ in range(2):
        for file in directory.glob("measurements.sqlite*"):
            file.unlink()
        points, of_process = PointJobs(run), {}

        def follow(job: Job, result: tuple, points: PointJobs = points, of_process: dict = of_process) -> list[Job]:
            points.add(Job(evaluate, job.arguments), result[0])
            of_process[result[2]] = of_process.get(result[2], 0.0) + result[1]
            return []

        jobs = points.jobs([(path.point_key(t), OnPath(name, settings, float(t))) for t in path.ts], objectives)
        started = time.perf_counter()
        run_jobs([Job(timed, job.arguments) for job in jobs], follow, 1, silent)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "processor_seconds": of_process}


if __name__ == "__main__":
    launch = Launch.of_environment() if os.environ.get("WORLD_SIZE", "1") != "1" else None
    if launch and launch.rank:
        serve(launch)
    else:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(sys.argv[1], Path(folder, "run")))
            if launch:
                with Ranks(launch):
                    found = main(copy)
            else:
                found = main(copy)
        print(json.dumps(found))  # noqa: T201
