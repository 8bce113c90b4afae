"""A callback that watches what a Trainer, or a loop of one's own, forgets, and leaves a run directory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import Trainer, TrainerCallback

from mcanalysis.benchmarks import load_benchmark
from mcanalysis.errors import DivergedError, RunInUseError, UserError
from mcanalysis.evaluation.engine import Engine
from mcanalysis.evaluation.engine_settings import AUTO, EngineSettings
from mcanalysis.evaluation.measuring import measurement_key
from mcanalysis.evaluation.objective import Objective, make_objective
from mcanalysis.integrations.adopted_model import adopt, base_commit, unwrapped
from mcanalysis.integrations.grown_run import as_recorded, grown_config, learned
from mcanalysis.integrations.ilora import (
    STATE,
    IloraCallback,
    Log,
    attach,
    checkpoint_of,
    refuse_best_model,
    state_after,
    was_skipped,
)
from mcanalysis.models.base_identity import accepted_identities
from mcanalysis.models.base_source import recorded_source
from mcanalysis.models.chat_template import choose_template, use_template
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.params.point import content_hash
from mcanalysis.progress import Progress, silent
from mcanalysis.runs.general import General, general_hashes, told_apart
from mcanalysis.runs.run import load_run
from mcanalysis.runs.snapshots import FOLDER, read_snapshot, snapshot_files
from mcanalysis.store.atomic import clear_partial_files, replace_directory_atomic, write_text_atomic
from mcanalysis.store.lock import lock_measurements
from mcanalysis.store.manifest import (
    claim_run_directory,
    keep_identity,
    lock_run_directory,
    manifest_in,
    mark_finished,
    open_template,
    read_manifest,
    record_hashes,
    write_manifest,
)
from mcanalysis.store.measurements import Measurement, MeasurementStore
from mcanalysis.store.small_files import read_table, table_text
from mcanalysis.strategies import make_strategy
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.engine import Engine as Pieces
from mcanalysis.studies.engine import Here
from mcanalysis.studies.study import Setting, write_tables
from mcanalysis.tasks.names import check_name
from mcanalysis.training.checkpoint import writing
from mcanalysis.training.processes import Processes
from mcanalysis.training.scoring import Scoring
from mcanalysis.training.trajectory import TrajectoryWriter

logger = logging.getLogger(__name__)

PATH = "linear-delta"  # between adapters of any modules, and the same in every gauge
_ARGUMENTS = (
    "learning_rate", "lr_scheduler_type", "optim", "per_device_train_batch_size", "gradient_accumulation_steps",
    "weight_decay", "max_grad_norm",
)  # fmt: skip


class ForgettingCallback(TrainerCallback):
    """Keeps the minimum of one task, scores this and all earlier tasks, and leaves a run directory.

    For transformers' Trainer and what is made of it (TRL's), `ForgettingCallback(…).attach(trainer)`; a loop of one's
    own calls `begin(model)`, `saved(model, step)` and `end(model, step)`. At each save of the Trainer's: a snapshot of
    the adapter, loss and score of the tasks so far, loss of general text, to the trackers in use and to
    `tables/saves.csv`. When training ends: `minima/<k>-<TASK>/<learner>`, the row of the accuracy matrix and the new
    task's column, metrics, and from the second task on the path to the minimum before. In between the run is one of the
    tasks before, whole and readable, so that a killed training costs it nothing. What is trained stays as it is, to the
    bit.

    Args:
        run: the run directory; the tasks that it has learned come before this one.
        task: what is being learned: a name that the run does not have yet, and a folder in `data`.
        data: folder with `<TASK>/train.json`, `eval.json`, `test.json` of every task of the run (docs/data.md).
        general: what is measured and never trained: a folder (`General`), or `pretraining`; None: what the run has.
        ilora: also average the adapter; the run is then one of `ilora`, whose answering learner is the slow adapter.
        num_points: on the path to the minimum before; 0 measures none.
        num_test: examples of each task and general task, the first ones; None: all.
        score, max_new_tokens: of this task, where they are not to be its own (`exact_match` and 64 for a new name).
        max_length: tokens; longer prompts lose their middle when they are scored.
        chat_template: as in `RunConfig`; a run that is there keeps its own.
        base: folder or hub id of the base, where adapter and base do not say it.
        seed: of the run; None: that of the Trainer's arguments, 0 without.
        engine: how points are evaluated.
        log: `log(values, step=…)`, such as `accelerator.log`, with steps that count on from task to task, as trackers
            want them; a Trainer to which it is attached logs by itself.
        progress: shows how far an evaluation is.

    Raises `UserError` in one line, before anything is written: for a model that `adopt` refuses, a task that the run
    has learned already, data that have changed, and a run directory of something else or of other settings.
    """

    def __init__(
        self,
        run: str | Path,
        task: str,
        data: str | Path,
        *,
        general: str | General | None = None,
        ilora: IloraCallback | None = None,
        num_points: int = 5,
        num_test: int | None = None,
        score: str | None = None,
        max_new_tokens: int | None = None,
        max_length: int = 1024,
        chat_template: str = "auto",
        base: str | None = None,
        seed: int | None = None,
        engine: EngineSettings = AUTO,
        log: Log | None = None,
        progress: Progress = silent,
    ) -> None:
        check_name(task)
        if num_points in (1, 2) or num_points < 0:
            raise UserError(f"Expected num_points of at least 3, or 0 for no path, got {num_points}; change it.")
        self.directory = Path(run)
        self.task = task
        self.data = str(data)
        self.general = General(general) if isinstance(general, str) else general
        self.ilora = ilora
        if ilora is not None:
            ilora.is_driven = True
        self.num_points = num_points
        self.num_test = num_test
        self.own = {"scores": score, "max_new_tokens": max_new_tokens}
        self.max_length = max_length
        self.chat_template = chat_template
        self.base = base
        self.seed = seed
        self.engine_settings = engine
        self._has_log = log is not None
        self.log: Log | None = None
        if log is not None:
            self.log = lambda values, step: log(values, step=self._num_steps_before + step)
        self.progress = progress
        self._model: LoraModel | None = None

    def attach(self, trainer: Any) -> ForgettingCallback:
        """Give it to a Trainer, whose own log, and so all of its trackers, then get what is measured, at its steps.

        Raises `UserError` where a `log` was given, which would get nothing.
        """
        if self._has_log:
            raise UserError("Expected no log beside attach, whose Trainer logs by itself, got one; leave log out.")
        attach(self, trainer)
        # The Trainer's own and not that of a subclass: TRL's would mix in, and forget, its averages of training.
        self.log = lambda values, step: Trainer.log(trainer, values)
        return self

    def begin(self, model: Any, *, seed: int = 0, resume_from: Path | None = None, step: int = 0) -> None:
        """Check all there is to check and measure nothing yet; call it before a task's first step.

        `resume_from`: the Trainer's checkpoint that training goes on from, after `step` steps.
        """
        slot = adopt(model, self.base)
        processes = Processes(slot.device.type)
        seed = seed if self.seed is None else self.seed
        recorded = processes.on_main(lambda: manifest_in(self.directory))
        done = learned(self.directory, recorded, self.task)
        names = [*done, self.task]
        if self.general is None and recorded and "general" in recorded:
            self.general = General.from_record(recorded["general"])
        config = grown_config(
            slot, recorded, names, self.own, seed=seed, data_dir=self.data, num_test=self.num_test,
            max_length=self.max_length, ilora=self.ilora,
        )  # fmt: skip
        tasks = load_benchmark("trace", self.data, names, config["scores"], None, config.get("max_new_tokens"))
        general = told_apart(self.general.load() if self.general else [], names)
        template = choose_template(open_template(self.chat_template, recorded), slot.tokenizer, tasks)
        use_template(slot.tokenizer, template)
        if template != "none":
            config["chat_template"] = template
        self._objectives, self._general = (
            [make_objective(t, "test", slot.tokenizer, self.max_length, self.num_test) for t in data]
            for data in (tasks, general)
        )
        self._engine = Engine(slot, self.engine_settings)
        self._engine.check_room(self._measured)
        now, former = accepted_identities(slot.name, None, base_commit(slot.network))
        identity = {"seed": seed, "base_hash": now, "former_base_hash": former}
        hashes = {t.task.name: t.content_hash for t in tasks}
        claimed = names if recorded is None else recorded["config"]["tasks"]

        def claim() -> None:
            with lock_run_directory(self.directory):
                before, data = as_recorded(config, claimed, recorded), {name: hashes[name] for name in claimed}
                if claim_run_directory(self.directory, before, True, **identity, data_hashes=data) == "new":
                    record_hashes(self.directory, "base_source", recorded_source(slot.name))
                keep_identity(self.directory)
                clear_partial_files(self.directory)
                if not step:
                    shutil.rmtree(self.directory / FOLDER / self.label, ignore_errors=True)

        self._names, self._manifest = names, {"config": config, "data": hashes}
        self._general_data = general
        processes.on_main(claim)
        if self.ilora and not done and resume_from is None:
            self.ilora.forget()  # it may have been in another run, or in a training of this task that was stopped
        self.strategy = self.ilora.strategy if self.ilora else make_strategy("sequential", seed)
        if self.ilora:
            kept = state_after(self.directory / "checkpoint", len(done)) if done else None
            self.ilora.begin(slot, len(done), resume_from / STATE if resume_from else kept)
        self._model, self._processes = slot, processes
        self._trajectory = TrajectoryWriter(self.directory, 1, slot, self.strategy)
        if processes.is_main and not step:
            self._trajectory.write(self.label, 0)

    @property
    def label(self) -> str:
        """What the minimum is called: `<k>-<TASK>`."""
        return f"{len(self._names)}-{self.task}"

    @property
    def _num_steps_before(self) -> int:
        """The steps of the tasks before this one."""
        steps = self._manifest["config"]["training"]["num_steps"]
        return sum(int(steps.get(name) or 0) for name in self._names[:-1])

    def stepped(self) -> None:
        """Average the adapter, where that is asked for; a loop of one's own calls it after each optimiser step."""
        if self.ilora:
            self.ilora.stepped()

    def saved(self, model: Any, step: int) -> dict[str, float]:
        """Score the adapter as it stands after `step` steps of the task, and log it; returns what is logged."""
        self._check_model(model)

        def measure() -> list[Measurement]:
            self._trajectory.write(self.label, step)
            files = snapshot_files(self.directory, self.label, self.strategy.answering_learner)
            found = self._engine.measure(read_snapshot(files[step]), self._measured, self.progress, f"step {step}")
            self._keep_saves(step, found)
            return found

        values = self._values(self._processes.on_main(measure))
        self._log(values, step)
        return values

    def end(self, model: Any, step: int, arguments: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Save the task's minimum, score it, measure the path from the one before; returns what is logged.

        `step`: how many steps the task had, and `arguments` what else its training was, for the manifest.
        """
        self._check_model(model)
        slot, processes, strategy, directory = self._model, self._processes, self.strategy, self.directory
        assert slot is not None  # see `_check_model`
        if not all(bool(p.isfinite().all()) for p in slot.parameters.values()):
            raise DivergedError(
                f"Expected a finite adapter after task {self.task}, got NaN or infinity in it; lower the learning "
                f"rate. '{directory}' is what it was before."
            )
        strategy.end_task(slot, ())
        number = len(self._names)

        def keep() -> None:
            with lock_run_directory(directory):
                manifest = read_manifest(directory)
                if manifest["config"]["tasks"] not in (self._names[:-1], self._names):
                    raise RunInUseError(
                        f"Expected the run '{directory}' as it was when training began, got one of "
                        f"{', '.join(manifest['config']['tasks'])}; train one task of a run at a time."
                    )
                self._trajectory.write(self.label, step)
                for learner in strategy.learners:
                    with writing(), replace_directory_atomic(directory / "minima" / self.label / learner) as folder:
                        strategy.save_learner(slot, learner, folder)
                config = self._manifest["config"]
                config["training"]["num_steps"][self.task] = step
                hashes = {**manifest["hashes"], "data": self._manifest["data"]}
                trained = {**manifest.get("arguments", {}), self.label: dict(arguments or {})}
                parts = {"status": "running", "config": config, "hashes": hashes, "arguments": trained}
                write_manifest(directory, {**manifest, **parts})

        processes.on_main(keep)
        scoring = Scoring(
            directory, slot, strategy, self._objectives, self._general, processes, self.engine_settings, self.progress
        )
        with ExitStack() as stack:
            store = None
            if processes.is_main:
                store = stack.enter_context(MeasurementStore(directory / "measurements.sqlite"))
            for k, label in enumerate(["base", *(f"{k}-{name}" for k, name in enumerate(self._names, start=1))]):
                scoring.fill_row(store, k, label)
        if self.ilora:
            self.ilora.keep(directory / "checkpoint", number)
            self.ilora.model = None

        def finish() -> dict[str, float]:
            scoring.write_tables()
            place = {"general": self.general.record()} if self.general else {}
            record_hashes(directory, "general", general_hashes(self._general_data), place)
            key = content_hash(slot.read(directory / "minima" / self.label / strategy.answering_learner))
            with MeasurementStore(directory / "measurements.sqlite") as store:
                found = [m for o in self._measured if (m := store.get(measurement_key(key, o))) is not None]
            self._keep_saves(step, found)
            mark_finished(directory)
            metrics = load_run(directory).metrics.items()
            values = self._values(found) | {f"metrics/{n}": v for n, v in metrics if isinstance(v, float)}
            return values | (self._path() if self.num_points and number > 1 else {})

        values = processes.on_main(finish)
        self._log(values, step)
        return values

    def _check_model(self, model: Any) -> None:
        if self._model is None:
            raise UserError("Expected begin(model) before a task's first step, got none; call it.")
        if unwrapped(model) is not self._model.network:
            raise UserError("Expected the model that begin was given, got another; call begin with this one.")

    @property
    def _measured(self) -> list[Objective]:
        """What is measured at each save: the tasks so far, and the general ones."""
        return [*self._objectives, *self._general]

    def _keep_saves(self, step: int, measured: list[Measurement]) -> None:
        """Put what was measured at a step of this task into `saves.csv`, in the place of what a stopped training that
        was begun again has left there of this step and later ones."""
        file = self.directory / "tables" / "saves.csv"
        rows: list[dict[str, Any]] = [
            {"minimum": self.label, "step": step, "task": o.name, "loss": m.loss, "score": m.score}
            for o, m in zip(self._measured, measured, strict=True)
        ]
        if file.exists():
            before = read_table(file)
            is_over = before.minimum.eq(self.label) & before.step.ge(step)
            rows = [*before[~is_over].to_dict("records"), *rows]  # type: ignore[list-item]
        write_text_atomic(file, table_text(pd.DataFrame(rows)))

    def _values(self, measured: list[Measurement]) -> dict[str, float]:
        """Measurements of the tasks and general tasks by the names that trackers get; a text has no score."""
        values: dict[str, float] = {}
        for o, m in zip(self._measured, measured, strict=True):
            kind = "general" if o in self._general else "forgetting"
            name = f"{kind}/{o.name.removeprefix('general/')}"
            values |= {f"{name}/loss": m.loss} | ({f"{name}/score": m.score} if o.task.has_score else {})
        return values

    def _path(self) -> dict[str, float]:
        """Measure the paths between the minima, of which the store lacks those to the last; write their tables."""
        assert self._model is not None
        run = load_run(self.directory, engine=self.engine_settings)
        vars(run).update(model=self._model, tokenizer=self._model.tokenizer)  # which are in memory
        study = Connectivity(num_points=self.num_points, paths=(PATH,))
        try:
            with lock_measurements(self.directory):
                (tables,) = Pieces(Here(self.progress)).run([study.measure(run, Setting(run.strategy))])
                write_tables(tables, self.directory / "tables")
        except RunInUseError as error:
            logger.warning("the path to the last minimum is not measured: %s", error)
            return {}
        finally:
            for name in ("model", "engine", "tokenizer"):  # the caller's, and not to be kept alive
                vars(run).pop(name, None)
        barriers = tables["barriers"]
        last = barriers[(barriers.end == self.label) & (barriers.quantity == "loss")]
        return {f"barrier/{row.task}": float(row.chord_barrier) for row in last.itertuples()}

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self.log is not None:
            self.log(dict(values), step=step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        refuse_best_model(args)
        resumed = checkpoint_of(args, state) if state.global_step else None
        self.begin(kwargs["model"], seed=args.seed, resume_from=resumed, step=state.global_step)
        if self.log is None:
            if args.report_to:
                logger.warning(
                    "what is measured goes to the Trainer's log_history and not to %s: call attach(trainer)",
                    ", ".join(args.report_to),
                )
            self.log = lambda values, step: state.log_history.append({**values, "epoch": state.epoch, "step": step})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not was_skipped(kwargs):
            self.stepped()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.ilora:
            self.ilora.keep(checkpoint_of(args, state) / STATE)
        if state.global_step < state.max_steps:  # else it is the minimum, which is scored in a moment
            self.saved(kwargs["model"], state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        arguments = {name: getattr(args, name, None) for name in _ARGUMENTS}
        plain = {name: getattr(value, "value", value) for name, value in arguments.items()}
        self.end(kwargs["model"], state.global_step, plain)
