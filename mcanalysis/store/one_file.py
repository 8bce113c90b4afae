"""One file replaced as a whole, and only where a file or nothing was: no link, device or pipe is written through."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from mcanalysis.errors import UserError

PARTIAL_SUFFIX = ".partial"


def replace_file(target: Path, content: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Put new content in the place of a file; `before` is called when it lies beside it, nothing changed yet.

    Raises `OSError` when the disk refuses and `UserError` for a place that holds something else than a file.
    """
    check_place(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        before()
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(target.parent)


def check_place(target: Path) -> None:
    """Raise `UserError` where something stands at a place that is neither a file nor a folder.

    >>> check_place(Path("/dev/null"))
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected a file or nothing at '/dev/null', got a device; name another place.
    """
    try:
        mode = target.lstat().st_mode
    except OSError:  # what writes there says why
        return
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise UserError(
        f"Expected a file or nothing at '{target}', got {kinds.get(stat.S_IFMT(mode), 'a device')}; name another place."
    )


def check_output(target: Path, mark: bytes, what: str) -> None:
    """Raise `UserError` where what is asked to be written would take the place of something else: of a folder, or of a
    file without `mark` in its first kilobyte, as all of these have. For outputs that a user names.

    >>> check_output(Path(__file__), b"PAR1", "a Parquet file")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected a new file or a Parquet file at '...one_file.py', got another file, which ...
    """
    check_place(target)
    if target.is_dir():
        raise UserError(f"Expected a file for the output, got the folder '{target}'; name a file in it.")
    if target.is_file():
        with target.open("rb") as stream:
            if mark not in stream.read(1024):
                raise UserError(
                    f"Expected a new file or {what} at '{target}', got another file, which would be lost; name another "
                    "--output."
                )


def sync(path: Path) -> None:
    """Force a file or a folder to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
