"""Losses of a language model as differentiable functions of a point: for curve fitting and curvature."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mcanalysis.evaluation.batch_losses import TOKEN_BUDGET, batch_losses
from mcanalysis.models.encoding import EncodedExample, collate, pad_id
from mcanalysis.models.lora_model import LoraModel


class MinibatchLoss:
    """The mean, over groups of examples, of each group's loss in nats per target token, on drawn examples.

    Each call draws `batch_size` examples of every group (all of a smaller one), from a stream that `seed` fixes and
    that `random_state` and `set_random_state` save and restore.
    """

    def __init__(
        self, model: LoraModel, groups: Sequence[Sequence[EncodedExample]], batch_size: int, seed: int
    ) -> None:
        self.model = model
        self.groups = [list(group) for group in groups]
        self.batch_size = batch_size
        self._rng = random.Random(f"curve/{seed}")
        self._padding = pad_id(model.tokenizer)

    def __call__(self, point: Mapping[str, Tensor]) -> Tensor:
        """The loss at a point, on examples drawn now."""
        groups = [self._rng.sample(pool, min(self.batch_size, len(pool))) for pool in self.groups]
        batch = collate([e for g in groups for e in g], self._padding).to(self.model.device)
        result = self.model.forward_at(point, batch)
        total, start = result.nll.new_zeros(()), 0
        for group in groups:
            rows = slice(start, start + len(group))
            total = total + result.nll[rows].sum() / result.num_targets[rows].sum()
            start += len(group)
        return total / len(groups)

    def random_state(self) -> Any:
        """Where the stream is, as JSON holds it."""
        return self._rng.getstate()

    def set_random_state(self, state: Any) -> None:
        """Go on from there."""
        version, numbers, gauss = state
        self._rng.setstate((version, tuple(numbers), gauss))


class WholeLoss:
    """The mean, over groups of examples, of each group's loss in nats per target token, on all examples.

    Called at a point it yields terms, one per batch, whose sum is the loss (see `batch_losses`), so that `fit_curve`
    and `epsilon_sharpness` hold the activations of one batch at a time.
    """

    def __init__(self, model: LoraModel, groups: Sequence[Sequence[EncodedExample]]) -> None:
        self._terms = batch_losses(model, groups, TOKEN_BUDGET)

    def __call__(self, point: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The terms of the loss at a point."""
        return (term(point) for term in self._terms)
