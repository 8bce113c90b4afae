"""Which axis of which tensor goes with which permutation, and what a permuted point is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.params.point import Point, check_point

Permutations = dict[str, Tensor]
"""By name: an int64 vector on the CPU; unit i of the permuted network is unit `permutation[i]` of the given one."""


@dataclass(frozen=True)
class PermutationSpec:
    """The permutations under which a network stays the same function.

    `axes` maps the name of a tensor to the names of the permutations of its axes, None where an axis stays. Tensors
    that are not named stay as they are. Whoever writes a specification by hand vouches that the network does not
    notice: permute a point and compare outputs. `mlp_spec` and `transformer_mlp_spec` write it for you.

    Raises `UserError` where there is no permutation, or one name stands on two axes of one tensor, as that of a
    residual stream does (then no single assignment finds the best permutation).

    >>> spec = PermutationSpec({"in.weight": ("h", None), "in.bias": ("h",), "out.weight": (None, "h")})
    >>> spec.names
    ('h',)
    >>> spec.sizes({"in.weight": torch.zeros(3, 2), "in.bias": torch.zeros(3), "out.weight": torch.zeros(1, 3)})
    {'h': 3}
    """

    axes: Mapping[str, tuple[str | None, ...]]

    def __post_init__(self) -> None:
        for name, axes in self.axes.items():
            named = [axis for axis in axes if axis is not None]
            if len(set(named)) < len(named):
                raise UserError(
                    f"Expected different permutations on the axes of '{name}', got {axes}; leave the tensor's second "
                    "axis to another permutation, or both to none."
                )
        if not self.names:
            raise UserError("Expected a specification with at least one permutation, got none; name at least one axis.")

    @property
    def names(self) -> tuple[str, ...]:
        """The permutations in the order in which the tensors first name them."""
        return tuple(dict.fromkeys(axis for axes in self.axes.values() for axis in axes if axis is not None))

    def places(self, permutation: str) -> list[tuple[str, int]]:
        """The (tensor, axis) pairs that one permutation acts on."""
        return [(name, i) for name, axes in self.axes.items() for i, axis in enumerate(axes) if axis == permutation]

    def sizes(self, point: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of units of each permutation in a point.

        Raises `PointMismatchError` where a tensor is missing, or has another number of axes or of units than its
        fellows; the message names it.
        """
        check_point(point)
        sizes: dict[str, int] = {}
        first: dict[str, str] = {}
        for name, axes in self.axes.items():
            if name not in point:
                raise PointMismatchError(
                    f"Expected a tensor '{name}' in the point, as the permutation specification says, got none; "
                    "write the specification for this network."
                )
            shape = tuple(point[name].shape)
            if len(shape) != len(axes):
                raise PointMismatchError(
                    f"Expected '{name}' with {len(axes)} axes, got shape {shape}; give one entry per axis."
                )
            for axis, size in zip(axes, shape, strict=True):
                if axis is not None and sizes.setdefault(axis, size) != size:
                    raise PointMismatchError(
                        f"Expected {sizes[axis]} units of '{axis}' in '{name}' as in '{first[axis]}', got shape "
                        f"{shape}; check which axis of it the units are."
                    )
                if axis is not None:
                    first.setdefault(axis, name)
        return sizes


def permute(point: Mapping[str, Tensor], spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> Point:
    """Return the same network with its hidden units in another order.

    The permuted tensors are new ones, whose values are moved and never computed with, so that they are exact in any
    dtype and gradients flow; the tensors that `spec` does not name are the given ones. A permutation that is left out
    is the identity.

    Raises:
        PointMismatchError: if the point does not fit the specification.
        UserError: if a permutation is unknown to it, or is no permutation of so many units.

    >>> spec = PermutationSpec({"in": ("h", None), "out": (None, "h")})
    >>> point = {"in": torch.tensor([[1.0], [2.0]]), "out": torch.tensor([[3.0, 4.0]])}
    >>> permute(point, spec, {"h": torch.tensor([1, 0])})
    {'in': tensor([[2.],
            [1.]]), 'out': tensor([[4., 3.]])}
    """
    check_permutations(spec.sizes(point), permutations)
    result = dict(point)
    for name, axes in spec.axes.items():
        tensor = point[name]
        for i, axis in enumerate(axes):
            if axis is not None and axis in permutations:
                tensor = tensor.index_select(i, permutations[axis].to(tensor.device))
        result[name] = tensor
    return result


def invert(permutations: Mapping[str, Tensor]) -> Permutations:
    """Return the permutations that undo the given ones.

    >>> invert({"h": torch.tensor([2, 0, 1])})
    {'h': tensor([1, 2, 0])}
    """
    return {name: torch.argsort(permutation) for name, permutation in permutations.items()}


def random_permutations(point: Mapping[str, Tensor], spec: PermutationSpec, seed: int = 0) -> Permutations:
    """Return one uniformly drawn permutation of each kind; the global random state is left alone.

    Raises `PointMismatchError` if the point does not fit the specification.

    >>> spec = PermutationSpec({"in": ("h", None)})
    >>> sorted(random_permutations({"in": torch.zeros(3, 1)}, spec)["h"].tolist())
    [0, 1, 2]
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randperm(size, generator=generator) for name, size in spec.sizes(point).items()}


def check_permutations(sizes: Mapping[str, int], permutations: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless each is a known permutation of the right number of units.

    >>> check_permutations({"h": 2}, {"h": torch.tensor([1, 0])})
    """
    for name, permutation in permutations.items():
        if name not in sizes:
            raise UserError(
                f"Expected permutations among {', '.join(sizes)}, got '{name}'; use those of the specification."
            )
        size = sizes[name]
        is_index = permutation.ndim == 1 and permutation.dtype == torch.int64
        if not is_index or sorted(permutation.tolist()) != list(range(size)):
            raise UserError(
                f"Expected '{name}' to be a permutation of 0 … {size - 1} (int64), got {permutation.dtype} of shape "
                f"{tuple(permutation.shape)}; list every unit once."
            )
