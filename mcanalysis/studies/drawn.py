"""What pictures were drawn from: those that would come out the same are not drawn again, which half a second call is.

Beside the pictures of a study lies a small file that says which tables, settings and code they were made of, and how
each of their files was left. Whatever differs, a picture that was drawn over or is gone too, and all are drawn anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.store.atomic import write_json_atomic
from mcanalysis.store.hashing import hash_file, hash_files, hash_json
from mcanalysis.store.small_files import read_json

PACKAGE = Path(__file__).parents[1]
_DRAWING = ("matplotlib", "numpy", "pandas")


def origin(study: Any, tables: Iterable[str]) -> str | None:
    """A hash of all that pictures of a study are made of: its settings, its tables as text, and this package's code.

    None for a study of others, whose code may lie anywhere: its pictures are always drawn.
    """
    kind = type(study)
    if not kind.__module__.startswith("mcanalysis.") or not is_dataclass(study):
        return None
    settings = {name: repr(value) for name, value in vars(study).items()}
    return hash_json([kind.__qualname__, settings, list(tables), drawing_key()])


@cache
def drawing_key() -> str:
    """A hash of this package's code and of the packages that pictures and tables are made with."""
    files = [f for f in PACKAGE.rglob("*") if f.suffix in (".py", ".ttf")]
    return hash_json([hash_files(files), *(version(name) for name in _DRAWING)])


@dataclass(frozen=True)
class Drawn:
    """The pictures of one study in a folder, made of `origin` (None: never known)."""

    file: Path
    origin: str | None

    def find(self) -> list[list[Path]] | None:
        """The files of each picture, where all that was drawn is there as it was left; else None."""
        if self.origin is None or not self.file.exists():
            return None
        try:
            found = read_json(self.file)
            if found["origin"] != self.origin:
                return None
            left = {self.file.with_name(name): value for name, value in found["files"].items()}
            if not all(file.is_file() and hash_file(file) == value for file, value in left.items()):
                return None
            return [[self.file.with_name(name) for name in names] for names in found["pictures"]]
        except (DataError, KeyError, TypeError, AttributeError):  # of another version, or damaged
            return None

    def keep(self, pictures: Sequence[Sequence[Path]], beside: Sequence[Path]) -> None:
        """Say of what the files of pictures, and those `beside` them, were made; nothing where that is not known."""
        if self.origin is None or not pictures:
            return
        files = {file.name: hash_file(file) for file in (*(f for files in pictures for f in files), *beside)}
        names = [[file.name for file in files] for files in pictures]
        write_json_atomic(self.file, {"origin": self.origin, "pictures": names, "files": files})
