"""A finished run, read back: its minima, tables, paths and objectives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import pandas as pd
from torch import Tensor

from mcanalysis.errors import RunDirectoryError, UnknownNameError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.models.adapter_files import LoraSettings, load_adapter
from mcanalysis.models.encoding import EncodedExample, collate, encode_all, pad_id
from mcanalysis.models.loading import base_hash, default_device, load_base
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import Point, content_hash
from mcanalysis.params.spaces import Space
from mcanalysis.paths import Linear
from mcanalysis.store.manifest import read_manifest
from mcanalysis.store.measurements import Measurement
from mcanalysis.tasks.task import TaskData


@dataclass(frozen=True)
class Minimum:
    """A saved adapter: where the model stood after a task. `label` is `<k>-<TASK>`."""

    label: str
    task: str
    learner: str
    directory: FilePath

    @cached_property
    def point(self) -> Point:
        """The adapter as a point (scaling multiplied into B)."""
        return load_adapter(self.directory).point

    @cached_property
    def key(self) -> str:
        """A hash of the point's contents."""
        return content_hash(self.point)


class Run:
    """A run directory that training has finished; models and data are loaded when first needed."""

    def __init__(self, directory: str | FilePath, device: str | None = None) -> None:
        self.directory = FilePath(directory)
        self.manifest = read_manifest(self.directory)
        if self.manifest.get("status") != "finished":
            raise RunDirectoryError(
                f"Expected a finished run in '{directory}', got one with status "
                f"'{self.manifest.get('status')}'; finish it with train.py --resume."
            )
        self.config: dict[str, Any] = self.manifest["config"]
        self.device = device
        self._objectives: dict[tuple, Objective] = {}

    def __repr__(self) -> str:
        return f"Run('{self.directory}', strategy='{self.strategy}', seed={self.seed}, tasks={self.task_names})"

    @property
    def strategy(self) -> str:
        """Name of the strategy."""
        return self.config["strategy"]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config["seed"]

    @property
    def task_names(self) -> list[str]:
        """Tasks in the order they were learned."""
        return self.config["tasks"]

    @property
    def learners(self) -> list[str]:
        """Learners with saved minima."""
        return sorted({f.name for f in (self.directory / "minima").glob("*-*/*")})

    @cached_property
    def answering_learner(self) -> str:
        """The learner whose scores are the run's scores."""
        from mcanalysis.strategies import make_strategy

        return make_strategy(self.strategy, self.seed, **self.config["strategy_settings"]).answering_learner

    @property
    def minima(self) -> list[Minimum]:
        """The answering learner's minima, in order."""
        return self.minima_of(self.answering_learner)

    def minima_of(self, learner: str) -> list[Minimum]:
        """The minima of one learner, in order."""
        from mcanalysis.strategies import get_strategy

        if not get_strategy(self.strategy).has_paths:
            raise UserError(
                f"Expected a run whose minima are LoRA adapters, got one of {self.strategy}, which has none; "
                "paths, slices and curvature are for the other strategies."
            )
        if learner not in self.learners:
            raise UnknownNameError(f"learner of {self.directory}", learner, self.learners)
        folders = sorted((self.directory / "minima").glob("*-*"), key=lambda f: int(f.name.split("-", 1)[0]))
        return [Minimum(f.name, f.name.split("-", 1)[1], learner, f / learner) for f in folders]

    def minimum(self, which: int | str, learner: str | None = None) -> Minimum:
        """A minimum by its number (from 1) or its label `<k>-<TASK>`."""
        minima = self.minima_of(learner or self.answering_learner)
        for number, minimum in enumerate(minima, start=1):
            if which in (number, minimum.label):
                return minimum
        raise UnknownNameError("minimum", str(which), [m.label for m in minima])

    @property
    def accuracy_matrix(self) -> pd.DataFrame:
        """Scores after each task (rows, 0 = base), per task (columns), of the answering learner."""
        return pd.read_csv(self.directory / "tables" / "accuracy_matrix.csv")

    @property
    def metrics(self) -> dict[str, Any]:
        """The continual-learning metrics; undefined ones are None."""
        return json.loads((self.directory / "tables" / "metrics.json").read_text(encoding="utf-8"))

    def path(
        self, start: int | str, end: int | str, space: str | Space = "factor", learner: str | None = None
    ) -> Linear:
        """The straight path between two minima in a space."""
        return Linear(self.minimum(start, learner).point, self.minimum(end, learner).point, space=space)

    @cached_property
    def tasks(self) -> dict[str, TaskData]:
        """The run's data; raises `RunDirectoryError` if it has changed since."""
        from mcanalysis.benchmarks import load_benchmark

        c = self.config
        data = load_benchmark(c["benchmark"], c["data_dir"], tuple(c["tasks"]), c["scores"] or None, c["sizes"] or None)
        for task in data:
            recorded = self.manifest["hashes"]["data"].get(task.task.name)
            if recorded != task.content_hash:
                raise RunDirectoryError(
                    f"Expected the data of {task.task.name} as '{self.directory}' was trained on, got other content; "
                    "restore the data or train a new run."
                )
        return {t.task.name: t for t in data}

    @cached_property
    def model(self) -> LoraModel:
        """The base model with an adapter slot of this run's shape."""
        c = self.config
        recorded = self.manifest["hashes"]["base"]
        if recorded != base_hash(c["model"]):
            raise RunDirectoryError(
                f"Expected the base model '{c['model']}' that '{self.directory}' was trained on, got other contents; "
                "restore the base or train a new run."
            )
        base, tokenizer = load_base(c["model"], c["dtype"], self.device or default_device(), c.get("quantization"))
        settings = LoraSettings(
            c["lora_rank"], c["lora_alpha"], 0.0, c["target_modules"] and tuple(c["target_modules"])
        )
        return LoraModel.attach(base, tokenizer, settings, c["seed"], c["model"])

    @cached_property
    def engine(self) -> Engine:
        """The evaluation engine on this run's model."""
        return Engine(self.model)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer (without its weights)."""
        from transformers import AutoTokenizer

        from mcanalysis.models.loading import model_source

        return AutoTokenizer.from_pretrained(model_source(self.config["model"]))

    def task_objective(self, task: str, split: str = "test", num_examples: int | None = None) -> Objective:
        """The tokenised examples of a split (made once)."""
        if task not in self.tasks:
            raise UnknownNameError("task of this run", task, self.tasks)
        key = (task, split, num_examples)
        if key not in self._objectives:
            self._objectives[key] = make_objective(
                self.tasks[task], split, self.tokenizer, self.config["training"]["max_length"], num_examples
            )
        return self._objectives[key]

    def objective(
        self, task: str, split: str = "test", num_examples: int | None = None
    ) -> Callable[[Mapping[str, Tensor]], Measurement]:
        """A function of a point that returns loss and score with their per-example values."""
        chosen = self.task_objective(task, split, num_examples)

        def measure_at(point: Mapping[str, Tensor]) -> Measurement:
            return self.engine.evaluate(point, [chosen])[0].measurement

        return measure_at

    def loss(
        self, tasks: Sequence[Sequence[str]], batch_size: int = 16, seed: int = 0, split: str = "train"
    ) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """A differentiable minibatch loss for `fit_curve`: the mean, over groups of tasks, of each group's loss.

        `tasks=[["A", "B"], ["C"]]` weighs old tasks A and B together as much as the new task C. Each call draws
        `batch_size` examples per group, from a stream that `seed` fixes.
        """
        if not tasks or not all(tasks):
            raise UserError("Expected groups of tasks, each with at least one, got an empty group; name the tasks.")
        pools: list[list[EncodedExample]] = []
        for group in tasks:
            examples = [e for name in group for e in self.tasks[name].splits[split]]
            pools.append(encode_all(examples, self.tokenizer, self.config["training"]["max_length"])[0])
        rng = random.Random(f"curve/{seed}")
        padding = pad_id(self.tokenizer)

        def loss_at(point: Mapping[str, Tensor]) -> Tensor:
            groups = [rng.sample(pool, min(batch_size, len(pool))) for pool in pools]
            batch = collate([e for g in groups for e in g], padding).to(self.model.device)
            result = self.model.forward_at(point, batch)
            total, start = result.nll.new_zeros(()), 0
            for group in groups:
                rows = slice(start, start + len(group))
                total = total + result.nll[rows].sum() / result.num_targets[rows].sum()
                start += len(group)
            return total / len(groups)

        return loss_at


def load_run(directory: str | FilePath, device: str | None = None) -> Run:
    """Read a finished run; raises `RunDirectoryError` for an unfinished one or a folder that is no run."""
    return Run(directory, device)
