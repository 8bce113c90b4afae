"""Runs that a study needs, trained where they are not there: one piece each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mcanalysis.errors import DataError, UnknownNameError, UserError
from mcanalysis.models.chat_template import template_name
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress
from mcanalysis.runs.run import Run, load_run
from mcanalysis.store.manifest import MANIFEST_NAME, open_template
from mcanalysis.studies.engine import TRAINING, Piece, Steps
from mcanalysis.tasks.names import check_distinct
from mcanalysis.tasks.task import TaskData
from mcanalysis.tasks.trace_files import load_examples, split_file
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import is_finished, is_general_measured, load_tasks, train

LOCK_SECONDS = 60.0
"""How long a try waits for the one before it, which may still be saving."""


@dataclass(frozen=True)
class General:
    """Held-out tasks that are only measured: `<folder>/<TASK>/test.json`, all of them or those named.

    `max_new_tokens` maps a task to the most tokens generated for an answer, where that is not to be the task's own.
    """

    folder: str
    tasks: tuple[str, ...] | None = None
    max_new_tokens: Mapping[str, int] = field(default_factory=dict)

    def load(self) -> list[TaskData]:
        """Their data; raises `DataError` for a folder without any, and for one that is named and absent."""
        root = Path(self.folder)
        files = {f.name: file for f in sorted(root.glob("*")) if (file := split_file(f, "test"))}
        present = list(files)
        if not present:
            raise DataError(
                f"Expected general tasks, <TASK>/test.json, in {root}, got "
                f"{'none' if root.is_dir() else 'no such folder'}; check --general-data."
            )
        for name in (*(self.tasks or ()), *self.max_new_tokens):
            if name not in present:
                raise UnknownNameError(f"general task in {root}", name, present)
        check_distinct(self.tasks or present)
        limits = self.max_new_tokens
        return [load_examples(files[name], max_new_tokens=limits.get(name)) for name in self.tasks or present]


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
    configs = _with_one_template(configs, directories)
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
    config: RunConfig, directory: Path, execution: Execution, general: General | None, progress: Progress
) -> None:
    """What a piece does. It goes on from a checkpoint: whether it may was decided before; a lost worker leaves one."""
    held_out = general.load() if general else ()
    train(
        config, directory, resume=True, execution=execution, progress=progress, general=held_out,
        lock_seconds=LOCK_SECONDS,
    )  # fmt: skip
