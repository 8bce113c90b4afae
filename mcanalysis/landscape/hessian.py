"""The Hessian of a loss at a point as a linear operator: products only, never the matrix."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mcanalysis.connectivity.losses import check_tensor, held_names, refuse_draws, value_at
from mcanalysis.connectivity.network import Network, forward_pass
from mcanalysis.connectivity.objective_result import loss_of
from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, check_compatible, check_point, flatten, unflatten, working_dtype

BatchLoss = Callable[[Mapping[str, Tensor]], Tensor]
MEMORY_BUDGET = 2**30  # bytes of kept graphs


class HessianOperator(LinearOperator):
    """The Hessian at a point of a loss that is the sum of `losses`, as a symmetric SciPy `LinearOperator`.

    Coordinates are all entries of all tensors of the point, in the order of `params.flatten`. For a plain network that
    is its parameters by name. For LoRA it is the factors A and B of each adapted module, the scaling multiplied into
    B, and the base is fixed: this is curvature in adapter space, and since (BR, R⁻¹A) is the same adapter for every
    invertible R, it is that of these factors and not of ΔW alone.

    A product is Pearlmutter's (1994): the gradient of ⟨gradient, vector⟩, part by part, so that memory is bounded by
    the largest part; parts are summed in float64. Graphs of the gradient are kept for the next product if those of half
    of the parts or more fit in `memory_budget`, which saves two of a product's four passes for each of them. Attention
    runs on the math kernel, because the fused ones cannot be differentiated twice.

    Args:
        losses: what `module_objective` makes, or differentiable functions of a point, each returning one number, or one
            such function. Each must return the same number whenever it is called: no dropout, no random draw.
            `Run.batch_losses` and `module_losses`, of this module (`mcanalysis.landscape.hessian`), make them such that
            their sum is the mean over a data set, however that is cut into batches.
        point: where; copied, float32 at least. Buffers of the module, such as running statistics, are held: they are no
            coordinates, `coordinates` names what is. With float64 tensors products are exact to about 1e-12.
        memory_budget: bytes that kept graphs may take; 0 keeps none.

    `num_coordinates` is the side of the matrix, `num_products` counts the products so far.

    Raises:
        UserError: for no losses, one that draws minibatches, a point that is none, and, when it is used, for a loss
            that is not one number, does not depend on the point, or is not finite there (also its derivatives).

    >>> hessian = HessianOperator(lambda p: 2 * p["w"][0] ** 2 + p["w"][0] * p["w"][1], {"w": torch.ones(2)})
    >>> hessian @ np.array([1.0, 0.0])
    array([4., 1.])
    """

    def __init__(
        self, losses: BatchLoss | Iterable[BatchLoss], point: Mapping[str, Tensor], memory_budget: int = MEMORY_BUDGET
    ) -> None:
        check_point(point)
        parts: Any = getattr(losses, "batch_losses", None)
        if callable(parts):
            fixed, losses = held_names(losses), parts()  # pyright: ignore
        else:
            fixed = frozenset()
        self.losses: list[BatchLoss] = [losses] if callable(losses) else list(losses)  # type: ignore
        if not self.losses:
            raise UserError("Expected at least one loss, got none; pass one function per batch.")
        for loss in self.losses:
            refuse_draws(loss)
        fixed = fixed.union(*(held_names(loss) for loss in self.losses))
        names = sorted(point)
        copied = {name: point[name].detach().to(working_dtype([point[name]]), copy=True) for name in names}
        self._fixed = {name: tensor for name, tensor in copied.items() if name in fixed}
        self._leaves = {name: tensor.requires_grad_(True) for name, tensor in copied.items() if name not in fixed}
        if not self._leaves:
            raise UserError("Expected a point with parameters, got buffers only; take it with mc.snapshot(module).")
        self._left = memory_budget
        self._kept: dict[int, list[Tensor | None]] = {}
        self._stored: set[int] = set()
        self.num_coordinates = sum(tensor.numel() for tensor in self._leaves.values())
        self.num_products = 0
        super().__init__(np.dtype(np.float64), (self.num_coordinates, self.num_coordinates))

    @property
    def point(self) -> Point:
        """A copy of the point at which the Hessian is taken, buffers included."""
        return {name: tensor.detach().clone() for name, tensor in (self._leaves | self._fixed).items()}

    @property
    def coordinates(self) -> list[str]:
        """The names of the tensors whose entries are the coordinates: those of the point that are no buffers."""
        return list(self._leaves)

    def loss(self, point: Mapping[str, Tensor] | None = None) -> float:
        """The loss at the operator's point, or at another one of the same names and shapes.

        >>> HessianOperator(lambda p: p["w"].sum(), {"w": torch.ones(2)}).loss()
        2.0
        """
        here = self._leaves | self._fixed
        if point is not None:
            check_compatible(here, point)
        total = 0.0
        with torch.no_grad():
            for number in range(len(self.losses)):
                total += float(self._loss(number, here if point is None else point))
        return total

    def gradient(self) -> Point:
        """The gradient of the loss at the point, with the names and shapes of its `coordinates`: buffers are left out.

        >>> HessianOperator(lambda p: p["w"].square().sum(), {"w": torch.ones(2)}).gradient()
        {'w': tensor([2., 2.])}
        """
        total = np.zeros(self.num_coordinates)
        for number in range(len(self.losses)):
            kept = self._kept.get(number)
            total += self._flat(self._gradient(number, create_graph=False) if kept is None else kept, number)
        return self.as_point(total)

    def product(self, direction: Mapping[str, Tensor]) -> Point:
        """The Hessian times a direction, both with the names and shapes of the point's `coordinates`, without buffers.

        >>> hessian = HessianOperator(lambda p: p["w"].square().sum(), {"w": torch.ones(2)})
        >>> hessian.product({"w": torch.tensor([1.0, 3.0])})
        {'w': tensor([2., 6.])}
        """
        check_compatible(self._leaves, direction)
        return self.as_point(self._matvec(flatten(direction).detach().cpu().double().numpy()))

    def as_point(self, vector: NDArray[np.floating]) -> Point:
        """The point whose coordinates are `vector`, shape (num_coordinates,): an eigenvector, say.

        >>> HessianOperator(lambda p: p["w"].sum(), {"w": torch.ones(2)}).as_point(np.array([1.0, 2.0]))
        {'w': tensor([1., 2.])}
        """
        pieces = unflatten(torch.from_numpy(np.array(vector, dtype=np.float64)), self._leaves)
        return {name: piece.to(self._leaves[name].dtype) for name, piece in pieces.items()}

    def dot(self, x: Any) -> Any:
        """Return H @ x for a vector (num_coordinates,) or columns of such; raises `UserError` for another length."""
        if isinstance(x, Mapping):
            raise UserError("Expected a vector of coordinates, got a point; use product(direction) for points.")
        if (shape := np.shape(x)) and shape[0] != self.num_coordinates:
            raise UserError(
                f"Expected vectors of {self.num_coordinates} coordinates, got shape {shape}; order them as "
                "params.flatten does, or use product(direction) for points."
            )
        return super().dot(x)

    def _matvec(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        vector = self.as_point(np.asarray(x).reshape(-1))
        total = np.zeros(self.num_coordinates)
        for number in range(len(self.losses)):
            kept = self._kept.get(number)
            gradient = self._keep(number) if kept is None else kept
            total += self._flat(self._contract(gradient, vector, number in self._kept), number)
        self.num_products += 1
        return total

    def _adjoint(self) -> HessianOperator:
        return self

    def _loss(self, number: int, point: Mapping[str, Tensor]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH), _plain_weight_norm():
            loss = loss_of(value_at(self.losses[number], point))
        check_tensor(loss)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise UserError(
                "Expected losses that can be differentiated with respect to the point, got one that does not depend on "
                "it; compute with the tensors of the point that is handed in."
            )
        self._check_finite(loss, "loss", number)
        return loss.reshape(())

    @torch.enable_grad()
    def _gradient(self, number: int, create_graph: bool) -> list[Tensor | None]:
        if torch.is_inference_mode_enabled():
            raise UserError(
                "Expected gradients to be enabled, got torch.inference_mode(); use the Hessian outside of it."
            )
        loss = self._loss(number, self._leaves | self._fixed)
        inputs = list(self._leaves.values())
        return list(torch.autograd.grad(loss, inputs, create_graph=create_graph, allow_unused=True))

    def _keep(self, number: int) -> list[Tensor | None]:
        """The gradient of one part with its graph, which is kept for later products if there is room.

        Of a few parts among many it would take memory and save next to nothing, so there must be room for half of them,
        going by the size of this one.
        """
        if self._left <= 0:
            return self._gradient(number, create_graph=True)
        with _stored_bytes(self._stored) as size:
            gradient = self._gradient(number, create_graph=True)
        others = len(self.losses) // 2 - len(self._kept) - 1
        if size[0] * (1 + max(others, 0)) > self._left:
            self._left = 0
        else:
            self._left -= size[0]
            self._kept[number] = gradient
        return gradient

    def _contract(self, gradient: Sequence[Tensor | None], vector: Point, retain: bool) -> Sequence[Tensor | None]:
        pairs = [(g, vector[n]) for n, g in zip(self._leaves, gradient, strict=True) if g is not None and g.grad_fn]
        if not pairs:  # linear in the point
            return [None] * len(self._leaves)
        outputs, directions = zip(*pairs, strict=True)
        inputs = list(self._leaves.values())
        return torch.autograd.grad(outputs, inputs, directions, retain_graph=retain, allow_unused=True)

    def _flat(self, pieces: Sequence[Tensor | None], number: int) -> NDArray[np.float64]:
        filled = {
            name: torch.zeros_like(leaf) if piece is None else piece.detach()
            for (name, leaf), piece in zip(self._leaves.items(), pieces, strict=True)
        }
        flat = flatten(filled)
        self._check_finite(flat, "derivative of the loss", number)
        return flat.cpu().double().numpy()

    def _check_finite(self, values: Tensor, what: str, number: int) -> None:
        if not torch.isfinite(values).all():
            raise UserError(
                f"Expected a finite {what}, got NaN or infinity in part {number + 1} of {len(self.losses)}; choose "
                "another point, or compute in a wider dtype."
            )


@contextmanager
def _plain_weight_norm() -> Iterator[None]:
    """Weight normalisation by plain operations: the second derivative of torch's fused one is wrong (2.13)."""

    def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
        return v * (g / torch.norm_except_dim(v, 2, dim))

    older = sys.modules["torch.nn.utils.weight_norm"]  # as an attribute of its package it is the function of that name
    with patch.object(torch, "_weight_norm", weight_norm), patch.object(older, "_weight_norm", weight_norm):
        yield


