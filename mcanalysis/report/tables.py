"""Reading the files of a run, with an error in one line where one is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.runs.run import Run
from mcanalysis.store import small_files


def read_table(run: Run, name: str, columns: Sequence[str] = ()) -> pd.DataFrame | None:
    """`<run>/tables/<name>.csv`, None where it was never written; a task called "NA" stays a name.

    Raises `DataError` where it cannot be read or lacks one of `columns`.
    """
    file = run.directory / "tables" / f"{name}.csv"
    if not file.exists():
        return None
    table = small_files.read_table(file)
    missing = [column for column in columns if column not in table]
    if missing:
        raise DataError(f"Expected the column(s) {', '.join(missing)} in '{file}', got none; measure it again.")
    # An empty cell is a missing number, but an empty text is a text.
    return table.fillna({} if "after" in table else {c: "" for c in small_files.TEXT_COLUMNS if c in table})


def read_json(run: Run, *parts: str) -> Any:
    """A JSON file of a run, None where there is none; raises `DataError` where it cannot be read."""
    file = run.directory.joinpath(*parts)
    return small_files.read_json(file, "restore it or train again") if file.exists() else None
