"""Rows of published files: JSON, JSON lines, CSV and Parquet, all as dictionaries; and which files are a split's."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mcanalysis.errors import DataError
from mcanalysis.tasks.raw.json_lines import read_json_lines

Values = Mapping[str, Any]

ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_SPLIT_NAMES = {"train": ("train",), "eval": ("eval", "dev", "validation", "valid"), "test": ("test",)}
_MISSING = "\0"  # in place of a cell that a row of CSV lacks
_LISTS = ("Instances", "examples", "data")  # where a JSON file that is an object may hold its rows


def split_files(folder: Path, split: str, called: str = "") -> list[Path]:
    """The files of a split in a folder, or in its `data` folder as on the hub, whose names begin with the split's.

    `split`: train, eval (which may be called dev, valid or validation) or test. Several are parts of one, such as
    `train-00000-of-00002.parquet`. `called`: another name than the usual ones.

    >>> split_files(Path("nowhere"), "test")
    []
    """
    for place in (folder, folder / "data"):
        for name in (called,) if called else _SPLIT_NAMES[split]:
            found = [f for f in sorted(place.glob(f"{name}*")) if _is_of(f, name)]
            if found:
                return found
    return []


def read_file(file: Path) -> tuple[list[Values], Values]:
    """The rows of a file, and what else a JSON object that holds them says (a definition, a canary).

    Classes that a Parquet file numbers are given by their names; everything in CSV is text. Raises `DataError` for a
    file that cannot be read or is of another kind.
    """
    ending = file.suffix.lower()
    try:
        if ending == ".json":
            return _json(file)
        if ending in (".jsonl", ".ndjson"):
            return [row.values for row in read_json_lines(file)], {}
        if ending in (".csv", ".tsv"):
            return _csv(file, "\t" if ending == ".tsv" else ","), {}
        if ending == ".parquet":
            return _parquet(file), {}
    except csv.Error as error:
        raise DataError(
            f"Expected texts in {file} that begin with a quotation mark to be quoted as a whole, marks inside doubled, "
            f"got: {error}; write the file with a CSV library, or as .jsonl."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"Expected a readable file at {file}, got: {reason}; restore it.") from None
    raise DataError(f"Expected a file that ends in {', '.join(ENDINGS)}, got {file}; convert it to one of these.")


def _is_of(file: Path, name: str) -> bool:
    rest = file.name.lower().removeprefix(name)
    return file.is_file() and file.suffix.lower() in ENDINGS and rest[:1] in (".", "-", "_")


def _csv(file: Path, delimiter: str) -> list[Values]:
    csv.field_size_limit(2**31 - 1)  # texts may be longer than the 128 kB that are allowed by default
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, restval=_MISSING, strict=True)
        found: list[Values] = []
        names = list(reader.fieldnames or ())
        if repeated := sorted({name for name in names if name and names.count(name) > 1}):
            raise DataError(f"Expected columns of different names in {file}, got '{repeated[0]}' twice; rename one.")
        for row in reader:
            if None in row or _MISSING in row.values():
                columns = len(reader.fieldnames or ())
                raise DataError(
                    f"Expected {columns} columns in {file} at line {reader.line_num}, got another number; quote texts "
                    "that hold the delimiter."
                )
            found.append(row)
    return found


def _json(file: Path) -> tuple[list[Values], Values]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under another name, as MedMCQA's
            return [row.values for row in read_json_lines(file)], {}
        raise DataError(
            f"Expected JSON in {file}, got: {error.msg} at line {error.lineno}; restore the file."
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"Expected JSON in {file}, got: {error}; restore the file.") from None
    about: Values = {}
    if isinstance(values, dict):
        key = next((k for k in _LISTS if isinstance(values.get(k), list)), None)
        if key is None:
            raise DataError(
                f"Expected rows in {file}, a list or an object with one at {' or '.join(_LISTS)}, got an object with "
                f"the keys {', '.join(map(repr, values))[:80] or 'none'}; give another file."
            )
        about, values = {k: v for k, v in values.items() if k != key}, values[key]
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise DataError(f"Expected a list of objects in {file}, got something else; give another file.")
    return values, about


def _parquet(file: Path) -> list[Values]:
    rows = _of_parquet([file])
    return rows.take(range(len(rows)))


def _of_parquet(files: Sequence[Path]) -> NamedRows:
    import pyarrow.parquet  # seconds to import, as is datasets: only when such a file is read
    from datasets import Dataset

    tables = []
    for file in files:
        try:
            tables.append(pyarrow.parquet.read_table(file))
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            reason = " ".join(str(error).split())
            raise DataError(f"Expected a Parquet file at {file}, got: {reason}; restore it.") from None
    try:
        return NamedRows(Dataset(pyarrow.concat_tables(tables)))
    except ValueError as error:
        raise DataError(
            f"Expected files of the same columns in {files[0].parent}, got: {error}; restore them."
        ) from None


def read_files(files: Sequence[Path]) -> Rows | NamedRows:
    """The rows of several files of one split; those of Parquet files become Python objects only where they are taken.

    Raises as `read_file` does.
    """
    if all(file.suffix.lower() == ".parquet" for file in files):
        return _of_parquet(files)
    return Rows(row for file in files for row in read_file(file)[0])


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or NaN, which pandas writes for it.

    >>> is_missing(None), is_missing(float("nan")), is_missing("nan")
    (True, True, False)
    """
    return value is None or value != value


