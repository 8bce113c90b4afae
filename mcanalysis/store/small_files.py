"""Reading the tables and JSON files of a run: whole, or refused in one line.

A CSV file that was cut is still a CSV file, of fewer rows and with another last number; but it does not end a line.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError

TEXT_COLUMNS = (
    "strategy", "learner", "start_learner", "end_learner", "space", "path", "kind", "start", "end", "minimum", "minima",
    "direction", "anchor", "task", "split", "quantity", "key",
)  # fmt: skip
"""Columns of names; "NA", "nan" and "1" in them are names too, where pandas by itself reads a gap and a number."""

_EXACT: dict[str, Any] = {"float_precision": "round_trip"} if pd.__version__ < "3.1" else {}  # from then on as it is

AGAIN = "remove it and run the command that wrote it again, which keeps what was measured"


def read_json(file: str | os.PathLike[str], remedy: str = AGAIN) -> Any:
    """What a JSON file holds; raises `DataError` where it is missing or damaged.

    >>> read_json("/nonexistent/cost.json", "train again")
    Traceback (most recent call last):
    mcanalysis.errors.DataError: Expected JSON in '/nonexistent/cost.json', got no such file; train again.
    """
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"Expected JSON in '{file}', got no such file; {remedy}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"Expected JSON in '{file}', got: {error}; {remedy}.") from None


def read_table(file: str | os.PathLike[str], remedy: str = AGAIN) -> pd.DataFrame:
    """Return a table in CSV: an empty cell is missing (NaN), all other text in a column of names is a name.

    Numbers are those that were written, to the last bit; columns of `few_events` are true or false. In an accuracy
    matrix, which has a column `after`, every other column is a task's, and of numbers. Raises `DataError` for a table
    that is missing, damaged or cut.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "profiles.csv")
    ...     _ = table.write_text("task,anchor,loss,few_events\\nNA,,0.5,True\\n1,2-nan,,\\n")
    ...     read_table(table).to_numpy().tolist()
    [['NA', nan, 0.5, True], ['1', '2-nan', nan, False]]
    """
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        if not text.endswith("\n"):
            raise DataError(f"Expected a whole table in '{file}', got one that ends within a line; {remedy}.")
        header = pd.read_csv(io.StringIO(text), nrows=0).columns
        names = [] if "after" in header else [name for name in header if name in TEXT_COLUMNS]
        flags = [] if "after" in header else [name for name in header if name.endswith("few_events")]
        types = dict.fromkeys(names, str)
        table = pd.read_csv(io.StringIO(text), dtype=types, keep_default_na=False, na_values=[""], **_EXACT)
        return table.assign(**{name: table[name].eq(True) for name in flags})
    except FileNotFoundError:
        raise DataError(f"Expected a table in '{file}', got no such file; {remedy}.") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"Expected a table in '{file}', got: {' '.join(str(error).split())}; {remedy}.") from None
