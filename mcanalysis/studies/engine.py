"""Studies as generators: each yields what it wants next and is resumed with the results.

What a study wants are pieces, which a process computes, and other studies, which go on side by side; it is resumed when
all of it is there. What is kept already is not computed, and two studies that want one piece share it. The engine runs
in the process that started it and alone writes results; workers only compute.
"""

from __future__ import annotations

import heapq
import logging
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, TypeVar

from mcanalysis.progress import Bar, Progress, silent
from mcanalysis.training.stopping import Stopped, StopRequest, listening

logger = logging.getLogger(__name__)

T = TypeVar("T")
TRAINING = 2
"""The turn of training: after what a first figure needs, before what only compares, so that a long one does not end
alone."""
FIRST, FIRST_TRAINING = TRAINING - 2, TRAINING - 1
"""The turns of what a first figure needs, and of the training of the run that it is of."""


class Kept(Protocol):
    """Where the result of a piece is kept."""

    def find(self) -> Any:
        """What is kept; None where nothing is."""
        ...

    def keep(self, result: Any) -> Any:
        """Keep what was computed; returns what `find` would give from now on."""
        ...


class _Nowhere:
    """For a result that only the study needs."""

    def find(self) -> Any:
        return None

    def keep(self, result: Any) -> Any:
        return result


@dataclass(frozen=True, eq=False)
class Piece:
    """One thing to compute: a function of a module, called as `function(*arguments, progress=…)`, wherever.

    Pieces of one `key` are the same. Of waiting pieces those with the lowest `turn` go first, then those that were
    wanted first. `name` is what messages call it. `trains`: it writes a run directory, takes long and saves when it is
    told to stop, so that on a cluster it gets a process of its own.
    """

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    kept: Kept = field(default_factory=_Nowhere)
    turn: int = 0
    name: str = ""
    trains: bool = False


Steps = Generator["list[Piece | Steps[Any]]", "list[Any]", T]
"""A study: yields lists of pieces and studies, is resumed with a list of their results, returns its own."""


class Workers(Protocol):
    """Where pieces are computed."""

    @property
    def count(self) -> int:
        """How many pieces at a time; it may change while studies run, and 0 is to wait for a worker."""
        ...

    def submit(self, piece: Piece) -> Future[Any]:
        """Start a piece. Its own exception comes through; `WorkerLostError` if it has lost three workers."""
        ...

    def stop(self) -> None:
        """Tell what runs to save and to end."""
        ...

    @property
    def apart(self) -> bool:
        """Whether pieces run in other processes, so that this one has to listen to signals for them."""
        ...


