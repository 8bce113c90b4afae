"""I-LoRA's slow adapter in the trainer of somebody else: the average of the adapter that it trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mcanalysis.errors import RunDirectoryError, UserError
from mcanalysis.integrations.adopted_model import lora_of
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.store.atomic import replace_directory_atomic
from mcanalysis.store.small_files import read_json
from mcanalysis.strategies.ilora import Ilora, IloraConfig
from mcanalysis.training.checkpoint import Position, read_checkpoint, write_checkpoint, writing
from mcanalysis.training.processes import Processes

STATE = "ilora"
"""The folder, within a checkpoint of the Trainer's, that holds what the average goes on from, and slow itself: an
adapter in a folder right below would be loaded by the Trainer as a second one when it resumes."""

_BEFORE = "before"  # the folder, within the state of after a task, of that from before it


class IloraCallback(TrainerCallback):
    """Averages the LoRA adapter that a Trainer trains: after each step slow ← λ_k·slow + (1 − λ_k)·fast.

    The same numbers as the strategy `ilora`, whose update it is. By itself it writes slow as a PEFT adapter beside the
    fast one: `<checkpoint>/ilora/slow` at each save and `<output_dir>/slow` at the end. Handed to a
    `ForgettingCallback`, which then tells it of the steps, it is a learner of the run; the Trainer is given that alone.
    One object goes on averaging over several trainings, task after task, as the paper has it. Interrupted training is
    resumed with its state (`trainer.train(resume_from_checkpoint=True)`).

    `settings` are those of the strategy (`IloraConfig`): `ema_decay` (0.95), `warm_up`, `average_in`, … Those of the
    consistency loss count with `ConsistencyMixin`. Raises `UserError` for others.

    >>> IloraCallback(ema_decay=0.9).strategy.config.ema_decay
    0.9
    """

    def __init__(self, **settings: Any) -> None:
        self.strategy = Ilora(IloraConfig.of("ilora", settings), seed=0)
        self.model: LoraModel | None = None
        self.is_driven = False  # by a `ForgettingCallback`
        self.num_trainings = 0  # that have ended, of one that is driven by nobody
        self.has_consistency = False  # a `ConsistencyMixin` uses it

    def recorded(self) -> dict[str, Any]:
        """The settings that count, for a manifest: the replay data, if any, are the user's."""
        settings = self.strategy.config.recorded() | ({} if self.has_consistency else {"consistency_weight": 0.0})
        return {name: value for name, value in settings.items() if name != "memory_size"}

    def begin(self, model: LoraModel, task_index: int = 0, resume_from: Path | None = None) -> None:
        """Average this adapter from now on; slow starts as a copy of it, where there is none yet.

        `resume_from`: the checkpoint that holds the state to go on from; raises `RunDirectoryError` without one there.
        """
        self.model = model
        if not self.strategy.slow:
            self.strategy.begin(model, 1)
        if resume_from is not None:
            trained = {name: tensor.clone() for name, tensor in model.raw().items()}
            found = read_checkpoint(resume_from, model, self.strategy, Processes(model.device.type))
            model.load_raw(trained)  # which adapter is trained is the user's to say
            if found == Position() or (not found.within and found.stage != task_index):
                raise RunDirectoryError(
                    f"Expected the state of the slow adapter before task {task_index + 1} in '{resume_from}', got "
                    f"{f'that after task {found.stage}' if found.stage else 'none'}; resume a training that had this "
                    "callback from its beginning (trainer.train(resume_from_checkpoint=True)), or train anew."
                )
            if found.within:  # the task has begun: what that does is in the state
                self.strategy.task_index = task_index
                return
        self.strategy.begin_task(model, task_index, ())

    def forget(self) -> None:
        """Average anew: a new run has begun."""
        self.strategy, self.num_trainings = Ilora(self.strategy.config, seed=0), 0

    @property
    def averaged(self) -> LoraModel:
        """The model whose adapter is averaged; raises `UserError` where nobody has begun."""
        if self.model is None:
            raise UserError(
                "Expected a trainer that has this IloraCallback, or the ForgettingCallback that it was given to, got "
                "neither; attach it, or, where it was given to one of an earlier training, make another."
            )
        return self.model

    def stepped(self) -> None:
        """Average once; call it after each optimiser step."""
        self.strategy.after_step(self.averaged, (), ())

    def keep(self, folder: Path, number: int = 0) -> None:
        """Write what the average goes on from: that of a run that has learned so many tasks, or, for 0, of a training
        under way, with slow as a PEFT adapter in `slow`.

        With the former comes that of before the task: who is killed before the run is called finished trains the task
        again (`state_after`).
        """
        model = self.averaged
        processes = Processes(model.device.type)

        def beside(partial: Path) -> None:
            if not processes.is_main:
                return
            if not number:
                self.strategy.save_learner(model, "slow", partial / "slow")
            elif number > 1:
                before = state_after(folder, number - 1)
                shutil.copytree(before, partial / _BEFORE, ignore=shutil.ignore_patterns(_BEFORE))

        position = Position(number, within=not number)
        write_checkpoint(folder, position, model, self.strategy, processes, beside)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        refuse_best_model(args)
        if not self.is_driven:
            resumed = checkpoint_of(args, state) / STATE if state.global_step else None
            self.begin(lora_of(kwargs["model"]), self.num_trainings, resume_from=resumed)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.is_driven:
            _ = self.averaged  # by now the other one has begun
        elif not was_skipped(kwargs):
            self.stepped()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.is_driven:
            self.keep(checkpoint_of(args, state) / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.is_driven:
            self.strategy.end_task(self.averaged, ())
            self.num_trainings += 1
            if state.is_world_process_zero:
                with writing(), replace_directory_atomic(Path(args.output_dir) / "slow") as folder:
                    self.strategy.save_learner(self.averaged, "slow", folder)


def state_after(folder: Path, number: int) -> Path:
    """Where the state of after so many tasks lies: in the folder that `keep` wrote, or in the one of before in it."""
    before = folder / _BEFORE
    return before if _stage(folder) != number and _stage(before) == number else folder


def _stage(folder: Path) -> Any:
    with suppress(UserError, AttributeError):  # reading it says what is wrong
        return read_json(folder / "state.json").get("stage")
    return None


def refuse_best_model(args: Any) -> None:
    """Raise `UserError` where the trainer would put an earlier adapter in the place of the one that was measured."""
    if getattr(args, "load_best_model_at_end", False):
        raise UserError(
            "Expected load_best_model_at_end=False, got True, which would end a task at another step than the last one "
            "that is measured and averaged; leave it out."
        )


def was_skipped(told: Mapping[str, Any]) -> bool:
    """Whether the Trainer's step left the adapter as it was, which fp16 does while it looks for a scale of its loss.

    `told`: what a callback is told beside arguments, state and control.

    >>> was_skipped({"optimizer": None})
    False
    """
    return bool(getattr(told.get("optimizer"), "step_was_skipped", False))


def checkpoint_of(args: Any, state: Any) -> Path:
    """Where a Trainer has its checkpoint of the step it has come to."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def attach(callback: TrainerCallback, trainer: Any) -> None:
    """Put a callback before all others of a Trainer: trackers close when training ends, and it has yet to log."""
    callbacks = trainer.callback_handler.callbacks
    callbacks[:] = [callback, *(other for other in callbacks if other is not callback)]


Log = Callable[..., Any]
"""`log(values, step=…)`, as accelerate's `Accelerator.log` has it."""
