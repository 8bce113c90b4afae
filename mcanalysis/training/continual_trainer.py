"""The continual trainer: task after task, a minimum saved after each, the accuracy matrix filled row by row.

A stopped run goes on where its last checkpoint is, in the middle of a task if need be, and ends as if it had never been
stopped.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mcanalysis.errors import DataError, RunInUseError
from mcanalysis.evaluation.objective import Objective, encode_split, make_objective
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.base_identity import accepted_identities, identity_marker, recorded_commit
from mcanalysis.models.base_source import recorded_source
from mcanalysis.models.chat_template import choose_template, use_template
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.models.passes import Passes, counting
from mcanalysis.models.positions import Texts, check_positions, positions_of
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.general import General, general_hashes, told_apart
from mcanalysis.store.atomic import (
    clear_partial_files,
    recover_directory,
    replace_directory_atomic,
    write_json_atomic,
)
from mcanalysis.store.lock import lock_training
from mcanalysis.store.manifest import (
    claim_run_directory,
    differences,
    lock_run_directory,
    manifest_in,
    mark_finished,
    open_template,
    read_manifest,
    record_evaluation,
    record_hashes,
    recorded_base,
)
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.store.recorded import is_as_written
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.surroundings import is_deterministic
from mcanalysis.tasks.names import check_distinct
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.checkpoint import Position, copy_checkpoint, read_checkpoint, write_checkpoint, writing
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory
from mcanalysis.training.processes import Processes
from mcanalysis.training.scoring import Scoring
from mcanalysis.training.stages import Stage, make_stages
from mcanalysis.training.stopping import Stopped, listening
from mcanalysis.training.trajectory import TrajectoryWriter

logger = logging.getLogger(__name__)

BYTES_OF_ID = 4
"""What a token of a remembered example is counted as, whatever holds it."""


class ContinualTrainer:
    """Trains with a strategy on a sequence of tasks and writes the run directory.

    Every task trains on its `train` split only; `scored_split` fills the accuracy matrix (`num_test` examples of each).
    """

    def __init__(
        self,
        model: AdaptedModel,
        tasks: Sequence[TaskData],
        strategy: Strategy,
        config: TrainingConfig,
        run_directory: str | Path,
        *,
        seed: int = 0,
        num_test: int | None = None,
        scored_split: str = "test",
        general: Sequence[TaskData] = (),
        base_marker: str = "",
        execution: Execution | None = None,
        processes: Processes | None = None,
        progress: Progress = silent,
    ) -> None:
        check_distinct([task.task.name for task in tasks])
        general = told_apart(general, [task.task.name for task in tasks])
        self.model = model
        self.tasks = tasks
        self.strategy = strategy
        self.config = config
        self.directory = Path(run_directory)
        self.seed = seed
        self.execution = execution or Execution()
        self.processes = processes or Processes(model.device.type)
        self.progress = progress if self.processes.is_main else silent
        every = self.execution.save_trajectory if self.processes.is_main else 0
        self._trajectory = TrajectoryWriter(self.directory, every, model, strategy)
        self.num_cut: dict[str, int] = {}
        strategy.settle_memory(train_sizes(tasks))
        self._stages = self._make_stages()
        objectives, others = (
            [
                make_objective(t, split, model.tokenizer, config.max_length, num_test, base_marker=base_marker)
                for t in data
            ]
            for data, split in ((tasks, scored_split), (general, "test"))
        )
        check_run_positions(
            model.network, model.tokenizer, strategy, self._stages, [*objectives, *others], tasks, config.max_length
        )
        self._scoring = Scoring(
            self.directory, model, strategy, objectives, others, self.processes, self.execution.engine, self.progress
        )
        self._seconds = Position().seconds
        self._passes: Passes | None = Passes()  # of this process; None where the run began before they were counted

    def _make_stages(self) -> list[Stage]:
        train = []
        for task in self.tasks:
            if not task.splits.get("train"):
                raise DataError(f"Expected train examples for {task.task.name}, got none; add them or drop the task.")
            encoded, cut = encode_split(task, "train", self.model.tokenizer, self.config.max_length)
            train.append((task.task.name, encoded))
            self.num_cut[task.task.name] = cut
        return make_stages(train, self.strategy.schedule, self.config)

    def run(self, is_trained: bool = False, until: int | None = None) -> None:
        """Train what is not trained yet, then write the tables; the caller's random states are left as they were.

        `is_trained`: the run is finished, and only its tables are written, from its minima and its store. `until`: only
        the first so many tasks are trained and nothing is scored, as if it were stopped there; what goes on scores
        their minima. Raises `Stopped`, with a checkpoint written, after SIGTERM or Ctrl-C.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(), listening() as self._scoring.stop:
            try:
                reset_peak_memory()
                self._run(is_trained, until)
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])

    def _run(self, is_trained: bool, until: int | None) -> None:
        if self.processes.is_main:
            clear_partial_files(self.directory)
            if any(self.num_cut.values()):
                cut = {f"{task}/train": number for task, number in self.num_cut.items() if number}
                record_evaluation(self.directory, {"cut_prompts": cut})
        self.strategy.begin(self.model, len(self.tasks))
        position = Position(len(self._stages))
        if not is_trained:
            position = read_checkpoint(self.directory / "checkpoint", self.model, self.strategy, self.processes)
        if position == Position() and self.processes.is_main and (self.directory / "minima").exists():
            logger.warning("no checkpoint in '%s': training starts again from the first task", self.directory)
        self._seconds = position.seconds
        if position.passes is None:
            self._passes = None
        elif self.processes.is_main:  # they are those of all processes, and added up again when they are written
            self._passes = Passes(**position.passes)
        stages, first = self._stages[:until], position.stage
        goes_on = not is_trained and (first or position.losses)
        resumed = f", from step {len(position.losses)} of task {first + 1}" if goes_on else ""
        with ExitStack() as stack:
            store = None
            if self.processes.is_main:
                store = stack.enter_context(MeasurementStore(self.directory / "measurements.sqlite"))
            for row, label in [(0, "base"), *((s.row, s.label) for s in stages[:first])] if until is None else ():
                self._score(store, row, label)
            if is_trained:
                self.processes.on_main(self._scoring.write_tables)
            elif until is None and (first or not stages):  # one stopped while its last row was filled has no task left
                self._write_tables()
            bar = self.progress(  # from here on: before, minima were scored
                total=max(0, sum(s.num_steps for s in stages[first:]) - len(position.losses)),
                desc=f"{'tables of' if is_trained else 'train'} {self.strategy.name} (seed {self.seed}){resumed}",
            )
            for number, stage in enumerate(stages[first:], start=first):
                with counting(self._passes or Passes()):
                    self._train_stage(stage, position if number == first else Position(number), bar.update)
                self._save_minima(stage)
                self._checkpoint(Position(number + 1, seconds=self._seconds, passes=self._all_passes()))
                if until is None:
                    self._score(store, stage.row, stage.label)
                    self._write_tables()  # rewritten as rows come in: a long run can be looked at
        bar.close()
        if self.processes.is_main:
            recover_directory(self.directory / "checkpoint")

    @property
    def table_names(self) -> list[str]:
        """The files in `tables/` that tell of the scores."""
        return self._scoring.table_names

    def _train_stage(self, stage: Stage, start: Position, on_step: Callable[[], None]) -> None:
        if not start.within:
            self.strategy.begin_task(self.model, start.stage, stage.examples)
        started, losses = time.monotonic(), list(start.losses)
        for phase in range(start.phase, self.strategy.num_phases()):
            within = start.within and phase == start.phase
            if not within:
                self.strategy.begin_phase(self.model, phase)
                if phase == 0:
                    self._trajectory.write(stage.label, 0)
            losses = self._train_phase(stage, Position(start.stage, phase, within, losses), started, on_step)
        self.strategy.end_task(self.model, stage.examples)
        self._seconds["train"] += time.monotonic() - started
        if self.processes.is_main:
            write_json_atomic(self.directory / "losses" / f"{stage.label}.json", losses)

    def _train_phase(self, stage: Stage, start: Position, started: float, on_step: Callable[[], None]) -> list[float]:
        """Train one phase, from its beginning or from the checkpoint; returns the stage's losses so far."""
        from mcanalysis.training.task_trainer import TaskTrainer  # seconds, which nothing that is trained need wait for

        saved = self.directory / "checkpoint" if start.within else None
        stop = self._scoring.stop

        def write(engine: Callable[[Path], None]) -> None:
            seconds = {**self._seconds, "train": self._seconds["train"] + time.monotonic() - started}
            losses = start.losses + trainer.losses
            position = Position(start.stage, start.phase, True, losses, seconds, self._all_passes())
            self._checkpoint(position, engine)

        def step_done() -> None:
            step = len(start.losses) + len(trainer.losses)
            self._trajectory.write(stage.label, step, step == stage.num_steps * self.strategy.num_phases())
            on_step()

        fork = None
        if self.config.fork is not None and self.config.fork[0] == stage.name:
            after = max(0, self.config.fork[1] - start.phase * stage.num_steps)
            fork = after, stage.order_seed(self.config.fork[2], start.phase)
        with tempfile.TemporaryDirectory() as scratch:
            if "tensorboard" in self.execution.report_to:
                os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.directory / "logs" / stage.label)
            trainer = TaskTrainer(
                self.model,
                self.strategy,
                stage.examples,
                stage.name,
                replace(self.config, num_steps=stage.num_steps, epochs=None),
                stage.order_seed(self.seed, start.phase),
                scratch,
                execution=self.execution,
                processes=self.processes,
                stop=stop,
                write_checkpoint=write,
                on_step=step_done,
                fork=fork,
            )
            trainer.train(resume_from_checkpoint=saved and str(saved))
        if stop:
            raise Stopped(stop.signal)
        return start.losses + trainer.losses

    def _save_minima(self, stage: Stage) -> None:
        if self.processes.is_main:
            with writing():
                for learner in self.strategy.learners:
                    with replace_directory_atomic(self.directory / "minima" / stage.label / learner) as folder:
                        self.strategy.save_learner(self.model, learner, folder)
        self.processes.wait()

    def _checkpoint(self, position: Position, engine: Callable[[Path], None] | None = None) -> None:
        write_checkpoint(self.directory / "checkpoint", position, self.model, self.strategy, self.processes, engine)

    def _score(self, store: MeasurementStore | None, row: int, label: str) -> None:
        started = time.monotonic()
        self._scoring.fill_row(store, row, label)
        self._seconds["evaluation"] += time.monotonic() - started

    def _all_passes(self) -> dict[str, int] | None:
        """The passes so far, summed over the processes: what each of them computes for itself counts each time."""
        if self._passes is None:
            return None
        counts = {name: torch.tensor(n, device=self.processes.device) for name, n in asdict(self._passes).items()}
        return {name: int(total) for name, total in self.processes.sum(counts).items()}

    def _memory(self) -> dict[str, int]:
        """What is kept of the tasks so far: examples, and bytes of these and of all tensors beside those trained."""
        examples, (tensors, _) = self.strategy.kept_examples(), self.strategy.state()
        beside = [t for name, t in self.model.raw().items() if name not in self.model.parameters]
        size = sum(t.nbytes for t in (*tensors.values(), *beside)) + BYTES_OF_ID * sum(map(len, examples))
        return {"memory_examples": len(examples), "memory_bytes": size}

    def _write_tables(self) -> None:
        passes = self._all_passes()
        if not self.processes.is_main:
            return
        self._scoring.write_tables()
        trained = sum(p.numel() for p in self.model.parameters.values() if p.requires_grad)
        cost = {f"{k}_seconds": v for k, v in self._seconds.items()}
        cost |= {"peak_memory_bytes": peak_memory_bytes(), "num_trained": trained, "processes": self.processes.count}
        cost |= {**(passes or {}), **self._memory()}
        write_json_atomic(self.directory / "tables" / "cost.json", cost)
        if self.strategy.report:
            write_json_atomic(self.directory / "tables" / "strategy.json", self.strategy.report)