class Here:
    """Computes in this process, at once; what a piece reports goes to `progress`.

    >>> Here().submit(Piece("k", lambda x, progress: x + 1, (1,))).result()
    2
    """

    count = 1
    apart = False

    def __init__(self, progress: Progress = silent) -> None:
        self._progress = progress

    def submit(self, piece: Piece) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(piece.function(*piece.arguments, progress=self._progress))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing runs while the engine does."""


@dataclass(eq=False)
class _Open:
    """A study that has begun: what it waits for, and who waits for it."""

    steps: Steps[Any]
    parent: _Open | None = None
    into: list[Any] = field(default_factory=list)  # the parent's results, and this one's place among them
    place: int = 0
    results: list[Any] = field(default_factory=list)
    absent: int = 0
    parts: list[_Open] = field(default_factory=list)
    is_over: bool = False


@dataclass(eq=False)
class _UnderWay:
    """A piece that waits or runs, and the studies that want it."""

    piece: Piece
    wanted_by: list[tuple[_Open, list[Any], int]] = field(default_factory=list)

    @property
    def is_wanted(self) -> bool:
        """Whether a study still waits for it."""
        return any(study.results is results and not study.is_over for study, results, _ in self.wanted_by)


class Engine:
    """Runs studies side by side on `workers`; `progress` shows how many of the pieces known so far are done.

    An error of a piece is raised inside the studies that want it. A study that does not handle it ends, with those
    inside it; others go on. After SIGTERM or Ctrl-C nothing new is started, what runs is told to save and to end, and
    `Stopped` is raised.

    >>> def square(x, progress):
    ...     return x * x
    >>> def study():
    ...     first, second = yield [Piece(f"square {x}", square, (x,)) for x in (2, 3)]
    ...     (third,) = yield [Piece(f"square {first}", square, (first,))]
    ...     return first + second + third
    >>> Engine(Here()).run([study(), study()])
    [29, 29]
    """

    def __init__(self, workers: Workers, progress: Progress = silent) -> None:
        self.workers = workers
        self._progress = progress
        self._waiting: list[tuple[int, int, _UnderWay]] = []
        self._under_way: dict[str, _UnderWay] = {}
        self._running: dict[Future[Any], _UnderWay] = {}
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._ready: deque[tuple[_Open, Any, Exception | None]] = deque()
        self._numbers = count()
        self._bar: Bar | None = None
        self._known = self._trainings = 0

    def run(self, studies: Iterable[Steps[Any]]) -> list[Any]:
        """The values that the studies return; when all have ended, the error of the first that failed is raised.

        A study that fails before it wants anything ends all of them before anything is computed.
        """
        opened = [_Open(steps) for steps in studies]
        values: dict[_Open, Any] = {}
        failures: dict[_Open, Exception] = {}
        self._ready.extend((study, None, None) for study in opened)
        self._bar, self._known, self._trainings, is_start = None, 0, 0, True
        try:
            with listening() if self.workers.apart else nullcontext(StopRequest()) as stop:
                while True:
                    self._advance(values, failures)
                    if failures and is_start:  # refused: nothing is computed, of the others neither
                        break
                    is_start = False
                    if not (self._running or self._waiting):
                        break
                    if stop:
                        raise Stopped(stop.signal)
                    self._start()
                    self._take_in(0.2)
        except BaseException as error:
            self._end_what_runs(error)
            raise
        finally:
            for study in opened:
                _close(study)
            self._waiting.clear()
            self._under_way.clear()
            if self._bar is not None:
                self._bar.close()
        ordered = [failures[study] for study in opened if study in failures]
        if ordered:
            for other in dict.fromkeys(map(str, ordered[1:])):
                if other != str(ordered[0]):
                    logger.warning("%s", other)
            raise ordered[0]
        return [values[study] for study in opened]

    def _advance(self, values: dict[_Open, Any], failures: dict[_Open, Exception]) -> None:
        """Resume all studies that can go on, until each waits for something or has ended."""
        while self._ready:
            study, results, error = self._ready.popleft()
            if study.is_over:
                continue
            try:
                wanted = study.steps.throw(error) if error is not None else study.steps.send(results)
            except StopIteration as end:
                study.is_over = True
                if study.parent is None:
                    values[study] = end.value
                else:
                    self._give(study.parent, study.into, study.place, end.value)
                continue
            except Exception as failure:
                _close(study)
                if study.parent is None:
                    failures[study] = failure
                else:
                    self._fail(study.parent, study.into, failure)
                continue
            self._want(study, wanted)

    def _want(self, study: _Open, wanted: Sequence[Piece | Steps[Any]]) -> None:
        study.results, study.absent, study.parts = [None] * len(wanted), len(wanted), []
        if not wanted:
            self._ready.append((study, [], None))
        for place, item in enumerate(wanted):
            if not isinstance(item, Piece):
                part = _Open(item, study, study.results, place)
                study.parts.append(part)
                self._ready.append((part, None, None))
                continue
            under_way = self._under_way.get(item.key)
            if under_way is None:
                found = item.kept.find()
                if found is not None:
                    self._give(study, study.results, place, found)
                    continue
                under_way = self._under_way[item.key] = _UnderWay(item)
                heapq.heappush(self._waiting, (item.turn, next(self._numbers), under_way))
                self._show(more=1, trainings=item.trains)
            under_way.wanted_by.append((study, study.results, place))

    def _give(self, study: _Open, results: list[Any], place: int, result: Any) -> None:
        if study.is_over or study.results is not results:
            return  # it has gone on after an error
        results[place] = result
        study.absent -= 1
        if not study.absent:
            self._ready.append((study, study.results, None))

    def _fail(self, study: _Open, results: list[Any], error: Exception) -> None:
        """Raise an error in a study; what else it waited for is not waited for any more."""
        if study.is_over or study.results is not results:
            return
        study.results = []
        for part in study.parts:
            _close(part)
        self._ready.append((study, None, error))

    def _start(self) -> None:
        while self._waiting and len(self._running) < self.workers.count:
            under_way = heapq.heappop(self._waiting)[2]
            if not under_way.is_wanted:
                del self._under_way[under_way.piece.key]
                self._show(more=-1, trainings=-under_way.piece.trains)
                continue
            future = self.workers.submit(under_way.piece)
            self._running[future] = under_way
            future.add_done_callback(self._done.put)

    def _take_in(self, seconds: float) -> None:
        """Keep what is done, waiting for the first for so long."""
        try:
            future = self._done.get(timeout=seconds) if self._running or self._waiting else None  # no worker: wait
            while future is not None:
                self._end(future, self._running.pop(future))
                future = self._done.get_nowait()
        except queue.Empty:
            return

    def _end(self, future: Future[Any], under_way: _UnderWay) -> None:
        piece = under_way.piece
        del self._under_way[piece.key]
        self._show(done=1, trainings=-piece.trains)
        try:
            result = piece.kept.keep(future.result())
        except Exception as error:
            for study, results, _ in under_way.wanted_by:
                self._fail(study, results, error)
            return
        for study, results, place in under_way.wanted_by:
            self._give(study, results, place, result)

    def _end_what_runs(self, error: BaseException) -> None:
        """Nothing new is started; what runs is told to save, and what it still gives is kept."""
        if self._running and not isinstance(error, Exception):
            self.workers.stop()
        while self._running:
            future = self._done.get()
            under_way = self._running.pop(future)
            try:
                under_way.piece.kept.keep(future.result())
            except BaseException as late:  # what ended by being told to says so
                logger.debug("%s: %s", under_way.piece.name, late)

    def _show(self, done: int = 0, more: int = 0, trainings: int = 0) -> None:
        self._known += more
        self._trainings += trainings
        if self._bar is None and self._known > 1:
            self._bar = self._progress(total=self._known, desc="pieces")
        if self._bar is not None:
            self._bar.total = self._known
            self._bar.is_open = self._trainings > 0  # what is trained will be measured
            if done:
                self._bar.update(done)


def _close(study: _Open) -> None:
    """End a study and those inside it, so that what they hold open is closed."""
    study.is_over = True
    for part in study.parts:
        if not part.is_over:
            _close(part)
    study.steps.close()
