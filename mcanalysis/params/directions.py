"""Random directions from a point, each filter as long as that of the point (Li et al. 2018).

A plain direction moves the weights themselves. For LoRA there are two kinds: one of the factors (`random_direction` of
an adapter; it sees the freedom (B·R, R⁻¹·A), and at a fresh B = 0 moves A only, which changes nothing), and one of ΔW
(`random_delta_direction`), which is what slices use.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, key_b, module_names
from mcanalysis.params.point import Point, random_like


@torch.no_grad()
def random_direction(point: Mapping[str, Tensor], generator: torch.Generator) -> Point:
    """Return a random Gaussian direction, scaled to the point, of the point's names and shapes.

    Filter normalisation and the zeros for biases and normalisation layers are those of Li et al. 2018 (arXiv
    1712.09913): a step of 1 moves each filter by its own length, so that slices of networks of different weight scales
    can be compared. A filter is a row of dimension 0: for a linear layer, what enters one output. Two directions drawn
    one after the other are not made orthogonal, as in the paper: in n dimensions their cosine is about 1/√n.

    Args:
        point: θ, any point.
        generator: numbers are drawn on its device, tensor by tensor in sorted order; a CPU generator gives the same
            direction on every device.

    Returns:
        A point in float32 at least; rows and tensors that are 0 in θ are 0, and so are tensors of at most one dimension
        (biases, scales of normalisation layers).

    Raises:
        UserError: if the direction is 0 everywhere (θ = 0, or nothing but biases).

    >>> theta = {"weight": torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.8]]), "bias": torch.ones(3)}
    >>> direction = random_direction(theta, torch.Generator().manual_seed(0))
    >>> direction["weight"].norm(dim=1), direction["bias"]
    (tensor([5., 0., 1.]), tensor([0., 0., 0.]))
    """
    direction = random_like(point, generator)
    for name, drawn in direction.items():
        if drawn.dim() <= 1:
            drawn.zero_()
        else:
            rows = drawn.flatten(1)  # a view of what was drawn
            like = point[name].reshape(rows.shape).double()
            rows.copy_(rows.double() * _ratio(_row_norms(like), _row_norms(rows.double())))
    if not any(bool(tensor.any()) for tensor in direction.values()):
        raise UserError(
            "Expected a point with weights to move, got a direction of 0 everywhere (θ = 0 there, or all tensors have "
            "at most one dimension); give a point with a weight matrix that is not 0 among what is to move."
        )
    return direction


@torch.no_grad()
def random_delta_direction(point: Mapping[str, Tensor], generator: torch.Generator) -> Point:
    """Return a random low-rank direction D = B_d·A_d of ΔW, each row as long as the matching row of the adapter's ΔW.

    Filter normalisation (Li et al. 2018, arXiv 1712.09913) in ΔW instead of in the factors, which is neither
    independent of (B·R, R⁻¹·A) nor defined at a fresh B = 0. Both factors are standard normal before rows of B_d are
    scaled, so that each row of D points anywhere with equal probability; rows are uncorrelated. Directions are not made
    orthogonal to each other.

    Args:
        point: a LoRA point.
        generator: as in `random_direction`; what is drawn depends on the modules, their sizes and ranks only.

    Returns:
        A LoRA point in float32 at least, of the same modules and ranks, to be added in ΔW (`Slice`, `concatenate`).

    Raises:
        PointMismatchError: if the point is not a LoRA point.
        UserError: if ΔW = 0 in all modules.

    >>> a = {"q.lora_A.weight": torch.tensor([[3.0, 4.0]]), "q.lora_B.weight": torch.tensor([[2.0], [0.0]])}
    >>> d = random_delta_direction(a, torch.Generator().manual_seed(0))
    >>> (d["q.lora_B.weight"] @ d["q.lora_A.weight"]).norm(dim=1).round(decimals=4)
    tensor([10.,  0.])
    """
    modules = module_names(point)
    direction = random_like(point, generator)
    moves = False
    for module in modules:
        lengths = _delta_row_norms(point, module)
        ratio = _ratio(lengths, _delta_row_norms(direction, module))
        direction[key_b(module)].copy_(direction[key_b(module)].double() * ratio)
        moves |= bool(lengths.any())
    if not moves:
        raise UserError(
            "Expected an adapter that changes weights, got ΔW = 0 in all modules (a fresh adapter has B = 0); "
            "take one that has been trained."
        )
    return direction


def _row_norms(rows: Tensor) -> Tensor:
    """Shape (n, 1) for rows of shape (n, k)."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _delta_row_norms(point: Mapping[str, Tensor], module: str) -> Tensor:
    """‖(B·A)ᵢ‖ of each row, shape (out, 1), float64: ‖Bᵢ·Rᵀ‖ where Aᵀ = Q·R."""
    A, B = point[key_a(module)].double(), point[key_b(module)].double()
    return _row_norms(B @ torch.linalg.qr(A.T, mode="r").R.T)


def _ratio(wanted: Tensor, got: Tensor) -> Tensor:
    """wanted / got, and 0 where got is 0."""
    return torch.where(got > 0, wanted / got, 0.0)