def check_run_positions(
    network: Any,
    tokenizer: Any,
    strategy: Strategy,
    stages: Sequence[Stage],
    objectives: Sequence[Objective],
    tasks: Sequence[TaskData],
    max_length: int,
) -> None:
    """Raise `UserError` where a run would read more tokens than its model has positions for, or an analysis of it.

    Asked before anything is written: what is trained on, `objectives`, and the eval split, on which t* is chosen.
    """
    texts = [Texts(f"the train split of {s.name}", s.examples) for s in stages]
    texts += [o.texts() for o in objectives]
    if positions_of(network).is_table:
        held_out = [t for t in tasks if t.splits.get("eval")]
        texts += [make_objective(t, "eval", tokenizer, max_length).texts() for t in held_out]
    check_positions(network, texts, strategy.num_prompts(len(tasks)))


def is_finished(config: RunConfig, run_directory: str | Path, tasks: Sequence[TaskData], resume: bool) -> bool:
    """Whether a directory holds a finished run of this configuration on these data.

    Loads no model and writes nothing. Raises `RunDirectoryError` as `train` would.
    """
    manifest = manifest_in(run_directory)
    if manifest is None:
        return False
    return claim_run_directory(run_directory, resume=resume, **_identity(config, tasks, manifest)) == "finished"


