"""`hashes.json` of a run: the SHA-256 of each of its files as it was written, compared whenever one is read.

What writes a file (`store.atomic`) notes its hash first, beside that of the file that is replaced, and when it is done
that the former is past: a process that is killed in between leaves a file with one of the two, and the next write
settles which. Folders that are right or wrong as a whole have a list of their own (`store.parts`), files of tensors a
hash within (`store.point_files`), and so have rows of measurements; none of them is noted here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mcanalysis.errors import DataError, UserError
from mcanalysis.store.hashing import hash_file_once, hash_json
from mcanalysis.store.one_file import PARTIAL_SUFFIX, replace_file

RECORD_NAME = "hashes.json"
FORMAT = 1
_DEEPEST = 4  # folders from a file up to that of its run
_APART = ("checkpoint", "figures", "logs", "trajectory")  # nothing is read from there, or it has hashes of its own
_OURS = ("minima", "curves")  # points, which hold nothing of others; a table may be somebody's own
_TRAIN_AGAIN = "restore it from a copy, or train the run again in another --output-dir"
_REMEDIES = {"minima": _TRAIN_AGAIN, "losses": _TRAIN_AGAIN, "generations": _TRAIN_AGAIN}
_REMEDIES |= {"manifest.json": "restore it from a copy", "curves": "remove it to have it fitted again"}
_AGAIN = "remove it and run the command that wrote it again, which keeps what was measured"


@dataclass(frozen=True)
class Record:
    """The hashes of a folder's files by name; two of a file that was being replaced, the newer one first (None: no
    file).

    `is_whole`: everything in the folder was written under it, so that a file without a hash is another folder's.
    """

    files: Mapping[str, list[str | None]] = field(default_factory=dict)
    is_whole: bool = False


def begin_record(folder: str | os.PathLike[str]) -> None:
    """Note the hashes of all that is written into a folder from now on; for one that is empty."""
    file = Path(folder) / RECORD_NAME
    if not file.exists():
        _write(file, Record(is_whole=True))


def read_record(folder: str | os.PathLike[str]) -> Record | None:
    """What is noted of a folder's files, None where nothing is; raises `DataError` for a damaged list.

    >>> read_record("/nonexistent")
    """
    file = Path(folder) / RECORD_NAME
    try:
        found = file.stat()
        return _read(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(
            f"Expected the hashes of a run's files in '{file}', got a list that is not as it was written; restore it "
            "from a copy, or remove it: the files are then used unchecked."
        ) from None


@lru_cache(maxsize=64)
def _read(file: Path, *_: int) -> Record:
    listed = json.loads(file.read_text(encoding="utf-8"))
    if listed["format"] != FORMAT:
        raise DataError(
            f"Expected hashes of format {FORMAT} in '{file}', got format {str(listed['format'])[:20]}; read the run "
            "with the mcanalysis that wrote it, or a newer one."
        )
    said = listed.pop("sha256")
    if said != hash_json(listed):
        raise ValueError("changed")
    return Record(listed["files"], listed["is_whole"])


def note(written: Mapping[Path, str], folder: Path | None = None) -> None:
    """Note what files are about to be; those of a `folder` that is replaced as a whole and lacks them are forgotten.

    Nothing happens for files that are no run's. Raises `UserError` for a place out of the run they seem to lie in.
    """
    places = {file: place for file in written if (place := _place(file))}
    if not places:
        return
    root = next(iter(places.values()))[0]
    target = (folder or next(iter(places))).parent
    if not target.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"Expected a folder within the run '{root}', got the link '{target}' to '{target.resolve()}'; copy what it "
            "leads to into the run."
        )
    new = {name: written[file] for file, (_, name) in places.items() if not is_apart(name)}
    if not new:
        return
    record_file = root / RECORD_NAME
    with _alone(record_file):
        found = read_record(root) or Record()
        files = {n: settled for n, hashes in found.files.items() if (settled := _settled(root / n, hashes))}
        if folder is not None:
            gone = f"{folder.relative_to(root).as_posix()}/"
            files = {name: hashes for name, hashes in files.items() if name in new or not name.startswith(gone)}
        for name, value in new.items():
            there = (root / name).is_file()
            before = None if not there else files[name][0] if name in files else hash_file_once(root / name)
            files[name] = [value] if before == value else [value, before]
        _write(record_file, Record(dict(sorted(files.items())), found.is_whole))


def settle(file: Path) -> None:
    """Note that a file, or a folder, has taken its place: what was there before is not it any more."""
    place = _place(file)
    found = place and read_record(place[0])
    if not place or not found or all(len(hashes) == 1 for hashes in found.files.values()):
        return
    with _alone(place[0] / RECORD_NAME):
        found = read_record(place[0]) or Record()
        files = {n: settled for n, hashes in found.files.items() if (settled := _settled(place[0] / n, hashes))}
        _write(place[0] / RECORD_NAME, Record(files, found.is_whole))


def _settled(file: Path, hashes: list[str | None]) -> list[str | None]:
    """The one that a file has of two that it may have, none where it need not be there; both where it has neither."""
    if len(hashes) == 1:
        return hashes
    now = hash_file_once(file) if file.is_file() else None
    return hashes if now not in hashes else [] if now is None else [now]


def check_recorded(file: str | os.PathLike[str], remedy: str = "") -> None:
    """Raise `DataError` for a file of a run that is there and is not as it was written."""
    file = Path(file)
    place = _place(file)
    found = place and read_record(place[0])
    if not place or not found or not file.is_file():
        return
    if (got := wrong(found, *place)) and got != UNKNOWN:
        raise DataError(f"Expected '{file}' as it was written, got {got}; {remedy or remedy_for(place[1])}.")


def check_all_there(folder: Path) -> None:
    """Raise `DataError` where some of the files that a run wrote into a folder of its are gone; not where all are."""
    place = _place(folder / "any")
    found = place and read_record(place[0])
    if not place or not found:
        return
    top = place[1].removesuffix("any")
    listed = [name for name in found.files if name.startswith(top)]
    gone = [name for name in listed if None not in found.files[name] and not (place[0] / name).exists()]
    if gone and len(gone) < len(listed):
        raise DataError(f"Expected the file '{place[0] / gone[0]}', got none; {remedy_for(gone[0])}.")


def recorded_hash(file: Path) -> str | None:
    """The hash of a run's file when it was last written, whether it is there or not; None where none is recorded."""
    place = _place(file)
    found = place and read_record(place[0])
    return found.files.get(place[1], [None])[0] if place and found else None


