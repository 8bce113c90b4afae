"""One task's training: `transformers.Trainer` with the strategy's hooks, and nothing else of ours in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mcanalysis.errors import UserError
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.strategies.strategy import Step, Strategy, Totals
from mcanalysis.training.config import TrainingConfig


class EncodedDataset(Dataset):
    """Encoded examples with their index, so that a step knows which ones it used."""

    def __init__(self, examples: Sequence[EncodedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, EncodedExample]:
        return index, self.examples[index]


class SeededShuffle(Sampler[int]):
    """Every pass in a new order that depends on the seed and the pass alone, never on the global random state."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash((self.seed, self.epoch)) % 2**63)
        self.epoch += 1
        return iter(torch.randperm(self.length, generator=generator).tolist())


@dataclass
class MicroBatch:
    """The current examples of one micro-batch, and the replayed ones once they are drawn."""

    indices: list[int]
    current: list[EncodedExample]
    replay: list[EncodedExample]
    totals: Totals | None = None


def _gather(rows: list[tuple[int, EncodedExample]]) -> dict[str, MicroBatch]:
    return {"micro_batch": MicroBatch([i for i, _ in rows], [e for _, e in rows], [])}


class _AfterStep(TrainerCallback):
    """Tells the strategy of a finished optimiser step, and the progress bar."""

    def __init__(self, after_step: Callable[[], None]) -> None:
        self._after_step = after_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._after_step()


class TaskTrainer(Trainer):
    """Trains the adapter on one task.

    The engine fetches the micro-batches of one optimiser step together (`get_batch_samples`): there replay is drawn and
    the denominators over the whole accumulated batch are counted, so that 4 × 4 examples give the loss of 16.
    """

    def __init__(
        self,
        model: LoraModel,
        strategy: Strategy,
        examples: Sequence[EncodedExample],
        task_name: str,
        config: TrainingConfig,
        seed: int,
        scratch: str,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.lora = model
        self.strategy = strategy
        self.task_name = task_name
        self.losses: list[float] = []
        self._seen: set[int] = set()
        self._fetched: list[MicroBatch] = []
        self._on_step = on_step
        self._seed = seed
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=config.num_steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=math.floor(config.warmup_ratio * config.num_steps),  # its first step has rate 0
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            use_cpu=model.device.type == "cpu",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            average_tokens_across_devices=False,
        )
        super().__init__(
            model=model.peft,  # type: ignore[arg-type]
            args=arguments,
            data_collator=_gather,  # type: ignore[arg-type]
            train_dataset=EncodedDataset(examples),
            callbacks=[_AfterStep(self._after_step)],
        )
        self.remove_callback(PrinterCallback)
        # Our loss is already normalised over the accumulated batch; these keep the Trainer from dividing again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; raises `UserError` for a loss, or in the end an adapter, that is not finite."""
        output = super().train(*args, **kwargs)
        if not all(bool(p.isfinite().all()) for p in self.lora.parameters.values()):
            raise UserError(
                f"Expected a finite adapter after task {self.task_name}, got NaN or infinity in it; "
                "lower --learning-rate. The state after the last finished task is kept."
            )
        return output

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SeededShuffle(len(self.train_dataset), self._seed)  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], int]:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches: list[MicroBatch] = [s["micro_batch"] for s in samples]
        current = [e for b in batches for e in b.current]
        replay = self.strategy.draw_replay(len(current))
        start = 0
        for batch in batches:
            end = None if batch is batches[-1] else start + len(batch.current)
            batch.replay = replay[start:end]
            start += len(batch.current)
        totals = Totals(
            current_targets=sum(len(e.answer_ids) for e in current),
            replay_targets=sum(len(e.answer_ids) for e in replay),
            replay_tokens=sum(len(e) for e in replay),
        )
        for batch in batches:
            batch.totals = totals
        self._fetched = batches
        self.losses.append(0.0)
        return samples, totals.current_targets

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        micro: MicroBatch = inputs["micro_batch"]
        assert micro.totals is not None  # set in get_batch_samples
        batch = collate([*micro.current, *micro.replay], pad_id(self.lora.tokenizer)).to(self.args.device)
        loss = self.strategy.loss(Step(model, self.lora, batch, len(micro.current), micro.totals))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"Expected a finite loss, got {value} at step {self.state.global_step + 1} of task {self.task_name}; "
                "lower --learning-rate. The state after the last finished task is kept."
            )
        self.losses[-1] += value  # the parts of one step add up to its loss
        return loss

    def _after_step(self) -> None:
        indices = [i for b in self._fetched for i in b.indices]
        current = [e for b in self._fetched for e in b.current]
        first_pass = [i not in self._seen for i in indices]
        self._seen.update(indices)
        self.strategy.after_step(self.lora, current, first_pass)
        self._on_step()
