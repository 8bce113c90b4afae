"""Writing so that a killed process leaves the old content or the new, never half of one.

New content is written beside its destination, forced to disk, and then renamed over it. Files and folders
that are still being written are named `.<name>.….partial`; after a kill such a leftover may remain, and the
next write of the same folder clears it away.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mcanalysis.store.hashing import hash_file
from mcanalysis.store.one_file import PARTIAL_SUFFIX, check_place, replace_file, sync
from mcanalysis.store.parts import PARTS_NAME
from mcanalysis.store.recorded import note, settle

_REPLACED_SUFFIX = ".replaced"


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, line ends untouched, making the parent folders where they lack.

    Raises `OSError` when the disk refuses; the earlier file, if any, is then as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text_atomic(Path(folder, "tables", "a.csv"), "t,loss\\n")
    ...     Path(folder, "tables", "a.csv").read_text()
    't,loss\\n'
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_bytes_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes as `write_text_atomic` writes text: the whole new file or the earlier one, never half of it.

    In a run the file's hash is noted. Raises `UserError` where a link, a device or a pipe stands in the file's place,
    and for a folder of a run that is a link out of it.
    """
    target = Path(path)
    replace_file(target, content, lambda: note({target: hashlib.sha256(content).hexdigest()}))
    settle(target)


def write_json_atomic(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as indented JSON that every reader accepts: NaN and infinities become null.

    NumPy numbers and arrays are written as plain numbers and lists. Raises `TypeError` for what JSON cannot
    hold, before anything is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json_atomic(Path(folder, "metrics.json"), {"backward_transfer": float("nan")})
    ...     json.loads(Path(folder, "metrics.json").read_text())
    {'backward_transfer': None}
    """
    text = json.dumps(plain_json(obj), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


@contextmanager
def replace_directory_atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it takes the place of `path` as a whole.

    If the block raises, `path` stays as it was. If the process is killed, `path` holds the old content or
    the new, except between two renames, when it is absent: call `recover_directory` before reading a folder
    that a killed process may have been replacing. One writer per folder at a time. Raises
    `NotADirectoryError` when `path` is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replace_directory_atomic(Path(folder, "checkpoint")) as fresh:
    ...         _ = Path(fresh, "step.txt").write_text("7")
    ...     Path(folder, "checkpoint", "step.txt").read_text()
    '7'
    """
    target = Path(path)
    check_place(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"Expected a folder or nothing at {target}, got a file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_directory(target)
    partial, replaced = _siblings(target)
    partial.mkdir()
    try:
        yield partial
        for folder, _, names in os.walk(partial, topdown=False):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if not (partial / PARTS_NAME).exists():
            files = [f for f in sorted(partial.rglob("*")) if f.is_file()]
            note({target / f.relative_to(partial): hash_file(f) for f in files}, target)
        if target.exists():
            target.rename(replaced)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)
    sync(target.parent)
    settle(target)
    shutil.rmtree(replaced, ignore_errors=True)


def recover_directory(path: str | os.PathLike[str]) -> bool:
    """Finish or undo a replacement of `path` that a kill interrupted, and clear its leftovers.

    Returns whether `path` exists afterwards. Harmless when nothing was interrupted.

    >>> recover_directory("/nonexistent/checkpoint")
    False
    """
    target = Path(path)
    partial, replaced = _siblings(target)
    # The old folder steps aside only once the new one is complete, so its presence vouches for the new one.
    if not target.exists() and replaced.exists() and not replaced.is_symlink():
        (partial if partial.exists() else replaced).rename(target)
    for leftover in (partial, replaced):
        if leftover.is_symlink():  # nobody here made it
            leftover.unlink()
        elif leftover.exists():
            shutil.rmtree(leftover)
    return target.exists()


def clear_partial_files(directory: str | os.PathLike[str]) -> None:
    """Remove what killed writes of single files have left anywhere in a folder that nobody else is writing into.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, ".metrics.json.1a2b3c4d.partial").write_text("{")
    ...     clear_partial_files(folder)
    ...     sorted(Path(folder).iterdir())
    []
    """
    for leftover in Path(directory).rglob(f".*{PARTIAL_SUFFIX}"):
        if leftover.is_file():
            leftover.unlink()


def plain_json(obj: Any) -> Any:
    """Return an object in JSON's own types: NumPy values as numbers and lists, NaN and infinities as None.

    Raises `TypeError` for what JSON cannot hold.

    >>> plain_json({"loss": np.float32(0.5), "t": np.array([0.0, np.nan]), "shape": (2,)})
    {'loss': 0.5, 't': [0.0, None], 'shape': [2]}
    """
    if isinstance(obj, np.ndarray):
        return plain_json(obj.tolist())
    if isinstance(obj, np.generic):
        return plain_json(obj.item())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): plain_json(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain_json(value) for value in obj]
    if obj is None or isinstance(obj, str | int):
        return obj
    raise TypeError(f"Expected a value that JSON can hold, got {type(obj).__name__}: {obj!r}.")


def _siblings(target: Path) -> tuple[Path, Path]:
    return (target.with_name(f".{target.name}{PARTIAL_SUFFIX}"), target.with_name(f".{target.name}{_REPLACED_SUFFIX}"))
