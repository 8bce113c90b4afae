"""The side that computes: a process that is given pieces one after another, and what it says of its bars.

It ends when the process that gives them does, once the piece that it computes has saved what it has.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from mcanalysis.errors import WorkerLostError
from mcanalysis.progress import Bar, Progress
from mcanalysis.studies.engine import Piece
from mcanalysis.training.stopping import Stopped

Report = tuple[tuple[int, int], str, Any]
"""(process and number of a bar, "start" or "update" or "close", value); of a warning (…, "warn", (level, text))."""

PIECE_SECONDS = 4 * 3600.0
"""After so long a piece that does not train is taken to hang."""
MOST_LOSSES = 3
"""Workers that one piece may take with it."""

PIECE, STOP = "piece", "stop"  # what a worker is told
REPORT, DONE, FAILED, LOST = "report", "done", "failed", "lost"  # what it says, or is said of it

_REPORT_EVERY = 0.2  # seconds: who trains counts hundreds of steps in one


class Reporting:
    """A progress whose bars say what happens to them to `tell`, who may be in another process.

    >>> said = []
    >>> bar = Reporting(said.append)(total=2, desc="fit")
    >>> bar.update(); bar.update(); bar.close()
    >>> [(what, value) for _, what, value in said]
    [('start', (2, 'fit')), ('update', 1), ('update', 1), ('close', None)]
    """

    def __init__(self, tell: Callable[[Report], None]) -> None:
        self._tell = tell
        self._numbers = count()

    def warn(self, level: int, text: str) -> None:
        """Hand on what was logged."""
        with suppress(OSError):
            self._tell(((os.getpid(), -1), "warn", (level, text)))

    def __call__(self, *, total: int, desc: str) -> Bar:
        return _ReportingBar((os.getpid(), next(self._numbers)), total, desc, self._tell)


class _ReportingBar:
    def __init__(self, key: tuple[int, int], total: int, desc: str, tell: Callable[[Report], None]) -> None:
        self.total = float(total)
        self.is_open = False
        self._key, self._tell = key, tell
        self._untold, self._told = 0, 0.0
        self._say("start", (total, desc))

    def update(self, n: int = 1) -> None:
        self._untold += n
        if time.monotonic() - self._told > _REPORT_EVERY:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._say("close", None)

    def _flush(self) -> None:
        if self._untold:
            self._say("update", self._untold)
            self._untold, self._told = 0, time.monotonic()

    def _say(self, what: str, value: Any) -> None:
        with suppress(OSError):  # who would show it may be gone, and the piece has to save
            self._tell((self._key, what, value))


class Shown:
    """On the other side: the bars of one worker, as `progress` shows them, and its warnings, of those of `said`, which
    its fellows share, each once."""

    def __init__(self, progress: Progress, said: set[str]) -> None:
        self._progress, self._said = progress, said
        self._bars: dict[Any, Bar] = {}

    def show(self, report: Report) -> None:
        """Do with a bar what a worker reports."""
        key, what, value = report
        if what == "start":
            self._bars[key] = self._progress(total=value[0], desc=value[1])
        elif what == "update" and key in self._bars:
            self._bars[key].update(value)
        elif what == "close" and key in self._bars:
            self._bars.pop(key).close()
        elif what == "warn" and value[1] not in self._said:
            self._said.add(value[1])
            logging.getLogger("mcanalysis").log(*value)

    def close(self) -> None:
        """Close what a worker that is gone has left open."""
        while self._bars:
            self._bars.popitem()[1].close()


class _Handing(logging.Handler):
    def __init__(self, progress: Reporting) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.warn(record.levelno, record.getMessage())


@contextmanager
def _handing_on(progress: Progress) -> Iterator[None]:
    """Hand on what the package logs meanwhile to where the bars go, instead of writing it among them."""
    if not isinstance(progress, Reporting):
        yield
        return
    ours, handler = logging.getLogger("mcanalysis"), _Handing(progress)
    ours.addHandler(handler)
    ours.propagate = False
    try:
        yield
    finally:
        ours.propagate = True
        ours.removeHandler(handler)


def lost(piece: Piece, why: str = "died, for lack of memory perhaps") -> WorkerLostError:
    """The error of a piece that has taken as many workers with it as it may."""
    return WorkerLostError(
        f"{piece.name or piece.key} was given up: {MOST_LOSSES} workers that computed it {why}. What is stored is kept."
    )


def outcome(function: Callable[..., Any], arguments: tuple[Any, ...], progress: Progress) -> tuple[Any, ...]:
    """`("done", result)` or `("failed", error, traceback)` of a piece."""
    try:
        with _handing_on(progress):
            return DONE, function(*arguments, progress=progress)
    except (Exception, Stopped) as error:
        return FAILED, error, traceback.format_exc()


def _fail(error: Exception, progress: Progress) -> None:
    raise error


class _Serving:
    """A process that is given pieces: which one it computes, and whether it is to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._is_busy = False
        self._is_ending = False

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)
        threading.Thread(target=self._listen, daemon=True).start()
        progress = Reporting(lambda report: self._connection.send((REPORT, report)))
        with suppress(OSError):  # no one is there to take it
            while (piece := self._inbox.get()) is not None:
                found = self._compute(*piece, progress)
                try:
                    self._connection.send(found)
                except (TypeError, ValueError, AttributeError) as error:  # what cannot be sent
                    self._connection.send((FAILED, TypeError(str(error)), traceback.format_exc()))

    def _compute(self, function: Callable[..., Any], arguments: tuple[Any, ...], progress: Progress) -> tuple[Any, ...]:
        try:
            self._is_busy = True
            if self._is_ending:
                raise Stopped(signal.SIGTERM)
            found = outcome(function, arguments, progress)
            self._is_busy = False
        except Stopped as stop:  # the signal came between two lines
            found = FAILED, stop, ""
        finally:
            self._is_busy = False
        return found

    def _listen(self) -> None:
        """Take in pieces, also while one is computed, which has to end when it is told to or no one wants it."""
        with suppress(EOFError, OSError):
            while True:
                try:
                    message = self._connection.recv()
                except (AttributeError, ImportError) as error:  # a function that is not there
                    message = PIECE, _fail, (error,)
                if message[0] == STOP:
                    break
                self._inbox.put(message[1:])
        self._is_ending = True
        self._inbox.put(None)
        os.kill(os.getpid(), signal.SIGTERM)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_busy:  # else there is nothing to stop: the other side ends its workers
            raise Stopped(number)


def serve(
    connection: Connection, initializer: Callable[[], None] | None = None, threads: int = 0, gpu: str | None = None
) -> None:
    """Compute the pieces that come over a connection until it is closed or says to stop.

    `threads`: of PyTorch (0: as many as it likes). `gpu`: the one that this process sees (None: all there are).
    """
    serving = _Serving(connection)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if threads:
        use_threads(threads)
    if initializer is not None:
        initializer()
    serving.run()


def use_threads(number: int) -> None:
    """Let PyTorch compute with so many threads, now or when a piece that needs it imports it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(i) for i in range(torch.cuda.device_count())]


def main() -> None:
    """A process of its own for one piece: the other end of its standard input, a socket, gives it."""
    serve(Connection(os.dup(0)))


if __name__ == "__main__":
    main()
