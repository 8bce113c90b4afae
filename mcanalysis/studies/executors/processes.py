"""Pieces in processes of this machine, each of which computes one at a time; one that is killed is replaced."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from mcanalysis.progress import Bar, Progress, silent
from mcanalysis.studies.engine import Piece
from mcanalysis.studies.executors.worker import (
    DONE,
    MOST_LOSSES,
    PIECE,
    PIECE_SECONDS,
    REPORT,
    STOP,
    Shown,
    lost,
    serve,
    visible_gpus,
)
from mcanalysis.training.stopping import Stopped


def default_workers(device: str | None, model_bytes: int) -> int:
    """As many as there are cores for a small model on CPU, else one.

    Each process holds a copy of the model, so this is for models under 100 MB.

    >>> default_workers("cuda", 10)
    1
    """
    if device not in (None, "cpu") or model_bytes > 100_000_000:
        return 1
    return num_cores()


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """`count` processes, each started when it is first needed; a context manager, at whose end they are gone.

    `progress` shows the bars of all. `initializer` is called in each before its first piece. A piece that does not
    train and is not done after `piece_seconds` (0: no limit) is taken to hang: its process is killed. A piece whose
    process is killed is computed in a new one, and fails with `WorkerLostError` when it has lost three.

    >>> with Processes(2) as workers:
    ...     workers.count
    2
    """

    apart = True

    def __init__(
        self,
        count: int,
        progress: Progress = silent,
        initializer: Callable[[], None] | None = None,
        piece_seconds: float = PIECE_SECONDS,
    ) -> None:
        self.count = count
        self._seconds = piece_seconds
        one_at_a_time = _OneAtATime(progress)
        threads = max(1, num_cores() // count)
        said: set[str] = set()
        self._idle = [_Slot(i, Shown(one_at_a_time, said), initializer, threads) for i in reversed(range(count))]
        self._slots = tuple(self._idle)
        self._waiting = ThreadPoolExecutor(count, "piece")  # a thread waits for each process

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, piece: Piece) -> Future[Any]:
        """Start a piece; what comes after `count` of them waits."""
        return self._waiting.submit(self._compute, piece)

    def stop(self) -> None:
        """Tell what runs to save and to end."""
        for slot in self._slots:
            slot.stop()

    def close(self) -> None:
        """End all processes; what runs is told to save."""
        self.stop()
        self._waiting.shutdown(cancel_futures=True)
        for slot in self._slots:
            slot.end()

    def _compute(self, piece: Piece) -> Any:
        slot = self._idle.pop()  # the one that was used last: it has a process, a model and data
        limit = 0.0 if piece.trains else self._seconds
        was_late = False
        try:
            for _ in range(MOST_LOSSES):
                try:
                    return slot.compute(piece, limit)
                except _GoneError as gone:
                    was_late = gone.was_late
            raise lost(piece, f"were not done after {limit:,.0f} s (--time-limit)") if was_late else lost(piece)
        finally:
            self._idle.append(slot)


class _GoneError(Exception):
    """The process is gone, killed by us where it took too long."""

    def __init__(self, was_late: bool = False) -> None:
        super().__init__()
        self.was_late = was_late


class _Slot:
    """A process and its connection; another one when it is gone."""

    def __init__(self, number: int, shown: Shown, initializer: Callable[[], None] | None, threads: int) -> None:
        self._shown = shown
        self._number = number
        self._how = (initializer, threads)
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        self._is_stopped = False

    def compute(self, piece: Piece, seconds: float) -> Any:
        """The result of a piece, or its error; after `seconds` (0: never) the process is killed."""
        try:
            what, *content = self._exchange(piece, time.monotonic() + seconds if seconds else None)
        except (EOFError, OSError):
            self.end()
            if self._is_stopped:
                raise Stopped(signal.SIGTERM) from None
            raise _GoneError from None
        finally:
            self._shown.close()
        if what == DONE:
            return content[0]
        error, text = content
        if not isinstance(error, Stopped):
            error.add_note(f"In a worker:\n{text}")
        raise error

    def stop(self) -> None:
        """Tell what runs to save and to end, and start nothing any more."""
        self._is_stopped = True
        with suppress(OSError):
            self._send((STOP,))

    def end(self) -> None:
        """Wait until the process is gone, having told it to stop if it is alive."""
        with self._sending:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if self._process is not None:
            self._process.join()
            self._process = None

    def _exchange(self, piece: Piece, end: float | None) -> tuple[Any, ...]:
        """Send a piece and show its bars until its outcome is there."""
        self._start()
        self._send((PIECE, piece.function, piece.arguments))
        while (heard := self._hear(end))[0] == REPORT:
            self._shown.show(heard[1])
        return heard

    def _start(self) -> None:
        if self._process is None and not self._is_stopped:
            # A forked torch can hang in its thread pool. The child has to see the connection's end when this process
            # is gone, so no other child may hold it: a spawned one inherits nothing else.
            spawn = get_context("spawn")
            self._connection, theirs = spawn.Pipe()
            gpus = visible_gpus()
            gpu = gpus[self._number % len(gpus)] if gpus else None
            self._process = spawn.Process(target=serve, args=(theirs, *self._how, gpu))
            self._process.start()
            theirs.close()
        if self._is_stopped:
            raise EOFError

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            if self._connection is not None:
                self._connection.send(message)

    def _hear(self, end: float | None) -> tuple[Any, ...]:
        assert self._connection is not None
        if end is not None and not self._connection.poll(max(0.0, end - time.monotonic())):
            assert self._process is not None
            self._process.kill()
            self.end()
            raise _GoneError(was_late=True)
        return self._connection.recv()


class _OneAtATime:
    """A progress that threads share: its bars are told one thing at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def __call__(self, *, total: int, desc: str) -> Bar:
        with self._lock:
            return _LockedBar(self._progress(total=total, desc=desc), self._lock)


class _LockedBar:
    def __init__(self, bar: Bar, lock: threading.Lock) -> None:
        self._bar, self._lock = bar, lock
        self.total = 0.0
        self.is_open = False

    def update(self, n: int = 1) -> None:
        with self._lock:
            self._bar.update(n)

    def close(self) -> None:
        with self._lock:
            self._bar.close()
