"""Jobs in this process and in workers: order, follow-ups, progress, errors that come through, and stopping."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.progress import silent
from mcanalysis.studies.jobs import Job, default_workers, run_jobs
from mcanalysis.training.stopping import Stopped

REPOSITORY = Path(__file__).parents[2]


def square(x, progress):
    bar = progress(total=2, desc=f"square {x}")
    bar.update(1)
    bar.update(1)
    bar.close()
    return x * x, os.getpid()


def fail(kind, progress):
    if kind == "unknown":
        raise UnknownNameError("task", "FOMCC", ["FOMC"])
    if kind == "stopped":
        raise Stopped(signal.SIGTERM)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("Expected a thing, got another; do mend it.")


class Recorder:
    """A progress bar that remembers what it was told."""

    def __init__(self):
        self.bars = {}
        self.closed = []

    def __call__(self, *, total, desc):
        recorder = self

        class Bar:
            def update(self, n=1):
                recorder.bars[desc] = recorder.bars.get(desc, 0) + n

            def close(self):
                recorder.closed.append(desc)

        return Bar()


@pytest.mark.parametrize("workers", [1, 2])
def test_results_and_follow_ups(workers):
    results, seen = {}, Recorder()

    def follow(job, result):
        assert threading.current_thread() is threading.main_thread()
        results[job.arguments[0]] = result
        return [Job(square, (job.arguments[0] * 10,))] if job.arguments[0] < 10 else []

    run_jobs([Job(square, (x,)) for x in (1, 2, 3)], follow, workers, seen, total=6)
    assert {x: r[0] for x, r in results.items()} == {x: x * x for x in (1, 2, 3, 10, 20, 30)}
    processes = {r[1] for r in results.values()}
    assert (os.getpid() in processes) == (workers == 1)
    assert seen.bars == {"jobs": 6} | {f"square {x}": 2 for x in results}
    assert sorted(seen.closed) == sorted(seen.bars)


def test_follow_ups_go_first():
    order = []

    def follow(job, result):
        order.append(job.arguments[0])
        return [Job(square, (10,))] if job.arguments[0] == 1 else []

    run_jobs([Job(square, (1,)), Job(square, (2,))], follow, 1, silent)
    assert order == [1, 10, 2]


def test_jobs_of_an_earlier_turn_go_before_all_others():
    order = []

    def follow(job, result):
        order.append(job.arguments[0])
        return [Job(square, (10,), 2), Job(square, (11,))] if job.arguments[0] == 1 else []

    run_jobs([Job(square, (1,), 1), Job(square, (2,), 1), Job(square, (0,))], follow, 1, silent)
    assert order == [0, 1, 11, 2, 10]


@pytest.mark.parametrize(
    ("kind", "error", "piece"),
    [
        ("unknown", UserError, "Did you mean 'FOMC'?"),
        ("other", UserError, "do mend it"),
        ("killed", UserError, "fewer --workers"),
        ("stopped", Stopped, "15"),
    ],
)
def test_an_error_of_a_worker_is_raised_here_in_its_own_words(kind, error, piece):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error) as caught:
        run_jobs([Job(fail, (kind,))], lambda job, result: [], 2, silent)
    assert piece in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_large_models_and_accelerators_get_one_worker():
    assert default_workers("cuda", 10) == 1
    assert default_workers("cpu", 10**9) == 1
    assert default_workers("cpu", 10**6) >= 1


# Jobs that behave as training does: asked to stop, they end their step, save, and leave.
SCRIPT = """
import os, sys, time
from pathlib import Path
from mcanalysis.studies.jobs import Job, run_jobs
from mcanalysis.progress import silent
from mcanalysis.training.stopping import Stopped, listening

folder = Path(sys.argv[1])

def work(name, progress):
    with listening() as stop:
        bar = progress(total=1000, desc=name)
        (folder / f"{name}.{os.getpid()}").touch()
        while not stop:
            bar.update(1)
            time.sleep(0.01)
        for _ in range(30):  # its step and its checkpoint take time; another signal comes meanwhile
            bar.update(1)
            time.sleep(0.01)
        (folder / f"{name}.saved").touch()
        raise Stopped(stop.signal)

if __name__ == "__main__":
    try:
        run_jobs([Job(work, (n,)) for n in "abc"], lambda job, result: [], 2, silent)
    except Stopped as stop:
        sys.exit(stop.exit_code)
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "whole_group", "code"),
    [
        (signal.SIGTERM, False, 143),  # kill
        (signal.SIGINT, True, 130),  # Ctrl-C in a terminal reaches the workers, too
        (signal.SIGKILL, False, -9),  # the workers notice by themselves
    ],
)
def test_whoever_stops_the_jobs_leaves_no_worker_behind_and_each_has_saved(tmp_path, number, whole_group, code):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def until(condition, what):
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}"
            time.sleep(0.05)

    try:
        until(lambda: all(list(tmp_path.glob(f"{n}.[0-9]*")) for n in "ab"), "both workers")
        workers = [int(f.suffix[1:]) for f in tmp_path.glob("[ab].[0-9]*")]
        assert all(map(is_alive, workers))
        (os.killpg if whole_group else os.kill)(process.pid, number)
        assert process.wait(60) == code
        until(lambda: not any(map(is_alive, workers)), "the workers' end")
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert sorted(f.name for f in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]
    assert not list(tmp_path.glob("c.*")), "a job was started after the stop"
    if number != signal.SIGKILL:
        assert errors == ""
