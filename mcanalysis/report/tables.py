"""Reading the files of a run, with an error in one line where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.run import Run

_TEXT = ("strategy", "learner", "space", "path", "kind", "start", "end", "direction", "anchor", "task", "split")
_TEXT_COLUMNS = dict.fromkeys((*_TEXT, "quantity"), str)


def read_table(run: Run, name: str, columns: Sequence[str] = ()) -> pd.DataFrame | None:
    """`<run>/tables/<name>.csv`, None where it was never written; a task called "NA" stays a name.

    Raises `DataError` where it cannot be read or lacks one of `columns`.
    """
    file = run.directory / "tables" / f"{name}.csv"
    if not file.exists():
        return None
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            table = pd.read_csv(stream, keep_default_na=False, na_values=_numbers_only(file), dtype=_TEXT_COLUMNS)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"Expected a table in '{file}', got: {error}; measure it again.") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"Expected the column(s) {', '.join(missing)} in '{file}', got none; measure it again.")
    return table


def read_json(run: Run, *parts: str) -> Any:
    """A JSON file of a run, None where there is none; raises `DataError` where it cannot be read."""
    file = run.directory.joinpath(*parts)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"Expected JSON in '{file}', got: {error}; restore it or train again.") from None


def _numbers_only(file: Any) -> dict[str, list[str]]:
    """An empty cell is a missing number, but an empty text is a text."""
    header = pd.read_csv(file, nrows=0, keep_default_na=False, encoding="utf-8").columns
    return {str(name): [""] for name in header if name not in _TEXT_COLUMNS}
