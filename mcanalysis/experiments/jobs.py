"""Independent jobs on the cores of one machine: in this process, or in worker processes that report their progress."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.progress import Bar, Progress, silent
from mcanalysis.run import Run, load_run
from mcanalysis.training.stopping import Stopped, listening


@dataclass(frozen=True)
class Job:
    """A function of a module (it is sent to another process by name), called with these arguments and `progress=`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@cache
def opened_run(directory: Path, device: str | None) -> Run:
    """A worker's run, with its model and data, for all of its jobs."""
    return load_run(directory, device)


Follow = Callable[[Job, Any], Sequence[Job]]


def default_workers(device: str | None, model_bytes: int) -> int:
    """As many as there are cores for a small model on CPU, else one.

    Each process holds a copy of the model, so this is for models under 100 MB.

    >>> default_workers("cuda", 10)
    1
    """
    if device not in (None, "cpu") or model_bytes > 100_000_000:
        return 1
    return _num_cores()


def _num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    jobs: Sequence[Job],
    follow: Follow,
    workers: int,
    progress: Progress,
    initializer: Callable[[], None] | None = None,
    total: int | None = None,
) -> None:
    """Run jobs and those that follow from their results (`follow(job, result)`), which go before those still waiting.

    `total` is the number of jobs in the end, where it is known: they are then counted by a bar of their own.

    The first job that raises ends all: what is running is finished, nothing new is started, the error is raised here.
    After SIGTERM or Ctrl-C each running job is told to stop, which training does once it has saved; `Stopped` is raised
    here when all have. Workers do the same by themselves when this process is killed.
    """
    pending = list(jobs)
    overall = progress(total=total, desc="jobs") if total else silent(total=0, desc="jobs")
    try:
        if workers == 1:
            while pending:
                job = pending.pop(0)
                result = job.function(*job.arguments, progress=progress)
                pending = [*follow(job, result), *pending]
                overall.update(1)
        else:
            _run_in_workers(pending, follow, workers, progress, initializer, overall)
    finally:
        overall.close()


def _run_in_workers(
    pending: list[Job],
    follow: Follow,
    workers: int,
    progress: Progress,
    initializer: Callable[[], None] | None,
    overall: Bar,
) -> None:
    context = get_context("spawn")  # a forked torch can hang in its thread pool
    # No manager's queue: a signal to the whole process group would end the manager before the workers have saved.
    reports = context.SimpleQueue()
    wanted, hold = context.Pipe(duplex=False)  # nothing is sent: closing `hold`, or dying, tells the workers to stop
    executor = ProcessPoolExecutor(workers, context, _start_worker, (reports, wanted, workers, initializer))
    running: dict[Future, Job] = {}
    bars: dict[Any, Bar] = {}
    failure: BaseException | None = None
    with listening() as stop:
        try:
            while running or (pending and failure is None):
                try:
                    if stop and not hold.closed:
                        raise Stopped(stop.signal)
                    while failure is None and pending and len(running) < workers:
                        job = pending.pop(0)
                        running[executor.submit(_call, job)] = job
                    done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    _show(reports, bars, progress)
                    for future in done:
                        job = running.pop(future)
                        pending = [*follow(job, future.result()), *pending]
                        overall.update(1)
                except BaseException as error:
                    failure = failure or (Stopped(stop.signal) if stop else error)
                    if not isinstance(error, Exception):
                        hold.close()
        finally:
            hold.close()
            executor.shutdown(cancel_futures=True)
            wanted.close()
            for bar in bars.values():
                bar.close()
    if isinstance(failure, BrokenProcessPool):
        raise UserError(
            f"Expected {workers} worker processes to live, got one that was killed, for lack of memory perhaps; "
            "pass fewer --workers and --resume."
        ) from failure
    if failure is not None:
        raise failure


# What follows is a worker's.
_reports: Any = None
_busy = False
_unwanted = False


def _start_worker(reports: Any, wanted: Any, workers: int, initializer: Callable[[], None] | None) -> None:
    global _reports
    _reports = reports
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _asked_to_stop)
    threading.Thread(target=_stop_when_unwanted, args=(wanted,), daemon=True).start()
    import torch

    torch.set_num_threads(max(1, _num_cores() // workers))
    if initializer is not None:
        initializer()


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    if _busy:  # else there is nothing to stop: the pool ends its workers
        raise Stopped(number)


def _stop_when_unwanted(wanted: Any) -> None:
    """Wait until the process that started this one wants no more of it, or is gone; then end the job, and in the end
    this process, too: an orphan would keep its run directory locked."""
    global _unwanted
    with suppress(EOFError, OSError):
        wanted.recv_bytes()
    _unwanted = True
    os.kill(os.getpid(), signal.SIGTERM)
    parent = parent_process()
    if parent is not None:
        parent.join()
    while _busy:
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)


def _call(job: Job) -> Any:
    global _busy
    _busy = True
    try:
        if _unwanted:
            raise Stopped(signal.SIGTERM)
        return job.function(*job.arguments, progress=_reporting)
    finally:
        _busy = False


class _ReportingBar:
    """A worker's bar: says what happens to the process that shows it."""

    def __init__(self, total: int, desc: str) -> None:
        self.key = (os.getpid(), id(self))
        self._tell("start", (total, desc))

    def update(self, n: int = 1) -> None:
        self._tell("update", n)

    def close(self) -> None:
        self._tell("close", None)

    def _tell(self, what: str, value: Any) -> None:
        with suppress(OSError):  # who would show it may be gone, and the job has to save
            _reports.put((self.key, what, value))


def _reporting(*, total: int, desc: str) -> Bar:
    return _ReportingBar(total, desc)


def _show(reports: Any, bars: dict[Any, Bar], progress: Progress) -> None:
    while not reports.empty():
        key, what, value = reports.get()
        if what == "start":
            bars[key] = progress(total=value[0], desc=value[1])
        elif what == "update" and key in bars:
            bars[key].update(value)
        elif what == "close" and key in bars:
            bars.pop(key).close()
