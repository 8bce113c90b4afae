"""The continual trainer: task after task, a minimum saved after each, the accuracy matrix filled row by row.

A stopped run goes on at the last finished task: everything the next task depends on is in `<run>/checkpoint`, written
as a whole or not at all, as safetensors and JSON.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file, save_file

from mcanalysis.errors import DataError
from mcanalysis.evaluation.engine import Engine, Evaluation
from mcanalysis.evaluation.measuring import measure
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.metrics.continual import continual_metrics
from mcanalysis.models.encoding import EncodedExample, encode_all
from mcanalysis.models.loading import base_hash, load_base
from mcanalysis.models.lora_model import LoraModel, LoraSettings, load_adapter
from mcanalysis.params.point import content_hash
from mcanalysis.progress import Progress, silent
from mcanalysis.store.atomic import (
    recover_directory,
    replace_directory_atomic,
    write_json_atomic,
    write_text_atomic,
)
from mcanalysis.store.manifest import MANIFEST_NAME, claim_run_directory, mark_finished
from mcanalysis.store.measurements import MeasurementStore
from mcanalysis.strategies import make_strategy
from mcanalysis.strategies.strategy import Strategy
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import RunConfig, TrainingConfig
from mcanalysis.training.task_trainer import TaskTrainer

logger = logging.getLogger(__name__)


class ContinualTrainer:
    """Trains one adapter on a sequence of tasks with a strategy and writes the run directory.

    Every task trains on its `train` split only; `test` fills the accuracy matrix (`num_test` examples per task).
    """

    def __init__(
        self,
        model: LoraModel,
        tasks: Sequence[TaskData],
        strategy: Strategy,
        config: TrainingConfig,
        run_directory: str | Path,
        *,
        seed: int = 0,
        num_test: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self.model = model
        self.tasks = tasks
        self.strategy = strategy
        self.config = config
        self.directory = Path(run_directory)
        self.seed = seed
        self.progress = progress
        self._train: list[list[EncodedExample]] = []
        self.num_cut: dict[str, int] = {}
        for task in tasks:
            if not task.splits.get("train"):
                raise DataError(f"Expected train examples for {task.task.name}, got none; add them or drop the task.")
            encoded, cut = encode_all(task.splits["train"], model.tokenizer, config.max_length)
            self._train.append(encoded)
            self.num_cut[task.task.name] = cut
            if cut:
                logger.warning("%d of %d train prompts of %s were cut to fit", cut, len(encoded), task.task.name)
        self._objectives = [make_objective(t, "test", model.tokenizer, config.max_length, num_test) for t in tasks]
        self._engine = Engine(model)
        self._matrices = {learner: np.full((len(tasks) + 1, len(tasks)), np.nan) for learner in strategy.learners}

    def run(self) -> None:
        """Train what is not trained yet, then write the tables."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.strategy.begin(self.model)
        first = self._restore()
        bar = self.progress(
            total=(len(self.tasks) - first) * self.config.num_steps,
            desc=f"train {self.strategy.name} (seed {self.seed})",
        )
        with MeasurementStore(self.directory / "measurements.sqlite") as store:
            self._fill_row(store, 0)
            for k in range(first):
                self._fill_row(store, k + 1)
            if first:  # a run stopped while its last row was filled has no task left that would write them
                self._write_tables()
            for k in range(first, len(self.tasks)):
                self._train_task(k, bar.update)
                self._save(k)
                self._fill_row(store, k + 1)
                self._write_tables()  # rewritten as rows come in: a long run can be looked at
        bar.close()
        recover_directory(self.directory / "checkpoint")

    def _train_task(self, k: int, on_step) -> None:
        self.strategy.begin_task(self.model, k)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = TaskTrainer(
                self.model,
                self.strategy,
                self._train[k],
                self.tasks[k].task.name,
                self.config,
                seed=self.seed * 1000 + k,
                scratch=scratch,
                on_step=on_step,
            )
            trainer.train()
        self.strategy.end_task(self.model)
        write_json_atomic(self.directory / "losses" / f"{self._label(k)}.json", trainer.losses)

    def _label(self, k: int) -> str:
        return f"{k + 1}-{self.tasks[k].task.name}"

    def _save(self, k: int) -> None:
        for learner in self.strategy.learners:
            with replace_directory_atomic(self.directory / "minima" / self._label(k) / learner) as folder:
                self.strategy.save_learner(self.model, learner, folder)
        tensors, values = self.strategy.state()
        with replace_directory_atomic(self.directory / "checkpoint") as folder:
            self.model.save(folder / "adapter")
            save_file({n: t.contiguous().cpu() for n, t in tensors.items()}, folder / "strategy.safetensors")
            state = {"finished_tasks": k + 1, "strategy": values}
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def _restore(self) -> int:
        checkpoint = self.directory / "checkpoint"
        if not recover_directory(checkpoint):
            return 0
        raw = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
        self.model.load_raw({name.removeprefix("base_model.model."): t for name, t in raw.items()})
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        self.strategy.load_state(load_file(checkpoint / "strategy.safetensors"), state["strategy"])
        return int(state["finished_tasks"])

    def _fill_row(self, store: MeasurementStore, row: int) -> None:
        """Score every task, seen or not, after `row` tasks; row 0 is the base model."""
        for learner, matrix in self._matrices.items():
            if row == 0:
                point, key = self.model.zero_point(), "base"
            else:
                point = load_adapter(self.directory / "minima" / self._label(row - 1) / learner).point
                key = content_hash(point)
            name = "0-base" if row == 0 else f"{self._label(row - 1)}-{learner}"

            def keep(evaluated: Sequence[tuple[Objective, Evaluation]], name: str = name) -> None:
                written = {objective.name: list(evaluation.outputs) for objective, evaluation in evaluated}
                write_json_atomic(self.directory / "generations" / f"{name}.json", written)

            values = measure(lambda: self._engine, store, key, lambda p=point: p, self._objectives, keep)
            matrix[row] = [m.score for m in values]

    def _write_tables(self) -> None:
        answering = self.strategy.answering_learner
        names = [t.task.name for t in self.tasks]
        metrics: dict = {}
        for learner, matrix in self._matrices.items():
            table = pd.DataFrame(matrix, columns=names)
            table.insert(0, "after", range(len(matrix)))
            suffix = "" if learner == answering else f"_{learner}"
            write_text_atomic(self.directory / "tables" / f"accuracy_matrix{suffix}.csv", table.to_csv(index=False))
            metrics[learner] = continual_metrics(matrix)
        write_json_atomic(self.directory / "tables" / "metrics.json", {**metrics[answering], "learners": metrics})


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


