"""Runs that a study needs, trained where they are not there: one piece each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.models.chat_template import template_name
from mcanalysis.models.loading import check_base, default_device
from mcanalysis.progress import Progress
from mcanalysis.runs.finished import FinishedRun
from mcanalysis.runs.general import General, general_hashes
from mcanalysis.runs.result_file import FiledRun, write_result
from mcanalysis.runs.run import Run, RunSoFar, load_run
from mcanalysis.store.code_key import code_key
from mcanalysis.store.manifest import manifest_in, open_template
from mcanalysis.strategies import get_strategy
from mcanalysis.studies.engine import TRAINING, Piece, Steps
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import Execution, RunConfig
from mcanalysis.training.continual_trainer import (
    differs_from,
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
    """A run that is to be there: `is_there` says whether it is already, weights and all.

    `result_file`: where its result file is to lie, if anywhere; `filed` is what that says, where it is there.
    """

    config: RunConfig
    directory: Path
    execution: Execution
    general: General | None
    is_there: bool
    num_tasks: int
    result_file: Path | None = None
    filed: FiledRun | None = None

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

    def found(self) -> FinishedRun | None:
        """What its files say without training: its directory, or its result file; None where there is neither."""
        return FinishedRun(self.directory, self.config.scored_split) if self.is_there else self.filed

    def scored_steps(self, turn: int = TRAINING) -> Steps[FinishedRun]:
        """As `steps`, but a run whose result file is there is not trained; another one leaves its file when it ends."""
        if self.filed is not None and not self.is_there:
            return self.filed
        run = yield from self.steps(turn)
        if self.result_file is not None:
            write_result(run, self.result_file)
        return run

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
    results: str | Path | None = None,
) -> list[Training]:
    """What is to be trained of several configurations on one benchmark, which may differ in the order of the tasks.

    Raises, before anything is trained, `UserError` for two orders that are the same, `RunDirectoryError` for a
    directory of another configuration and for an unfinished one without `resume`, and what a base or data that cannot
    be read raise. `results`: the folder of result files, `<run name>.json`; `RunDirectoryError` and `DataError` for one
    of another run and for a damaged one, and a warning where some are of other code.
    """
    if results is not None and Path(results).exists() and not Path(results).is_dir():
        raise UserError(f"Expected a folder of result files, got the file '{results}'; change --results.")
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
    files = [None if results is None else Path(results, f"{Path(d).name}.json") for d in directories]
    filed = [
        FiledRun(f, c.scored_split) if f is not None and f.exists() else None
        for c, f in zip(configs, files, strict=True)
    ]
    manifests = [manifest_in(d) or (run and run.manifest) for d, run in zip(directories, filed, strict=True)]
    from_zero = [settled_for(c, m).training.from_zero for c, m in zip(configs, manifests, strict=True)]
    if any(from_zero) and not all(from_zero):
        logger.warning(
            "%d of %d runs are of before schedules could be chosen: each task's first step has rate 0 in them and not "
            "in the others; train all in another --output-dir to compare like with like",
            sum(from_zero), len(from_zero),
        )  # fmt: skip
    for config, manifest in zip(configs, manifests, strict=True):
        if manifest is None:  # a run of before may have a smaller memory
            own = get_strategy(config.strategy).config_class.of(config.strategy, config.strategy_settings)
            own.num_remembered(train_sizes(tasks[config.order]))
    configs = _with_one_template(configs, directories, manifests)
    for config, run in zip(configs, filed, strict=True):
        if run is not None:
            _check_filed(run, config, tasks[config.order], held_out)
    if other := sum(run is not None and run.manifest.get("code") != code_key() for run in filed):
        logger.warning(
            "%d of %d result files in '%s' are of other code than this, which may give other numbers; each names "
            "its commit",
            other, sum(run is not None for run in filed), results,
        )  # fmt: skip
    return [
        Training(
            config,
            directory,
            execution,
            general,
            is_finished(config, directory, tasks[config.order], resume or run is not None)
            and is_general_measured(directory, held_out),
            len(tasks[config.order]),
            file,
            run,
        )
        for config, directory, file, run in zip(configs, directories, files, filed, strict=True)
    ]


def cost_of(trainings: Sequence[Training]) -> str:
    """How many runs there are, and how long those that are not there may take by those that are, in one sentence.

    A strategy of which none is there is taken to cost the mean of all others.
    """
    there = {training: run for training in trainings if (run := training.found())}
    words = f"{len(trainings)} runs, {len(there)} of them there"
    if filed := sum(not training.is_there for training in there):
        words += f" ({filed} as result files)"
    if len(there) == len(trainings):
        return words
    seconds: dict[str, list[float]] = {}
    for training, run in there.items():
        cost = run.cost
        if "train_seconds" in cost:
            total = float(cost["train_seconds"] or 0) + float(cost.get("evaluation_seconds") or 0)
            seconds.setdefault(training.strategy, []).append(total)
    if not seconds:
        return f"{words}; how long they take is not known before one is there"
    known = [s for of in seconds.values() for s in of]
    means = [seconds.get(t.strategy, known) for t in trainings if t not in there]
    minutes = sum(sum(of) / len(of) for of in means) / 60
    return f"{words}; the others take about {minutes:.0f} minutes of one process, by the {len(known)} known"


def _check_filed(run: FiledRun, config: RunConfig, tasks: Sequence[TaskData], general: Sequence[TaskData]) -> None:
    """Raise `RunDirectoryError` for a result file of another run than this one, naming what differs."""
    found = differs_from(run.manifest, config, tasks)
    recorded, wanted = run.manifest["hashes"].get("general", {}), general_hashes(general)
    if general and recorded != wanted:
        found.append(f"expected general tasks as measured, {', '.join(recorded) or 'none'}, got {', '.join(wanted)}")
    if found:
        raise RunDirectoryError(
            f"Result file {run.directory} belongs to another run: {'; '.join(found)}; give the recorded values and "
            "data, or choose another --results."
        )


def _with_one_template(
    configs: Sequence[RunConfig], directories: Sequence[Path], manifests: Sequence[Mapping[str, Any] | None]
) -> Sequence[RunConfig]:
    """Where the chat template is left open it is that of the runs which are there already, if any: all of these are put
    side by side. Raises `UserError` where those differ."""
    there = [d for d, manifest in zip(directories, manifests, strict=True) if manifest is not None]
    known = {open_template(c.chat_template, m) for c, m in zip(configs, manifests, strict=True) if m is not None}
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
