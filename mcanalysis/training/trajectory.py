"""`<run>/trajectory/<k>-<TASK>/<learner>/<step>.safetensors`: where each learner stood every few optimiser steps."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.runs.snapshots import FOLDER, whose
from mcanalysis.store.point_files import write_tensors
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.training.checkpoint import writing

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
                write_tensors(file, self.model.read(scratch), {"of": whose(file)})
