"""The side of a process that is given jobs: it runs them, reports their bars, and ends them when it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mcanalysis.progress import Bar, Progress
from mcanalysis.training.stopping import Stopped

if TYPE_CHECKING:
    from mcanalysis.runs.run import Opening, Run


@dataclass(frozen=True)
class Job:
    """A function of a module (it is sent to another process by name), called with these arguments and `progress=`.

    Of waiting jobs those with the lowest `turn` go first.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    turn: int = 0


def in_order(following: Sequence[Job], waiting: Sequence[Job]) -> list[Job]:
    """The jobs that follow from a result, before those of the same turn that wait already.

    >>> made = in_order([Job(print, ("c",)), Job(print, ("d",), 2)], [Job(print, ("a",)), Job(print, ("b",), 1)])
    >>> [job.arguments[0] for job in made]
    ['c', 'a', 'b', 'd']
    """
    return sorted([*following, *waiting], key=lambda job: job.turn)


@cache
def opened_run(directory: Path, opening: Opening) -> Run:
    """A worker's run, with its model and data, for all of its jobs."""
    from mcanalysis.runs.run import load_run  # here: a worker whose jobs need no model does not wait for transformers

    return load_run(directory, *opening)


# A process is a worker of one pool at most.
_tell: Callable[[Any], None] = lambda report: None  # noqa: E731
_busy = False
_unwanted = False


def report_to(tell: Callable[[Any], None]) -> None:
    """What is told of bars goes there, as (key, what, value)."""
    global _tell
    _tell = tell


def stop_job_on_signals() -> None:
    """SIGTERM and Ctrl-C end the job that runs; with none there is nothing to stop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _asked_to_stop)


def run_job(job: Job) -> Any:
    """The job's result; raises `Stopped` if this process was told to end."""
    global _busy
    _busy = True
    try:
        if _unwanted:
            raise Stopped(signal.SIGTERM)
        return job.function(*job.arguments, progress=_reporting)
    finally:
        _busy = False


def end_job() -> None:
    """From another thread: end the job that runs, as SIGTERM would, and let no other one start."""
    global _unwanted
    _unwanted = True
    os.kill(os.getpid(), signal.SIGTERM)


def end_when_unwanted(wanted: Any) -> None:
    """Wait until the process that started this one wants no more of it, or is gone; then end the job, and in the end
    this process, too: an orphan would keep its run directory locked."""
    with suppress(EOFError, OSError):
        wanted.recv_bytes()
    end_job()
    parent = parent_process()
    if parent is not None:
        parent.join()
    while _busy:
        time.sleep(0.1)
    os._exit(128 + signal.SIGTERM)


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    if _busy:  # else there is nothing to stop: the pool ends its workers
        raise Stopped(number)


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
            _tell((self.key, what, value))


def _reporting(*, total: int, desc: str) -> Bar:
    return _ReportingBar(total, desc)


def show(report: Any, bars: dict[Any, Bar], progress: Progress) -> None:
    """On the other side: do with a bar what a worker reports."""
    key, what, value = report
    if what == "start":
        bars[key] = progress(total=value[0], desc=value[1])
    elif what == "update" and key in bars:
        bars[key].update(value)
    elif what == "close" and key in bars:
        bars.pop(key).close()
