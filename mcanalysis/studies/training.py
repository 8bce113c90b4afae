"""Runs that a study needs, trained where they are not there: one piece each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mcanalysis.errors import UserError
from mcanalysis.models.chat_template import template_name
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress
from mcanalysis.runs.general import General
from mcanalysis.runs.run import Run, RunSoFar, load_run
from mcanalysis.store.manifest import MANIFEST_NAME, open_template
from mcanalysis.strategies import get_strategy
from mcanalysis.studies.engine import TRAINING, Piece, Steps
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import (
    is_finished,
    is_general_measured,
    load_tasks,
    settled_for,
    train,
    train_sizes,
)

logger = logging.getLogger(__name__)

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

    @property
    def num_minima(self) -> int:
        """How many minima it leaves: of joint training one."""
        return 1 if get_strategy(self.strategy).schedule == "joint" else self.num_tasks

    @property
    def order(self) -> str | None:
        """The name of the order of the tasks, where it has one."""
        return self.config.order

    def steps(self, turn: int = TRAINING) -> Steps[Run]:
        """Train it where it is not there; gives the finished run."""
        if not self.is_there:
            yield [self._piece(turn)]
        return load_run(self.directory, self.execution.device, self.execution.engine, self.config.scored_split)

    def first_steps(self, num_tasks: int, turn: int = TRAINING) -> Steps[RunSoFar | None]:
        """Train no more than the first tasks; gives the run so far, None where there would be nothing more to train."""
        is_in_turn = get_strategy(self.strategy).schedule == "sequence"
        if self.is_there or not is_in_turn or num_tasks >= self.num_tasks:
            return None
        is_trained = (
            any((self.directory / "minima").glob(f"{num_tasks}-*")) and (self.directory / "checkpoint").exists()
        )
        if not is_trained:
            yield [self._piece(turn, num_tasks)]
        return RunSoFar(self.directory, self.execution.device, self.execution.engine, num_tasks)

    def _piece(self, turn: int, until: int | None = None) -> Piece:
        key = str(self.directory) if until is None else f"{self.directory} until {until}"
        arguments = (self.config, self.directory, self.execution, self.general, until)
        return Piece(key, train_run, arguments, turn=turn, name=f"training of {self.directory.name}", trains=True)


def trainings(
    configs: Sequence[RunConfig],
    directories: Sequence[Path],
    *,
    resume: bool = False,
    execution: Execution | None = None,
    general: General | None = None,
) -> list[Training]:
    """What is to be trained of several configurations on one benchmark, which may differ in the order of the tasks.

    Raises, before anything is trained, `UserError` for two orders that are the same, `RunDirectoryError` for a
    directory of another configuration and for an unfinished one without `resume`, and what a base or data that cannot
    be read raise.
    """
    execution = execution or Execution()
    first = configs[0]
    check_base(first.model, first.dtype, execution.device or default_device(), first.revision)
    held_out = [] if general is None else general.load()
    tasks = {order: load_tasks(replace(first, order=order)) for order in dict.fromkeys(c.order for c in configs)}
    sequences: dict[tuple[str, ...], str | None] = {}
    for order, data in tasks.items():
        twin = sequences.setdefault(tuple(d.task.name for d in data), order)
        if twin != order:
            raise UserError(
                f"Expected orders of the tasks that differ, got {twin} and {order}, both "
                f"{', '.join(d.task.name for d in data)}; leave one out."
            )
    from_zero = [settled_for(c, d).training.from_zero for c, d in zip(configs, directories, strict=True)]
    if any(from_zero) and not all(from_zero):
        logger.warning(
            "%d of %d runs are of before schedules could be chosen: each task's first step has rate 0 in them and not "
            "in the others; train all in another --output-dir to compare like with like",
            sum(from_zero), len(from_zero),
        )  # fmt: skip
    for config, directory in zip(configs, directories, strict=True):
        if not (directory / MANIFEST_NAME).exists():  # a run of before may have a smaller memory
            own = get_strategy(config.strategy).config_class.of(config.strategy, config.strategy_settings)
            own.num_remembered(train_sizes(tasks[config.order]))
    configs = _with_one_template(configs, directories)
    return [
        Training(
            config,
            directory,
            execution,
            general,
            is_finished(config, directory, tasks[config.order], resume) and is_general_measured(directory, held_out),
            len(tasks[config.order]),
        )
        for config, directory in zip(configs, directories, strict=True)
    ]


def _with_one_template(configs: Sequence[RunConfig], directories: Sequence[Path]) -> Sequence[RunConfig]:
    """Where the chat template is left open it is that of the runs which are there already, if any: all of these are put
    side by side. Raises `UserError` where those differ."""
    there = [d for d in directories if (d / MANIFEST_NAME).exists()]
    known = {open_template(c.chat_template, d) for c, d in zip(configs, directories, strict=True) if d in there}
    if len(known) > 1:
        names = " and ".join(sorted(template_name(text) or "none" for text in known))
        raise UserError(
            f"Expected runs with one chat template, got {names} in {', '.join(map(str, there))}; train those of "
            "another in another --output-dir."
        )
    return [replace(c, chat_template=next(iter(known), c.chat_template)) for c in configs]


def train_run(
    config: RunConfig,
    directory: Path,
    execution: Execution,
    general: General | None,
    until: int | None,
    progress: Progress,
) -> None:
    """What a piece does. It goes on from a checkpoint: whether it may was decided before; a lost worker leaves one."""
    train(
        config, directory, resume=True, execution=execution, progress=progress, general=general or (),
        lock_seconds=LOCK_SECONDS, until=until,
    )  # fmt: skip
