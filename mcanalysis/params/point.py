"""Linear algebra on points: a point is a `dict[str, Tensor]`, its coordinates are all entries of all tensors.

Names, not positions, decide what is combined with what, so two points may list their tensors in different
orders. Results are computed in float32 for lower-precision tensors and in float64 where a float64 tensor
takes part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mcanalysis.errors import PointMismatchError, UserError

Point = dict[str, Tensor]


def working_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype in which `tensors` are combined: float64 if one of them is float64, else float32.

    >>> working_dtype([torch.zeros(1, dtype=torch.bfloat16)])
    torch.float32
    """
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_point(point: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless `point` is a non-empty mapping of names to real floating-point tensors.

    >>> check_point({"weight": torch.zeros(2)})
    """
    if not isinstance(point, Mapping):
        remedy = "take mc.snapshot(module) of a module, mc.load_adapter(folder).point of an adapter's folder"
        if "point" in dir(point):  # a saved adapter, a minimum of a run
            remedy = "take its .point"
        raise UserError(f"Expected a point (a dict of names to tensors), got {type(point).__name__}; {remedy}.")
    if not point:
        raise UserError("Expected a point with at least one tensor, got an empty dict; check the filter that built it.")
    for name, tensor in point.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"Expected a tensor at '{name}', got {type(tensor).__name__}; convert it to a tensor.")
        if is_lazy(tensor):
            raise UserError(
                f"Expected tensors with shapes, got '{name}' of a lazy layer; call the module on a batch once."
            )
        if tensor.is_complex():
            raise UserError(
                f"Expected real tensors, got {tensor.dtype} at '{name}'; let the module hold real and imaginary parts "
                "as one real parameter (torch.view_as_real)."
            )
        if not tensor.is_floating_point():
            raise UserError(
                f"Expected floating-point tensors, got {tensor.dtype} at '{name}'; "
                "leave counters and masks out of the point, as mc.snapshot(module) does."
            )


def first_not_finite(point: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or ∞, or None; raises `UserError` for what is no point.

    >>> first_not_finite({"w": torch.tensor([1.0]), "v": torch.tensor([float("nan")])})
    'v'
    """
    check_point(point)
    # float8 knows no isfinite
    broken = (name for name, t in point.items() if not bool(t.to(working_dtype([t])).isfinite().all()))
    return next(broken, None)


def check_compatible(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    remedy: str = "use two points of the same model and adapter configuration",
) -> None:
    """Raise `PointMismatchError` unless `a` and `b` have the same names, shapes and devices.

    Dtypes may differ. The message names the first difference (in the order of `a`, then `b`) and says how
    many there are.

    >>> try:
    ...     check_compatible({"w": torch.zeros(2)}, {"w": torch.zeros(3)}, remedy="use one model")
    ... except PointMismatchError as error:
    ...     error.args[0]
    "Expected 'w' with shape (2,), got shape (3,) (1 difference in all); use one model."
    """
    check_point(a)
    check_point(b)
    differences = []
    for name, tensor in a.items():
        if name not in b:
            differences.append(f"Expected '{name}' in both points, got it in the first only")
        elif tensor.shape != b[name].shape:
            differences.append(f"Expected '{name}' with shape {tuple(tensor.shape)}, got shape {tuple(b[name].shape)}")
        elif tensor.device != b[name].device:
            differences.append(f"Expected '{name}' on {tensor.device}, got it on {b[name].device}")
    differences += [f"Expected '{n}' in both points, got it in the second only" for n in b if n not in a]
    if differences:
        count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''} in all"
        raise PointMismatchError(f"{differences[0]} ({count}); {remedy}.")


