"""A loss over whole data sets as one differentiable function per batch: what curvature is taken of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mcanalysis.errors import DataError
from mcanalysis.models.encoding import Batch, EncodedExample, collate, cut_by_length, pad_id
from mcanalysis.models.lora_model import LoraModel

TOKEN_BUDGET = 2048  # padded tokens of a batch
GRAPH_BYTES = 2**29  # of a batch's graph for a Hessian product; a base that takes more lets it take as much


def batch_losses(
    model: LoraModel, groups: Sequence[Sequence[EncodedExample]], token_budget: int | None = None
) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
    """Functions of a point whose sum is the mean, over groups of examples, of each group's loss, without dropout.

    A group's loss is its mean over target tokens, in nats, however it is cut into batches: of at most `token_budget`
    padded tokens, at least one example, examples of like length together. Points may have any rank. None: at most 2048,
    and so few that what autograd holds for a Hessian product of one batch, about four times what it holds for a
    gradient, takes no more than the base's weights, or 512 MiB; measured on the longest example.

    Raises `DataError` for no group or an empty one.
    """
    if not groups or not all(groups):
        raise DataError("Expected groups of examples, each with at least one, got an empty group; check the data.")
    if token_budget is None:
        token_budget = _tokens_for_products(model, max((e for group in groups for e in group), key=len))
    losses = []
    for group in groups:
        scale = 1.0 / (len(groups) * sum(len(e.answer_ids) for e in group))
        for indices in cut_by_length([len(e) for e in group], token_budget):
            batch = collate([group[i] for i in indices], pad_id(model.tokenizer)).to(model.device)
            losses.append(_loss(model, batch, scale))
    return losses


def _tokens_for_products(model: LoraModel, example: EncodedExample) -> int:
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.peft.parameters()}
    held: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a saved output that is not detached would keep itself alive

    loss = _loss(model, collate([example], pad_id(model.tokenizer)).to(model.device), 1.0)
    leaves = {name: tensor.requires_grad_(True) for name, tensor in model.point().items()}
    saving = torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor)
    with torch.enable_grad(), saving, sdpa_kernel(SDPBackend.MATH):  # as `HessianOperator` does it
        graph = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    del graph  # until here all of it was alive, so that no storage took the place of another
    most = max(GRAPH_BYTES, sum(weights.values()))
    return min(TOKEN_BUDGET, len(example) * most // sum(held.values()))


def _loss(model: LoraModel, batch: Batch, scale: float) -> Callable[[Mapping[str, Tensor]], Tensor]:
    def loss_at(point: Mapping[str, Tensor]) -> Tensor:
        with model.without_dropout():
            return model.forward_at(point, batch).nll.sum() * scale

    return loss_at