def differs_from(manifest: Mapping[str, Any], config: RunConfig, tasks: Sequence[TaskData]) -> list[str]:
    """How a run of this configuration on these data differs from that of a manifest: "expected …, got …" each.

    Where the data lie does not count: they may have been read on another machine.
    """
    identity = _identity(config, tasks, manifest)
    identity["config"]["data_dir"] = manifest["config"].get("data_dir")
    return differences(manifest, **identity)


def settled_for(config: RunConfig, manifest: Mapping[str, Any] | None) -> RunConfig:
    """A configuration with a value for every setting that was not given, by the manifest of the run that is there."""
    settled = config.settled(None if manifest is None else manifest["config"])
    return replace(settled, chat_template=open_template(config.chat_template, manifest))


def _identity(config: RunConfig, tasks: Sequence[TaskData], manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """What makes two runs the same run, as `claim_run_directory` takes it."""
    config = settled_for(config, manifest)
    recorded = recorded_base(manifest, config.model)
    bases = accepted_identities(config.model, recorded, config.revision) or [None, None]
    return {
        "config": {**config.resolved(), "tasks": [t.task.name for t in tasks]},
        "seed": config.seed,
        "base_hash": bases[0],
        "former_base_hash": bases[1],
        "data_hashes": {t.task.name: t.content_hash for t in tasks},
    }


def is_general_measured(run_directory: str | Path, general: Sequence[TaskData]) -> bool:
    """Whether a run's `tables/general.csv` is of these held-out tasks as they are now; True for none."""
    if not general:
        return True
    directory = Path(run_directory)
    if not (directory / "tables" / "general.csv").exists():
        return False
    return read_manifest(directory).get("hashes", {}).get("general") == general_hashes(general)


def train_sizes(tasks: Sequence[TaskData]) -> list[int]:
    """The number of train examples of each task."""
    return [len(task.splits.get("train", ())) for task in tasks]


def load_tasks(config: RunConfig) -> list[TaskData]:
    """The data that a configuration names."""
    from mcanalysis.benchmarks import get_benchmark, load_benchmark

    tasks = load_benchmark(
        config.benchmark, config.data_dir, config.tasks, config.scores, config.sizes, config.max_new_tokens,
        order=config.order,
    )  # fmt: skip
    config.training.check_tasks([t.task.name for t in tasks], get_benchmark(config.benchmark).tasks)
    return tasks


def train(
    config: RunConfig,
    run_directory: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    execution: Execution | None = None,
    progress: Progress = silent,
    tasks: Sequence[TaskData] | None = None,
    general: General | Sequence[TaskData] = (),
    lock_seconds: float = 0.0,
    until: int | None = None,
    start_from: Path | None = None,
) -> bool:
    """Train one run into its directory; returns False where a finished run of the same configuration was there.

    Tables that a finished run lacks are written again. Under `accelerate launch` or `torchrun` every process calls this
    with the same arguments. `general`: tasks that are only measured, before training and after each task; along paths
    too, if they come as a `General`, which the manifest records. `lock_seconds`: how long another process is waited for
    that has the directory, as one that is told to end and saves has. `until`: train the first so many tasks only, and
    leave an unfinished run that another call goes on with. `start_from`: the directory of an unfinished run, whose
    checkpoint and minima a new one begins with: its first tasks must be trained as this one's.

    Raises `RunDirectoryError` before anything is written if the directory belongs to another configuration, holds an
    unfinished run and `resume` is not asked for, or is in use by another process; `Stopped` after a signal, with a
    checkpoint written.
    """
    execution = execution or Execution()
    processes = Processes(device or execution.device or default_device())
    if tasks is None:
        tasks = load_tasks(config)
    directory = Path(run_directory)
    place = {"general": general.record()} if isinstance(general, General) else {}
    general = general.load() if isinstance(general, General) else list(general)
    manifest = manifest_in(directory)
    config = settled_for(config, manifest)
    strategy = make_strategy(config.strategy, config.seed, **config.strategy_settings)
    if manifest is None:  # a run of before may have a smaller memory
        strategy.config.num_remembered(train_sizes(tasks))
    recorded = recorded_base(manifest, config.model)
    revision = recorded_commit(recorded) or config.revision
    base, tokenizer = load_base(config.model, config.dtype, processes.device, config.quantization, revision)
    template = choose_template(config.chat_template, tokenizer, tasks)
    use_template(tokenizer, template)
    config = replace(config, chat_template=template)
    settings = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, config.target_modules)
    model = strategy.attach(base, tokenizer, settings, config.model)
    trainer = ContinualTrainer(
        model,
        tasks,
        strategy,
        config.training,
        directory,
        seed=config.seed,
        num_test=config.num_test,
        scored_split=config.scored_split,
        general=general,
        base_marker="" if recorded is None else identity_marker(recorded, config.model, directory),
        execution=execution,
        processes=processes,
        progress=progress,
    )
    with ExitStack() as stack:

        def claim_once() -> str:
            with ExitStack() as locks:
                locks.enter_context(lock_run_directory(directory))
                how = {"threads": torch.get_num_threads(), "processes": processes.count, "device": processes.device}
                how |= {"deterministic": True} if is_deterministic() else {}
                identity = _identity(config, tasks, manifest_in(directory))
                status = claim_run_directory(directory, resume=resume, execution=how, **identity)
                if status == "new":
                    record_hashes(directory, "base_source", recorded_source(config.model))
                    if start_from is not None:
                        with replace_directory_atomic(directory / "minima") as folder:
                            shutil.copytree(start_from / "minima", folder, dirs_exist_ok=True)
                        copy_checkpoint(start_from / "checkpoint", directory / "checkpoint", processes)
                if status != "finished":
                    locks.enter_context(lock_training(directory))
                    record_hashes(directory, "origins", {t.task.name: t.origin for t in tasks if t.origin})
                stack.enter_context(locks.pop_all())
                return status

        def claim() -> str:
            end = time.monotonic() + lock_seconds
            while True:
                try:
                    return claim_once()
                except RunInUseError:
                    if time.monotonic() >= end:
                        raise
                    time.sleep(0.5)

        if processes.on_main(claim) == "finished":
            tables = directory / "tables"
            is_whole = processes.on_main(lambda: all(is_as_written(tables / name) for name in trainer.table_names))
            if not is_whole or not processes.on_main(lambda: is_general_measured(directory, general)):
                trainer.run(is_trained=True)
            if processes.is_main:
                record_hashes(directory, "general", general_hashes(general), place)
            return False
        trainer.run(until=until)
        if processes.is_main and until is None:
            mark_finished(directory)
            record_hashes(directory, "general", general_hashes(general), place)
    processes.wait()
    return True
