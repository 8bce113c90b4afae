"""The output layer at chosen places: how likely tokens are there, without the logits of all places at once.

In a small model with a large vocabulary the output layer is half of the work, and answers are a fraction of a batch: it
sees only the hidden states that predict a token which is asked for. Where even their logits are many (whole texts,
50,000 columns), they are made a few rows at a time and forgotten, in the backward pass and in that of a Hessian product
too, where autograd would keep several copies.

`torch.nn.functional.linear_cross_entropy` (torch 2.13), liger-kernel and cut-cross-entropy do this for training; the
first says that it has no second derivative, the others are kernels for GPUs that define a first one only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from mcanalysis.models.causal_lm import causal_lm

MOST_LOGITS = 2**23  # at once: 32 MiB in float32
FEWEST_ROWS = 128  # at once, however many columns there are: fewer would read the weights too often


class Predictions(ABC):
    """What a pass predicts at its places; all of it is computed from `source`."""

    source: Tensor

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Shape (places, vocabulary), float32 at least."""

    @abstractmethod
    def losses(self, targets: Tensor) -> Tensor:
        """−log p, in nats, of one token per place, shape (places,); can be differentiated twice."""

    @abstractmethod
    def losses_and_greedy(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses without a graph, and the most likely token of each place, shape (places,)."""


@dataclass(frozen=True)
class _AtOnce(Predictions):
    """All logits, as the pass has made them."""

    source: Tensor

    @property
    def logits(self) -> Tensor:
        return _wide(self.source)

    def losses(self, targets: Tensor) -> Tensor:
        return cross_entropy(self.logits, targets, reduction="none")

    def losses_and_greedy(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.losses(targets), self.logits.argmax(-1)


@dataclass(frozen=True)
class _PartByPart(Predictions):
    """Hidden states, and the layer that makes logits of them, a few rows at a time; all of them where asked for."""

    source: Tensor
    layer: nn.Linear

    @property
    def logits(self) -> Tensor:
        return _wide(self.layer(self.source))

    def losses(self, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.source.requires_grad:
            losses, _ = _Losses.apply(self.source, self.layer.weight, self.layer.bias, targets)  # type: ignore[misc]
            return losses
        return self.losses_and_greedy(targets)[0]

    def losses_and_greedy(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for hidden, of_rows in zip(*_parts(self.layer.weight, self.source, targets), strict=True):
            part = _AtOnce(self.layer(hidden))
            found.append(part.losses_and_greedy(of_rows))
            del part  # before the next one is made
        losses, greedy = zip(*found, strict=True)
        return torch.cat(losses), torch.cat(greedy)


def predictions(model: nn.Module, call: Callable[[], Any], rows: Tensor, columns: Tensor) -> tuple[Any, Predictions]:
    """Make one pass through a model; returns its output, and what it predicts at these rows and columns.

    The columns are counted from the end (negative). The output's own logits are those of these places, or of none.
    """
    layer = getattr(causal_lm(model), "get_output_embeddings", lambda: None)()
    if layer is None:
        output = call()
        return output, _AtOnce(output.logits[rows, columns])
    later = _can_wait(model, layer, len(rows))
    seen: list[Tensor] = []

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        device = inputs[0].device  # the last layers may be on another one than the batch
        seen.append(inputs[0][rows.to(device), columns.to(device)])
        return (seen[0][:0] if later else seen[0],)

    hook = layer.register_forward_pre_hook(choose)
    try:
        output = call()
    finally:
        hook.remove()
    return output, _PartByPart(seen[0], layer) if later else _AtOnce(output.logits)


def _can_wait(model: nn.Module, layer: nn.Module, num_rows: int) -> bool:
    """Whether logits are many, and nothing but a plain layer's product, which can be made anew after the pass.

    Not so where engines hold a part of the weights each (FSDP, ZeRO), move them about, or share them out to several
    devices (accelerate), or where they are trained.
    """
    if type(layer) is not nn.Linear or hasattr(layer, "_hf_hook") or num_rows <= _rows_at_once(layer.weight):
        return False
    weight = layer.weight
    is_whole = weight.shape == (layer.out_features, layer.in_features) and not hasattr(weight, "device_mesh")
    if not is_whole or weight.requires_grad or weight.device.type == "meta" or not weight.is_floating_point():
        return False
    if torch.is_autocast_enabled(weight.device.type):
        return False
    causal = causal_lm(model)
    if causal not in _unchanged:
        _unchanged[causal] = _gives_logits_unchanged(causal, layer)
    return _unchanged[causal]


_unchanged: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@torch.no_grad()
def _gives_logits_unchanged(causal: nn.Module, layer: nn.Linear) -> bool:
    """Whether a model's logits are its output layer's own: Gemma 2 bends them, Cohere and Granite scale them.

    Asked of the model itself, its decoder replaced by zeros, so that no layer is run and nothing is drawn.
    """
    decoder = getattr(causal, getattr(causal, "base_model_prefix", "") or "", None)
    if not isinstance(decoder, nn.Module):
        return False
    zeros: Any = layer.weight.new_zeros(1, 1, layer.in_features)
    given = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=zeros)
    made: list[Any] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: made.append(output))
    try:
        with _forward_of(decoder, lambda *_, **__: given):
            output = causal(input_ids=torch.zeros(1, 1, dtype=torch.long, device=zeros.device), use_cache=False)
        return len(made) == 1 and output.logits is made[0]
    except Exception:  # a decoder that gives something else to its model: its logits are made as they come
        return False
    finally:
        hook.remove()


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(module).get("forward")  # of the object; mostly there is its class's only
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _rows_at_once(weight: Tensor) -> int:
    return max(FEWEST_ROWS, MOST_LOGITS // weight.shape[0])


def _parts(weight: Tensor, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor cut into as many rows as are taken at once."""
    return [tensor.split(_rows_at_once(weight)) for tensor in tensors]


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_probabilities(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _wide(linear(hidden, weight, bias)).log_softmax(-1)


class _Losses(torch.autograd.Function):
    """L = −log p(target) per row, p = softmax(W·h + b); its slope Wᵀ(p − 1_target), (rows, width), is made with it."""

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, slopes = [], torch.empty_like(hidden)
        parts = _parts(weight, hidden, targets, slopes)
        for rows, of_rows, slope in zip(*parts, strict=True):
            p = _log_probabilities(rows, weight, bias)
            at = of_rows[:, None]
            losses.append(-p.gather(1, at)[:, 0])
            p.exp_().scatter_add_(1, at, p.new_full(at.shape, -1.0))
            torch.mm(p.to(weight.dtype), weight, out=slope)
            del p
        return torch.cat(losses), slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        hidden, weight, bias, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(hidden, weight, bias, output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        hidden, weight, bias, slopes = ctx.saved_tensors
        factors = upstream[0].to(hidden.dtype)[:, None]
        return factors * _Slopes.apply(hidden, weight, bias, slopes), None, None, None


class _Slopes(torch.autograd.Function):
    """The slopes that `_Losses` has made, as a function of the hidden states; its own slope is Wᵀ(diag p − p·pᵀ)W."""

    @staticmethod
    def forward(hidden: Tensor, weight: Tensor, bias: Tensor | None, slopes: Tensor) -> Tensor:
        return slopes.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias = ctx.saved_tensors
        result = torch.empty_like(hidden)
        parts = _parts(weight, hidden, upstream.contiguous(), result)
        for rows, direction, product in zip(*parts, strict=True):
            p = _log_probabilities(rows, weight, bias).exp_()
            change = _wide(linear(direction, weight))
            mean = torch.einsum("rv,rv->r", p, change)[:, None]
            change.sub_(mean).mul_(p)
            del p
            torch.mm(change.to(weight.dtype), weight, out=product)
            del change
        return result, None, None, None
