"""The plane through three points, with coordinates in units of distance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import Point, check_distinct, first_not_finite
from mcanalysis.params.spaces import Space, get_space

# Three float32 points on one line, stored, miss it by about 1e-7 of their size.
_FLAT = 1e-5


class Plane:
    """The plane through three points: a at (0, 0), b on the x axis, c above it.

    Gram–Schmidt in the inner product of the space, in float64: x runs along b − a, y along the part of c − a that is
    orthogonal to it (Garipov et al. 2018, arXiv 1802.10026). Distances on the sheet are distances of points: Euclidean
    in all coordinates in "factor" and "aligned", of ΔW (Frobenius) in "delta". The plane consists of the sums
    Σ wᵢ·anchorᵢ with Σ wᵢ = 1 in the coordinates of the space; in "delta" they have rank r_a + r_b + r_c, or less where
    a weight is 0.

    Plain weights need no LoRA: use "factor".

    Args:
        a: the point at the origin.
        b: the point on the x axis, at (‖b − a‖, 0).
        c: the point that says where y > 0 is.
        space: "factor" (every tensor by itself), "delta" (ΔW of LoRA), "aligned", or a `Space`.

    Raises:
        PointMismatchError: if the space cannot join the three.
        UnknownNameError: if no space has this name.
        UserError: if the three are (within 1e-5 of the longest side) on one line, or hold NaN or ∞.

    >>> a, b, c = ({"w": torch.tensor([x, y, 0.0])} for x, y in [(0.0, 0.0), (4.0, 0.0), (1.0, 2.0)])
    >>> plane = Plane(a, b, c)
    >>> plane.anchor_coordinates.tolist()
    [[0.0, 0.0], [4.0, 0.0], [1.0, 2.0]]
    >>> plane(2.0, -1.0)
    {'w': tensor([ 2., -1.,  0.])}
    >>> plane.project({"w": torch.tensor([3.0, 1.0, 5.0])})
    (3.0, 1.0, 5.0)
    """

    name = "plane"

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        c: Mapping[str, Tensor],
        *,
        space: str | Space = "factor",
    ) -> None:
        self.space = get_space(space)
        for label, point in zip("abc", (a, b, c), strict=True):
            name = first_not_finite(point)
            if name is not None:
                raise UserError(
                    f"Expected three points of finite numbers, got NaN or ∞ in '{name}' of {label}; "
                    "take a minimum of a run that did not diverge."
                )
        check_distinct([a, b, c])
        minima = [{name: tensor.detach() for name, tensor in point.items()} for point in (a, b, c)]
        # In "delta" the minima themselves: nothing of three times their rank is kept.
        self._corners = tuple(self.space.landmarks(minima, self.space.embed(minima)))
        self._width, self._foot, self._height = self._triangle()

    def _triangle(self) -> tuple[float, float, float]:
        """The x of b, and the x and y of c."""
        first, second, third = self._corners
        gram = self.space.inner_products(first, [second, third], [second, third])
        sides = gram.diagonal().sqrt().tolist()
        sides.append(self.space.distance(second, [third], [1.0]))
        longest = max(sides)
        for side, names in zip(sides, ("a and b", "a and c", "b and c"), strict=True):
            if side <= _FLAT * longest:
                raise UserError(
                    f"Expected three different points to span a plane, got {names} equal (distance {side:.3g} of at "
                    f"most {longest:.3g}, space '{self.space.name}'); choose another point."
                )
        width, foot = sides[0], float(gram[0, 1]) / sides[0]
        share = foot / width
        height = self.space.distance(third, [first, second], [1.0 - share, share])
        if width * height <= _FLAT * longest**2:
            raise UserError(
                "Expected three points that are not on one line, got c at a distance of "
                f"{height:.3g} from the line through a and b, which are {width:.3g} apart (space '{self.space.name}'); "
                "choose another point, or draw the line as a path."
            )
        return width, foot, height

    @property
    def anchors(self) -> tuple[Point, ...]:
        """The three points that are combined, in the order of the weights."""
        return self._corners

    @property
    def anchor_coordinates(self) -> Tensor:
        """Where the three points are: shape (3, 2), float64, in units of distance."""
        return torch.tensor(
            [[0.0, 0.0], [self._width, 0.0], [self._foot, self._height]],
            dtype=torch.float64,
        )

    def weights(self, x: float, y: float) -> Tensor:
        """Return the weights of a, b and c at (x, y): shape (3,), float64, summing to one, any sign.

        At `anchor_coordinates` they are exactly 0 and 1.

        Raises:
            UserError: if a coordinate is not finite.

        >>> a, b, c = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [4.0, 0.0], [1.0, 2.0]))
        >>> Plane(a, b, c).weights(2.0, 1.0)
        tensor([0.1250, 0.3750, 0.5000], dtype=torch.float64)
        """
        x, y = float(x), float(y)
        if not (math.isfinite(x) and math.isfinite(y)):
            raise UserError(f"Expected finite coordinates, got ({x}, {y}); give them in units of distance.")
        of_c = y / self._height
        of_b = (x - of_c * self._foot) / self._width
        return torch.tensor([1.0 - of_b - of_c, of_b, of_c], dtype=torch.float64)

    def __call__(self, x: float, y: float) -> Point:
        """Return the point at (x, y), at `anchor_coordinates` an anchor bit for bit (in float32 at least).

        Any x and y: a plane has no ends. Raises `UserError` if a coordinate is not finite.
        """
        return self.space.combine(self._corners, self.weights(x, y).tolist())

    def project(self, point: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """Return (x, y, distance): the foot of the perpendicular on the plane and how far the point is from it.

        All three in units of distance, in the inner product of the space, in float64: (x, y) is where the point is
        drawn, the distance what the drawing hides. A trajectory snapshot of another rank can be projected in "delta"
        and "aligned". In "aligned" the point is balanced and turned onto a first; a point inside of the plane, whose
        factors are not balanced, comes back as the point its balanced form is closest to, only the anchors as
        themselves. A point that holds NaN or ∞ is nowhere: three times NaN.

        Raises:
            PointMismatchError: if the point cannot be joined with the three in this space.
        """
        if first_not_finite(point) is not None:
            return math.nan, math.nan, math.nan
        first, second, third = self._corners
        placed = self.space.place(point, first)
        along = self.space.inner_products(first, [placed], [second, third])[0]
        x = float(along[0]) / self._width
        y = (float(along[1]) - self._foot * x) / self._height
        return x, y, self.space.distance(placed, self._corners, self.weights(x, y).tolist())

    def project_many(self, points: Iterable[Mapping[str, Tensor]]) -> Iterator[tuple[float, float, float]]:
        """Yield `project` of each point in turn; points may be loaded one by one, and none is kept.

        >>> a, b, c = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [4.0, 0.0], [1.0, 2.0]))
        >>> list(Plane(a, b, c).project_many({"w": torch.tensor([float(i), 1.0])} for i in range(2)))
        [(0.0, 1.0, 0.0), (1.0, 1.0, 0.0)]
        """
        return map(self.project, points)

    def __repr__(self) -> str:
        return f"Plane(b=({self._width:.4g}, 0), c=({self._foot:.4g}, {self._height:.4g}), space='{self.space.name}')"
