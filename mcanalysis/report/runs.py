"""Which runs a report is of: run directories, and the folders that hold them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcanalysis.errors import RunDirectoryError
from mcanalysis.runs.finished import FinishedRun, runs_in
from mcanalysis.store.manifest import MANIFEST_NAME


@dataclass(frozen=True)
class FoundRuns:
    """Finished runs, the folder that holds them, and the names of unfinished runs beside them."""

    runs: list[FinishedRun]
    folder: Path
    unfinished: list[str]

    @property
    def default_output(self) -> Path:
        """`<run>/report.html` for one run, else `<folder>/comparison/report.html`."""
        if len(self.runs) == 1 and self.folder == self.runs[0].directory:
            return self.folder / "report.html"
        return self.folder / "comparison" / "report.html"


def find_runs(places: Sequence[str | os.PathLike[str]]) -> FoundRuns:
    """The finished runs at `places`, each a run directory or a folder of such, in the order given and then by name.

    Raises `RunDirectoryError` for a run directory that is named and unfinished, for a place that is no folder, and for
    a folder without a finished run. Unfinished runs in a folder of runs are left out and named in the result.
    """
    found: dict[Path, FinishedRun] = {}
    unfinished: list[str] = []
    folders: list[Path] = []
    for place in map(Path, places):
        if (place / MANIFEST_NAME).exists():
            found.setdefault(place.resolve(), FinishedRun(place))
            folders.append(place if len(places) == 1 else place.parent)
            continue
        finished, others = runs_in(place)
        unfinished += others
        if not finished:
            got = f"{len(others)} unfinished" if others else "none" if place.is_dir() else "no folder"
            remedy = "finish them with train.py --resume" if others else "make some with connectivity.py"
            raise RunDirectoryError(f"Expected a run directory or a folder of runs at '{place}', got {got}; {remedy}.")
        for run in finished:
            found.setdefault(run.directory.resolve(), run)
        folders.append(place)
    folder = folders[0] if len(set(folders)) == 1 else Path(os.path.commonpath([f.resolve() for f in folders]))
    return FoundRuns(list(found.values()), folder, unfinished)
