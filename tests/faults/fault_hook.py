"""Faults at the moments that count: every rename, link, sync and SQLite commit of a process, by their number.

`install(fault, log)` puts itself before the operating system's calls, for this process alone; the package knows nothing
of it. Each moment is a line of the log, so that what a process did is known after it was killed:

    sync <device>:<inode>            rename <from> <to> <device>:<inode>          link <from> <to>
    commit <file>                    put <key> …           kept <key> …  (stored for sure)

A fault is `<what>@<n>`: at the n-th moment (from 1) `kill` ends the process with SIGKILL, `term` and `int` send it that
signal, `full` is a disk without room from then on, `denied` one without permission. `no-flock`, alone or after a comma,
is a file system without locks; `past` a clock that was moved back ten years.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ERRORS = {"full": errno.ENOSPC, "denied": errno.EACCES}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


class Hook:
    """Counts moments, logs them, and does what the fault says at one of them."""

    def __init__(self, fault: str, log: Path) -> None:
        parts = [part for part in fault.split(",") if part]
        self.what, _, number = next((p for p in parts if "@" in p), "@0").partition("@")
        self.at, self.count, self.flags = int(number), 0, set(parts)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._sync, self._quiet = os.fsync, False

    def say(self, line: str) -> None:
        os.write(self._log, (line + "\n").encode())

    def moment(self, path: Any = None) -> None:
        """Before each of the calls."""
        self.count += 1
        if self.at and self.count == self.at and self.what in SIGNALS:
            self.say(f"fault {self.what}")
            os.kill(os.getpid(), SIGNALS[self.what])
        if self.at and self.count >= self.at and self.what in ERRORS:
            number = ERRORS[self.what]
            raise OSError(number, os.strerror(number), None if path is None else os.fspath(path))


def _identity(place: Any) -> str:
    found = os.fstat(place) if isinstance(place, int) else Path(place).stat()
    return f"{found.st_dev}:{found.st_ino}"


def install(fault: str, log: Path) -> Hook:
    """Put the hook before the calls of this process."""
    hook = Hook(fault, log)
    fsync, connect, now = os.fsync, sqlite3.connect, time.time

    def synced(descriptor: int) -> None:
        hook.moment()
        fsync(descriptor)
        hook.say(f"sync {_identity(descriptor)}")

    def moved(call: Callable[..., None]) -> Callable[..., None]:
        def move(source: Any, target: Any, **how: Any) -> None:
            hook.moment(target)
            what = _identity(source)
            call(source, target, **how)
            hook.say(f"rename\t{Path(source).absolute()}\t{Path(target).absolute()}\t{what}")

        return move

    class Connection(sqlite3.Connection):
        _put: tuple[str, ...] = ()

        def execute(self, sql: str, *arguments: Any) -> Any:
            if sql.strip().upper() != "COMMIT":
                return super().execute(sql, *arguments)
            try:
                hook.moment()
            except OSError as error:
                raise sqlite3.OperationalError("database or disk is full") from error
            found = super().execute(sql, *arguments)
            hook.say(f"commit {len(self._put)}")
            for key in self._put:
                hook.say(f"kept\t{key}")
            self._put = ()
            return found

        def executemany(self, sql: str, rows: Any) -> Any:
            rows = list(rows)
            if "measurements" in sql:
                self._put = tuple("/".join(map(str, row[:4])) for row in rows)
                for key in self._put:
                    hook.say(f"put\t{key}")
            return super().executemany(sql, rows)

    os.fsync = synced
    for name in ("rename", "replace", "link"):
        setattr(os, name, moved(getattr(os, name)))
    sqlite3.connect = lambda *a, **k: connect(*a, **{"factory": Connection, **k})
    if "no-flock" in hook.flags:
        import fcntl

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        fcntl.flock = flock
    if "past" in hook.flags:
        time.time = lambda: now() - 10 * 365 * 86400.0
    return hook