@contextmanager
def _stored_bytes(seen: set[int]) -> Iterator[list[int]]:
    """Count the bytes of storages that autograd saves inside, those in `seen` left out; `seen` grows by them."""
    size = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            size[0] += storage.nbytes()
        return tensor.detach()  # a saved output that is not detached would keep itself alive

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield size


def module_losses(
    module: nn.Module, loss: Callable[[Any, Any], Tensor], batches: Iterable[tuple[Any, Any]]
) -> list[BatchLoss]:
    """Make the losses of a plain network for `HessianOperator`: their sum is the mean over all examples.

    The module computes in evaluation mode and is left as it was; the point may hold some of its parameters only, and
    buffers, which have no curvature. Running statistics that the point lacks are the module's own, which is warned of.

    Args:
        module: any network.
        loss: `loss(module(inputs), targets)`, the mean over the examples of a batch, each with the same weight: of one
            that leaves some out (`ignore_index`) the mean depends on the cut; take `mc.module_objective` then.
        batches: (inputs, targets), the first dimension of the targets counting examples.

    Raises `UserError` where there is no example, and `PointMismatchError`, when used, for a point of another network.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> data = [(torch.ones(3, 1), torch.zeros(3, 1)), (2 * torch.ones(1, 1), torch.zeros(1, 1))]
    >>> HessianOperator(module_losses(net, nn.functional.mse_loss, data), {"weight": net.weight}) @ np.ones(1)
    array([3.5])
    """
    kept = list(batches)
    for batch in kept:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not np.ndim(batch[1]):
            raise UserError(
                f"Expected batches that are pairs (inputs, targets), one target per example, got a "
                f"{type(batch).__name__}; make a list of such pairs, or use mc.module_objective, which takes any batch."
            )
    sizes = [len(targets) for _, targets in kept]
    total = sum(sizes)
    if total == 0:
        raise UserError("Expected at least one example in the batches, got none; pass (inputs, targets) pairs.")

    network = Network(module)
    parts = zip(kept, sizes, strict=True)
    return [_BatchMean(network, loss, batch, size / total) for batch, size in parts if size]


@dataclass(frozen=True, eq=False)
class _BatchMean:
    """The share of one batch in the mean loss of a network."""

    network: Network
    loss: Callable[[Any, Any], Tensor]
    batch: tuple[Any, Any]
    share: float

    @property
    def held_names(self) -> frozenset[str]:
        return self.network.held_names

    def __call__(self, point: Mapping[str, Tensor]) -> Tensor:
        inputs, targets = self.batch
        return self.loss(self.network.at(point)(forward_pass, inputs), targets) * self.share
