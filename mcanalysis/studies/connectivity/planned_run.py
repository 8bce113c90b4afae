"""A run that is still to be trained, as far as an estimate needs one: its data, and its base with a fresh adapter."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any

from mcanalysis.evaluation.differentiable import MinibatchLoss
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.objective import Objective, encode_split, make_objective
from mcanalysis.models.adapter_files import LoraSettings
from mcanalysis.models.chat_template import choose_template, template_for, use_template
from mcanalysis.models.loading import default_device, load_base
from mcanalysis.params.point import Point
from mcanalysis.runs.general import told_apart
from mcanalysis.runs.transitions import Transition
from mcanalysis.store import base_minimum
from mcanalysis.strategies import make_strategy
from mcanalysis.studies.connectivity.measuring import RunPaths
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.training import Training
from mcanalysis.tasks.task import TaskData
from mcanalysis.training.config import RunConfig
from mcanalysis.training.continual_trainer import ContinualTrainer, load_tasks
from mcanalysis.training.dry_run import dry_run

TIMED_STEPS = 3  # of training, the first of which does not count


class PlannedRun:
    """What a study asks of a finished run, of one whose minima are not there yet.

    Its model is the base with the strategy's adapter; `time_training` moves it a little.
    """

    def __init__(self, training: Training) -> None:
        c = training.config
        self.training = training
        self.directory, self.strategy, self.seed = training.directory, c.strategy, c.seed
        tasks = load_tasks(c)
        self.data = {t.task.name: t for t in tasks}
        self.config = {"tasks": list(self.data)}
        general = told_apart(training.general.load() if training.general else [], list(self.data))
        self.general_tasks = {t.task.name: t for t in general}
        self.method = make_strategy(c.strategy, c.seed, **c.strategy_settings)
        self.answering_learner = self.method.answering_learner
        device = training.execution.device or default_device()
        base, self.tokenizer = load_base(c.model, c.dtype, device, c.quantization, c.revision)
        use_template(self.tokenizer, choose_template(c.chat_template, self.tokenizer, tasks))
        lora = LoraSettings(c.lora_rank, c.lora_alpha, c.lora_dropout, c.target_modules)
        self.model: Any = self.method.attach(base, self.tokenizer, lora, c.model)
        self.engine = Engine(self.model, training.execution.engine)
        self._objectives: dict[tuple, Objective] = {}

    def task_objective(self, task: str, split: str = "test", num_examples: int | None = None) -> Objective:
        """The tokenised examples of a split (made once)."""
        key = (task, split, num_examples)
        if key not in self._objectives:
            length = self.training.config.training.max_length
            data = (self.data | self.general_tasks)[task]
            self._objectives[key] = make_objective(data, split, self.tokenizer, length, num_examples)
        return self._objectives[key]

    def loss(self, tasks: Sequence[Sequence[str]], batch_size: int, seed: int) -> MinibatchLoss:
        """What a curve is fitted on."""
        length = self.training.config.training.max_length
        groups = [
            [e for name in group for e in encode_split(self.data[name], "train", self.tokenizer, length)[0]]
            for group in tasks
        ]
        return MinibatchLoss(self.model, groups, batch_size, seed)

    @cached_property
    def plan(self) -> Any:
        """The dry run of the training."""
        general = self.training.general.load() if self.training.general else ()
        return dry_run(self.training.config, self.training.execution, tasks=list(self.data.values()), general=general)

    @property
    def share_left(self) -> tuple[int, float]:
        """How many tasks are trained, as the checkpoint has it, and which share of the padded tokens is left."""
        try:
            state = json.loads((self.directory / "checkpoint" / "state.json").read_text(encoding="utf-8"))
            stage, steps = int(state["stage"]), len(state["losses"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            stage, steps = 0, 0
        table = self.plan.stages
        left = table.padded.iloc[stage:].sum()
        if stage < len(table):
            left -= table.padded.iloc[stage] * steps / table.steps.iloc[stage]
        return stage, float(left / table.padded.sum())

    def scored(self, stage: int) -> list[list[Objective]]:
        """What is scored from a stage on, an entry for each minimum: the accuracy matrix and the general tasks."""
        names = list(self.data)
        tests = [self.task_objective(name, "test", self.training.config.num_test) for name in names]
        ends = [len(names)] if self.method.schedule == "joint" else range(stage + 1, len(names) + 1)
        rows = [[tests[i] for i in self.method.scored_tasks(row - 1, len(names))] for row in ends]
        of_minima = [*([tests] if stage == 0 else []), *(row for row in rows for _ in self.method.learners)]
        general = [self.task_objective(name, "test", self.training.config.num_test) for name in self.general_tasks]
        return [[*row, *general] for row in of_minima]

    def time_training(self) -> float:
        """Seconds per padded token: of a few steps on examples of all tasks, as if these were a second task, which may
        have replay, a penalty or another phase."""
        config, execution = self.training.config, self.training.execution
        mixed = self._mixed(config)
        steps = replace(config.training, num_steps=TIMED_STEPS, epochs=None)
        short = replace(config, training=steps, max_new_tokens={}, scores={})
        last = dry_run(short, execution, tasks=mixed).stages.iloc[-1]
        ends: list[float] = []
        with TemporaryDirectory() as folder:
            ContinualTrainer(
                self.model, mixed, self.method, short.training, folder,
                seed=config.seed, num_test=1, execution=replace(execution, save_trajectory=0, report_to=()),
                progress=lambda total, desc: _Ends(ends),
            ).run(until=len(mixed))  # fmt: skip
        last_ends = ends[-TIMED_STEPS:]
        return (last_ends[-1] - last_ends[0]) / (len(last_ends) - 1) * float(last.steps / last.padded)

    def _mixed(self, config: RunConfig) -> list[TaskData]:
        """Two tasks of which each has examples of all, evenly, for the steps that are timed.

        Where some tasks are put into a chat template and some are chats already, those that are put into it: a task is
        one or the other.
        """
        size = TIMED_STEPS * config.training.batch_size * config.training.gradient_accumulation
        framed = [data for data in self.data.values() if template_for(data, self.tokenizer)]
        used = framed or list(self.data.values())
        pool = [e for data in used for e in data.splits["train"]]
        chosen = pool[:: max(1, len(pool) // size)][:size]
        tasks = [replace(used[0].task, name=f"timed-{i}") for i in (1, 2)]  # whose first example is the one of its test
        return [TaskData.of(task, {"train": chosen, "test": chosen[:1]}) for task in tasks]


class PlannedPaths(RunPaths):
    """The paths that there will be between the minima of a planned run; their points have names of their own."""

    def __init__(self, run: PlannedRun, learner: str, study: Connectivity) -> None:
        self.run, self.learner, self.study = run, learner, study  # type: ignore[assignment]
        here = run.model.point()
        names = list(run.data)
        labels = [f"{k}-{name}" for k, name in enumerate(names, start=1)]
        ends = range(len(names))[-run.training.num_minima :]  # of joint training the last one
        keys = [f"{run.directory}/{label}" for label in labels]

        def between(first: int, last: int) -> Transition:
            minima: tuple[Point, ...] = (here,) * (last - first + 1)
            own = tuple(keys[first : last + 1])
            return Transition(labels[first], labels[last], minima, own, tuple(names[:last]), names[last])

        def from_base(k: int) -> Transition:
            minima, own = (here, here), (base_minimum.KEY, keys[k])
            return Transition(base_minimum.LABEL, labels[k], minima, own, tuple(names[:k]), names[k])

        self._from_base = [from_base(k) for k in ends] if study.from_base else []
        self._between = [between(k, k + 1) for k in ends[:-1]]
        self._through = [between(0, len(names) - 1)] if len(ends) > 1 else []


class _Ends:
    """A bar that notes when each step was done."""

    total = 0.0
    is_open = False

    def __init__(self, ends: list[float]) -> None:
        self._ends = ends

    def update(self, n: int = 1) -> None:
        self._ends.append(time.perf_counter())

    def close(self) -> None:
        """Nothing."""
