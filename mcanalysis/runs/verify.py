"""Every file of a run against its recorded hash, and what can be had again of what is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mcanalysis.errors import DataError, RunDirectoryError, UserError
from mcanalysis.store.manifest import FORMAT, MANIFEST_NAME, read_manifest, run_identity
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.store.one_file import PARTIAL_SUFFIX
from mcanalysis.store.parts import PARTS_NAME, wrong_part
from mcanalysis.store.recorded import RECORD_NAME, UNKNOWN, Record, read_record, remedy_for, wrong
from mcanalysis.store.small_files import read_json

OK, DAMAGED, MISSING = "ok", "damaged", "missing"
_STORE = "measurements.sqlite"
_NOT_LOOKED_AT = ("figures", "logs")  # pictures are drawn anew where they differ from what was drawn
_MEASURED_AGAIN = "nothing to do: what is damaged is left out and measured again when it is needed"


class Checked(NamedTuple):
    """A file, or a folder that is right as a whole, by its name in the run; `repair`: of what is not ok."""

    name: str
    status: str
    what: str = ""
    repair: str = ""


def verify(run_directory: str | os.PathLike[str]) -> list[Checked]:
    """Compare all files of a run, finished or not, with what was recorded when they were written; nothing is changed.

    The status is `ok`, `damaged`, `missing`, or `no recorded hash`: what version 0.1 wrote has none. Of minima without
    one it is asked whether the store has values of them, so that an adapter that was changed after it was measured is
    found. Pictures are not looked at. Raises `RunDirectoryError` for a folder that is no run.
    """
    run = Path(run_directory)
    if not (run / MANIFEST_NAME).exists() and not (run / RECORD_NAME).exists():
        read_manifest(run)
        raise RunDirectoryError(f"Expected a run directory at '{run}', got none; give one that train.py wrote.")
    found = [*_manifest(run)]
    record: Record | None = None
    try:
        record = read_record(run)
        is_lost = record is None and _says_format(run)
        remedy = "restore it from a copy; without one the files are used unchecked"
        found.append(Checked(RECORD_NAME, MISSING if is_lost else UNKNOWN if record is None else OK, "", remedy))
    except DataError:
        found.append(Checked(RECORD_NAME, DAMAGED, "", "restore it from a copy, or remove it"))
    found += _files(run, record or Record())
    if (run / "checkpoint").exists():
        found.append(_checkpoint(run))
    found += _store(run)
    return sorted(c if c.status in (DAMAGED, MISSING) else c._replace(repair="") for c in found)


def is_well(found: Iterable[Checked]) -> bool:
    """Whether nothing is damaged or missing."""
    return not any(c.status in (DAMAGED, MISSING) for c in found)


def _says_format(run: Path) -> bool:
    try:
        return read_manifest(run).get("format", 1) >= FORMAT
    except UserError:
        return False


def _manifest(run: Path) -> Iterator[Checked]:
    """Where the manifest cannot be read; a readable one is a file like others."""
    try:
        read_manifest(run)
    except UserError as error:
        got = str(error).partition(", got ")[2].partition(";")[0]
        status = DAMAGED if (run / MANIFEST_NAME).exists() else MISSING
        yield Checked(MANIFEST_NAME, status, got, remedy_for(MANIFEST_NAME))


def _files(run: Path, record: Record) -> Iterator[Checked]:
    there = {f.relative_to(run).as_posix() for f in run.rglob("*") if f.is_file()}
    apart = ("checkpoint", *_NOT_LOOKED_AT)
    known = _measured_points(run)
    for name in sorted(there | record.files.keys()):
        top, last = name.split("/")[0], name.rpartition("/")[2]
        if (
            top in apart
            or last.endswith((PARTIAL_SUFFIX, ".lock", ".checkpoint"))
            or last.startswith((RECORD_NAME, _STORE))
        ):
            continue
        if name not in there:
            if None in record.files[name]:  # it was about to be written for the first time
                continue
            yield Checked(name, MISSING, "", remedy_for(name))
            continue
        got = wrong(record, run, name)
        if got == UNKNOWN and name.endswith(".safetensors") and top != "minima":
            got = _tensors(run / name)
        if got == UNKNOWN and top == "minima" and known is not None:
            got = _of_minimum(run / name, known)
        if got in (None, UNKNOWN):
            yield Checked(name, OK if got is None else UNKNOWN)
        else:
            yield Checked(name, DAMAGED, got, remedy_for(name))


def _tensors(file: Path) -> str | None:
    """What is wrong with tensors that have their hash beside them, and of snapshots what they are of."""
    from mcanalysis.runs.snapshots import FOLDER, read_snapshot
    from mcanalysis.store.point_files import has_hash, read_tensors

    try:
        (read_snapshot if FOLDER in file.parts else read_tensors)(file)
        return None if has_hash(file) else UNKNOWN
    except DataError:
        return "other content"


def _of_minimum(file: Path, known: Mapping[str, int]) -> str:
    """What is wrong with an adapter without a recorded hash: it can be read, and was measured."""
    from mcanalysis.models.adapter_files import read_point
    from mcanalysis.params.point import content_hash

    folder = file.parent
    if not (folder / "adapter_config.json").exists() or file.name != "adapter_model.safetensors":
        return UNKNOWN
    try:
        key = content_hash(read_point(folder))
    except UserError as error:
        return "no adapter" if "peft_type" not in str(error) else UNKNOWN
    return UNKNOWN if key in known or not known else f"an adapter of which nothing in {_STORE} was measured"


def _measured_points(run: Path) -> Mapping[str, int] | None:
    """The points that the store has values of; None where it has none to tell."""
    if not (run / _STORE).is_file() or not (run / _STORE).stat().st_size:
        return None
    try:
        with MeasurementStore(run / _STORE) as store:
            return store.points()
    except UserError:
        return None


def _checkpoint(run: Path) -> Checked:
    folder, name = run / "checkpoint", "checkpoint/"
    state: Any = None
    with suppress(UserError):
        state = read_json(folder / "state.json")
    if isinstance(state, dict) and "format" not in state and not (folder / PARTS_NAME).exists():
        return Checked(name, UNKNOWN)  # of version 0.1
    got = wrong_part(folder)
    if not got and isinstance(state, dict) and None not in (of := (state.get("run"), run_identity(run))):
        got = None if of[0] == of[1] else "that of another run"
    remedy = (
        "restore it from a copy, or remove it: a finished run needs none, another one is trained from the first task"
    )
    return Checked(name, DAMAGED if got else OK, got or "", remedy)


def _store(run: Path) -> Iterator[Checked]:
    file = run / _STORE
    again = "move it away and run the commands again: what they need is measured again"
    if not file.exists():
        yield Checked(_STORE, MISSING, "", again)
        return
    try:
        if not file.stat().st_size:
            raise DataError("empty")
        with MeasurementStore(file) as store:
            whole, unknown, damaged = store.check()
    except UserError:
        yield Checked(_STORE, DAMAGED, "no measurements that can be read", again)
        return
    if damaged:
        what = f"{len(damaged)} of {whole + unknown + len(damaged)} values, {damaged[0].task} ({damaged[0].split}) say"
        yield Checked(_STORE, DAMAGED, what, _MEASURED_AGAIN)
    elif unknown:
        yield Checked(_STORE, UNKNOWN, f"{unknown} of {whole + unknown} values")
    else:
        yield Checked(_STORE, OK, f"{whole} values")
