"""A loss over whole data sets as one differentiable function per batch: what curvature is taken of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from mcanalysis.errors import DataError
from mcanalysis.models.encoding import Batch, EncodedExample, collate, cut_by_length, pad_id
from mcanalysis.models.lora_model import LoraModel

TOKEN_BUDGET = 2048  # padded tokens of a batch


def batch_losses(
    model: LoraModel, groups: Sequence[Sequence[EncodedExample]], token_budget: int = TOKEN_BUDGET
) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
    """Functions of a point whose sum is the mean, over groups of examples, of each group's loss, without dropout.

    A group's loss is its mean over target tokens, in nats, however it is cut into batches: of at most `token_budget`
    padded tokens, at least one example, examples of like length together. Points may have any rank.

    Raises `DataError` for no group or an empty one.
    """
    if not groups or not all(groups):
        raise DataError("Expected groups of examples, each with at least one, got an empty group; check the data.")
    losses = []
    for group in groups:
        scale = 1.0 / (len(groups) * sum(len(e.answer_ids) for e in group))
        for indices in cut_by_length([len(e) for e in group], token_budget):
            batch = collate([group[i] for i in indices], pad_id(model.tokenizer)).to(model.device)
            losses.append(_loss(model, batch, scale))
    return losses


def _loss(model: LoraModel, batch: Batch, scale: float) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def loss_at(point: Mapping[str, Tensor]) -> Tensor:
        with model.without_dropout():
            return model.forward_at(point, batch).nll.sum() * scale

    return loss_at
