"""The processes of a launch as one pool: rank 0 hands out jobs, and every rank works on them.

Torch's rendezvous says where rank 0 is; from then on each rank has a connection to it, over which it is given one job
after another: whoever is free takes the next, so that a slow rank does less. Rank 0 has a worker of its own, a process
beside it, because it has to listen while jobs run. A connection that breaks is a rank that is lost.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import AuthenticationError, get_context
from multiprocessing.connection import Client, Connection, Listener, wait
from types import FrameType, TracebackType
from typing import Any

from mcanalysis.errors import UserError
from mcanalysis.progress import Bar, Progress
from mcanalysis.studies.job_worker import end_job, in_order, report_to, run_job, show
from mcanalysis.studies.jobs import Follow, Job, use_pool
from mcanalysis.studies.launch import JOIN_SECONDS, Launch, leave_launch
from mcanalysis.training.stopping import Stopped, listening

_SAVING_SECONDS = 25.0  # torchrun kills a process 30 s after it has asked it to end
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(eq=False)
class _Rank:
    """A worker as rank 0 sees it."""

    number: int
    where: str
    connection: Connection
    job: Job | None = None
    stopped: int = 0  # the signal it said that it was stopped by
    is_closed: bool = False

    def send(self, message: tuple[Any, ...]) -> None:
        with suppress(OSError):  # that it is gone is noticed when it is listened to
            self.connection.send(message)


class Ranks:
    """The pool of a launch, in rank 0; a context manager in which `run_jobs` spreads its jobs over all ranks.

    Raises `UserError` if fewer ranks come than the launch says, within its `join_seconds`.
    """

    def __init__(self, launch: Launch, initializer: Callable[[], None] | None = None) -> None:
        self.count = launch.count
        self._launch = launch
        self._initializer = initializer
        self._ranks: list[_Rank] = []
        self._own: Any = None

    def __enter__(self) -> Ranks:
        try:
            self._join()
        except BaseException:
            self._end()
            raise
        use_pool(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        use_pool(None)
        self._end()

    def run(self, pending: list[Job], follow: Follow, progress: Progress, overall: Bar) -> None:
        """Run jobs as `run_jobs` does.

        Raises `UserError` when a rank is lost; the others are then told to stop, as after a signal.
        """
        bars: dict[Any, Bar] = {}
        failure: Exception | None = None

        def hear(seconds: float) -> None:
            nonlocal pending, failure
            for rank in self._speaking(seconds):
                for what, *content in self._messages(rank):
                    if what == "report":
                        key, *rest = content[0]
                        show(((rank.number, key), *rest), bars, progress)
                        continue
                    job, rank.job = rank.job, None
                    assert job is not None
                    try:
                        if what == "failed":
                            error, text = content
                            error.add_note(f"In process {rank.number}:\n{text}")
                            raise error
                        pending = in_order(follow(job, content[0]), pending)
                        overall.update(1)
                    except Exception as error:  # what runs is finished first
                        failure = failure or error

        with listening() as stop:
            try:
                while any(rank.job for rank in self._ranks) or (pending and failure is None):
                    if stop:
                        hear(0.5)  # when a rank is lost, torchrun asks the others to end
                        raise Stopped(stop.signal)
                    for rank in self._ranks:
                        if rank.job is None and pending and failure is None:
                            rank.job = pending.pop(0)
                            rank.send(("job", rank.job))
                    hear(0.2)
            except BaseException:
                self._stop()
                raise
            finally:
                for bar in bars.values():
                    bar.close()
        if failure is not None:
            raise failure

    def _join(self) -> None:
        launch = self._launch
        key = secrets.token_bytes(32)
        listener = Listener(("127.0.0.1" if launch.host in _LOOPBACK else "", 0), backlog=launch.count, authkey=key)
        port = listener.address[1]
        spawn = get_context("spawn")
        own = (("127.0.0.1", port), key, launch.local_rank, self._initializer)
        self._own = spawn.Process(target=_serve_rank_0, args=own)
        self._own.start()
        with listening() as stop:
            # By default rank 0 waits here until as many have connected as the launch says.
            _store(launch).set(_address_name(), " ".join([str(port), key.hex(), *_own_names(launch)]))
            arrived: queue.SimpleQueue[Connection] = queue.SimpleQueue()
            threading.Thread(target=_accept, args=(listener, launch.count, arrived), daemon=True).start()
            end = time.monotonic() + launch.join_seconds
            while len(self._ranks) < self.count:
                if stop:
                    raise Stopped(stop.signal)
                if time.monotonic() > end or self._own.exitcode is not None:
                    there = {rank.number for rank in self._ranks}
                    raise _absent(launch, sorted(set(range(self.count)) - there))
                with suppress(queue.Empty, EOFError, OSError):
                    self._welcome(arrived.get(timeout=0.2))
        self._ranks.sort(key=lambda rank: rank.number)

    def _welcome(self, connection: Connection) -> None:
        number, where = connection.recv()
        if number in {rank.number for rank in self._ranks}:
            raise UserError(f"Expected each rank once, got two of {number}; give every process a RANK of its own.")
        self._ranks.append(_Rank(number, where, connection))

    def _speaking(self, seconds: float) -> list[_Rank]:
        by_connection = {rank.connection: rank for rank in self._ranks if not rank.is_closed}
        return [by_connection[c] for c in wait(list(by_connection), timeout=seconds) if isinstance(c, Connection)]

    def _messages(self, rank: _Rank) -> list[tuple[Any, ...]]:
        """What a rank has said; raises `Stopped` if it was asked to stop, and `UserError` if it is gone."""
        messages = []
        try:
            while rank.connection.poll():
                messages.append(rank.connection.recv())
                if messages[-1][0] == "stopped":
                    raise Stopped(messages[-1][1])
        except (EOFError, OSError):
            rank.is_closed = True
            doing = "at work" if rank.job else "waiting for work"
            raise UserError(
                f"Expected {self.count} processes to live, got process {rank.number} ({rank.where}) lost {doing}, for "
                "lack of memory perhaps; what is stored is kept: start the same command again, with any number of "
                "processes."
            ) from None
        return messages

    def _stop(self) -> None:
        """Tell all ranks to stop, and give them time to save."""
        for rank in self._ranks:
            rank.send(("stop",))
        end = time.monotonic() + _SAVING_SECONDS
        while not all(rank.is_closed for rank in self._ranks) and time.monotonic() < end:
            for rank in self._speaking(0.2):
                with suppress(UserError, Stopped):
                    self._messages(rank)

    def _end(self) -> None:
        for rank in self._ranks:
            rank.send(("end",))
            rank.connection.close()
            rank.is_closed = True
        if self._own is not None and self._own.pid is not None:
            self._own.join(0.0 if not self._ranks else _SAVING_SECONDS)
            if self._own.exitcode is None:
                self._own.terminate()
                self._own.join()


def serve(launch: Launch, initializer: Callable[[], None] | None = None) -> None:
    """Work for rank 0 until it has no more jobs; `initializer` is called first.

    Raises `UserError` if rank 0 is not found or is lost, `Stopped` after a signal or when rank 0 stops.
    """
    try:
        port, key, *names = _store(launch).get(_address_name()).decode().split()
    except RuntimeError:
        raise _absent(launch, [0]) from None
    if socket.gethostname() in names:
        names = ["127.0.0.1"]
    connection = None
    for name in names:
        with suppress(OSError, AuthenticationError, EOFError):
            connection = Client((name, int(port)), authkey=bytes.fromhex(key))
            break
    if connection is None:
        raise UserError(
            f"Expected process 0 to answer at port {port} of {' or '.join(names)}, got no connection from "
            f"{socket.gethostname()}; let the machines reach each other on all ports."
        )
    _work(connection, launch.rank, launch.local_rank, initializer)


def _serve_rank_0(address: Any, key: bytes, local_rank: int, initializer: Callable[[], None] | None) -> None:
    try:
        _work(Client(address, authkey=key), 0, local_rank, initializer)
    except UserError:  # rank 0 is gone, or says the same
        sys.exit(2)
    except Stopped as stop:
        sys.exit(stop.exit_code)


def _work(connection: Connection, rank: int, local_rank: int, initializer: Callable[[], None] | None) -> None:
    _notice_breaks(connection)
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    ended_by: list[str] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop_at_once)
    report_to(lambda report: connection.send(("report", report)))
    connection.send((rank, f"pid {os.getpid()} on {socket.gethostname()}"))
    threading.Thread(target=_listen, args=(connection, inbox, ended_by), daemon=True).start()
    try:
        leave_launch(local_rank)
        if initializer is not None:
            initializer()
        while (message := inbox.get())[0] == "job":
            try:
                answer = ("done", run_job(message[1]))
            except Exception as error:
                answer = ("failed", error, traceback.format_exc())
            connection.send(answer)
    except (Stopped, OSError) as error:
        if ended_by != ["lost"] and isinstance(error, Stopped):
            with suppress(OSError):
                connection.send(("stopped", error.exit_code - 128))
            raise
        ended_by[:] = ["lost"]
    if ended_by == ["lost"]:
        raise UserError("Expected process 0 to live, got its connection closed; see what it said.")


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _listen(connection: Connection, inbox: queue.SimpleQueue[tuple[Any, ...]], ended_by: list[str]) -> None:
    """Take in what rank 0 says, also while a job runs, which has to end when rank 0 stops or is gone."""
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = ("lost",)
        if message[0] != "job":
            ended_by.append(message[0])
        inbox.put(message)
        if message[0] in ("stop", "lost"):
            end_job()
        if message[0] != "job":
            return


def _accept(listener: Listener, count: int, arrived: queue.SimpleQueue[Connection]) -> None:
    while count:
        with suppress(AuthenticationError, EOFError, OSError):  # a stranger
            connection = listener.accept()
            _notice_breaks(connection)
            arrived.put(connection)
            count -= 1
    listener.close()


def _notice_breaks(connection: Any) -> None:
    """Let the system ask after the other side, so that a machine without power is noticed within two minutes."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _store(launch: Launch) -> Any:
    """The key-value store of the launch: torchrun's agent has one, else rank 0 opens it."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=launch.join_seconds)))
    except (RuntimeError, ValueError, OSError):
        raise _absent(launch, []) from None
    return store


def _own_names(launch: Launch) -> list[str]:
    """Under what others may find this machine: its name, the address it has towards the store, and the store's."""
    names = [socket.gethostname()]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        towards.connect((launch.host, 9))  # sends nothing
        names.append(towards.getsockname()[0])
    return [*names, launch.host]


def _address_name() -> str:
    """A launch that torchrun starts again keeps its store, so each attempt has a name of its own."""
    return f"mcanalysis/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _absent(launch: Launch, ranks: list[int]) -> UserError:
    who = f"not {', '.join(map(str, ranks))}" if ranks else "fewer, or another address"
    return UserError(
        f"Expected {launch.count} processes within {launch.join_seconds:g} s, as WORLD_SIZE says, got {who}; start as "
        f"many as it says, or give them more time in {JOIN_SECONDS}."
    )
