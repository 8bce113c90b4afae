"""One task's training: `transformers.Trainer` with the strategy's hooks, and nothing else of ours in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mcanalysis.errors import DataError, DivergedError, UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.forward import forward
from mcanalysis.store.hashing import hash_json
from mcanalysis.strategies.strategy import Step, Strategy, Totals
from mcanalysis.training.config import Execution, TrainingConfig
from mcanalysis.training.data_order import forked, steps_of_examples
from mcanalysis.training.engines import check_engine
from mcanalysis.training.processes import Processes
from mcanalysis.training.schedule import make_scheduler
from mcanalysis.training.stopping import StopRequest


@dataclass
class MicroBatch:
    """The current examples of one micro-batch of all processes, and the replayed ones once they are drawn."""

    current: list[EncodedExample]
    first_pass: list[bool]
    replay: list[EncodedExample] = field(default_factory=list)
    totals: Totals | None = None
    share: float = 1.0


def _only_one(rows: list[MicroBatch]) -> dict[str, MicroBatch]:
    return {"micro_batch": rows[0]}


def _checkpointing(model: AdaptedModel) -> dict[str, Any]:
    """The Trainer's arguments for gradient checkpointing; newer versions of it say activation checkpointing."""
    base = model.network.get_base_model()  # type: ignore[operator]
    if not getattr(base, "supports_gradient_checkpointing", False):
        raise UserError(
            f"Expected a base that can compute its activations again, got {type(base).__name__}, which cannot; "
            "leave gradient_checkpointing out."
        )
    known = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


class _OnStepEnd(TrainerCallback):
    """Tells of a finished optimiser step, before the Trainer saves."""

    def __init__(self, finished: Callable[[Any], None]) -> None:
        self._finished = finished

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finished(control)


