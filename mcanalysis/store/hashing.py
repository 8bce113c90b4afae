"""Content hashes: equal content gives an equal SHA-256, whatever the order of keys or files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SETTLED_SECONDS = 2.0  # file systems stamp changes no finer than this
_known: dict[tuple[int, ...], str] = {}  # hashes of this process, by what a change of the file would change


def hash_json(obj: Any) -> str:
    """Return the SHA-256 (64 hex digits) of an object's canonical JSON.

    Keys are sorted, so their order does not matter; a tuple counts as a list. Raises `TypeError` for an
    object that JSON cannot hold.

    >>> hash_json({"a": 1, "b": (2, 3)}) == hash_json({"b": [2, 3], "a": 1})
    True
    >>> hash_json("Zürich")[:12]
    'dfcb63f95eb8'
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes, read piece by piece.

    Raises `OSError` when the file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_bytes(b"abc")
    ...     hash_file(Path(folder, "a.txt"))[:12]
    'ba7816bf8f01'
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_file_once(path: str | os.PathLike[str]) -> str:
    """Return what `hash_file` does, without reading a file again that this process has hashed and nobody touched since.

    A file is known by device, inode, size and the times of its last change, of which the system sets one whatever
    program writes; a file that was changed a moment ago is read each time.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_bytes(b"abc")
    ...     hash_file_once(Path(folder, "a.txt")) == hash_file(Path(folder, "a.txt"))
    True
    """
    found = Path(path).stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    is_settled = time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED_SECONDS
    if key in _known and is_settled:
        return _known[key]
    value = hash_file(path)
    if is_settled:
        _known[key] = value
    return value


def hash_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return one SHA-256 (64 hex digits) over several files: their contents and their names.

    A name is taken relative to the files' deepest common folder, so moving that folder changes nothing,
    while renaming a file or swapping the contents of two files does. The order of `paths` does not matter. Files are
    read as by `hash_file_once`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files = [Path(folder, name) for name in ("a", "b")]
    ...     for file in files:
    ...         _ = file.write_text(file.name)
    ...     hash_files(files) == hash_files(reversed(files))
    True
    """
    files = sorted({Path(path).resolve() for path in paths})
    if not files:
        return hash_json([])
    root = os.path.commonpath([file.parent for file in files])
    return hash_json(sorted((file.relative_to(root).as_posix(), hash_file_once(file)) for file in files))