def with_whole_numbers(rows: Sequence[Values]) -> Sequence[Values]:
    """The rows with whole numbers as such in columns that a gap had made floating-point ones, as pandas does.

    >>> with_whole_numbers([{"answer": 2.0}, {"answer": float("nan")}])[0]
    {'answer': 2}
    """
    seen: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                seen.setdefault(name, []).append(value)
    gapped = {
        name
        for name, values in seen.items()
        if any(is_missing(row.get(name)) for row in rows) and all(v != v or v.is_integer() for v in values)
    }
    if not gapped:
        return rows
    return [
        {n: int(v) if n in gapped and isinstance(v, float) and v == v else v for n, v in row.items()} for row in rows
    ]


class Rows(list[Values]):
    """Rows, and their columns."""

    def column(self, name: str) -> list[Any]:
        """The values at a key, of every row; raises `DataError` where a row lacks it."""
        for row in self:
            if name not in row:
                raise DataError(f"Expected the column '{name}', got {', '.join(map(repr, row))}; name the right file.")
        return [row[name] for row in self]

    def take(self, numbers: Iterable[int]) -> list[Values]:
        """The rows of these numbers."""
        return [self[n] for n in numbers]


class NamedRows:
    """The rows of a `datasets.Dataset`, classes by their names instead of their numbers; -1 (no label) is None.

    >>> from datasets import ClassLabel, Dataset, Features
    >>> labels = Features(label=ClassLabel(names=["World", "Sports"]))
    >>> rows = NamedRows(Dataset.from_dict({"label": [1, -1]}, features=labels))
    >>> rows.take([1, 0]), rows.column("label")
    ([{'label': None}, {'label': 'Sports'}], ['Sports', None])
    """

    def __init__(self, dataset: Any) -> None:
        from datasets import ClassLabel

        self.dataset = dataset
        self._names = {column: f.names for column, f in dataset.features.items() if isinstance(f, ClassLabel)}

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, numbers: Iterable[int]) -> list[Values]:
        """The rows of these numbers."""
        columns = self.dataset[list(numbers)]
        named = [[self._named(name, value) for value in values] for name, values in columns.items()]
        return [dict(zip(columns, values, strict=True)) for values in zip(*named, strict=True)]

    def column(self, name: str) -> list[Any]:
        """The values of a column; raises `DataError` where there is none of the name."""
        if name not in self.dataset.features:
            known = ", ".join(map(repr, self.dataset.features))
            raise DataError(f"Expected the column '{name}', got {known}; name the right data set.")
        return [self._named(name, value) for value in self.dataset[name]]

    def _named(self, column: str, value: Any) -> Any:
        if column not in self._names or value is None:
            return value
        return self._names[column][value] if value >= 0 else None
