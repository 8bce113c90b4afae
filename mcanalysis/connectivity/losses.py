"""Losses for curve fitting made of others: several objectives at once, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mcanalysis.connectivity.objective_result import loss_of
from mcanalysis.errors import UserError

Loss = Callable[[Mapping[str, Tensor]], Tensor | Iterator[Tensor]]


class WeightedSum:
    """Σ wᵢ·lossᵢ(θ), for `fit_curve`: a curve on which several objectives stay good.

    What it gives at a point are the terms of that sum, so that the activations of one are held at a time.

    Args:
        losses: differentiable functions of a point that return one number each, or an iterator of terms.
        weights: one per loss, non-negative, not all zero; by default all equal, summing to one.

    Raises:
        UserError: for no loss, or weights that do not fit.

    >>> import torch
    >>> both = WeightedSum([lambda p: (p["w"] ** 2).sum(), lambda p: p["w"].sum()], weights=[1.0, 3.0])
    >>> sum(both({"w": torch.tensor([2.0])}))
    tensor(10.)
    """

    def __init__(self, losses: Sequence[Loss], weights: Sequence[float] | None = None) -> None:
        self.losses = tuple(losses)
        if not self.losses:
            raise UserError("Expected at least one loss to sum, got none; pass a list of functions of a point.")
        self.weights = (1.0 / len(self.losses),) * len(self.losses) if weights is None else tuple(map(float, weights))
        fits = len(self.weights) == len(self.losses) and all(math.isfinite(w) and w >= 0 for w in self.weights)
        if not fits or sum(self.weights) == 0:
            raise UserError(
                f"Expected {len(self.losses)} non-negative weights, one per loss and not all zero, got "
                f"{list(self.weights)}; correct them."
            )

    def __call__(self, point: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """The terms of the weighted sum at a point, one after the other; a loss of weight 0 is not computed."""
        for weight, loss in zip(self.weights, self.losses, strict=True):
            if weight > 0:
                for term in terms_of(loss, point):
                    yield weight * term

    @property
    def held_names(self) -> frozenset[str]:
        """The names of tensors that one of the losses does not train."""
        return frozenset().union(*(held_names(loss) for loss in self.losses))

    def random_state(self) -> list[Any]:
        """The states of those losses that have one, None for the others."""
        return [loss_state(loss) for loss in self.losses]

    def set_random_state(self, state: Sequence[Any]) -> None:
        """Give each loss its state back."""
        for loss, own in zip(self.losses, state, strict=True):
            restore_loss(loss, own)


def terms_of(loss: Any, point: Mapping[str, Tensor]) -> Iterator[Any]:
    """Return the terms of a loss at a point: what its `terms` yields, what it yields itself, or its one value.

    Something with a `loss`, as an objective gives it, counts as that loss.

    >>> import torch
    >>> list(terms_of(lambda point: {"loss": point["w"].sum()}, {"w": torch.ones(2)}))
    [tensor(2.)]
    """
    own = getattr(loss, "terms", None)
    value = own(point) if callable(own) else value_at(loss, point)
    return value if isinstance(value, Iterator) else iter((loss_of(value),))


def check_tensor(value: Any) -> None:
    """Raise `UserError` unless a loss, or a term of one, is a tensor with one number, as derivatives need it.

    >>> import torch
    >>> check_tensor(torch.tensor(1.0))
    """
    if not isinstance(value, Tensor):
        raise UserError(
            f"Expected the loss to be a tensor with one number, got a {type(value).__name__}, which has no gradient, "
            "as run.objective and mc.adapter_objective give it; return the tensor that the loss is computed as, or of "
            "a run take run.loss for fit_curve, run.batch_losses for HessianOperator, run.whole_loss([tasks]) else."
        )
    if value.numel() != 1:
        raise UserError(
            f"Expected the loss to be a tensor with one number, got shape {tuple(value.shape)}; return its mean."
        )


def value_at(loss: Callable[[Mapping[str, Tensor]], Any], point: Mapping[str, Tensor]) -> Any:
    """Return loss(point); raises `UserError` where it would have to be differentiated by running statistics.

    >>> value_at(len, {})
    0
    """
    try:
        return loss(point)
    except RuntimeError as error:
        if "not differentiable with respect to argument 'running_" not in str(error):
            raise
        raise UserError(
            "Expected a loss that can be differentiated by every tensor of the point, got running statistics of "
            "BatchNorm among them; make the loss with mc.module_objective, which holds buffers."
        ) from None


def held_names(loss: Any) -> frozenset[str]:
    """Return the names of a point's tensors that a loss only reads, such as running statistics; none by default.

    >>> held_names(len)
    frozenset()
    """
    return frozenset(getattr(loss, "held_names", ()))


def refuse_draws(loss: object) -> None:
    """Raise `UserError` for a loss that draws a minibatch at each call, where one fixed number per point is needed.

    >>> refuse_draws(len)
    """
    if _draws(loss_state(loss)):
        raise UserError(
            "Expected an objective that gives the same number whenever it is asked, got one that draws examples at "
            "each call (it has random_state and set_random_state), which is for fit_curve; of a run take "
            "run.objective(task) for values, run.batch_losses(tasks) for HessianOperator, run.whole_loss([tasks]) else."
        )


def _draws(state: Any) -> bool:
    """Whether a state is one; a `WeightedSum` has a list of those of its losses, None where a loss draws nothing."""
    return any(map(_draws, state)) if isinstance(state, list) else state is not None


def loss_state(loss: object) -> Any:
    """The state of a loss that has one, which it can also be given (`set_random_state`), or None.

    >>> loss_state(len) is None
    True
    """
    read, write = (getattr(loss, name, None) for name in ("random_state", "set_random_state"))
    return read() if callable(read) and callable(write) and not isinstance(loss, type) else None


def restore_loss(loss: object, state: Any) -> None:
    """Set a loss to a state that `loss_state` gave; nothing for None.

    >>> restore_loss(len, None)
    """
    write = getattr(loss, "set_random_state", None)
    if state is not None and callable(write):
        write(state)
