"""Tables and JSON files of a run: read whole and as they were written, or refused in one line.

A CSV file that was cut is still a CSV file, of fewer rows and with another last number; but it does not end a line, and
its hash is another (`store.recorded`).
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from mcanalysis.errors import DataError
from mcanalysis.store.recorded import check_recorded

TEXT_COLUMNS = (
    "strategy", "learner", "start_learner", "end_learner", "space", "path", "kind", "start", "end", "minimum", "minima",
    "direction", "anchor", "task", "split", "quantity", "key",
)  # fmt: skip
"""Columns of names; "NA", "nan" and "1" in them are names too, where pandas by itself reads a gap and a number."""

_EXACT: dict[str, Any] = {"float_precision": "round_trip"} if pd.__version__ < "3.1" else {}  # from then on as it is

# What a spreadsheet takes for a formula; an apostrophe before it makes it text, and another one what had one already.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")

AGAIN = "remove it and run the command that wrote it again, which keeps what was measured"


def read_json(file: str | os.PathLike[str], remedy: str = AGAIN) -> Any:
    """What a JSON file holds; raises `DataError` where it is missing, damaged or, of a run, not as it was written.

    >>> read_json("/nonexistent/cost.json", "train again")
    Traceback (most recent call last):
    mcanalysis.errors.DataError: Expected JSON in '/nonexistent/cost.json', got no such file; train again.
    """
    check_recorded(file, remedy)
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"Expected JSON in '{file}', got no such file; {remedy}.") from None
    except (OSError, ValueError, RecursionError) as error:  # the last of values too deep within one another
        raise DataError(f"Expected JSON in '{file}', got: {error}; {remedy}.") from None


def read_table(file: str | os.PathLike[str], remedy: str = AGAIN) -> pd.DataFrame:
    """Return a table in CSV: an empty cell is missing (NaN), all other text in a column of names is a name.

    Numbers are those that were written, to the last bit; columns of `few_events` are true or false. In an accuracy
    matrix, which has a column `after`, every other column is a task's, and of numbers. What `table_text` has put before
    formulas is taken away. Raises `DataError` for a table that is missing, damaged, cut or, of a run, not as it was
    written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "profiles.csv")
    ...     _ = table.write_text("task,anchor,loss,few_events\\nNA,,0.5,True\\n1,2-nan,,\\n")
    ...     read_table(table).to_numpy().tolist()
    [['NA', nan, 0.5, True], ['1', '2-nan', nan, False]]
    """
    check_recorded(file, remedy)
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
        table = table.assign(**{name: table[name].eq(True) for name in flags})
        return _in_text(table, lambda text: text[1:] if text[0] == "'" and _FORMULA.match(text) else text)
    except FileNotFoundError:
        raise DataError(f"Expected a table in '{file}', got no such file; {remedy}.") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"Expected a table in '{file}', got: {' '.join(str(error).split())}; {remedy}.") from None


def table_text(table: pd.DataFrame) -> str:
    """A table as CSV, without its index, of which no spreadsheet computes a cell: `'` stands before what it would take
    for a formula, in names of columns too. `read_table` takes it away. A carriage return, which ends a row for many
    readers, is written as a newline.

    >>> table_text(pd.DataFrame({"task": ["=1+1", "NA", "-0.5"], "loss": [-0.5, 1.0, 2.0]}))
    "task,loss\\n'=1+1,-0.5\\nNA,1.0\\n-0.5,2.0\\n"
    """
    return _in_text(table, _as_cell).to_csv(index=False)


def _as_cell(text: str) -> str:
    text = f"'{text}" if _is_formula(text) else text
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_formula(text: str) -> bool:
    if not _FORMULA.match(text):
        return False
    try:
        float(text)
    except ValueError:
        return True
    return text[0] in "\t\r"


def _in_text(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """A table with every text in it, and every name of a column, changed."""

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) and value else value

    texts = [i for i, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    made = table.copy(deep=False)
    for i in texts:
        column = table.iloc[:, i]
        if any(changed(value) is not value and changed(value) != value for value in column.unique()):
            made.isetitem(i, column.map(changed).array)
    return made.set_axis([changed(name) for name in table.columns], axis="columns")
