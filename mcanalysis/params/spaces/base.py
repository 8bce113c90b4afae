"""What a space is: a way to turn minima into anchors between which plain linear algebra draws the paths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mcanalysis.errors import UnknownNameError, UserError
from mcanalysis.params.point import Point, check_compatible

_SPACES: dict[str, type[Space]] = {}


class Space(ABC):
    """A coordinate system for paths; `get_space` finds a subclass under its class attribute `name`."""

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            _SPACES[cls.name] = cls

    @abstractmethod
    def embed(self, points: Sequence[Mapping[str, Tensor]]) -> list[Point]:
        """Return one anchor per minimum; sums Σ cᵢ·anchorᵢ with Σ cᵢ = 1 make up this space's paths.

        Raises:
            PointMismatchError: if the minima cannot be joined in this space.
        """

    def chord_lengths(self, anchors: Sequence[Mapping[str, Tensor]], weights: Tensor) -> Tensor:
        """Return the distances between successive points Σ cᵢ·anchorᵢ, Euclidean in all coordinates.

        Args:
            anchors: `k` points of the same names and shapes.
            weights: shape (n, k), float64, rows summing to one.

        Returns:
            shape (n − 1,), float64.
        """
        return _euclidean_chord_lengths(anchors, weights)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def get_space(space: str | Space) -> Space:
    """Return the space registered under a name; an object that is a space already comes back as it is.

    Raises:
        UnknownNameError: if no space has this name.
        UserError: if `space` is neither a name nor a space.

    >>> get_space("factor")
    FactorSpace()
    """
    if isinstance(space, Space):
        return space
    if not isinstance(space, str):
        raise UserError(
            f"Expected a space or its name, got {type(space).__name__}; pass one of: {', '.join(space_names())}."
        )
    if space not in _SPACES:
        raise UnknownNameError("space", space, _SPACES)
    return _SPACES[space]()


def space_names() -> list[str]:
    """Return the names of all registered spaces, sorted.

    >>> space_names()
    ['aligned', 'delta', 'factor']
    """
    return sorted(_SPACES)


@torch.no_grad()
def _euclidean_chord_lengths(anchors: Sequence[Mapping[str, Tensor]], weights: Tensor) -> Tensor:
    """‖Σ (c'ᵢ − cᵢ)·anchorᵢ‖ from the Gram matrix of the differences to the first anchor."""
    first = anchors[0]
    for other in anchors[1:]:
        check_compatible(first, other)
    num = len(anchors) - 1
    gram = torch.zeros(num, num, dtype=torch.float64)
    for name, origin in first.items():
        rows = torch.stack([(a[name].double() - origin.double()).reshape(-1) for a in anchors[1:]])
        gram += (rows @ rows.T).cpu()
    steps = weights.diff(dim=0)[:, 1:]
    return torch.einsum("ni,ij,nj->n", steps, gram, steps).clamp(min=0.0).sqrt()
