"""Independent jobs: in this process, in worker processes on the cores of one machine, or on the ranks of a launch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

from mcanalysis.errors import UserError
from mcanalysis.progress import Bar, Progress, silent
from mcanalysis.studies.job_worker import (
    Job,
    end_when_unwanted,
    in_order,
    opened_run,
    report_to,
    run_job,
    show,
    stop_job_on_signals,
)
from mcanalysis.training.stopping import Stopped, listening

__all__ = ["Follow", "Job", "Pool", "default_workers", "num_ranks", "opened_run", "run_jobs", "use_pool"]

Follow = Callable[[Job, Any], Sequence[Job]]


class Pool(Protocol):
    """Processes that something else has started, such as the ranks of a launch."""

    @property
    def count(self) -> int:
        """How many jobs it runs at a time."""
        ...

    def run(self, pending: list[Job], follow: Follow, progress: Progress, overall: Bar) -> None:
        """Run jobs as `run_jobs` does."""


_pool: Pool | None = None


def use_pool(pool: Pool | None) -> None:
    """Let all jobs from now on run there, whatever number of `workers` is asked for; None: here again."""
    global _pool
    _pool = pool


def num_ranks() -> int:
    """How many processes of a launch share the jobs; 1 without a launch."""
    return _pool.count if _pool is not None else 1


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
    """Run jobs and those that follow from their results (`follow(job, result)`), which go before those still waiting of
    the same turn.

    `total` is the number of jobs in the end, where it is known: they are then counted by a bar of their own.

    The first job that raises ends all: what is running is finished, nothing new is started, the error is raised here.
    After SIGTERM or Ctrl-C each running job is told to stop, which training does once it has saved; `Stopped` is raised
    here when all have. Workers do the same by themselves when this process is killed.
    """
    pending = in_order(jobs, [])
    overall = progress(total=total, desc="jobs") if total else silent(total=0, desc="jobs")
    try:
        if _pool is not None:
            _pool.run(pending, follow, progress, overall)
        elif workers == 1:
            while pending:
                job = pending.pop(0)
                result = job.function(*job.arguments, progress=progress)
                pending = in_order(follow(job, result), pending)
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
                        running[executor.submit(run_job, job)] = job
                    done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                    while not reports.empty():
                        show(reports.get(), bars, progress)
                    for future in done:
                        job = running.pop(future)
                        pending = in_order(follow(job, future.result()), pending)
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


def _start_worker(reports: Any, wanted: Any, workers: int, initializer: Callable[[], None] | None) -> None:
    report_to(reports.put)
    stop_job_on_signals()
    threading.Thread(target=end_when_unwanted, args=(wanted,), daemon=True).start()
    import torch

    torch.set_num_threads(max(1, _num_cores() // workers))
    if initializer is not None:
        initializer()
