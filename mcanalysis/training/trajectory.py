"""`<run>/trajectory/<k>-<TASK>/<learner>/<step>.safetensors`: where each learner stood every few optimiser steps."""

from __future__ import annotations

import logging
import tempfile
from functools import cached_property
from pathlib import Path

from mcanalysis.errors import DataError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.params.point import Point
from mcanalysis.store.manifest import run_identity
from mcanalysis.store.point_files import read_tensors, write_tensors
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.checkpoint import writing

FOLDER = "trajectory"
EVERY = 10  # steps between two snapshots where nothing is said about them
SMALL = 1_000_000  # bytes of a snapshot up to which they are then saved: a task of 500 steps fills 50 MB a learner

logger = logging.getLogger(__name__)


class TrajectoryWriter:
    """Saves the learners of a strategy at step 0 of each task, at every `every`-th step, and at the last.

    A snapshot is the point that the learner's minimum would be, were the task over: what `save_learner` writes, read
    back, so that it works for every strategy and needs nothing of it. Learners that only change between tasks
    (`resting_learners`) have no trajectory; nor has a strategy without adapters, which is said by a warning. With
    `every` = 0 nothing is done at all; None is every 10th step of an adapter of up to 1 MB, and nothing for a larger
    one, whose snapshots would fill a disk that nobody meant for them.
    """

    def __init__(self, run_directory: str | Path, every: int | None, model: AdaptedModel, strategy: Strategy) -> None:
        self.directory = Path(run_directory) / FOLDER
        if every is None:
            size = sum(p.numel() * p.element_size() for p in model.parameters.values() if p.requires_grad)
            every = EVERY if strategy.has_paths and size <= SMALL else 0
        self.every = every if strategy.has_paths else 0
        self.model = model
        self.strategy = strategy
        if every and not self.every:
            logger.warning("%s trains no LoRA adapter: no trajectory is saved", strategy.name)

    @cached_property
    def _run(self) -> str | None:
        return run_identity(self.directory.parent)

    def write(self, label: str, step: int, is_last: bool = False) -> None:
        """Save the learners where they are, after `step` steps of the task `label`, if a snapshot is due."""
        if not self.every or (step % self.every and not is_last):
            return
        for learner in self.strategy.learners:
            if learner in self.strategy.resting_learners:
                continue
            with writing(), tempfile.TemporaryDirectory() as scratch:
                self.strategy.save_learner(self.model, learner, Path(scratch))
                file = self.directory / label / learner / f"{step}.safetensors"
                write_tensors(file, self.model.read(scratch), {"of": [self._run, *_place(file)]})


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
    file = Path(file)
    point, header = read_tensors(file, remedy, "a snapshot in")
    if "of" in header and header["of"] != [run_identity(file.parents[3]), *_place(file)]:  # version 0.1 wrote none
        raise DataError(f"Expected a snapshot of its run, task and step in '{file}', got another one; {remedy}.")
    return point


def _place(file: Path) -> list[str]:
    """The task, learner and step that a snapshot's file is of."""
    return [file.parent.parent.name, file.parent.name, file.stem]
