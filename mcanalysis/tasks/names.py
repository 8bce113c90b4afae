"""What tasks may be called: tables, folders and stored values tell tasks apart by their names alone."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from mcanalysis.errors import DataError, UserError, shortened

logger = logging.getLogger(__name__)

GENERAL = "general/"
"""Stands before the name of a general task, one that is never trained, where a trained task may have that name."""

RESERVED = ("mean", "mean_old", "after")
"""Rows and a column of the result tables that are no tasks: a task of that name would take their place."""


LONGEST = 90
"""Bytes of a task's name: names of curves hold two of them, and no file's name may have more than 255."""


def check_name(name: str) -> None:
    """Raise `DataError` for a name that stands for something else in the tables, or that no folder can have.

    Refused are `RESERVED`, a "/" or "\\\\", control characters (a newline ends a row of a table for many readers), and
    more than `LONGEST` bytes.

    >>> check_name("NA")
    >>> check_name("mean")
    Traceback (most recent call last):
    mcanalysis.errors.DataError: Expected a name for a task, got 'mean', which names a mean in the tables; rename it.
    """
    if name in RESERVED:
        what = "a mean" if name.startswith("mean") else "a column"
        raise DataError(f"Expected a name for a task, got '{name}', which names {what} in the tables; rename it.")
    if (size := len(name.encode("utf-8", "surrogatepass"))) > LONGEST:
        raise DataError(
            f"Expected a name for a task of at most {LONGEST} bytes, got {size} in '{shortened(name)}'; rename it."
        )
    if any(c in "/\\" or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise DataError(
            f"Expected a name for a task that a folder can have, in one line, got {name!r}; rename it without slashes "
            "and control characters."
        )


def check_distinct(names: Sequence[str]) -> None:
    """Raise `UserError` where a name comes twice, or looks like another to the letter: the results of one task would
    replace those of the other, in the reader's mind or, on some file systems, on disk.

    >>> check_distinct(["FOMC", "FOMC"])
    Traceback (most recent call last):
    mcanalysis.errors.UserError: Expected each task once, got FOMC 2 times; name it once.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"Expected each task once, got {name} {count} times; name it once.")
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFKC", name), name)
        if other != name:
            raise UserError(f"Expected names that look different, got {other!a} and {name!a}; rename one of the tasks.")


def told_apart(names: Sequence[str], files: Sequence[str | PathLike[str]]) -> list[str]:
    """Return the names of the tasks in `files`, those that are alike with the last part of their paths that differs.

    Raises `UserError` for a file that is given twice, and where no single part of the paths tells files apart.

    >>> told_apart(["data", "data", "qa"], ["old/data.json", "new/data.json", "new/qa.json"])
    ['old-data', 'new-data', 'qa']
    >>> told_apart(["qa", "qa"], ["p/qa.json", "p/qa.jsonl"])
    ['qa.json', 'qa.jsonl']
    """
    found = list(names)
    for name, count in Counter(names).items():
        if count > 1:
            members = [i for i, other in enumerate(names) if other == name]
            paths = [Path(files[i]).resolve() for i in members]
            new = _told_apart(name, paths)
            for i, other in zip(members, new, strict=True):
                found[i] = other
            renamed = ", ".join(f"{files[i]} is '{found[i]}'" for i in members)
            logger.warning("%d files give tasks of the name '%s': in all results %s", count, name, renamed)
    check_distinct(found)
    return found


def _told_apart(name: str, paths: Sequence[Path]) -> list[str]:
    if len(set(paths)) < len(paths):
        raise UserError(f"Expected different data files, got {max(paths, key=paths.count)} twice; name it once.")
    if len({path.parent for path in paths}) == 1:  # in one folder: their own names differ
        return [p.name if len({p.stem for p in paths}) == 1 else f"{name}-{p.stem}" for p in paths]
    folders = [[part.strip("/\\:") or "root" for part in reversed(p.parent.parts)] for p in paths]
    for places in zip(*folders, strict=False):
        if len(set(places)) == len(paths):
            return [f"{place}-{name}" for place in places]
    raise UserError(
        f"Expected data files whose names or folders differ, got {', '.join(map(str, paths))}; rename them."
    )
