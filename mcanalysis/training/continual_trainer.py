"""The continual trainer: task after task, a minimum saved after each, the accuracy matrix filled row by row.

A stopped run goes on where its last checkpoint is, in the middle of a task if need be, and ends as if it had never been
stopped. `<run>/checkpoint` is written as a whole or not at all, as safetensors, JSON, and, within a task, the Trainer's
own files, which load with `weights_only=True`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mcanalysis.errors import DataError, UserError
from mcanalysis.evaluation.engine import Engine, Evaluation
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.metrics.continual import continual_metrics
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.encoding import EncodedExample, encode_all
from mcanalysis.models.loading import base_hash, default_device, load_base
from mcanalysis.params.point import Point, content_hash
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import (
    clear_partial_files,
    recover_directory,
    replace_directory_atomic,
    write_json_atomic,
    write_text_atomic,
)
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.manifest import (
    MANIFEST_NAME,
    claim_run_directory,
    lock_run_directory,
    mark_finished,
)
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import Execution, RunConfig, TrainingConfig
from mcanalysis.training.peak_memory import peak_memory_bytes, reset_peak_memory
from mcanalysis.training.processes import Processes
from mcanalysis.training.stopping import Stopped, StopRequest, listening
from mcanalysis.training.task_trainer import TaskTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One training: the row of the accuracy matrix it leads to, its folder's name, its examples and steps."""

    row: int
    name: str
    examples: list[EncodedExample]
    num_steps: int

    @property
    def label(self) -> str:
        """`<k>-<TASK>`."""
        return f"{self.row}-{self.name}"

    def order_seed(self, seed: int, phase: int) -> str:
        """Fixes the order of the examples; by what they say, so that neither a task's name nor its place matters."""
        return f"{seed}/{hash_json([[e.prompt_ids, e.answer_ids] for e in self.examples])}/{phase}"


def make_stages(train: Sequence[tuple[str, list[EncodedExample]]], schedule: str, num_steps: int) -> list[Stage]:
    """The trainings of a run, given each task's name and examples in order and a strategy's `schedule`."""
    if schedule == "none":
        return []
    if schedule == "joint":
        return [Stage(len(train), "JOINT", [e for _, task in train for e in task], num_steps * len(train))]
    return [Stage(k, name, examples, num_steps) for k, (name, examples) in enumerate(train, start=1)]


@dataclass(frozen=True)
class Position:
    """How far a run has come: finished stages, the phase of the next one, and whether its engine state was saved."""

    stage: int = 0
    phase: int = 0
    within: bool = False


