"""Pieces on the workers of a dask cluster, which may join and leave while studies run.

Dask moves pieces and results and notices workers that die. Which worker computes which piece is decided here, one at a
time for each worker: so a piece that kills its workers is known by name, harms no other, and a worker that lacks
something can be left out. All of it happens in the one thread of the client's event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mcanalysis.errors import MissingPackageError, UserError
from mcanalysis.progress import Progress, silent
from mcanalysis.studies.engine import Piece
from mcanalysis.studies.executors.worker import DONE, FAILED, LOST, MOST_LOSSES, PIECE_SECONDS, Shown, lost
from mcanalysis.training.stopping import Stopped

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 15.0
_RESTART_SECONDS = 10.0  # in which a nanny has replaced its worker
_ADRIFT = "adrift"  # what became of a piece is not known
_LOOK_EVERY = 1.0  # seconds between looks at which workers there are


class Cluster:
    """The workers of a dask scheduler, given by its address or a scheduler file; a context manager.

    `count` is the number of workers there now: each computes one piece at a time, with as many threads as it has. A
    worker that says that it cannot compute a piece (no data, no base, another version) is set aside if another one can.
    A piece that does not train and is not done after `piece_seconds` (0: no limit) is taken to hang: its worker exits.
    `initializer` is called in each worker before its first piece. `say` is told, a line at a time, where the dashboard
    is, that workers are awaited, and which ones are set aside.

    Raises `UserError` for a scheduler that does not answer, has other versions, or is neither on this machine nor
    encrypted (unless `insecure`).
    """

    apart = True

    def __init__(
        self,
        scheduler: str,
        progress: Progress = silent,
        initializer: Callable[[], None] | None = None,
        *,
        piece_seconds: float = PIECE_SECONDS,
        insecure: bool = False,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.address = scheduler_address(scheduler)
        check_secure(self.address, insecure)
        self._client: Any = _connect(self.address)
        from mcanalysis.studies.executors.on_cluster import versions

        self._say, self._progress = say, progress
        self._seconds, self._initializer = piece_seconds, initializer
        self._versions = versions()
        self._study = f"mcanalysis-{uuid.uuid4().hex}"
        self._numbers, self._open = cycle(range(10_000)), set[int]()  # of pieces
        self._workers: dict[str, asyncio.Future[None]] = {}  # each done when its worker is gone
        self._busy: set[str] = set()
        self._aside: set[str] = set()
        self._shown: dict[str, Shown] = {}
        self._warned: set[str] = set()
        self._gone: UserError | None = None
        self._answered = self._patient_until = time.monotonic()
        self._is_wanted = False
        try:
            self._client.sync(self._begin)
            self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)
        except BaseException:
            self._client.close()
            raise

    @property
    def _loop(self) -> Any:
        return self._client.loop.asyncio_loop

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._changed, self._stopping = loop.create_future(), loop.create_future()
        self._client.subscribe_topic(self._study, self._hear)
        await self._look()
        if "dashboard" in self._client._scheduler_identity.get("services", {}):
            self._say(f"dashboard: {self._client.dashboard_link}")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """The workers that can compute now; one where the scheduler is lost, so that someone hears of it."""
        self._is_wanted = True
        return 1 if self._gone else len(self._workers.keys() - self._aside)

    def submit(self, piece: Piece) -> Future[Any]:
        """Start a piece, when a worker is free."""
        return asyncio.run_coroutine_threadsafe(self._compute(piece), self._loop)

    def stop(self) -> None:
        """Tell what trains to save and to end; what else runs is not waited for."""

        async def tell() -> None:
            from mcanalysis.studies.executors.on_cluster import stop_training

            if not self._stopping.done():
                self._stopping.set_result(None)
                self._notify()
                await self._client.run(stop_training, self._study, on_error="ignore")

        asyncio.run_coroutine_threadsafe(tell(), self._loop)

    def close(self) -> None:
        """Leave the cluster; the workers stay."""
        self._watching.cancel()
        self._client.close()

    async def _compute(self, piece: Piece) -> Any:
        losses = 0
        refused: dict[str, Exception] = {}  # what workers said that could not compute it
        try:
            while losses < MOST_LOSSES:
                address = await self._free_worker()
                if address is None:
                    if refused:
                        raise next(iter(refused.values()))
                    await self._changed
                    continue
                try:
                    what, *content = await self._ask(address, piece)
                finally:
                    self._busy.discard(address)
                    self._notify()
                if what == DONE:
                    for worker, error in refused.items():
                        self._say(f"worker {worker} is set aside: {error}")
                    return content[0]
                if what == LOST:
                    losses += 1
                    continue
                if what == _ADRIFT:
                    await asyncio.sleep(_LOOK_EVERY)
                    continue
                error, text = content
                if text:
                    error.add_note(f"On worker {address}:\n{text}")
                if not isinstance(error, UserError) or str(error) in map(str, refused.values()):
                    raise error
                refused[address] = error
                self._aside.add(address)
            seconds = 0.0 if piece.trains else self._seconds
            raise (
                lost(piece, f"died, or were not done after {seconds:,.0f} s (--time-limit)") if seconds else lost(piece)
            )
        except BaseException:  # it was not their fault
            self._aside -= refused.keys()
            self._notify()
            raise

    async def _free_worker(self) -> str | None:
        """A worker that is busy with this piece from now on; None if there is none that can compute at all."""
        while True:
            if self._gone:
                raise self._gone
            if self._stopping.done():
                raise Stopped(signal.SIGTERM)
            able = [address for address in self._workers if address not in self._aside]
            for address in able:  # the first that is free: it has the model and the data already
                if address not in self._busy:
                    self._busy.add(address)
                    return address
            if not able:
                return None
            await self._changed

    async def _ask(self, address: str, piece: Piece) -> tuple[Any, ...]:
        """What a worker makes of a piece: its outcome, or `("lost",)`."""
        from distributed.protocol.pickle import dumps

        from mcanalysis.studies.executors.on_cluster import compute

        gone = self._workers.get(address)
        if gone is None:
            return (LOST,)
        # As bytes, or the scheduler would read it and import PyTorch. Keys come round again, one group per function:
        # the scheduler remembers 100,000 of them, and each group for as long as the study goes on.
        number = next(n for n in self._numbers if n not in self._open)
        self._open.add(number)
        sent = dumps((piece.function, piece.arguments, self._initializer))
        seconds = 0.0 if piece.trains else self._seconds
        name = getattr(piece.function, "__name__", "piece")
        future = self._client.submit(
            compute, self._study, self._versions, sent, piece.trains, seconds,
            key=(f"{name}-{self._study}", number), workers=[address], pure=False,
        )  # fmt: skip
        result = asyncio.ensure_future(future.result())
        try:
            await asyncio.wait(
                {result, gone} if piece.trains else {result, gone, self._stopping}, return_when="FIRST_COMPLETED"
            )
            found: tuple[Any, ...] = self._outcome(result) if result.done() else (LOST,)
        finally:
            result.add_done_callback(_look_away)
            future.release()  # ends the waiting, too
            self._open.discard(number)
        is_over = found[0] == LOST or (found[0] == FAILED and isinstance(found[1], Stopped))
        if is_over and self._stopping.done():
            raise Stopped(signal.SIGTERM)
        if is_over and found[0] == FAILED and piece.trains:  # its machine is told to end
            return (LOST,)
        return found

    @staticmethod
    def _outcome(result: asyncio.Future[Any]) -> tuple[Any, ...]:
        from distributed import CancelledError, KilledWorker

        try:
            return result.result()
        except KilledWorker:
            return (LOST,)
        except (asyncio.CancelledError, CancelledError):  # the connection to the scheduler broke
            return (_ADRIFT,)
        except Exception as error:
            reason = str(error).split(". ")[0]  # dask's own: nothing of ours was reached
            return FAILED, UserError(f"Is mcanalysis installed for the scheduler and all workers? {reason}."), ""

    def _notify(self) -> None:
        """Wake who waits for a worker."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    def _hear(self, event: tuple[float, Any]) -> None:
        """Show what a worker reports of its bars."""
        address, *report = event[1]
        if address in self._workers:
            key, what, value = report
            self._shown.setdefault(address, Shown(self._progress, self._warned)).show((tuple(key), what, value))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            await self._look()

    async def _look(self) -> None:
        """See which workers there are."""
        try:
            there = await asyncio.wait_for(self._client.nthreads(), _ANSWER_SECONDS)
            self._answered = time.monotonic()
            self._gone = None
        except Exception as error:
            if time.monotonic() - self._answered < _ANSWER_SECONDS:
                return
            logger.debug("%s: %s", self.address, error)
            there = {}
            self._gone = UserError(
                f"The scheduler at {self.address} does not answer any more. What is stored is kept: start one, then "
                "the same command again."
            )
        new = sorted(there.keys() - self._workers.keys())
        for address in random.sample(new, len(new)):  # two studies on one cluster begin with different ones
            self._workers[address] = asyncio.get_running_loop().create_future()
        for address in self._workers.keys() - there.keys():
            self._workers.pop(address).set_result(None)
            self._aside.discard(address)
            if address in self._shown:
                self._shown.pop(address).close()
        self._notify()
        if self._workers.keys() - self._aside:
            self._patient_until = time.monotonic() + _RESTART_SECONDS
        elif self._is_wanted and not self._gone and time.monotonic() >= self._patient_until:
            self._patient_until = float("inf")
            self._say(f"no workers at {self.address} yet, waiting: start some with `dask worker {self.address}`")


