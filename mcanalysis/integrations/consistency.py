"""I-LoRA's consistency loss in a Trainer of somebody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch

from mcanalysis.errors import UserError
from mcanalysis.integrations.ilora import IloraCallback
from mcanalysis.models.encoding import IGNORED, Batch
from mcanalysis.strategies.strategy import Step, Totals


class ConsistencyMixin:
    """Put before a Trainer's class, it makes the loss I-LoRA's: ½(its own loss + CE replay) + γ·MSE(fast, slow).

        class IloraTrainer(ConsistencyMixin, SFTTrainer): ...

    The Trainer's own loss is whatever it is; replay and consistency are those of the strategy `ilora`, at the settings
    of `ilora`, the callback that averages. Beside each batch as many rows of `replay_dataset` are drawn, without
    repetition within a step where there are enough: rows as the Trainer's collator takes them, such as those of
    `trainer.train_dataset` of an earlier task. Without such a data set, as in the first task, the loss stays the
    Trainer's own. What is drawn follows from the Trainer's seed and step. Raises `UserError` for batches that are not
    rows of `input_ids` with `labels`, as packed ones.
    """

    def __init__(self, *args: Any, ilora: IloraCallback, replay_dataset: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ilora.has_consistency = True
        self.ilora = ilora
        self.replay_dataset = replay_dataset
        self._replay: list[Batch] = []
        self._totals = Totals(1, 0, 0)

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step; what is replayed beside them is drawn here, and counted over all of them, in
        all processes."""
        samples, number = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._replay = self._draw(len(samples)) if self.replay_dataset is not None else []
        targets = sum(int((batch.labels[:, 1:] != IGNORED).sum()) for batch in self._replay)
        tokens = sum(int(batch.mask().sum()) for batch in self._replay)
        if self.args.world_size > 1 and self.replay_dataset is not None:  # the mean is over what all processes replay
            counts = torch.tensor([[targets, tokens]], device=self.args.device)
            targets, tokens = self.accelerator.gather(counts).sum(0).tolist()
        self._totals = Totals(1, targets, tokens)
        return samples, number

    def _draw(self: Any, num_batches: int) -> list[Batch]:
        size, rows = self.args.per_device_train_batch_size, self.replay_dataset
        rng = Random(f"{self.args.seed}/{self.state.global_step}/{self.args.process_index}")
        wanted = num_batches * size
        chosen = (
            rng.sample(range(len(rows)), wanted) if wanted <= len(rows) else rng.choices(range(len(rows)), k=wanted)
        )
        cuts = (chosen[start : start + size] for start in range(0, wanted, size))
        return [replay_batch(self.data_collator([rows[i] for i in cut])) for cut in cuts]

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch, and, in training, of the rows that are replayed beside it."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if not (model.training and self._replay):
            return found
        batch = self._replay.pop(0).to(self.args.device)
        more = self.ilora.strategy.loss(Step(model, self.ilora.averaged, batch, 0, self._totals))
        more = more * self.args.world_size  # of whose gradients the engine takes the mean
        if not self._is_normalised(num_items_in_batch):  # then the Trainer divides what is summed over all already
            more = more * self.current_gradient_accumulation_steps
        if return_outputs:
            return found[0] / 2 + more, found[1]
        return found / 2 + more

    def _is_normalised(self: Any, num_items_in_batch: Any) -> bool:
        """Whether the Trainer takes its loss as one over all micro-batches of a step, and does not divide it."""
        said = getattr(self, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        return bool(self.model_accepts_loss_kwargs and num_items_in_batch is not None) or bool(self.compute_loss_func)


def replay_batch(collated: Mapping[str, Any] | Sequence[Any]) -> Batch:
    """What a Trainer's collator made of some rows, as a batch of ours, whose labels are those of every token.

    >>> ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 6, 7]])
    >>> replay_batch({"input_ids": ids, "labels": labels}).num_answer_columns
    2
    """
    ids, labels = (collated.get(name) for name in ("input_ids", "labels")) if isinstance(collated, Mapping) else (0, 0)
    packed = isinstance(collated, Mapping) and "position_ids" in collated and "attention_mask" not in collated
    if not (isinstance(ids, torch.Tensor) and isinstance(labels, torch.Tensor)) or packed or ids.shape != labels.shape:
        raise UserError(
            "Expected replayed rows that the Trainer's collator makes input_ids and labels of, row by row, got "
            f"{', '.join(collated) if isinstance(collated, Mapping) else type(collated).__name__}; pass rows as the "
            "train_dataset of a finished trainer has them, not packed and with padding."
        )
    mask = collated.get("attention_mask", torch.ones_like(ids))  # type: ignore[union-attr]
    positions = (mask.cumsum(-1) - 1).clip(min=0)
    return Batch(ids, labels, None if bool(mask.all()) else mask, positions, ids.shape[1] - 1)