def train(
    config: RunConfig,
    run_directory: str | Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: Progress = silent,
    tasks: Sequence[TaskData] | None = None,
) -> bool:
    """Train one run into its directory; returns False where a finished run of the same configuration was there.

    Raises `RunDirectoryError` before anything is written if the directory belongs to another configuration or holds an
    unfinished run and `resume` is not asked for.
    """
    from mcanalysis.benchmarks import load_benchmark
    from mcanalysis.models.loading import default_device

    if tasks is None:
        tasks = load_benchmark(
            config.benchmark,
            config.data_dir,
            config.tasks,
            dict(config.scores) or None,
            dict(config.sizes) or None,
        )
    strategy = make_strategy(config.strategy, config.seed, **config.strategy_settings)
    base, tokenizer = load_base(config.model, config.dtype, device or default_device())
    settings = LoraSettings(config.lora_rank, config.lora_alpha, config.lora_dropout, config.target_modules)
    model = LoraModel.attach(base, tokenizer, settings, config.seed, config.model)
    trainer = ContinualTrainer(
        model,
        tasks,
        strategy,
        config.training,
        run_directory,
        seed=config.seed,
        num_test=config.num_test,
        progress=progress,
    )
    state = claim_run_directory(run_directory, resume=resume, **_identity(config, tasks))
    if state == "finished":
        return False
    trainer.run()
    mark_finished(run_directory)
    return True
