"""Reading the files of a run, with an error in one line where one is damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.run import Run
from mcanalysis.store import tables as stored


def read_table(run: Run, name: str, columns: Sequence[str] = ()) -> pd.DataFrame | None:
    """`<run>/tables/<name>.csv`, None where it was never written; a task called "NA" stays a name.

    Raises `DataError` where it cannot be read or lacks one of `columns`.
    """
    file = run.directory / "tables" / f"{name}.csv"
    if not file.exists():
        return None
    try:
        table = stored.read_table(file)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"Expected a table in '{file}', got: {error}; measure it again.") from None
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"Expected the column(s) {', '.join(missing)} in '{file}', got none; measure it again.")
    texts = {} if "after" in table else {c: "" for c in stored.TEXT_COLUMNS if c in table}  # an empty text is a text
    return table.fillna(texts)


def read_json(run: Run, *parts: str) -> Any:
    """A JSON file of a run, None where there is none; raises `DataError` where it cannot be read."""
    file = run.directory.joinpath(*parts)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"Expected JSON in '{file}', got: {error}; restore it or train again.") from None
