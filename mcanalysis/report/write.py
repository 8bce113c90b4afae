"""The report as a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mcanalysis.errors import UserError
from mcanalysis.report.page import render
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.store.atomic import write_bytes_atomic

MOST_BYTES = 8_000_000


def write_report(
    runs: Sequence[FinishedRun], output: str | os.PathLike[str], num_samples: int = 4, unfinished: Sequence[str] = ()
) -> int:
    """Write the report of `runs` to the file `output`, as a whole or not at all; returns its size in bytes.

    Arguments and errors as of `render`; also raises `UserError` for a page of more than 8 MB, which a phone would
    not like, and for an `output` that cannot be written.
    """
    file = Path(output)
    if file.is_dir():
        raise UserError(f"Expected a file for the report, got the folder '{file}'; pass --output {file}/report.html.")
    content = render(runs, num_samples, unfinished).encode("utf-8")
    if len(content) > MOST_BYTES:
        raise UserError(
            f"Expected a report of at most {MOST_BYTES / 1e6:.0f} MB, got {len(content) / 1e6:.1f} MB for "
            f"{len(runs)} run(s); name fewer runs, or lower --num-samples."
        )
    try:
        write_bytes_atomic(file, content)
    except OSError as error:
        raise UserError(
            f"Expected a file that can be written at '{file}', got: {error.strerror}; choose another --output."
        ) from None
    return len(content)
