"""What a path is: anchors θᵢ and weights cᵢ(t) that sum to one, so that the point at t is Σ cᵢ(t)·θᵢ."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, check_compatible, check_distinct, combine
from mcanalysis.params.spaces import Space, get_space
from mcanalysis.registry import Registry

_PATHS: Registry[type[Path]] = Registry("path", "mcanalysis.paths", group="mcanalysis.paths")
_ROUNDING = 1e-12  # of t and of weights: what sums of steps, or shares of whole numbers, are off by


def at_ends(t: float) -> float:
    """Return t, but exactly 0 or 1 where it is within rounding (1e-12) of them, as the last step of a sum of steps is.

    >>> at_ends(0.9999999999999999), at_ends(-1e-17), at_ends(0.3)
    (1.0, 0.0, 0.3)
    """
    if abs(t) <= _ROUNDING:
        return 0.0
    return 1.0 if abs(t - 1.0) <= _ROUNDING else t


class Path(ABC):
    """A map from t in [0, 1] to points; `get_path` finds a subclass under its class attribute `name`.

    A concrete path calls `super().__init__(anchors, ...)` with anchors that `embed_minima` or it itself has
    made, and defines `weights` and `weight_derivatives`.
    """

    name: ClassVar[str]
    through_many: ClassVar[bool] = False
    """Whether it is built from any number of minima, `cls(*minima)`, and leads through all of them."""
    spaces: ClassVar[tuple[str, ...]] = ()
    """The names of the spaces it can be drawn in; () for all."""
    joins_minima: ClassVar[bool] = True
    """Whether t = 0 and t = 1 are the minima. Where not, t = 0 is the base: no barrier is that of the minima."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _PATHS.add(cls.name, cls)

    def __init__(self, anchors: Sequence[Point], space: Space, extrapolate: bool = False) -> None:
        self._anchors = tuple(anchors)
        self.space = space
        self.extrapolate = extrapolate

    @property
    def anchors(self) -> tuple[Point, ...]:
        """The points that are combined, in the order of the weights, the two ends first and last."""
        return self._anchors

    @property
    def knots(self) -> tuple[float, ...]:
        """The values of t, ends included, between which the path is smooth."""
        return (0.0, 1.0)

    @abstractmethod
    def weights(self, t: float) -> Tensor:
        """Return the weights of the anchors at t: shape (num_anchors,), float64, summing to one.

        Raises:
            UserError: if t is outside [0, 1] and the path was not built with `extrapolate=True`.
        """

    @abstractmethod
    def weight_derivatives(self, t: float) -> Tensor:
        """Return d weights / dt: shape (num_anchors,), float64, summing to zero; at a knot from the right."""

    def __call__(self, t: float) -> Point:
        """Return the point at t, at t = 0 and t = 1 the first and last anchor bit for bit.

        Tensors are new ones, in float32 at least. Gradients flow to anchors that require them, not to t.

        Raises:
            UserError: if t is outside [0, 1] and the path was not built with `extrapolate=True`.
        """
        return combine(self._anchors, self.weights(t))

    def derivative(self, t: float) -> Point:
        """Return dθ/dt at t, in units of distance per unit of t (from the right at an inner knot).

        Raises `UserError` as calling the path does.
        """
        return combine(self._anchors, self.weight_derivatives(t))

    def arc_lengths(
        self, ts: ArrayLike, num: int = 201, space: str | Space | None = None, held: Collection[str] = ()
    ) -> Tensor:
        """Return the length of the path from t = 0 to each t, measured as `length` measures it.

        Args:
            ts: shape (n,), in [0, 1], in any order.
            num: points of the polygon that stands for the path, at equal spacing; `ts` and knots come on top.
            space: the space whose distance is used; by default that of the path.
            held: names of tensors that do not count, as the running statistics that `held_names` of a
                `module_objective` names: they are measured, not trained, and can be longer than all weights.

        Returns:
            shape (n,), float64.

        Raises:
            UserError: if a t is outside [0, 1] or `num` is below 2.
        """
        grid, wanted = self._grid(ts, num)
        measure = self.space if space is None else get_space(space)
        counted = [{name: t for name, t in anchor.items() if name not in held} for anchor in self._anchors]
        steps = measure.chord_lengths(counted, torch.stack([self.weights(float(t)) for t in grid]))
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])[torch.searchsorted(grid, wanted)]

    def _grid(self, ts: ArrayLike, num: int) -> tuple[Tensor, Tensor]:
        """The corners of the polygon that is measured, and the given t among them."""
        given = torch.as_tensor(ts, dtype=torch.float64).reshape(-1).tolist()
        wanted = torch.tensor([at_ends(t) for t in given], dtype=torch.float64)
        if num < 2:
            raise UserError(f"Expected at least 2 points to measure a length, got num={num}; use the default of 201.")
        if not bool(((wanted >= 0.0) & (wanted <= 1.0)).all()):
            raise UserError(f"Expected every t in [0, 1], got {wanted.tolist()}; leave out what lies beyond the ends.")
        knots = torch.tensor(self.knots, dtype=torch.float64)
        return torch.cat([torch.linspace(0.0, 1.0, num, dtype=torch.float64), knots, wanted]).unique(), wanted

    def length(self, num: int = 201, space: str | Space | None = None, held: Collection[str] = ()) -> float:
        """Return the length of the path, as the length of a polygon of `num` points (and the knots) on it.

        The polygon is exact for straight pieces and too short by a relative O(1/num²) for smooth ones. The
        distance is that of the path's space: Euclidean in all coordinates, or, in the delta space, the norm
        of ΔW. To compare paths of different spaces, measure all of them with `space="delta"`. Tensors that `held`
        names do not count. Computed from the anchors, without building points.

        Raises:
            UserError: if `num` is below 2.
        """
        return float(self.arc_lengths([1.0], num, space, held)[0])

    def _checked(self, t: float) -> float:
        t = at_ends(float(t))
        if not (math.isfinite(t) and (self.extrapolate or 0.0 <= t <= 1.0)):
            raise UserError(
                f"Expected t in [0, 1], got {t}; build the path with extrapolate=True to go beyond its ends."
            )
        return t

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_anchors={len(self._anchors)}, space='{self.space.name}')"


