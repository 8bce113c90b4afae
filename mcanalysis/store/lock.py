"""One writer at a time for a run's measurements, and for its training: a file that says who, locked by the system.

The lock goes with the process that holds it, so a killed one leaves a file that counts for nothing. Where the file
system has no locks the file itself is the sign, and it is taken over when the process that it names is gone from this
machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mcanalysis.errors import RunDirectoryError, RunInUseError

logger = logging.getLogger(__name__)

LOCK_NAME = "measurements.lock"
TRAINING_LOCK_NAME = "training.lock"
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link is followed, no pipe waited for
_locks: dict[Path, int] = {}  # files, by this process: how often


@contextmanager
def lock_measurements(*run_directories: str | os.PathLike[str]) -> Iterator[None]:
    """Keep the measurements of runs to this process for the length of the block; again within it is no error.

    Raises `RunInUseError`, which names the process, where another one has them.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock_measurements(folder), lock_measurements(folder):
    ...     [file.name for file in Path(folder).iterdir()]
    ['measurements.lock']
    """
    with ExitStack() as stack:
        for directory in dict.fromkeys(Path(d).resolve() for d in run_directories):
            stack.enter_context(_lock(directory))
        yield


@contextmanager
def lock_training(run_directory: str | os.PathLike[str]) -> Iterator[None]:
    """Let this process alone train a run for the length of the block; raises `RunInUseError` where another one does.

    A lock on a file, beside that on the folder (`lock_run_directory`): network file systems have no other.
    """
    with _lock(Path(run_directory).resolve(), TRAINING_LOCK_NAME):
        yield


@contextmanager
def _lock(directory: Path, name: str = LOCK_NAME) -> Iterator[None]:
    file = directory / name
    descriptor = None if _locks.get(file) else _take(file)
    _locks[file] = _locks.get(file, 0) + 1
    try:
        yield
    finally:
        _locks[file] -= 1
        if descriptor is not None:
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _take(file: Path) -> int:
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | _AS_IT_IS, 0o666)
        except OSError as error:
            if file.is_symlink():
                raise _no_lock(file, "a symbolic link") from None
            raise RunDirectoryError(
                f"Expected a run directory that can be written at {file.parent}, got: {error.strerror}; copy the run "
                "to a folder where you may write."
            ) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise _no_lock(file, "another name of a file" if stat.S_ISREG(found.st_mode) else "no file")
            free = _lock_file(descriptor, file)
            if free is None:  # no locks here: what the file says has to do
                free = not _is_alive(_owner(descriptor))
            if not free:
                raise _taken(file, _owner(descriptor))
            # Whoever held it may have removed the file between our opening and our locking it.
            if _is_same(descriptor, file):
                own = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(own).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _no_lock(file: Path, got: str) -> RunDirectoryError:
    """What is written into it would be written elsewhere."""
    return RunDirectoryError(f"Expected a lock of its own at '{file}', got {got}; remove it.")


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a folder to this process for the length of the block; where there are no such locks it runs without one.

    The lock is the operating system's, on the folder itself: no file is left behind, and a killed process holds
    nothing. Raises `BlockingIOError` while another process has it, unless it is to `wait`.
    """
    if os.name == "nt":  # where folders cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _lock_file(descriptor, folder, wait) is False:
            raise BlockingIOError
        yield
    finally:
        os.close(descriptor)


def _lock_file(descriptor: int, file: Path, wait: bool = False) -> bool | None:
    """Whether the lock was free and is ours now; None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s): start no second process on it", file, error.strerror)
        return None
    return True


def _owner(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return owner if isinstance(owner, dict) else {}
    except (ValueError, OSError, RecursionError):
        return {}


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether a process is there, as far as can be told: of another machine's it is assumed."""
    if not owner:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(owner["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except OSError:
        return True
    return True


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _taken(file: Path, owner: dict[str, Any]) -> RunInUseError:
    who = (
        f"process {owner.get('pid')} on {owner.get('host')} has had since {owner.get('since')}" if owner else "one has"
    )
    what = "measurements" if file.name == LOCK_NAME else "a training"
    return RunInUseError(
        f"Expected {what} that no other process writes, got {'those' if file.name == LOCK_NAME else 'that'} of "
        f"{file.parent}, which {who}; wait for it, end it, or, if it is gone, remove {file.name} there."
    )
