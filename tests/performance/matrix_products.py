"""The floor under a pass or a training step: its matrix products alone, at the rate that their shapes reach."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Products(TorchDispatchMode):
    """Records the matrix products that run inside; nothing that is compiled may.

    `linear`: how often a product of (rows, inner, columns) was seen. `attention`: operations of the products of
    attention, the half above the diagonal left out where it is causal.

    >>> with Products() as seen:
    ...     _ = torch.nn.Linear(3, 5)(torch.ones(2, 3))
    >>> dict(seen.linear), seen.operations
    ({(2, 3, 5): 1}, 60)
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear: dict[tuple[int, int, int], int] = defaultdict(int)
        self.attention = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions, of all together."""
        return sum(2 * m * k * n * times for (m, k, n), times in self.linear.items()) + self.attention

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", None)
        if packet in (aten.mm, aten.addmm):
            a, b = args[-2:]
            self.linear[a.shape[0], a.shape[1], b.shape[1]] += 1
        elif packet is aten.linear:
            x, weight = args[:2]
            self.linear[x.numel() // x.shape[-1], x.shape[-1], weight.shape[0]] += 1
        elif packet in (aten.bmm, aten.baddbmm):
            a, b = args[-2:]
            self.attention += 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
        elif "scaled_dot_product" in str(packet):
            is_backward = "backward" in str(packet)  # whose first argument is the gradient of what comes out
            query, key, value = args[is_backward : is_backward + 3]
            batch, heads, rows, width = query.shape
            columns = key.shape[2]
            seen = rows * columns
            if _is_causal(func, args, kwargs):
                seen -= rows * (rows - 1) // 2
            of_forward = 2 * batch * heads * seen * (width + value.shape[-1])
            self.attention += of_forward * 5 // 2 if is_backward else of_forward  # the scores again, and two of each
        return func(*args, **kwargs)


def _is_causal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "is_causal":
            return bool(kwargs.get("is_causal", args[place] if place < len(args) else argument.default_value))
    return False


def record(call: Callable[[], Any]) -> Products:
    """The products of a call."""
    with Products() as seen:
        call()
    return seen


def floor_seconds(products: Products, dtype: torch.dtype = torch.float32, seconds: float = 0.05) -> float:
    """Seconds that the products would take if nothing else were done, measured now.

    For each shape (inner, columns) a plain product of the number of rows that most of its operations have, the
    best-laid way (x·Wᵀ, into a result that is there), is repeated for `seconds`, five times; the median counts. The
    products of attention count at the mean rate of the others, which they hardly reach.
    """
    by_shape: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    for (m, k, n), times in products.linear.items():
        by_shape[k, n][m] = by_shape[k, n].get(m, 0) + 2 * m * k * n * times
    total = operations = 0.0
    for (k, n), rows in by_shape.items():
        total += sum(rows.values()) / product_rate(_weighted_median(rows), k, n, dtype, seconds)
        operations += sum(rows.values())
    return total * (1 + products.attention / operations)


def product_rate(m: int, k: int, n: int, dtype: torch.dtype = torch.float32, seconds: float = 0.05) -> float:
    """Operations per second of (m, k) · (k, n) on this machine with the threads torch has."""
    a, weight = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    product = torch.empty(m, n, dtype=dtype)
    rates = []
    with torch.inference_mode():
        torch.mm(a, weight.t(), out=product)
        for _ in range(5):
            started, times = time.perf_counter(), 0
            while time.perf_counter() - started < seconds / 5:
                torch.mm(a, weight.t(), out=product)
                times += 1
            rates.append(times * 2 * m * k * n / (time.perf_counter() - started))
    return float(np.median(rates))


def _weighted_median(weights: dict[int, int]) -> int:
    """The value below which half of the weight lies.

    >>> _weighted_median({10: 1, 20: 5, 30: 3})
    20
    """
    half, passed = sum(weights.values()) / 2, 0
    for value in sorted(weights):
        passed += weights[value]
        if passed >= half:
            return value
    return max(weights)
