"""Pieces in processes: results, errors and bars come through, a killed process is replaced, and stopping saves."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcanalysis.errors import UnknownNameError, UserError, WorkerLostError
from mcanalysis.studies.engine import Engine, Piece
from mcanalysis.studies.executors.processes import Processes, default_workers, num_cores
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
    if kind == "system":
        raise OSError("no such device")
    if kind == "unsendable":
        return lambda: None
    raise UserError("Expected a thing, got another; do mend it.")


def die(times, folder, progress):
    """Count the call, and die by SIGKILL in the first `times`."""
    (folder / f"{len(list(folder.iterdir()))}.{os.getpid()}").touch()
    progress(total=3, desc="dies").update()
    if len(list(folder.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def hang(folder, progress):
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def worry(number, progress):
    logging.getLogger("mcanalysis.somewhere").warning("a point of %s is %s", "a run", "odd")
    logging.getLogger("mcanalysis.somewhere").warning("piece %d is odd", number)
    logging.getLogger("mcanalysis.somewhere").info("nobody has to know")
    return os.getpid()


def slow(seconds, progress):
    time.sleep(seconds)
    return seconds


def wanting(*pieces):
    return (yield list(pieces))


@pytest.fixture(scope="module")
def two():
    """Two processes for the tests that do nothing to them."""
    with Processes(2) as workers:
        yield workers


def test_results_and_bars_come_from_processes_that_are_started_when_needed(seen):
    with Processes(2, seen) as workers:
        (first,) = Engine(workers).run([wanting(Piece("k", square, (3,)))])
        assert first[0][0] == 9 and first[0][1] != os.getpid()
        assert sum(slot._process is not None for slot in workers._slots) == 1
        (found,) = Engine(workers).run([wanting(*(Piece(str(x), square, (x,)) for x in range(6)))])
    assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
    processes = {process for _, process in found}
    assert first[0][1] in processes and len(processes) <= 2 and os.getpid() not in processes
    assert {name: n for name, n in seen.bars.items() if name != "pieces"} == {f"square {x}": 2 for x in range(6)} | {
        "square 3": 4
    }
    assert sorted(seen.closed) == sorted([*(f"square {x}" for x in range(6)), "square 3"])
    assert not any(map(is_alive, processes))


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("unknown", UserError, "Did you mean 'FOMC'?"),
        ("other", UserError, "do mend it"),
        ("system", OSError, "no such device"),
        ("unsendable", TypeError, "lambda"),
        ("stopped", Stopped, "15"),
    ],
)
def test_an_error_is_raised_here_in_its_own_words_and_the_process_goes_on(two, kind, error, words):
    handler = signal.getsignal(signal.SIGTERM)
    future = two.submit(Piece("k", fail, (kind,)))
    with pytest.raises(error) as caught:
        future.result(120)
    assert words in str(caught.value)
    assert two.submit(Piece("k", slow, (0,))).result(120) == 0
    assert signal.getsignal(signal.SIGTERM) is handler


def test_what_workers_warn_of_is_said_once_and_here(caplog, capfd):
    with Processes(2) as workers:
        found = Engine(workers).run([wanting(Piece(f"worry {i}", worry, (i,))) for i in range(4)])
    assert len({pid for (pid,) in found}) == 2
    said = sorted(record.getMessage() for record in caplog.records)
    assert said == ["a point of a run is odd", *(f"piece {i} is odd" for i in range(4))]
    assert "odd" not in capfd.readouterr().err  # nothing of it comes from the processes themselves


def test_a_killed_process_is_replaced_and_its_piece_computed_again(tmp_path, seen):
    with Processes(1, seen) as workers:
        assert workers.submit(Piece("k", die, (2, tmp_path))).result(120) == "alive"
    assert len({f.suffix for f in tmp_path.iterdir()}) == 3
    assert seen.closed == ["dies"] * 3, "the bars of what was killed stay open"


def test_a_piece_that_kills_three_ends_its_study_with_its_name_and_no_other(tmp_path):
    done = []

    def other():
        for x in range(3):
            done.extend((yield [Piece(f"slow {x}", slow, (0.01,))]))

    with Processes(2) as workers, pytest.raises(WorkerLostError, match=r"^curve 1-2 was given up: 3 workers .* died"):
        Engine(workers).run([wanting(Piece("k", die, (9, tmp_path), name="curve 1-2")), other()])
    assert len(list(tmp_path.iterdir())) == 3
    assert done == [0.01] * 3


def test_a_piece_that_hangs_hits_the_time_limit_and_one_that_trains_does_not(tmp_path, two):
    with Processes(2, piece_seconds=0.5) as workers:
        trains = workers.submit(Piece("t", slow, (2.0,), trains=True))
        with pytest.raises(WorkerLostError, match=r"^hangs was given up: 3 workers .* after 0 s \(--time-limit\)"):
            workers.submit(Piece("k", hang, (tmp_path,), name="hangs")).result(120)
        assert trains.result(120) == 2.0
    assert not any(is_alive(int(f.name)) for f in tmp_path.iterdir())


def visible(seconds, progress):
    time.sleep(seconds)  # until the others have started
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_process_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with Processes(3) as workers:
        found = [workers.submit(Piece(str(i), visible, (3.0,))) for i in range(3)]
        assert sorted(f.result(120) for f in found) == ["4", "4", "7"]


def threads(progress):
    import torch

    return torch.get_num_threads()


def test_processes_share_the_cores():
    with Processes(1) as workers:
        assert workers.submit(Piece("k", threads)).result(120) == num_cores()


def test_large_models_and_accelerators_get_one_worker():
    assert default_workers("cuda", 10) == 1
    assert default_workers("cpu", 10**9) == 1
    assert default_workers("cpu", 10**6) >= 1


# Pieces that behave as training does: asked to stop, they end their step, save, and leave.
SCRIPT = """
import os, sys, time
from pathlib import Path
from mcanalysis.studies.engine import Engine, Piece
from mcanalysis.studies.executors.processes import Processes
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

def study():
    yield [Piece(n, work, (n,)) for n in "abc"]

if __name__ == "__main__":
    try:
        with Processes(2) as workers:
            Engine(workers).run([study()])
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
def test_whoever_stops_the_study_leaves_no_worker_behind_and_each_has_saved(tmp_path, number, whole_group, code):
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
    assert not list(tmp_path.glob("c.*")), "a piece was started after the stop"
    if number != signal.SIGKILL:
        assert errors == ""
