"""The batch script, on this machine: a `srun` of our own starts as many copies as the job has tasks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

SRUN = """#!/bin/bash
shift
for task in $(seq "$SLURM_NTASKS"); do "$@" & done
wait
"""

STUDY = """
import sys
sys.path.insert(0, {folder!r})
import cluster_pieces as pieces
from mcanalysis.cli.console import say
from mcanalysis.cli.flags import Parser
from mcanalysis.cli.running import run_script
from mcanalysis.cli.workers import add_workers_flags, workers
from mcanalysis.studies.engine import Engine, Piece
import time

def main():
    parser = Parser(None)
    parser.add_argument("--train")
    add_workers_flags(parser)
    args = parser.parse()
    with workers(args) as them:
        while them.count < 2:
            time.sleep(0.1)
        def study():
            if args.train:
                yield [Piece("t", pieces.train, (args.train, 5000), trains=True)]
            return (yield [Piece(str(x), pieces.square, (x,)) for x in range(20)])
        (found,) = Engine(them).run([study()])
    say(f"{{sum(square for square, _ in found)}} from {{len({{process for _, process in found}})}}")

run_script(main)
"""


@pytest.fixture
def batch(tmp_path):
    """batch(*flags) -> the batch script, started on a study."""
    srun, study = tmp_path / "bin" / "srun", tmp_path / "study.py"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    study.write_text(STUDY.format(folder=str(Path(__file__).parent)))
    path = f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    folders = f"{REPOSITORY}:{Path(__file__).parent}"
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1", "PATH": path, "PYTHONPATH": folders}
    started = []

    def start(*flags):
        command = ["bash", str(REPOSITORY / "analyses" / "slurm" / "analyse.sbatch"), *map(str, flags)]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=os.environ | job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_a_study_runs_on_the_tasks_of_a_job_and_leaves_nothing(batch, tmp_path):
    process = batch(tmp_path / "study.py")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == f"{sum(x * x for x in range(20))} from 2"
    assert not (tmp_path / ".dask-7").exists()


@pytest.mark.slow
def test_before_the_job_ends_training_saves(batch, tmp_path, until):
    (tmp_path / "run").mkdir()
    process = batch(tmp_path / "study.py", "--train", tmp_path / "run")
    until(lambda: list((tmp_path / "run").glob("pid.*")), "the training")
    process.terminate()
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert list((tmp_path / "run").glob("saved.*"))
    assert "stopped; what was saved is kept" in err


def test_a_job_without_a_script_says_what_it_needs(batch):
    process = batch()
    assert process.communicate(timeout=60)[1].startswith("error: This needs a script")
    assert process.returncode == 2