def _look_away(task: asyncio.Future[Any]) -> None:
    """Let no one complain that what a task raised was of no interest."""
    if not task.cancelled():
        task.exception()


def scheduler_address(scheduler: str) -> str:
    """The address itself, or what a scheduler file says; raises `UserError` where it says none.

    >>> scheduler_address("127.0.0.1:8786")
    'tcp://127.0.0.1:8786'
    """
    file = Path(scheduler)
    if "://" not in scheduler and (file.exists() or file.suffix == ".json"):
        try:
            return json.loads(file.read_text(encoding="utf-8"))["address"]
        except OSError as error:
            raise UserError(f"The scheduler file {file} cannot be read: {error.strerror}. Is it running?") from None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file} is no scheduler file: it names no address.") from None
    address = scheduler if "://" in scheduler else f"tcp://{scheduler}"
    try:
        is_whole = address.startswith("inproc://") or urlsplit(address).port
    except ValueError:
        is_whole = False
    if not is_whole:
        raise UserError(f"--scheduler needs an address such as tcp://127.0.0.1:8786, or a file; got {scheduler}.")
    return address


def check_secure(address: str, insecure: bool) -> None:
    """Raise `UserError` for an address that is neither on this machine nor encrypted, unless that is asked for.

    >>> check_secure("tcp://127.0.0.1:8786", False), check_secure("tls://node7:8786", False)
    (None, None)
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    is_here = parts.scheme == "inproc" or host in ("localhost", "::1") or host.startswith("127.")
    if not (is_here or parts.scheme == "tls" or insecure):
        raise UserError(
            f"{address} is not encrypted and not on this machine: whoever reaches its port can run code. Use tls://, "
            "or --insecure on a network that you trust."
        )


def _connect(address: str) -> Client:
    try:
        from distributed import Client
        from distributed.utils import LoopRunner
        from distributed.versions import VersionMismatchWarning
    except ImportError:
        raise MissingPackageError("distributed", "for --scheduler", "cluster") from None
    from mcanalysis.studies.executors.on_cluster import versions

    asking = LoopRunner()
    asking.start()
    try:
        asking.run_sync(_ask_for_an_answer, address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # what matters is compared below
            client = Client(address, timeout=_ANSWER_SECONDS, set_as_default=False)
    except OSError:
        raise UserError(
            f"No scheduler answers at {address} within {_ANSWER_SECONDS:g} s: start one with `dask scheduler`, or "
            "check the address."
        ) from None
    except (TypeError, ValueError, RuntimeError) as error:  # no certificates, for one
        raise UserError(f"The scheduler at {address} cannot be talked to: {error}") from None
    finally:
        asking.stop()
    there: Any = client.sync(client.scheduler.versions)  # type: ignore[union-attr]
    python = ".".join(there["host"]["python"].split(".")[:2])
    theirs = {"distributed": there["packages"]["distributed"], "python": python}
    for name, own in versions().items():
        if theirs.get(name, own) != own:
            client.close()
            raise UserError(
                f"The scheduler at {address} has {name} {theirs[name]} for {own} here: install the same versions."
            )
    return client


async def _ask_for_an_answer(address: str) -> None:
    """Raise `OSError` if no scheduler answers; a client waits for ever for one that takes calls and says nothing."""
    from distributed import Security
    from distributed.comm.core import connect

    encryption = Security().get_connection_args("client")
    talk = await asyncio.wait_for(connect(address, _ANSWER_SECONDS, **encryption), _ANSWER_SECONDS)
    await talk.close()
