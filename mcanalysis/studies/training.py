"""Runs that a study needs, trained where they are not there: one piece each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress
from mcanalysis.runs.general import General
from mcanalysis.runs.run import Run, load_run
from mcanalysis.studies.engine import TRAINING, Piece, Steps
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, is_general_measured, load_tasks, train

LOCK_SECONDS = 60.0
"""How long a try waits for the one before it, which may still be saving."""


@dataclass(frozen=True, eq=False)
class Training:
    """A run that is to be there: `is_there` says whether it is already."""

    config: RunConfig
    directory: Path
    execution: Execution
    general: General | None
    is_there: bool
    num_tasks: int

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.config.strategy

    def steps(self) -> Steps[Run]:
        """Train it where it is not there; gives the finished run."""
        if not self.is_there:
            name = f"training of {self.directory.name}"
            arguments = (self.config, self.directory, self.execution, self.general)
            yield [Piece(str(self.directory), train_run, arguments, turn=TRAINING, name=name, trains=True)]
        return load_run(self.directory, self.execution.device, self.execution.engine)


def trainings(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    *,
    resume: bool = False,
    execution: Execution | None = None,
    general: General | None = None,
) -> list[Training]:
    """What is to be trained of several configurations on one benchmark.

    Raises, before anything is trained, `RunDirectoryError` for a directory of another configuration and for an
    unfinished one without `resume`, and what a base or data that cannot be read raise.
    """
    execution = execution or Execution()
    first = configs[0]
    check_base(first.model, first.dtype, execution.device or default_device())
    held_out = [] if general is None else general.load()
    tasks = load_tasks(first)
    return [
        Training(
            config,
            directory,
            execution,
            general,
            is_finished(config, directory, tasks, resume) and is_general_measured(directory, held_out),
            len(tasks),
        )
        for config, directory in zip(configs, directories, strict=True)
    ]


def train_run(
    config: RunConfig, directory: Path, execution: Execution, general: General | None, progress: Progress
) -> None:
    """What a piece does. It goes on from a checkpoint: whether it may was decided before; a lost worker leaves one."""
    train(
        config, directory, resume=True, execution=execution, progress=progress, general=general or (),
        lock_seconds=LOCK_SECONDS,
    )  # fmt: skip
