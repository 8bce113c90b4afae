"""An objective for any network: one function of a point for profiles, curve fitting, curvature and ensembles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcanalysis.connectivity.network import Batches, Network, forward_pass
from mcanalysis.errors import UserError
from mcanalysis.params.point import snapshot

PerExampleFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class ModuleMeasurement:
    """What a network does at a point: `nll` (n,), float64, the losses of the examples, and `targets` (n,), all 1.

    `loss` is their mean: a number, or a differentiable tensor where the point requires a gradient. `scores` (n,),
    float64, and their mean `score` are None where the objective has no score.
    """

    nll: NDArray[np.float64] = field(repr=False)
    targets: NDArray[np.float64] = field(repr=False)
    loss: Any
    scores: NDArray[np.float64] | None = field(default=None, repr=False)
    score: float | None = None


class ModuleObjective:
    """What `module_objective` returns."""

    def __init__(
        self,
        module: nn.Module,
        loss: PerExampleFunction,
        batches: Iterable[Any],
        score: PerExampleFunction | None = None,
        recalibrate: Iterable[Any] | None = None,
    ) -> None:
        for name, function in (("loss", loss), ("score", score)):
            if not callable(function) and not (name == "score" and function is None):
                raise UserError(
                    f"Expected {name} to be a function of a module and a batch, got {type(function).__name__}; write "
                    f"lambda net, batch: … with one value per example."
                )
        self._network = Network(module, loss, recalibrate)
        self._loss = loss
        self._score = score
        self._batches = Batches(batches, "batches")
        self._num_examples = 0
        self._is_settled = False

    @property
    def held_names(self) -> frozenset[str]:
        """The names of the module's buffers: a point may hold them, but they are not trained and have no curvature."""
        return self._network.held_names

    def __call__(self, point: Mapping[str, Tensor]) -> ModuleMeasurement:
        """Measure at a point; raises `UserError` where a loss or score is not one value per example."""
        call = self._network.at(point)
        losses, scores = [], []
        for batch in self._batches:
            losses.append(_per_example(call(self._loss, batch), "loss"))
            self._settle(call, batch, losses[-1])
            if self._score is not None:
                scores.append(_per_example(call(self._score, batch), "score").detach().cpu().double())
                if len(scores[-1]) != len(losses[-1]):
                    raise UserError(
                        f"Expected as many scores as losses, got {len(scores[-1])} and {len(losses[-1])} in a batch; "
                        "return one value per example from both."
                    )
        values = torch.cat([own.to(losses[0].device) for own in losses])
        self._num_examples = len(values)
        nll = values.detach().cpu().double().numpy()
        loss = _wide(values).mean() if values.requires_grad else float(nll.mean())
        measured = ModuleMeasurement(nll, np.ones_like(nll), loss)
        if self._score is None:
            return measured
        of_all = torch.cat(scores).numpy()
        return ModuleMeasurement(nll, measured.targets, loss, of_all, float(of_all.mean()))

    def terms(self, point: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield differentiable terms whose sum is the loss: one batch's activations are held at a time.

        With `recalibrate` it is one term, because the statistics are a function of the point that all batches share.
        """
        total = self._count()
        if self._network.recalibrates:
            loss = self(point).loss
            yield loss if isinstance(loss, Tensor) else torch.tensor(loss, dtype=torch.float64)
            return
        call = self._network.at(point)
        for batch in self._batches:
            yield _wide(_per_example(call(self._loss, batch), "loss")).sum() / total

    def batch_losses(self) -> list[Callable[[Mapping[str, Tensor]], Tensor]]:
        """Functions of a point whose sum is the loss, as `HessianOperator` takes them, one per batch.

        The batches are then held in memory. With `recalibrate` it is one function, as with `terms`.
        """
        if self._network.recalibrates:
            return [lambda point: sum(self.terms(point), torch.zeros(()))]
        total = self._count()

        def make(batch: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
            return lambda point: _wide(_per_example(self._network.at(point)(self._loss, batch), "loss")).sum() / total

        return [make(batch) for batch in list(self._batches)]

    def predict(self, point: Mapping[str, Tensor], inputs: Any) -> Tensor:
        """The module's output for some inputs at a point, without a gradient: for `ensemble_along`."""
        with torch.no_grad():
            return self._network.at(point)(forward_pass, inputs)

    def _count(self) -> int:
        if not self._num_examples:
            module = self._network.module
            with torch.no_grad():
                call = Network(module).at(snapshot(module))
                number = 0
                for batch in self._batches:
                    losses = _per_example(call(self._loss, batch), "loss")
                    self._settle(call, batch, losses)
                    number += len(losses)
                self._num_examples = number
        return self._num_examples

    def _settle(self, call: Any, batch: Any, losses: Tensor) -> None:
        """Compute the first batch of all a second time, as a module may change from call to call."""
        if not self._is_settled:
            _check_repeats(losses, call(self._loss, batch))
            self._is_settled = True


def _wide(losses: Tensor) -> Tensor:
    """In float32 at least, in which a sum over a batch neither overflows nor loses what a profile shows."""
    return losses.to(torch.promote_types(losses.dtype, torch.float32))


def module_objective(
    module: nn.Module,
    loss: PerExampleFunction,
    batches: Iterable[Any],
    *,
    score: PerExampleFunction | None = None,
    recalibrate: Iterable[Any] | None = None,
) -> ModuleObjective:
    """Return one objective of a network for `profile`, `fit_curve`, `HessianOperator`, and `ensemble_along`.

    Called at a point it gives `nll` (n,), `targets` (n,), `loss`, `scores` (n,) and `score`. The network computes in
    evaluation mode and is left exactly as it was: parameters, buffers, modes, and the global random state. Each batch
    starts from there, and random draws of a forward pass are the same at every point: the value of a batch does not
    depend on what was computed before.

    A point may hold floating-point buffers, as `mcanalysis.snapshot(module)` does: a path then interpolates the running
    statistics of BatchNorm as it does the weights. Where it lacks them the module's own are used at every point, hence
    those of one network for both ends: that is warned of. With `recalibrate` they are estimated anew at every point,
    which is what the literature means by the loss along a path of a network with BatchNorm (`update_bn`, Izmailov et
    al. 2018, arXiv 1803.05407; Garipov et al. 2018, arXiv 1802.10026; REPAIR, Jordan et al. 2022, arXiv 2211.08403).
    Buffers are not trained by `fit_curve` and have no curvature.

    Args:
        module: any network.
        loss: `loss(module, batch)` returns one loss per example, shape (n,), such as `cross_entropy(module(x), y,
            reduction="none")`.
        batches: what `loss` takes one by one: a list, a `DataLoader`, anything that can be gone through again and gives
            the same batches in the same order.
        score: `score(module, batch)` returns one score per example, shape (n,), such as 1 where the answer is right.
        recalibrate: batches of the same form on which the running statistics of BatchNorm are estimated at every
            point: the plain average over batches of the mean and the unbiased variance. None: they are the point's.

    Raises:
        UserError: for batches that can be gone through once only, or `recalibrate` for a module without BatchNorm;
            when called, for values that are not one per example, batches that change, or a point whose running
            variances are below 0, as those far beyond the ends of a path may be, without `recalibrate`.
        PointMismatchError: when called, for a point that does not fit the module.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> squares = module_objective(net, lambda net, batch: (net(batch)[:, 0] - 1) ** 2, [torch.tensor([[1.0], [2.0]])])
    >>> found = squares({"weight": torch.tensor([[2.0]])})
    >>> found.nll.tolist(), found.loss
    ([1.0, 9.0], 5.0)
    """
    return ModuleObjective(module, loss, batches, score, recalibrate)


def _check_repeats(first: Tensor, second: Any) -> None:
    """Refuse a module whose values change from call to call at one point, which a path would show as its own."""
    first, second = (values.detach().cpu().double() for values in (first, second))
    if first.shape != second.shape or not torch.allclose(first, second, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise UserError(
            "Expected the same losses of one batch at one point each time, got others the second time; make the module "
            "keep nothing from call to call in objects of its own, and draw random numbers from torch, NumPy or random."
        )


def _per_example(values: Any, what: str) -> Tensor:
    if not isinstance(values, Tensor) or values.dim() != 1 or not len(values):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        remedy = 'pass reduction="none" to the loss function' if what == "loss" else "compare without a mean"
        if isinstance(values, Tensor) and values.dim() > 1:
            remedy = "take the mean or the sum over the other dimensions, values.flatten(1).mean(1) say"
            if values.dim() == 2 and values.shape[0] == values.shape[1] > 1:
                remedy += "; or, if an output of shape (n, 1) met targets of shape (n,), give both one shape first"
        raise UserError(f"Expected one {what} per example, a tensor of shape (n,), got {got}; {remedy}.")
    if values.is_complex():
        raise UserError(f"Expected real values of the {what}, got {values.dtype}; take their size or real part.")
    return values