class TaskTrainer(Trainer):
    """Trains what the strategy attached on one task.

    Every process walks through the same micro-batches of the whole run and computes its share of their rows, so what is
    drawn, remembered and counted is the same in each of them, and the same as in a single process.

    The engine fetches the micro-batches of one optimiser step together (`get_batch_samples`): there replay is drawn and
    the denominators over the whole accumulated batch are counted, so that 4 × 4 examples give the loss of 16.

    `order_seed` fixes the order of the examples; `fork`, a step and a seed, that of another order from there on.
    `write_checkpoint` is given a function that saves the engine's state
    into a folder. `losses` holds one number per optimiser step.
    """

    def __init__(
        self,
        model: AdaptedModel,
        strategy: Strategy,
        examples: Sequence[EncodedExample],
        task_name: str,
        config: TrainingConfig,
        order_seed: str,
        scratch: str,
        *,
        execution: Execution | None = None,
        processes: Processes | None = None,
        stop: StopRequest | None = None,
        write_checkpoint: Callable[[Callable[[Path], None]], None] | None = None,
        on_step: Callable[[], None] = lambda: None,
        fork: tuple[int, str] | None = None,
    ) -> None:
        execution = execution or Execution()
        self.adapted = model
        self.strategy = strategy
        self.task_name = task_name
        self.losses: list[float] = []
        self.stop = StopRequest() if stop is None else stop
        self.processes = processes or Processes(model.device.type)
        self._config = config
        self._fetched: list[MicroBatch] = []
        self._parts: list[Tensor] = []  # of the loss of the step under way
        self._trained: list[torch.nn.Parameter] | None = None
        self._on_step = on_step
        self._write_checkpoint = write_checkpoint
        without = sum(not e.answer_ids for e in examples)
        if without or not examples:
            raise DataError(
                f"Expected examples with at least one token to predict for task {task_name}, got "
                f"{f'{without} of {len(examples)} without any' if without else 'no examples'}; add or remove some."
            )
        if config.batch_size % self.processes.count:
            raise UserError(
                f"Expected a batch size that {self.processes.count} processes can share, got {config.batch_size}; "
                f"choose a multiple of {self.processes.count}, as it counts the examples of all of them."
            )
        num_steps = config.steps_of(task_name, len(examples))
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=num_steps,
            per_device_train_batch_size=config.batch_size // self.processes.count,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.rate_for(model.name) * strategy.learning_rate_factor,
            lr_scheduler_type="linear",  # of runs of before; others: see `create_scheduler`
            warmup_steps=config.num_warmup_steps(num_steps),
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            use_cpu=model.device.type == "cpu",
            seed=int(hash_json(order_seed)[:8], 16) % 2**31,  # dropout's masks
            save_strategy="steps" if write_checkpoint else "no",
            save_steps=execution.save_steps,
            logging_strategy="steps" if execution.report_to else "no",
            logging_steps=10,
            report_to=list(execution.report_to) or "none",
            run_name=f"{strategy.name}-{task_name}",
            torch_compile=execution.torch_compile,
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            average_tokens_across_devices=False,
            ddp_find_unused_parameters=False,
            **(_checkpointing(model) if execution.gradient_checkpointing else {}),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for several processes, never nn.DataParallel
        step_size = config.batch_size * config.gradient_accumulation
        lengths = [len(e) for e in examples]
        steps = steps_of_examples(lengths, num_steps, step_size, order_seed, config.group_by_length)
        if fork is not None:
            steps = forked(steps, fork[0], len(examples), lengths, fork[1])
        cuts = [s[i : i + config.batch_size] for s in steps for i in range(0, step_size, config.batch_size)]
        super().__init__(
            model=model.network,  # type: ignore[arg-type]
            args=arguments,
            train_dataset=[MicroBatch([examples[i] for i, _ in c], [f for _, f in c]) for c in cuts],  # type: ignore[arg-type]
            callbacks=[_OnStepEnd(self._step_finished)],
        )
        self.remove_callback(PrinterCallback)
        # Our loss is already normalised over the accumulated batch; these keep the Trainer from dividing again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        check_engine(self.accelerator.state, self.strategy, self.adapted.network)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our schedule for the optimizer; a run of before keeps the one it has."""
        if self.lr_scheduler is None and not self._config.from_zero:
            whose: Any = optimizer or self.optimizer
            num_warmup = self._config.num_warmup_steps(num_training_steps)
            self.lr_scheduler = make_scheduler(self._config.schedule, whose, num_warmup, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; raises `DivergedError` for a loss, or in the end an adapter, that is not finite."""
        output = super().train(*args, **kwargs)
        if not self.stop:
            self._check_finite()
        return output

    def get_train_dataloader(self) -> DataLoader:
        """The micro-batches of all processes, one at a time; not divided by the engine, see the class."""
        return DataLoader(self.train_dataset, batch_size=1, collate_fn=_only_one)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int]:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches: list[MicroBatch] = [s["micro_batch"] for s in samples]
        current = [e for b in batches for e in b.current]
        replay = self.strategy.draw_replay(len(current))
        if len(replay) not in (0, len(current)):
            raise UserError(
                f"Expected as many replayed examples from draw_replay of {self.strategy.name} as it was asked for, "
                f"{len(current)}, or none, got {len(replay)}; correct the strategy."
            )
        totals = Totals(
            current_targets=sum(len(e.answer_ids) for e in current),
            replay_targets=sum(len(e.answer_ids) for e in replay),
            replay_tokens=sum(len(e) for e in replay),
        )
        start = 0
        for batch in batches:
            batch.replay = replay[start : start + len(batch.current)]
            start += len(batch.current)
            batch.totals = totals
            batch.share = 1 / (len(batches) * self.processes.count)
        self._fetched = batches
        self.losses.append(0.0)
        return samples, totals.current_targets

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        micro: MicroBatch = inputs["micro_batch"]
        assert micro.totals is not None  # set in get_batch_samples
        current, replay = self.processes.share(micro.current), self.processes.share(micro.replay)
        batch = collate([*current, *replay], pad_id(self.adapted.tokenizer)).to(self.args.device)
        loss = self.strategy.loss(Step(model, self.adapted, batch, len(current), micro.totals, micro.share))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise UserError(
                f"Expected the loss of {self.strategy.name} to be one number, got {got}; correct the strategy."
            )
        self._parts.append(loss.detach())  # not a number yet, for which an accelerator would be waited for
        return loss * self.processes.count  # the engine takes the mean of the processes' gradients; ours add up

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        # Here and not in `on_pre_optimizer_step`, before which the Trainer clips.
        if self.accelerator.sync_gradients:
            self._note_loss()
            self._complete_gradients()
        return loss

    def _note_loss(self) -> None:
        """The loss of a step whose passes are over; raises `DivergedError` where it is not finite."""
        self.losses[-1] = sum(map(float, self._parts))  # the parts of one step add up to its loss
        self._parts.clear()
        if not math.isfinite(self.losses[-1]):
            raise DivergedError(
                f"Expected a finite loss, got {self.losses[-1]} at step {self.state.global_step + 1} of task "
                f"{self.task_name}; lower --learning-rate. What was saved before is kept."
            )

    def _complete_gradients(self) -> None:
        gradients = self.adapted.gradient()
        if self.is_fsdp_enabled:  # it leaves what is trained, and its gradients, alone
            for gradient in self.processes.sum(gradients).values():
                gradient.div_(self.processes.count)
        if self.strategy.edits_gradient:
            edits = self.strategy.edit_gradient(gradients, self._gradient_of)
            if edits.keys() != gradients.keys():
                raise UserError(
                    f"Expected edit_gradient of {self.strategy.name} to give all {len(gradients)} tensors back, got "
                    f"{len(edits)}; correct the strategy."
                )
            for name, edited in edits.items():
                self.adapted.parameters[name].grad = edited

    def _gradient_of(self, examples: Sequence[EncodedExample]) -> dict[str, Tensor]:
        """The gradient of the cross entropy on examples, computed by all processes together."""
        trained = {k: p for k, p in self.adapted.parameters.items() if p.requires_grad}
        total = {k: torch.zeros_like(p) for k, p in trained.items()}
        targets = sum(len(e.answer_ids) for e in examples)
        mine, size = examples[self.processes.index :: self.processes.count], self._config.batch_size
        for start in range(0, len(mine), size):
            batch = collate(mine[start : start + size], pad_id(self.adapted.tokenizer)).to(self.args.device)
            loss = forward(self.adapted.network, batch).nll.sum() / targets
            for k, g in zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True):
                total[k] += g
        return self.processes.sum(total)

    def _clip_grad_norm(self, model: Any) -> Any:
        """As the Trainer does, but without a walk through the parameters of the base, which have no gradient."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # they ask for the parameters of the whole model
            return super()._clip_grad_norm(model)
        if self._trained is None:
            self._trained = [p for p in model.parameters() if p.requires_grad]
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _step_finished(self, control: Any) -> None:
        if self.processes.count > 1:
            self.losses[-1] = float(
                self.processes.sum({"": torch.tensor(self.losses[-1], device=self.args.device)})[""]
            )
        examples = [e for b in self._fetched for e in b.current]
        first_pass = [f for b in self._fetched for f in b.first_pass]
        self.strategy.after_step(self.adapted, examples, first_pass)
        self._on_step()
        if self.processes.any(bool(self.stop)):
            self.stop.signal = self.stop.signal or 15  # another process was asked
            control.should_save = self._write_checkpoint is not None
            control.should_training_stop = True

    def _check_finite(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.adapted.parameters.values()):
            raise DivergedError(
                f"Expected finite parameters at step {self.state.global_step} of task {self.task_name}, got NaN or "
                "infinity in them; lower --learning-rate. What was saved before is kept."
            )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._check_finite()
        assert self._write_checkpoint is not None  # else save_strategy is "no"
        self._write_checkpoint(self._save_engine_state)

    def _save_engine_state(self, folder: Path) -> None:
        """Optimiser, schedule and random states, in the Trainer's own files; it reads them with `weights_only=True`."""
        with self._as_if_not_sharded():
            self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.processes.is_main:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._as_if_not_sharded():
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _as_if_not_sharded(self) -> Iterator[None]:
        """FSDP shards the base only: the optimiser is whole in every process, and saved as one is without FSDP."""
        enabled, self.is_fsdp_enabled = self.is_fsdp_enabled, False
        try:
            yield
        finally:
            self.is_fsdp_enabled = enabled

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """What is trained has been put back already, by whoever resumed."""
