"""What runs on a worker of a cluster: a piece in the worker itself, or one that trains in a process of its own.

Dask computes in threads, where no signal is heard, so training gets a process: it saves and ends when the study stops,
when no one waits for its result any more, and when its worker dies.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import distributed
from distributed.protocol.pickle import loads

import mcanalysis
from mcanalysis.errors import UserError
from mcanalysis.progress import Progress
from mcanalysis.studies.executors.worker import (
    FAILED,
    LOST,
    PIECE,
    REPORT,
    STOP,
    Report,
    Reporting,
    outcome,
    use_threads,
)
from mcanalysis.training.stopping import Stopped

_stopped: set[str] = set()  # studies
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 32 << 20  # the most that glibc adapts to by itself
_one_at_a_time = threading.Lock()  # two pieces would set the weights of one model


def versions() -> dict[str, str]:
    """What has to be the same on all sides."""
    python = ".".join(platform.python_version_tuple()[:2])
    dask = distributed.__version__  # type: ignore[attr-defined]  # that of the package's files takes 2 ms a piece
    return {"mcanalysis": mcanalysis.__version__, "distributed": dask, "python": python}


def stop_training(study: str) -> None:
    """Tell what trains here for a study to save and to end."""
    _stopped.add(study)


def compute(study: str, expected: dict[str, str], sent: bytes, trains: bool, seconds: float) -> tuple[Any, ...]:
    """The outcome of a piece, as `worker.outcome` has it, or `("lost",)` where the process that trained was killed.

    `sent`: its function and arguments and what is called before, pickled. Its bars are reported under the topic
    `study`. After `seconds` (0: never) this worker is taken to hang, and exits.
    """
    found = versions()
    if found != expected:
        names = [name for name in expected if found[name] != expected[name]]
        differing = ", ".join(f"{name} {found[name]} for {expected[name]}" for name in names)
        return FAILED, UserError(f"This worker has {differing}: install the same versions everywhere."), ""
    try:
        function, arguments, initializer = loads(sent)
    except (ImportError, AttributeError) as error:
        return FAILED, UserError(f"This worker lacks code: {error}."), ""
    with _one_at_a_time:
        return _compute(study, function, arguments, trains, seconds, initializer)


def _compute(
    study: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    trains: bool,
    seconds: float,
    initializer: Callable[[], None] | None,
) -> tuple[Any, ...]:
    worker = distributed.get_worker()

    def report(told: Report) -> None:
        worker.log_event(study, (worker.address, *told))

    if trains:
        key = worker.get_current_task()

        def is_wanted() -> bool:
            task = worker.state.tasks.get(key)
            is_open = worker.status.name in ("running", "paused")
            return is_open and study not in _stopped and task is not None and task.state == "executing"

        return _in_a_process(function, arguments, initializer, worker.state.nthreads, report, is_wanted)
    _prepare(initializer, worker.state.nthreads)
    if seconds and sys.__stderr__ is not None:
        # Not a thread of Python's, which what hangs may keep from running.
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        return outcome(function, arguments, Reporting(report))
    finally:
        faulthandler.cancel_dump_traceback_later()


@cache
def _prepare(initializer: Callable[[], None] | None, threads: int) -> None:
    use_threads(threads)
    _keep_memory()
    if initializer is not None:
        initializer()


def _keep_memory() -> None:
    """Undo, where the C library is glibc, that dask has workers give memory back to the system at once.

    Its nanny sets MALLOC_TRIM_THRESHOLD_, which keeps glibc from adapting: then every tensor of a pass is new memory,
    and a point of a small model takes twice as long, the system's half of it (`bench_two_processes`).
    """
    with suppress(OSError, AttributeError):  # another library
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES)


def _in_a_process(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    initializer: Callable[[], None] | None,
    threads: int,
    report: Callable[[Report], None],
    is_wanted: Callable[[], bool],
) -> tuple[Any, ...]:
    """The outcome of a piece in a process that is started for it, told to stop when it is not wanted any more."""
    if not is_wanted():
        return FAILED, Stopped(signal.SIGTERM), ""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "mcanalysis.studies.executors.worker"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with theirs:
        process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment)
    with Connection(ours.detach()) as connection:
        try:
            connection.send((PIECE, _prepared, (initializer, threads, function, arguments)))
            is_told = False
            while True:
                if not is_told and not is_wanted():
                    connection.send((STOP,))
                    is_told = True
                if connection.poll(0.5):
                    message = connection.recv()
                    if message[0] != REPORT:
                        return message
                    report(message[1])
        except (EOFError, OSError):
            return (LOST,)
        finally:
            connection.close()
            process.wait()


def _prepared(
    initializer: Callable[[], None] | None,
    threads: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    progress: Progress,
) -> Any:
    _prepare(initializer, threads)
    return function(*arguments, progress=progress)
