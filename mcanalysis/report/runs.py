"""Which runs a report is of: run directories, and the folders that hold them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcanalysis.errors import RunDirectoryError
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.manifest import MANIFEST_NAME, read_manifest


@dataclass(frozen=True)
class FoundRuns:
    """Finished runs, the folder that holds them, and the names of unfinished runs beside them."""

    runs: list[Run]
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
    found: dict[Path, Run] = {}
    unfinished: list[str] = []
    folders: list[Path] = []
    for place in map(Path, places):
        if (place / MANIFEST_NAME).exists():
            found.setdefault(place.resolve(), load_run(place))
            folders.append(place if len(places) == 1 else place.parent)
            continue
        directories = sorted(f.parent for f in place.glob(f"*/{MANIFEST_NAME}"))
        finished = [d for d in directories if read_manifest(d).get("status") == "finished"]
        unfinished += [d.name for d in directories if d not in finished]
        if not finished:
            got = f"{len(directories)} unfinished" if directories else "none" if place.is_dir() else "no folder"
            remedy = "finish them with train.py --resume" if directories else "make some with connectivity.py"
            raise RunDirectoryError(f"Expected a run directory or a folder of runs at '{place}', got {got}; {remedy}.")
        for directory in finished:
            found.setdefault(directory.resolve(), load_run(directory))
        folders.append(place)
    folder = folders[0] if len(set(folders)) == 1 else Path(os.path.commonpath([f.resolve() for f in folders]))
    return FoundRuns(list(found.values()), folder, unfinished)
