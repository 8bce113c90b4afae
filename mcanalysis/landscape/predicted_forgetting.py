"""What the curvature of an old task's loss predicts of its forgetting when the point moves on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from mcanalysis.errors import UserError
from mcanalysis.landscape.hessian import HessianOperator
from mcanalysis.params.lora import is_lora_point, key_a, key_b, module_names, ranks
from mcanalysis.params.point import Point, check_compatible, dot, norm, subtract


@dataclass(frozen=True)
class PredictedForgetting:
    """The terms of a second-order expansion of a loss along Δ, and what the loss really did.

    `first_order` = g·Δ, `second_order` = ½ΔᵀHΔ, `measured` = L(θ + Δ) − L(θ), all in the unit of the loss;
    `distance` = ‖Δ‖; `curvature` = ΔᵀHΔ/‖Δ‖², which lies between the smallest and the largest eigenvalue (0 for Δ = 0).
    """

    first_order: float
    second_order: float
    measured: float
    distance: float
    curvature: float

    @property
    def predicted(self) -> float:
        """g·Δ + ½ΔᵀHΔ."""
        return self.first_order + self.second_order


def predicted_forgetting(old_loss: HessianOperator, end: Mapping[str, Tensor]) -> PredictedForgetting:
    """Expand the loss of an old task at the minimum before a transition, and compare with its loss after it.

    With Δ = end − point the increase of the loss is g·Δ + ½ΔᵀHΔ to second order (Mirzadeh et al. 2020, arXiv
    2006.06958, §3, who drop g·Δ since their point is a minimum of the loss; on a test split it is not). One gradient,
    one product, two evaluations. Exact for a quadratic loss; where ‖Δ‖ is large it is no approximation, which is what
    comparing the two shows. Buffers (running statistics) are no coordinates: the expansion holds them, while the
    measured loss is that of the end with its own.

    Args:
        old_loss: the Hessian of the old task's loss at the point before the transition.
        end: the point after it, of the same names and shapes (`same_ranks` makes adapters of different ranks so).

    Raises:
        PointMismatchError: if the points differ in names or shapes.
        UserError: if `old_loss` is no Hessian.

    >>> import torch
    >>> old = HessianOperator(lambda p: 2 * p["w"].square().sum(), {"w": torch.zeros(1)})
    >>> predicted_forgetting(old, {"w": torch.tensor([3.0])})
    PredictedForgetting(first_order=0.0, second_order=18.0, measured=18.0, distance=3.0, curvature=4.0)
    """
    if not isinstance(old_loss, HessianOperator):
        raise UserError(
            f"Expected the Hessian of the old task's loss, got {type(old_loss).__name__}; pass "
            "mc.HessianOperator(loss, point)."
        )
    start = old_loss.point
    check_compatible(start, end, remedy="pass adapters of different ranks through same_ranks first")
    step = {name: tensor for name, tensor in subtract(end, start).items() if name in old_loss.coordinates}
    length = norm(step)
    form = dot(step, old_loss.product(step))
    return PredictedForgetting(
        first_order=dot(old_loss.gradient(), step),
        second_order=form / 2,
        measured=old_loss.loss(end) - old_loss.loss(),
        distance=length,
        curvature=form / length**2 if length else 0.0,
    )


def same_ranks(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> tuple[Point, Point]:
    """Return two adapters with the smaller one's factors filled up with zeros to the rank of the other.

    Exact: rows of zeros in A and columns of zeros in B leave ΔW as it is. It is how O-LoRA and InfLoRA grow: their
    minimum t is minimum t−1 with new rows and columns behind. At such a start A and B of the new part are both 0, so
    the gradient there is 0 and ½ΔᵀHΔ is the first-order effect of the new ΔW on the loss. Points of equal ranks, and
    points that are no adapters, come back as they are.

    Raises:
        PointMismatchError: if the adapted modules differ.

    >>> import torch
    >>> small = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.ones(2, 1)}
    >>> large = {"q.lora_A.weight": torch.ones(3, 2), "q.lora_B.weight": torch.ones(2, 3)}
    >>> same_ranks(small, large)[0]["q.lora_A.weight"].shape
    torch.Size([3, 2])
    """
    if not (is_lora_point(start) and is_lora_point(end)) or set(start) != set(end) or ranks(start) == ranks(end):
        check_compatible(start, end, remedy="use two adapters of one base and one set of target modules")
        return dict(start), dict(end)
    filled: tuple[Point, Point] = (dict(start), dict(end))
    for module in module_names(start):
        rank = max(point[key_a(module)].shape[0] for point in (start, end))
        for point in filled:
            missing = rank - point[key_a(module)].shape[0]
            point[key_a(module)] = pad(point[key_a(module)], (0, 0, 0, missing))
            point[key_b(module)] = pad(point[key_b(module)], (0, missing))
    return filled
