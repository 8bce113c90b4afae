"""Methods that merge models, as maps from their coefficient to a point; all of them act on ΔW = B·A.

Two go from one minimum to the other round the origin (`Slerp`, `Karcher`). The others have a factor λ in front of what
they made of both: t = λ, from the base (t = 0) to the merged adapter itself (t = 1), and no end is a minimum. The mean
of models with weights (a model soup) is no file of its own: it is the straight path in delta space.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import base_point, delta_dot, delta_norm, holds_lora_tensors, key_b, module_names
from mcanalysis.params.merging import dare, magmax, task_arithmetic, ties
from mcanalysis.params.point import Point, combine, working_dtype
from mcanalysis.params.spaces import Space, get_space
from mcanalysis.paths.base import Path, embed_minima
from mcanalysis.paths.linear import Linear

COLLINEAR = 0.9995
"""Of the cosine: tensors that point the same way, or opposite ones, are joined by a straight line, as in mergekit."""


class Merge(Path):
    """A merging method; `spaces` is delta alone: of factors the result would depend on (B·R, R⁻¹·A)."""

    spaces = ("delta",)

    @staticmethod
    def _delta(space: str | Space) -> Space:
        found = get_space(space)
        if found.name != "delta":
            raise UserError(f"Expected space='delta', in which models are merged, got '{found.name}'; leave it out.")
        return found


class _Arc(Merge):
    """c_a(t)·a + c_b(t)·b with numbers of their own for every tensor: for LoRA the ΔW of a module."""

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        space: str | Space = "delta",
        extrapolate: bool = False,
    ) -> None:
        space = self._delta(space)
        anchors = embed_minima([a, b], space)
        super().__init__(anchors, space, extrapolate)
        self._lengths: dict[str, tuple[float, float, float]] = {}  # ‖a‖, ‖b‖ and ⟨a, b⟩ by what moves
        first, last = anchors
        if not holds_lora_tensors(first):
            for name, tensor in first.items():
                x, y = tensor.double().flatten(), last[name].double().flatten()
                self._lengths[name] = (float(x.norm()), float(y.norm()), float(x @ y))
            return
        for module in module_names(first):
            x, y = ({n: p[n] for n in p if n.rpartition(".lora_")[0] == module} for p in (first, last))
            self._lengths[key_b(module)] = (delta_norm(x), delta_norm(y), delta_dot(x, y))

    def _coefficients(self, t: float, lengths: tuple[float, float, float]) -> tuple[float, float]:
        """c_a and c_b at t, from ‖a‖, ‖b‖ and ⟨a, b⟩."""
        raise NotImplementedError

    def weights(self, t: float) -> Tensor:
        """Always raises `UserError`: the numbers differ from tensor to tensor."""
        raise UserError(
            f"Expected a path of fixed anchors, got {self.name}, which weights each tensor by itself; use mc.Linear, "
            "or differences of points."
        )

    def weight_derivatives(self, t: float) -> Tensor:
        """Always raises `UserError`, as `weights` does."""
        return self.weights(t)

    @torch.no_grad()
    def __call__(self, t: float) -> Point:
        """Return the point at t, at t = 0 and t = 1 the first and last anchor bit for bit; raises as any path."""
        t = self._checked(t)
        if t in (0.0, 1.0):
            return combine(self._anchors, [1.0 - t, t])
        point = combine(self._anchors[:1], [1.0])  # of LoRA the A of both, which does not move
        for name, lengths in self._lengths.items():
            x, y = (anchor[name] for anchor in self._anchors)
            first, last = self._coefficients(t, lengths)
            dtype = working_dtype([x, y])
            point[name] = first * x.to(dtype) + last * y.to(dtype)
        return point

    def arc_lengths(
        self, ts: ArrayLike, num: int = 201, space: str | Space | None = None, held: Collection[str] = ()
    ) -> Tensor:
        """Return the length from t = 0 to each t, in ΔW (of plain points in all coordinates); see `Path`."""
        if space is not None and get_space(space).name != "delta":
            raise UserError(f"Expected a length in delta space, got '{get_space(space).name}'; leave the space out.")
        grid, wanted = self._grid(ts, num)
        squares = torch.zeros(len(grid) - 1, dtype=torch.float64)
        for lengths in (own for name, own in self._lengths.items() if name not in held):
            each = [self._coefficients(float(t), lengths) for t in grid]
            x, y = torch.tensor(each, dtype=torch.float64).diff(dim=0).T
            of_a, of_b, product = lengths
            squares += (x * of_a).square() + (y * of_b).square() + 2 * x * y * product
        steps = squares.clamp(min=0.0).sqrt()
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])[torch.searchsorted(grid, wanted)]


class Slerp(_Arc):
    """Spherical linear interpolation: (sin((1−t)Ω)·a + sin(tΩ)·b) / sin Ω, Ω the angle between a and b.

    Each module's ΔW (each tensor of a plain point) has its own angle, as in mergekit; where the cosine is beyond
    ±0.9995 the path is straight, and where one of the two is 0 the angle counts as a right one. mergekit turns whole
    weights, base included, whose angle is next to none; here what training added is turned. t = 0 and t = 1 are the
    minima.

    Args:
        a: the minimum at t = 0.
        b: the minimum at t = 1; ranks and targets of LoRA points may differ.
        space: "delta" and no other.
        extrapolate: whether t may lie outside [0, 1].

    Raises:
        PointMismatchError: if a module or tensor has other dimensions in the two.
        UserError: for another space.

    >>> path = Slerp({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 3.0])})
    >>> round(float(path(0.5)["w"].norm()), 4), round(path.length(), 3)  # a quarter of a circle
    (3.0, 4.712)
    """

    name = "slerp"

    def _coefficients(self, t: float, lengths: tuple[float, float, float]) -> tuple[float, float]:
        return _on_sphere(t, lengths)


class Karcher(_Arc):
    """The Karcher (Riemannian) mean of two with weights 1−t and t: of the directions on the sphere, and of the lengths.

    Of two directions it lies on the great circle through them, at the share t of the angle, so nothing is iterated; the
    length is (1−t)·‖a‖ + t·‖b‖, as in mergekit, whose method is the point t = ½. One angle per module's ΔW (tensor of a
    plain point). Beyond a cosine of ±0.9995, where the circle is not determined or hardly bent, and where one of the
    two is 0, the path is straight. t = 0 and t = 1 are the minima. Arguments and errors as of `Slerp`.

    >>> path = Karcher({"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 5.0])})
    >>> round(float(path(0.5)["w"].norm()), 4)
    4.0
    """

    name = "karcher"

    def _coefficients(self, t: float, lengths: tuple[float, float, float]) -> tuple[float, float]:
        if _is_straight(lengths):
            return 1 - t, t
        first, last = _on_sphere(t, lengths)
        of_a, of_b, _ = lengths
        length = (1 - t) * of_a + t * of_b
        return first * length / of_a, last * length / of_b


def _is_straight(lengths: tuple[float, float, float]) -> bool:
    of_a, of_b, product = lengths
    return of_a * of_b == 0.0 or abs(product / (of_a * of_b)) > COLLINEAR


def _on_sphere(t: float, lengths: tuple[float, float, float]) -> tuple[float, float]:
    """sin((1−t)Ω)/sin Ω and sin(tΩ)/sin Ω; 1−t and t for tensors of one direction, Ω = π/2 beside a tensor of 0."""
    of_a, of_b, product = lengths
    if of_a * of_b == 0.0:
        return math.cos(t * math.pi / 2), math.sin(t * math.pi / 2)
    if _is_straight(lengths):
        return 1 - t, t
    angle = math.acos(product / (of_a * of_b))
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


class _Scaled(Merge, Linear):
    """λ·ΔW of an adapter that a method made of two: t = λ."""

    joins_minima = False

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        space: str | Space = "delta",
        extrapolate: bool = False,
    ) -> None:
        space = self._delta(space)
        merged = {name: tensor.detach() for name, tensor in self._merged([a, b]).items()}
        Path.__init__(self, [base_point(merged), merged], space, extrapolate)

    def _merged(self, minima: Sequence[Mapping[str, Tensor]]) -> Point:
        raise NotImplementedError


class TaskArithmetic(_Scaled):
    """λ·(ΔW_a + ΔW_b) with λ = t (Ilharco et al. 2023, arXiv 2212.04089): the base at 0, the sum at 1, the mean at ½.

    Args:
        a: a LoRA point.
        b: another; ranks and targets may differ.
        space: "delta" and no other.
        extrapolate: whether λ may be below 0 or above 1.

    Raises:
        PointMismatchError: if a point is no LoRA point, or a module has other dimensions in the two.
        UserError: for another space.

    >>> a = {"q.lora_A.weight": torch.tensor([[2.0]]), "q.lora_B.weight": torch.tensor([[3.0]])}
    >>> point = TaskArithmetic(a, a)(0.25)
    >>> point["q.lora_B.weight"] @ point["q.lora_A.weight"]
    tensor([[3.]])
    """

    name = "task_arithmetic"

    def _merged(self, minima: Sequence[Mapping[str, Tensor]]) -> Point:
        return task_arithmetic(minima, 1.0)


class Ties(_Scaled):
    """λ·TIES(ΔW_a, ΔW_b) with λ = t, a fifth of the entries kept (Yadav et al. 2023, arXiv 2306.01708).

    `mcanalysis.params.merging.ties` is the rule. λ = 1 is the paper's point without validation data. Arguments and
    errors as of `TaskArithmetic`.
    """

    name = "ties"
    density: ClassVar[float] = 0.2
    """The paper's; points on stored paths are known by the method's name, so a subclass with another needs its own."""

    def _merged(self, minima: Sequence[Mapping[str, Tensor]]) -> Point:
        return ties(minima, self.density)


class Dare(_Scaled):
    """λ·(DARE(ΔW_a) + DARE(ΔW_b)) with λ = t: of each half of the entries, drawn by chance and doubled.

    `mcanalysis.params.merging.dare` is the rule (Yu et al. 2024, arXiv 2311.03099), of seed 0. Arguments and errors as
    of `TaskArithmetic`.
    """

    name = "dare"
    density: ClassVar[float] = 0.5
    """The paper searches drop rates between 0.1 and 0.9; see `Ties.density`."""

    def _merged(self, minima: Sequence[Mapping[str, Tensor]]) -> Point:
        return dare(minima, self.density)


class MagMax(_Scaled):
    """λ·MagMax(ΔW_a, ΔW_b) with λ = t (Marczak et al. 2024, arXiv 2407.06322, whose code takes λ = 0.5).

    `mcanalysis.params.merging.magmax` is the rule. Arguments and errors as of `TaskArithmetic`.
    """

    name = "magmax"

    def _merged(self, minima: Sequence[Mapping[str, Tensor]]) -> Point:
        return magmax(minima)