def is_as_written(file: Path) -> bool:
    """Whether a file is there and, as far as that is recorded, as it was written."""
    try:
        check_recorded(file)
    except DataError:
        return False
    return file.is_file()


UNKNOWN = "no recorded hash"


def wrong(found: Record, root: Path, name: str) -> str | None:
    """What is wrong with a file that is there, as it stands after "got"; `UNKNOWN` where that cannot be said."""
    if is_apart(name):
        return UNKNOWN
    expected = found.files.get(name)
    if expected is None:
        is_foreign = found.is_whole and name.split("/")[0] in _OURS
        return "a file that was not written with this run" if is_foreign else UNKNOWN
    try:
        return None if hash_file_once(root / name) in expected else "other content"
    except OSError as error:
        return f"no content ({error.strerror})"


def is_apart(name: str) -> bool:
    """Whether no hash of a file is noted: nothing is read from there, or it has one within, as checkpoints of a fit,
    which go when it has ended.

    >>> is_apart("curves/fast/a.checkpoint"), is_apart("figures/a.png"), is_apart("curves/fast/a.safetensors")
    (True, True, False)
    """
    return name.split("/")[0] in _APART or name.endswith(".checkpoint")


def remedy_for(name: str) -> str:
    """How a file of a run is to be had again, by its name in the run.

    >>> remedy_for("curves/slow/a.safetensors")
    'remove it to have it fitted again'
    """
    return _REMEDIES.get(name.split("/")[0], _AGAIN)


def _place(file: Path) -> tuple[Path, str] | None:
    """The folder whose record a file belongs into, and its name there."""
    if file.name == RECORD_NAME:
        return None
    for folder in [*file.parents][:_DEEPEST]:
        # Version 0.1 had no record, but every run of it had these two.
        is_run = (folder / "manifest.json").is_file() and (folder / "measurements.sqlite").is_file()
        if is_run or (folder / RECORD_NAME).is_file():
            return folder, file.relative_to(folder).as_posix()
    return None


def _write(file: Path, record: Record) -> None:
    listed = {"format": FORMAT, "is_whole": record.is_whole, "files": record.files}
    text = json.dumps({**listed, "sha256": hash_json(listed)}, indent=1)
    for leftover in file.parent.glob(f".{RECORD_NAME}.*{PARTIAL_SUFFIX}"):  # of a start that was killed: we are alone
        leftover.unlink(missing_ok=True)
    replace_file(file, (text + "\n").encode())


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Nobody else changes the record meanwhile; where there are no locks, only the locks of the run see to that."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    while True:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:  # the first one
            yield
            return
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for a moment
                is_same = os.path.samestat(os.fstat(descriptor), file.stat())
            except OSError:
                is_same = True
            if is_same:
                yield
                return
        finally:
            os.close(descriptor)
