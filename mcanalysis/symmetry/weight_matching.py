"""Weight matching: the order of one network's hidden units in which its weights are closest to another's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.point import check_compatible, check_distinct
from mcanalysis.symmetry.permutation_spec import Permutations, PermutationSpec, permute

_GAIN = 1e-12  # relative to the objective's bound: less is rounding, and would let the sweeps go round in circles


def match_weights(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], spec: PermutationSpec, seed: int = 0, max_sweeps: int = 100
) -> Permutations:
    """Return the permutations of b's hidden units that bring its weights close to those of a.

    Algorithm 1 of Ainsworth et al. 2023 (Git Re-Basin, arXiv 2209.04836): coordinate ascent on the inner product of
    `a` and `permute(b, spec, permutations)`, which is descent on their distance. A sweep visits the permutations in
    a random order and solves one linear assignment each, all others held fixed, until a sweep changes none. With
    one permutation, or with permutations that share no tensor, the result is the optimum; otherwise the joint problem
    is NP-hard and the result is a local optimum that depends on the seed. The inner product never falls. Computed
    in float64 on the CPU: O(units³) per permutation and sweep, and one matrix of units × units in memory.

    Args:
        a: the point that stays.
        b: the point whose units are reordered, of the same names and shapes; left as it is.
        spec: the network's permutations.
        seed: of the order of the visits.
        max_sweeps: at least 1; a few suffice in practice (no source: a guard).

    Returns:
        What `permute(b, spec, …)` takes.

    Raises:
        PointMismatchError: if the points differ in names or shapes, or do not fit the specification.
        UserError: if `max_sweeps` is below 1, or a weight is not finite.

    >>> spec = PermutationSpec({"in": ("h", None), "out": (None, "h")})
    >>> a = {"in": torch.tensor([[1.0], [2.0], [3.0]]), "out": torch.tensor([[0.0, 5.0, 1.0]])}
    >>> b = permute(a, spec, {"h": torch.tensor([2, 0, 1])})
    >>> match_weights(a, b, spec)
    {'h': tensor([1, 2, 0])}
    """
    if max_sweeps < 1:
        raise UserError(f"Expected max_sweeps of at least 1, got {max_sweeps}; leave it out to use 100.")
    check_distinct([a, b])
    check_compatible(a, b, remedy="match two networks of the same architecture")
    fixed, moving = _arrays(a, spec), _arrays(b, spec)
    order = {name: np.arange(size) for name, size in spec.sizes(a).items()}
    norms = [np.sqrt(sum(float((x**2).sum()) for x in side.values())) for side in (fixed, moving)]
    threshold = _GAIN * float(norms[0] * norms[1])
    generator = np.random.default_rng(seed)
    for _ in range(max_sweeps):
        changed = False
        for i in generator.permutation(len(order)):
            name = spec.names[i]
            gains = _gains(fixed, moving, spec, order, name)
            rows, columns = linear_sum_assignment(gains, maximize=True)
            if gains[rows, columns].sum() > gains[rows, order[name]].sum() + threshold:
                order[name], changed = columns, True
        if not changed:
            break
    return {name: torch.from_numpy(np.ascontiguousarray(found, dtype=np.int64)) for name, found in order.items()}


def matching_objective(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    spec: PermutationSpec,
    permutations: Mapping[str, Tensor] | None = None,
) -> float:
    """Return the inner product, over the tensors of `spec`, of a and b with its units reordered (default: as it is).

    This is what `match_weights` raises. Raises as it does.

    >>> spec = PermutationSpec({"in": ("h", None)})
    >>> a, b = {"in": torch.tensor([[1.0], [2.0]])}, {"in": torch.tensor([[4.0], [3.0]])}
    >>> matching_objective(a, b, spec), matching_objective(a, b, spec, match_weights(a, b, spec))
    (10.0, 11.0)
    """
    check_compatible(a, b, remedy="match two networks of the same architecture")
    moved = permute(b, spec, permutations or {})
    return float(sum((a[n].detach().double() * moved[n].detach().double()).sum().item() for n in spec.axes))


def _gains(
    fixed: Mapping[str, NDArray[np.float64]],
    moving: Mapping[str, NDArray[np.float64]],
    spec: PermutationSpec,
    order: Mapping[str, NDArray[np.int64]],
    permutation: str,
) -> NDArray[np.float64]:
    """Entry (i, j): what the inner product gains where unit j of b takes the place of unit i of a."""
    size = len(order[permutation])
    gains = np.zeros((size, size))
    for name, axis in spec.places(permutation):
        tensor = moving[name]
        for i, other in enumerate(spec.axes[name]):
            if other is not None and i != axis:
                tensor = tensor.take(order[other], axis=i)
        rows = np.moveaxis(fixed[name], axis, 0).reshape(size, -1)
        gains += rows @ np.moveaxis(tensor, axis, 0).reshape(size, -1).T
    return gains


def _arrays(point: Mapping[str, Tensor], spec: PermutationSpec) -> dict[str, NDArray[np.float64]]:
    spec.sizes(point)
    arrays = {name: point[name].detach().cpu().double().numpy() for name in spec.axes}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"Expected finite weights, got NaN or infinity in '{name}'; check how it was trained.")
    return arrays
