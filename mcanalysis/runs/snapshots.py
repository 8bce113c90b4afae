"""Snapshots of a run's trajectory: `<run>/trajectory/<k>-<TASK>/<learner>/<step>.safetensors`."""

from __future__ import annotations

from pathlib import Path

from mcanalysis.errors import DataError
from mcanalysis.params.point import Point
from mcanalysis.store.manifest import run_identity
from mcanalysis.store.point_files import read_tensors

FOLDER = "trajectory"


def snapshot_files(run_directory: str | Path, label: str, learner: str) -> dict[int, Path]:
    """The snapshots of a learner within the task `label` (`<k>-<TASK>`), by step, in order; {} where none were saved.

    >>> snapshot_files("/nonexistent", "1-FOMC", "fast")
    {}
    """
    files = Path(run_directory, FOLDER, label, learner).glob("*.safetensors")
    steps = {int(f.stem): f for f in files if f.stem.isdigit()}
    return dict(sorted(steps.items()))


def read_snapshot(file: str | Path) -> Point:
    """The point in a snapshot's file, scaling multiplied into B; raises `DataError` where there is none, or another."""
    remedy = "train again with --save-trajectory, or delete the file"
    file = Path(file).absolute()
    point, header = read_tensors(file, remedy, "a snapshot in")
    here = whose(file)
    if here[0] and header.get("of", here) != here:  # version 0.1 did not say it; a copy elsewhere is nobody's
        raise DataError(f"Expected a snapshot of its run, task and step in '{file}', got another one; {remedy}.")
    return point


def whose(file: Path) -> list[str | None]:
    """The run (a hash of what makes it that run), task, learner and step that a snapshot's file is of."""
    return [run_identity(file.parents[3]), file.parent.parent.name, file.parent.name, file.stem]