def check_distinct(points: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise `PointMismatchError` where two different dicts are the same tensors in memory, all of them.

    Two checkpoints loaded into one module one after the other, and taken with `named_parameters()` or `state_dict()`,
    are such: both dicts hold what was loaded last. One dict given twice is allowed, and so are two points that share
    some tensors, as frozen layers.

    >>> live = torch.zeros(2)
    >>> try:
    ...     check_distinct([{"w": live}, {"w": live}])
    ... except PointMismatchError as error:
    ...     error.args[0].split(";")[0]
    'Expected points with tensors of their own, got the same tensors in memory as points 1 and 2 (two checkpoints loaded into a module, say)'
    """  # noqa: E501
    for point in points:
        check_point(point)
    for j, other in enumerate(points):
        for i, point in enumerate(points[:j]):
            is_other = point is not other and point.keys() == other.keys()
            if is_other and _are_same(point, other):
                raise PointMismatchError(
                    f"Expected points with tensors of their own, got the same tensors in memory as points {i + 1} and "
                    f"{j + 1} (two checkpoints loaded into a module, say); take mc.snapshot(module) after each."
                )


def _are_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether all tensors of two points are one in memory, but for empty ones, of which at least one is not."""
    full = [name for name, tensor in a.items() if tensor.numel()]
    return bool(full) and all(_is_same(a[name], b[name]) for name in full)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one in memory."""
    there = a.device == b.device and a.data_ptr() == b.data_ptr() != 0
    return there and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def combine(points: Sequence[Mapping[str, Tensor]], weights: Sequence[float] | Tensor) -> Point:
    """Return the weighted sum of points, Σᵢ weights[i] · points[i].

    Points of weight 0 are left out and a single point of weight 1 is copied, so that vertices come back bit
    for bit; the result never shares memory with its inputs. Gradients flow to the points, not to the weights.
    At most one tensor beyond the result is alive at a time.

    Args:
        points: `k` points of the same names and shapes.
        weights: `k` finite numbers of any sign; they need not sum to one.

    Raises:
        PointMismatchError: if the points differ in names, shapes or devices.
        UserError: if the numbers of points and weights differ, or a weight is not finite.

    >>> combine([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}], [0.5, 2.0])
    {'w': tensor([6.5000, 9.0000])}
    """
    numbers = [float(w) for w in weights]
    if len(points) != len(numbers) or not points:
        raise UserError(
            f"Expected one weight for each of one or more points, got {len(numbers)} weights for "
            f"{len(points)} points; pass sequences of equal length."
        )
    for number in numbers:
        if not math.isfinite(number):
            raise UserError(f"Expected finite weights, got {number}; check how they were computed.")
    check_point(points[0])
    for other in points[1:]:
        check_compatible(points[0], other)

    result: Point = {}
    for name in points[0]:
        dtype = working_dtype(point[name] for point in points)
        total: Tensor | None = None
        for point, weight in zip(points, numbers, strict=True):
            if weight == 0.0:
                continue
            tensor = point[name].to(dtype)
            if total is None:
                total = tensor.clone() if weight == 1.0 else tensor * weight
            else:
                total.add_(tensor, alpha=weight)
        result[name] = torch.zeros_like(points[0][name], dtype=dtype) if total is None else total
    return result


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float) -> Point:
    """Return (1−t)·a + t·b, bit for bit `a` at t = 0 and `b` at t = 1.

    `t` may lie outside [0, 1] (extrapolation). Raises as `combine` does.

    >>> interpolate({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)
    {'w': tensor([1.])}
    """
    return combine([a, b], [1.0 - float(t), float(t)])


def subtract(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Point:
    """Return a − b; raises `PointMismatchError` if the two differ in names, shapes or devices.

    >>> subtract({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
    {'w': tensor([2.])}
    """
    return combine([a, b], [1.0, -1.0])


def as_double(point: Mapping[str, Tensor]) -> Point:
    """Return the point in float64.

    >>> as_double({"w": torch.ones(1)})
    {'w': tensor([1.], dtype=torch.float64)}
    """
    return {name: tensor.double() for name, tensor in point.items()}


def snapshot(point: Mapping[str, Tensor] | nn.Module) -> Point:
    """Return a detached copy, which later training of the module that owns the tensors cannot change.

    Of a module it is the point of its parameters, one name for tied ones, and of the floating-point buffers that its
    `state_dict` saves, such as the running statistics of BatchNorm; counters are left out. `load_state_dict(point,
    strict=False)` puts them back.

    `dict(module.named_parameters())` holds the live parameters: taken before and after training, the two dicts are the
    same point. Take a snapshot of each.

    Raises `UserError` for what is neither a module nor a point.

    >>> live = torch.nn.Parameter(torch.tensor([1.0]))
    >>> kept = snapshot({"w": live})
    >>> _ = live.data.fill_(2.0)
    >>> kept["w"]
    tensor([1.])
    >>> list(snapshot(torch.nn.BatchNorm1d(2)))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    if isinstance(point, nn.Module):
        saved = point.state_dict().keys()
        buffers = {name: t for name, t in point.named_buffers() if t.is_floating_point() and name in saved}
        tensors: Mapping[str, Tensor] = dict(point.named_parameters()) | buffers
    else:
        tensors = point
    check_point(tensors)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the inner product of two points over all coordinates, accumulated in float64.

    Raises `PointMismatchError` if the two differ in names, shapes or devices.

    >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
    11.0
    """
    check_compatible(a, b)
    return sum(float(torch.dot(x.reshape(-1).double(), b[name].reshape(-1).double())) for name, x in a.items())


def norm(point: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all coordinates, accumulated in float64.

    >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    return math.sqrt(dot(point, point))


@torch.no_grad()
def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance ‖a − b‖ over all coordinates, accumulated in float64.

    Raises `PointMismatchError` if the two differ in names, shapes or devices, or are two dicts of the same tensors in
    memory (`check_distinct`).

    >>> distance({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([4.0, 5.0])})
    5.0
    """
    check_distinct([a, b])
    check_compatible(a, b)
    return math.sqrt(sum(float((x.double() - b[name].double()).square().sum()) for name, x in a.items()))


def flatten(point: Mapping[str, Tensor]) -> Tensor:
    """Return all coordinates as one vector of shape (num_coordinates,), tensors sorted by name.

    Sorting makes vectors of two points comparable whatever order their dicts have. Gradients flow.

    >>> flatten({"b": torch.tensor([[3.0], [4.0]]), "a": torch.tensor(1.0)})
    tensor([1., 3., 4.])
    """
    check_point(point)
    dtype = working_dtype(point.values())
    return torch.cat([point[name].reshape(-1).to(dtype) for name in sorted(point)])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Point:
    """Return the point with the names, shapes and devices of `like` whose coordinates are `vector`.

    The inverse of `flatten`; tensors keep the dtype of `vector` and are views of it where the device allows.

    Args:
        vector: shape (num_coordinates,).
        like: a point with num_coordinates coordinates.

    Raises:
        PointMismatchError: if `vector` has another number of coordinates.

    >>> unflatten(torch.tensor([1.0, 3.0, 4.0]), like={"b": torch.zeros(2, 1), "a": torch.tensor(0.0)})
    {'b': tensor([[3.],
            [4.]]), 'a': tensor(1.)}
    """
    check_point(like)
    total = sum(tensor.numel() for tensor in like.values())
    if vector.shape != (total,):
        raise PointMismatchError(
            f"Expected a vector of shape ({total},), got {tuple(vector.shape)}; pass the point it was flattened from."
        )
    names = sorted(like)
    pieces = dict(zip(names, vector.split([like[name].numel() for name in names]), strict=True))
    return {name: pieces[name].reshape(tensor.shape).to(tensor.device) for name, tensor in like.items()}


def random_like(point: Mapping[str, Tensor], generator: torch.Generator) -> Point:
    """Return a point of independent standard normal coordinates, shaped like `point`.

    Names, shapes and devices are those of `point`, dtypes float32 at least. Numbers are drawn on the
    generator's device and tensor by tensor in sorted order, so that a CPU generator gives the same direction
    for a point on any device and in any order.

    >>> random_like({"w": torch.zeros(2, 3)}, torch.Generator().manual_seed(0))["w"].shape
    torch.Size([2, 3])
    """
    check_point(point)
    drawn = {
        name: torch.randn(
            point[name].shape, generator=generator, device=generator.device, dtype=working_dtype([point[name]])
        )
        for name in sorted(point)
    }
    return {name: drawn[name].to(tensor.device) for name, tensor in point.items()}


def content_hash(point: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, 64 hexadecimal digits, of names, dtypes, shapes and bytes.

    Neither the order of the tensors nor their device matters. Two points have the same hash exactly when
    they agree bit for bit: −0.0 and 0.0 differ, and so do float32 and float64 tensors of equal values.

    >>> content_hash({"w": torch.zeros(2)})[:8], content_hash({"w": torch.zeros(3)})[:8]
    ('cb0633cd', '76b0fa93')
    """
    digest = hashlib.sha256()
    for name in sorted(point):
        tensor = point[name].detach().cpu().contiguous()
        header = f"{len(name)}:{name}|{tensor.dtype}|{tuple(tensor.shape)}|"
        digest.update(header.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
