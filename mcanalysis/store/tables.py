"""Reading result tables back: names stay names, whatever they look like to a reader of numbers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMNS = (
    "strategy", "learner", "space", "path", "kind", "start", "end", "direction", "anchor", "task", "split", "quantity",
)  # fmt: skip
"""Columns of names; "NA", "nan" and "1" in them are names too, where pandas by itself reads a gap and a number."""


def read_table(file: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a table in CSV: an empty cell is missing (NaN), all other text in a column of names is a name.

    In an accuracy matrix, which has a column `after`, every other column is a task's, and of numbers. Raises the
    errors of opening a file, and `ValueError` for one that is no table.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "profiles.csv")
    ...     with open(file, "w") as stream:
    ...         _ = stream.write("task,anchor,loss\\nNA,,0.5\\n1,2-nan,\\n")
    ...     read_table(file).to_numpy().tolist()
    [['NA', nan, 0.5], ['1', '2-nan', nan]]
    """
    import pandas as pd

    with open(file, encoding="utf-8", newline="") as stream:  # noqa: PTH123
        header = pd.read_csv(stream, nrows=0, keep_default_na=False).columns
    text = {} if "after" in header else {name: str for name in header if name in TEXT_COLUMNS}
    with open(file, encoding="utf-8", newline="") as stream:  # noqa: PTH123
        return pd.read_csv(stream, keep_default_na=False, na_values=[""], dtype=text)
