"""Training steps without this package: `transformers.Trainer` on a PEFT model, and a bare loop over our own passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from points import right_padded
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from mcanalysis.models.encoding import Batch, EncodedExample
from mcanalysis.models.forward import forward
from mcanalysis.training.config import TrainingConfig
from mcanalysis.training.data_order import steps_of_examples

RATE = 1e-3


def steps_as_ours(examples: Sequence[EncodedExample], settings: TrainingConfig) -> list[list[EncodedExample]]:
    """The examples of each step as `timing.train_steps` has them, so that batches are the same to the row."""
    lengths, number = [len(e) for e in examples], settings.steps_of("bench", len(examples))
    return [[examples[i] for i, _ in step] for step in steps_of_examples(lengths, number, settings.batch_size, "0")]


def train_by_hand(
    network: Any,
    steps: Sequence[Sequence[EncodedExample]],
    padding: int,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """A step on each of these batches of one size, padded on the right, with the model's own loss over all logits."""

    class Told(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            on_step()

    with TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch, max_steps=len(steps), per_device_train_batch_size=len(steps[0]), learning_rate=RATE,
            max_grad_norm=1.0, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip

        class InOrder(Trainer):
            def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

        trainer = InOrder(
            model=network,
            args=settings,
            train_dataset=[e for step in steps for e in step],  # type: ignore[arg-type]
            data_collator=lambda rows: right_padded(rows, padding),
            callbacks=[Told()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def bare_step(network: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """Forward, backward, clipping and AdamW on one of our own batches, and nothing else; returns the loss."""
    result = forward(network, batch)
    loss = result.nll.sum() / int(result.num_targets.sum())
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())