class Curve(Path):
    """A path with bends: anchors between the minima, which `mcanalysis.fit_curve` trains.

    `history`: the loss of each step of the fit that gave the bends, empty where they were not fitted or were read from
    a file. `converged`: whether that fit came to rest (the rule is in `fit_curve`), None where there was none or
    where its finder cannot tell.
    """

    history: tuple[float, ...] = ()
    converged: bool | None = None

    def __init__(
        self,
        anchors: Sequence[Point],
        bend_indices: Sequence[int],
        space: Space,
        extrapolate: bool = False,
    ) -> None:
        super().__init__(anchors, space, extrapolate)
        self._bend_indices = tuple(bend_indices)

    @property
    def bends(self) -> list[Point]:
        """The movable anchors, in order of t, in the coordinates of the path's space."""
        return [self._anchors[index] for index in self._bend_indices]

    def with_bends(self, bends: Sequence[Mapping[str, Tensor]]) -> Self:
        """Return a curve with the same ends and other bends; this curve stays as it is.

        The given tensors are used, not copied, so that gradients of points on the new curve reach them.

        Args:
            bends: as many points as the curve has bends, in the coordinates of its space (`curve.anchors`).

        Raises:
            UserError: if the number of bends differs.
            PointMismatchError: if a bend differs from the anchors in names or shapes.
        """
        if len(bends) != len(self._bend_indices):
            raise UserError(
                f"Expected {len(self._bend_indices)} bends, got {len(bends)}; build a new curve to change their number."
            )
        anchors = list(self._anchors)
        for index, bend in zip(self._bend_indices, bends, strict=True):
            check_bend(anchors[0], bend)
            anchors[index] = dict(bend)
        curve = copy.copy(self)
        curve._anchors = tuple(anchors)
        curve.history, curve.converged = (), None
        return curve


class CurveBetweenTwo(Curve):
    """A curve with any number of bends between two minima, straight until it is bent."""

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        num_bends: int = 1,
        bends: Sequence[Mapping[str, Tensor]] | None = None,
        *,
        space: str | Space = "factor",
        extrapolate: bool = False,
    ) -> None:
        space = get_space(space)
        start, end = embed_minima([a, b], space)
        inner = straight_bends(start, end, num_bends, bends)
        super().__init__([start, *inner, end], range(1, len(inner) + 1), space, extrapolate)


def embed_minima(minima: Sequence[Mapping[str, Tensor]], space: Space) -> list[Point]:
    """Return the anchors of the minima in a space, cut off from the graphs of the modules they may belong to.

    Raises `PointMismatchError` for two minima that are one in memory (`check_distinct`), and as the space does.

    >>> embed_minima([{"w": torch.ones(1, requires_grad=True)}], get_space("factor"))
    [{'w': tensor([1.])}]
    """
    check_distinct(minima)
    return [{name: tensor.detach() for name, tensor in anchor.items()} for anchor in space.anchors(minima)]


def straight_bends(
    start: Point, end: Point, num_bends: int, bends: Sequence[Mapping[str, Tensor]] | None
) -> list[Point]:
    """Return the given bends, checked, or `num_bends` points at equal spacing between the ends.

    Raises:
        UserError: if there would be no bend.
        PointMismatchError: if a given bend differs from the anchors in names or shapes.

    >>> straight_bends({"w": torch.zeros(1)}, {"w": torch.ones(1)}, num_bends=1, bends=None)
    [{'w': tensor([0.5000])}]
    """
    if bends is None:
        if num_bends < 1:
            raise UserError(f"Expected at least one bend, got num_bends={num_bends}; use Linear for a straight path.")
        fractions = [i / (num_bends + 1) for i in range(1, num_bends + 1)]
        return [combine([start, end], [1.0 - fraction, fraction]) for fraction in fractions]
    if not bends:
        raise UserError("Expected at least one bend, got none; use Linear for a straight path.")
    for bend in bends:
        check_bend(start, bend)
    return [dict(bend) for bend in bends]


def check_bend(anchor: Mapping[str, Tensor], bend: Mapping[str, Tensor]) -> None:
    """Raise `PointMismatchError` unless a bend has the names and shapes of the anchors of its curve.

    >>> check_bend({"w": torch.zeros(1)}, {"w": torch.ones(1)})
    """
    check_compatible(
        anchor,
        bend,
        remedy="give bends in the coordinates of the curve's space, as curve.anchors and curve.bends are",
    )


def get_path(name: str) -> type[Path]:
    """Return the path class registered under a name; raises `UnknownNameError` if there is none.

    >>> get_path("linear").name
    'linear'
    """
    return _PATHS.get(name)


def path_names() -> list[str]:
    """Return the names of all registered paths, sorted.

    >>> path_names()
    ['bezier', 'dare', 'karcher', 'linear', 'magmax', 'polychain', 'segmented_bezier', 'slerp', 'task_arithmetic', ...
    """
    return _PATHS.names()