class ContinualTrainer:
    """Trains with a strategy on a sequence of tasks and writes the run directory.

    Every task trains on its `train` split only; `test` fills the accuracy matrix (`num_test` examples per task).
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
        general: Sequence[TaskData] = (),
        execution: Execution | None = None,
        processes: Processes | None = None,
        progress: Progress = silent,
    ) -> None:
        self.model = model
        self.tasks = tasks
        self.strategy = strategy
        self.config = config
        self.directory = Path(run_directory)
        self.seed = seed
        self.execution = execution or Execution()
        self.processes = processes or Processes(model.device.type)
        self.progress = progress if self.processes.is_main else silent
        self.num_cut: dict[str, int] = {}
        self._stages = self._make_stages()
        self._objectives = [make_objective(t, "test", model.tokenizer, config.max_length, num_test) for t in tasks]
        self._general = [make_objective(t, "test", model.tokenizer, config.max_length, num_test) for t in general]
        self._engine = Engine(model)
        self._matrices = {learner: np.full((len(tasks) + 1, len(tasks)), np.nan) for learner in strategy.learners}
        self._position = Position()
        self._losses: list[float] = []
        self._seconds = {"train": 0.0, "evaluation": 0.0}
        self._started = time.monotonic()
        self._stop = StopRequest()

    def _make_stages(self) -> list[Stage]:
        train = []
        for task in self.tasks:
            if not task.splits.get("train"):
                raise DataError(f"Expected train examples for {task.task.name}, got none; add them or drop the task.")
            encoded, cut = encode_all(task.splits["train"], self.model.tokenizer, self.config.max_length)
            train.append((task.task.name, encoded))
            self.num_cut[task.task.name] = cut
            if cut:
                logger.warning("%d of %d train prompts of %s were cut to fit", cut, len(encoded), task.task.name)
        return make_stages(train, self.strategy.schedule, self.config.num_steps)

    def run(self) -> None:
        """Train what is not trained yet, then write the tables; the caller's random states are left as they were.

        Raises `Stopped`, with a checkpoint written, after SIGTERM or Ctrl-C.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        states = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(), listening() as self._stop:
            try:
                reset_peak_memory()
                self._run()
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])

    def _run(self) -> None:
        if self.processes.is_main:
            clear_partial_files(self.directory)
        self.strategy.begin(self.model, len(self.tasks))
        self._restore()
        stages, first = self._stages, self._position.stage
        bar = self.progress(
            total=sum(s.num_steps for s in stages[first:]) - len(self._losses),
            desc=f"train {self.strategy.name} (seed {self.seed})",
        )
        with ExitStack() as stack:
            store = None
            if self.processes.is_main:
                store = stack.enter_context(MeasurementStore(self.directory / "measurements.sqlite"))
            self._fill_row(store, 0, "base")
            for stage in stages[:first]:
                self._fill_row(store, stage.row, stage.label)
            if first or not stages:  # a run stopped while its last row was filled has no task left that would write
                self._write_tables()
            for stage in stages[first:]:
                self._train_stage(stage, bar.update)
                self._save_minima(stage)
                self._write_checkpoint()
                self._fill_row(store, stage.row, stage.label)
                self._write_tables()  # rewritten as rows come in: a long run can be looked at
            if self._general:
                self._write_general(store)
        bar.close()
        if self.processes.is_main:
            recover_directory(self.directory / "checkpoint")

    def _train_stage(self, stage: Stage, on_step: Callable[[], None]) -> None:
        index = self._position.stage
        if not (self._position.within or self._position.phase):
            self.strategy.begin_task(self.model, index, stage.examples)
        self._started = time.monotonic()
        for phase in range(self._position.phase, self.strategy.num_phases()):
            within = self._position.within
            if not within:
                self.strategy.begin_phase(self.model, phase)
                self._position = Position(index, phase)
            self._train_phase(stage, phase, on_step, within)
        self.strategy.end_task(self.model, stage.examples)
        self._seconds["train"] += time.monotonic() - self._started
        self._position = Position(index + 1)
        if self.processes.is_main:
            write_json_atomic(self.directory / "losses" / f"{stage.label}.json", self._losses)
        self._losses = []

    def _train_phase(self, stage: Stage, phase: int, on_step: Callable[[], None], within: bool) -> None:
        saved = str(self.directory / "checkpoint") if within else None
        before = self._losses[: len(self._losses) - self._steps_done(saved)]
        with tempfile.TemporaryDirectory() as scratch:
            if "tensorboard" in self.execution.report_to:
                os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.directory / "logs" / stage.label)
            trainer = TaskTrainer(
                self.model,
                self.strategy,
                stage.examples,
                stage.name,
                TrainingConfig(**{**vars(self.config), "num_steps": stage.num_steps}),
                stage.order_seed(self.seed, phase),
                scratch,
                execution=self.execution,
                processes=self.processes,
                stop=self._stop,
                write_checkpoint=lambda engine: self._write_checkpoint(engine, before + trainer.losses),
                on_step=on_step,
            )
            trainer.losses += self._losses[len(before) :]
            self._position = Position(self._position.stage, phase)
            trainer.train(resume_from_checkpoint=saved)
        self._losses = before + trainer.losses
        if self._stop:
            raise Stopped(self._stop.signal)

    @staticmethod
    def _steps_done(checkpoint: str | None) -> int:
        if checkpoint is None:
            return 0
        return int(json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))["global_step"])

    def _save_minima(self, stage: Stage) -> None:
        if self.processes.is_main:
            with _writing():
                for learner in self.strategy.learners:
                    with replace_directory_atomic(self.directory / "minima" / stage.label / learner) as folder:
                        self.strategy.save_learner(self.model, learner, folder)
        self.processes.wait()

    def _write_checkpoint(self, engine: Callable[[Path], None] | None = None, losses: Sequence[float] = ()) -> None:
        """Save where the run is: after a task, or with the engine's state within one."""
        with _writing(), ExitStack() as stack:

            def begin() -> Path:
                return stack.enter_context(replace_directory_atomic(self.directory / "checkpoint"))

            folder = self.processes.on_main(begin)
            if engine is not None:
                engine(folder)
            if self.processes.is_main:
                unfinished = time.monotonic() - self._started if engine is not None else 0.0
                tensors, values = self.strategy.state()
                save_file(
                    {n: t.contiguous().cpu() for n, t in self.model.raw().items()}, folder / "trained.safetensors"
                )
                save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, folder / "strategy.safetensors")
                state = {
                    "stage": self._position.stage,
                    "phase": self._position.phase,
                    "within": engine is not None,
                    "task_index": self.strategy.task_index,
                    "losses": list(losses),
                    "seconds": {**self._seconds, "train": self._seconds["train"] + unfinished},
                    "strategy": values,
                }
                (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
            self.processes.wait()  # every process has written its part
        self.processes.wait()  # the folder is in its place

    def _restore(self) -> None:
        checkpoint = self.directory / "checkpoint"
        if not self.processes.on_main(lambda: recover_directory(checkpoint)):
            return
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self.model.load_raw(load_file(checkpoint / "trained.safetensors"))
        self.strategy.task_index = state["task_index"]
        self.strategy.load_state(self.model, load_file(checkpoint / "strategy.safetensors"), state["strategy"])
        self._position = Position(state["stage"], state["phase"], state["within"])
        self._losses = state["losses"]
        self._seconds = state["seconds"]

    def _fill_row(self, store: MeasurementStore | None, row: int, label: str) -> None:
        """Score the tasks after `row` of them; row 0 is the base model, and without training every row is."""
        started = time.monotonic()
        number = len(self.tasks)
        chosen = list(range(number)) if row == 0 else self.strategy.scored_tasks(row - 1, number)
        for learner, matrix in self._matrices.items():
            name = "0-base" if row == 0 else f"{label}-{learner}"
            scores = self._scores(store, row, label, learner, [self._objectives[i] for i in chosen], name)
            rows = slice(None) if row == 0 and self.strategy.schedule == "none" else row
            matrix[rows, chosen] = scores
        self._seconds["evaluation"] += time.monotonic() - started

    def _scores(
        self,
        store: MeasurementStore | None,
        row: int,
        label: str,
        learner: str,
        objectives: list[Objective],
        generations: str,
    ) -> list[float]:
        """The scores at a minimum (or the base), measured where the store lacks them, by all processes together."""
        if row == 0:
            point, key = self.model.base_point(), "base"
        else:
            point = self.model.read(self.directory / "minima" / label / learner)
            key = content_hash(point)

        def missing() -> list[int]:
            assert store is not None
            absent = set(store.missing([measurement_key(key, o) for o in objectives]))
            return [i for i, o in enumerate(objectives) if measurement_key(key, o) in absent]

        todo = [objectives[i] for i in self.processes.on_main(missing)]
        evaluations = self._evaluate(point, todo) if todo else []

        def keep() -> list[float]:
            assert store is not None
            if todo:
                # Raw outputs first: what is in the store is not evaluated again.
                written = {o.name: list(e.outputs) for o, e in zip(todo, evaluations, strict=True)}
                write_json_atomic(self.directory / "generations" / f"{generations}.json", written)
            store.put_many((measurement_key(key, o), e.measurement) for o, e in zip(todo, evaluations, strict=True))
            found = [store.get(measurement_key(key, o)) for o in objectives]
            return [m.score for m in found if m is not None]

        return self.processes.on_main(keep)

    def _evaluate(self, point: Point, objectives: list[Objective]) -> list[Evaluation]:
        with self._stop.at_once():
            if self.processes.count == 1:
                return self._engine.evaluate(point, objectives)
            return self.processes.map(lambda o: self._engine.evaluate(point, [o])[0], objectives)

    def _write_tables(self) -> None:
        if not self.processes.is_main:
            return
        answering = self.strategy.answering_learner
        names = [t.task.name for t in self.tasks]
        metrics: dict = {}
        for learner, matrix in self._matrices.items():
            table = pd.DataFrame(matrix, columns=names)
            table.insert(0, "after", range(len(matrix)))
            if self.strategy.schedule == "joint":
                table = table.iloc[[0, -1]]
            suffix = "" if learner == answering else f"_{learner}"
            write_text_atomic(self.directory / "tables" / f"accuracy_matrix{suffix}.csv", table.to_csv(index=False))
            metrics[learner] = continual_metrics(matrix)
        write_json_atomic(self.directory / "tables" / "metrics.json", {**metrics[answering], "learners": metrics})
        trained = sum(p.numel() for p in self.model.parameters.values() if p.requires_grad)
        cost = {f"{k}_seconds": v for k, v in self._seconds.items()}
        cost |= {"peak_memory_bytes": peak_memory_bytes(), "num_trained": trained, "processes": self.processes.count}
        write_json_atomic(self.directory / "tables" / "cost.json", cost)
        if self.strategy.report:
            write_json_atomic(self.directory / "tables" / "strategy.json", self.strategy.report)

    def _write_general(self, store: MeasurementStore | None) -> None:
        """Scores on tasks that are never trained, of the base and of each learner at the end."""
        table = pd.DataFrame({"task": [o.name for o in self._general]})
        table["base"] = self._scores(store, 0, "base", "", self._general, "0-base-general")
        for learner in self.strategy.learners if self._stages else ():
            stage = self._stages[-1]
            name = f"{stage.label}-{learner}-general"
            table[learner] = self._scores(store, stage.row, stage.label, learner, self._general, name)
        if self.processes.is_main:
            write_text_atomic(self.directory / "tables" / "general.csv", table.to_csv(index=False))


@contextmanager
def _writing() -> Iterator[None]:
    """Say in one line that a disk is full; what was there before is as it was."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        text = str(error)
        full = isinstance(error, OSError) or "os error" in text or "PytorchStreamWriter" in text or "fwrite" in text
        if not full:
            raise
        raise UserError(
            f"Expected to write a checkpoint, got: {' '.join(text.split())[:200]}; free some room and pass --resume. "
            "The last checkpoint is kept."
        ) from error


def is_finished(config: RunConfig, run_directory: str | Path, tasks: Sequence[TaskData], resume: bool) -> bool:
    """Whether a directory holds a finished run of this configuration on these data.

    Loads no model and writes nothing. Raises `RunDirectoryError` as `train` would.
    """
    directory = Path(run_directory)
    if not (directory / MANIFEST_NAME).exists():
        return False
    return claim_run_directory(directory, resume=resume, **_identity(config, tasks)) == "finished"


def _identity(config: RunConfig, tasks: Sequence[TaskData]) -> dict[str, Any]:
    """What makes two runs the same run, as `claim_run_directory` takes it."""
    return {
        "config": {**config.resolved(), "tasks": [t.task.name for t in tasks]},
        "seed": config.seed,
        "base_hash": base_hash(config.model),
        "data_hashes": {t.task.name: t.content_hash for t in tasks},
    }


def load_tasks(config: RunConfig) -> list[TaskData]:
    """The data that a configuration names."""
    from mcanalysis.benchmarks import load_benchmark

    return load_benchmark(
        config.benchmark, config.data_dir, config.tasks, dict(config.scores) or None, dict(config.sizes) or None
    )


def train(
    config: RunConfig,
    run_directory: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    execution: Execution | None = None,
    progress: Progress = silent,
    tasks: Sequence[TaskData] | None = None,
    general: Sequence[TaskData] = (),
) -> bool:
    """Train one run into its directory; returns False where a finished run of the same configuration was there.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments. `general`: tasks that are
    only measured, before and after. Raises `RunDirectoryError` before anything is written if the directory belongs to
    another configuration, holds an unfinished run and `resume` is not asked for, or is in use by another process;
    `Stopped` after a signal, with a checkpoint written.
    """
    execution = execution or Execution()
    processes = Processes(device or execution.device or default_device())
    if tasks is None:
        tasks = load_tasks(config)
    strategy = make_strategy(config.strategy, config.seed, **config.strategy_settings)
    base, tokenizer = load_base(config.model, config.dtype, processes.device, config.quantization)
    settings = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, config.target_modules)
    model = strategy.attach(base, tokenizer, settings, config.model)
    trainer = ContinualTrainer(
        model,
        tasks,
        strategy,
        config.training,
        run_directory,
        seed=config.seed,
        num_test=config.num_test,
        general=general,
        execution=execution,
        processes=processes,
        progress=progress,
    )
    with ExitStack() as stack:

        def claim() -> str:
            stack.enter_context(lock_run_directory(run_directory))
            how = {"threads": torch.get_num_threads(), "processes": processes.count, "device": processes.device}
            return claim_run_directory(run_directory, resume=resume, execution=how, **_identity(config, tasks))

        if processes.on_main(claim) == "finished":
            if general and not (Path(run_directory) / "tables" / "general.csv").exists():
                trainer.run()
            return False
        trainer.run()
        if processes.is_main:
            mark_finished(run_directory)
    processes.wait()
    return True
