"""Independent jobs on the cores of one machine: in this process, or in worker processes that report their progress."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from mcanalysis.progress import Bar, Progress, silent


@dataclass(frozen=True)
class Job:
    """A function of a module (it is sent to another process by name), called with these arguments and `progress=`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


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
    """
    pending = list(jobs)
    overall = progress(total=total, desc="jobs") if total else silent(total=0, desc="jobs")
    if workers == 1:
        try:
            while pending:
                job = pending.pop(0)
                result = job.function(*job.arguments, progress=progress)
                pending = [*follow(job, result), *pending]
                overall.update(1)
        finally:
            overall.close()
        return
    context = get_context("spawn")  # a forked torch can hang in its thread pool
    with context.Manager() as manager:
        reports = manager.Queue()
        executor = ProcessPoolExecutor(workers, context, _start_worker, (reports, workers, initializer))
        running: dict[Future, Job] = {}
        bars: dict[Any, Bar] = {}
        try:
            while pending or running:
                while pending and len(running) < workers:
                    job = pending.pop(0)
                    running[executor.submit(_call, job)] = job
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _show(reports, bars, progress)
                for future in done:
                    job = running.pop(future)
                    pending = [*follow(job, future.result()), *pending]
                    overall.update(1)
        finally:
            executor.shutdown(cancel_futures=True)
            _show(reports, bars, progress)
            for bar in (*bars.values(), overall):
                bar.close()


_reports: Any = None


def _start_worker(reports: Any, workers: int, initializer: Callable[[], None] | None) -> None:
    global _reports
    _reports = reports
    import torch

    torch.set_num_threads(max(1, _num_cores() // workers))
    if initializer is not None:
        initializer()


def _call(job: Job) -> Any:
    return job.function(*job.arguments, progress=_reporting)


class _ReportingBar:
    """A worker's bar: says what happens to the process that shows it."""

    def __init__(self, total: int, desc: str) -> None:
        self.key = (os.getpid(), id(self))
        _reports.put((self.key, "start", (total, desc)))

    def update(self, n: int = 1) -> None:
        _reports.put((self.key, "update", n))

    def close(self) -> None:
        _reports.put((self.key, "close", None))


def _reporting(*, total: int, desc: str) -> Bar:
    return _ReportingBar(total, desc)


def _show(reports: Any, bars: dict[Any, Bar], progress: Progress) -> None:
    while True:
        try:
            key, what, value = reports.get_nowait()
        except queue.Empty:
            return
        if what == "start":
            bars[key] = progress(total=value[0], desc=value[1])
        elif what == "update" and key in bars:
            bars[key].update(value)
        elif what == "close" and key in bars:
            bars.pop(key).close()
