"""Files with one JSON object per line; whatever is wrong in one is named with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One object and where it stands, such as "train.json, line 7"."""

    values: Mapping[str, Any]
    place: str

    def get(self, key: str) -> Any:
        """Return the value at a key; raises `DataError` where the row lacks the key.

        >>> Row({"cop": 1}, "train.json, line 7").get("cop")
        1
        """
        if key not in self.values:
            raise DataError(
                f'Expected the key "{key}" in {self.place}, got {", ".join(map(repr, self.values)) or "no keys"}; '
                "add it or rename the key that holds it."
            )
        return self.values[key]

    def text(self, key: str) -> str:
        """Return the text at a key, stripped, null as empty; raises `DataError` where it is no text.

        >>> Row({"opa": " Heart "}, "train.json, line 7").text("opa")
        'Heart'
        """
        return plain_text(self.get(key), f'"{key}" in {self.place}')


def plain_text(value: Any, where: str) -> str:
    """Return a text, stripped, null as empty; raises `DataError` for anything else or text that is not Unicode.

    >>> plain_text(None, "opa")
    ''
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"Expected text at {where}, got {json.dumps(value)[:40]}; write it in quotes.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"Expected Unicode text at {where}, got half of a surrogate pair; correct the text.") from None
    return value.strip()


def require_files(source: Path, names: Sequence[str]) -> list[Path]:
    """Return the named files of a folder; raises `DataError` that lists those it lacks.

    >>> require_files(Path("/nonexistent"), ["train.json"])
    Traceback (most recent call last):
    mcanalysis.errors.DataError: Expected train.json in /nonexistent, got no such folder; check --source.
    """
    wanted = " and ".join(names)
    if not source.is_dir():
        raise DataError(f"Expected {wanted} in {source}, got no such folder; check --source.")
    absent = [name for name in names if not (source / name).is_file()]
    if absent:
        raise DataError(f"Expected {wanted} in {source}, got no {', no '.join(absent)}; add what is missing.")
    return [source / name for name in names]


def read_json_lines(file: Path) -> Iterator[Row]:
    """Give the objects of a file in order, without its blank lines; raises `DataError` for a malformed one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "train.json").write_text('{"cop": 1}\\n{"cop": 2}\\n')
    ...     [row.get("cop") for row in read_json_lines(Path(folder, "train.json"))]
    [1, 2]
    """
    try:
        # Bytes split at \n only: decoded text would also split at U+2028 and U+0085, which texts may hold.
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                place = f"{file}, line {number}"
                text = _decode(line, place, "utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield Row(_parse(text, place), place)
    except OSError as error:
        raise DataError(f"Expected a readable file at {file}, got: {error.strerror}; check its permissions.") from error


def _decode(line: bytes, place: str, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected UTF-8 text in {place}, got byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} of the line; save the file as UTF-8."
        ) from error


def _parse(text: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"Expected a JSON object in {place}, got: {error.msg} at column {error.colno}; correct that line."
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise DataError(f"Expected a JSON object in {place}, got: {error}; correct that line.") from error
    if not isinstance(values, dict):
        raise DataError(f"Expected a JSON object in {place}, got {text.strip()[:40]!r}; write one object per line.")
    return values
