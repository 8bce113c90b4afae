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

AGAIN = "remove it and give the command that wrote it again, which keeps what was measured"


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


def read_table(file: str | os.PathLike[str], remedy: str = AGAIN, **how: Any) -> pd.DataFrame:
    """What a CSV file holds, as `pandas.read_csv` reads it; raises `DataError` where it is missing, damaged or cut.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "a.csv")
    ...     _ = table.write_text("t,loss\\n0.5,1.25\\n")
    ...     read_table(table).loss[0]
    np.float64(1.25)
    """
    try:
        with Path(file).open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        if not text.endswith("\n"):
            raise DataError(f"Expected a whole table in '{file}', got one that ends within a line; {remedy}.")
        return pd.read_csv(io.StringIO(text), **how)
    except FileNotFoundError:
        raise DataError(f"Expected a table in '{file}', got no such file; {remedy}.") from None
    except DataError:
        raise
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise DataError(f"Expected a table in '{file}', got: {' '.join(str(error).split())}; {remedy}.") from None
