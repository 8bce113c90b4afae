"""Starts scripts under `torch.distributed.run` on this machine, and plain processes that a launch is told of."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def python():
    """python(*arguments, seconds=600, **environment) -> (exit code, stdout, stderr); leaves no process behind."""

    def run(*arguments, seconds=600, **environment):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "Agg"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, out, err

    return run


@pytest.fixture(scope="session")
def launch(python):
    """launch(number of processes, script, *arguments) -> (exit code, stdout, stderr) under `torch.distributed.run`."""

    def run(number, script, *arguments, seconds=600):
        # "--" keeps torchrun's parser from taking a flag of the script's, such as --run, for one of its own.
        start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", number, "--", script)
        return python(*start, *arguments, seconds=seconds)

    return run
