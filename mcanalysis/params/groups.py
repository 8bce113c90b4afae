"""Groups of tensors: which of a point's names belong to one layer, one kind of module, or one module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mcanalysis.params.lora import is_lora_point
from mcanalysis.params.point import check_point


def by_layer(point: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each layer: all whose names agree up to the first number in them.

    Where a name has no number, the module that owns the tensor is its layer.

    >>> import torch
    >>> by_layer({f"h.{i}.{name}": torch.zeros(1) for i in (0, 1) for name in ("q.weight", "q.bias")})
    {'h.0': ('h.0.q.weight', 'h.0.q.bias'), 'h.1': ('h.1.q.weight', 'h.1.q.bias')}
    """
    return _grouped({name: layer for name, (layer, _) in places(point).items()})


def by_module_kind(point: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each kind of module (`q_proj`, `v_proj`, …) in all layers.

    The kind is what follows the layer's number, shortened to its last part where that is clear. For plain modules
    weights and biases are kinds of their own.

    >>> import torch
    >>> by_module_kind({f"h.{i}.mlp.{name}": torch.zeros(1) for i in (0, 1) for name in ("weight", "bias")})
    {'weight': ('h.0.mlp.weight', 'h.1.mlp.weight'), 'bias': ('h.0.mlp.bias', 'h.1.mlp.bias')}
    """
    return _grouped({name: kind for name, (_, kind) in places(point).items()})


def by_module(point: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Return the tensors of each module: A and B of each adapted one, or the parameters of each plain one.

    >>> import torch
    >>> by_module({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)})
    {'fc': ('fc.weight', 'fc.bias')}
    """
    check_point(point)
    return _grouped({name: _module(name, is_lora_point(point)) for name in point})


def places(point: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Return (layer, kind) of each tensor, the cell of a table of layers × kinds in which it stands.

    >>> import torch
    >>> places({"h.0.q.lora_A.weight": torch.zeros(1, 2), "h.0.q.lora_B.weight": torch.zeros(2, 1)})
    {'h.0.q.lora_A.weight': ('h.0', 'q'), 'h.0.q.lora_B.weight': ('h.0', 'q')}
    """
    check_point(point)
    lora = is_lora_point(point)
    split = {name: _split(_module(name, lora) if lora else name, lora) for name in point}
    endings: dict[str, set[str]] = {}
    for _, kind in split.values():
        endings.setdefault(kind.rsplit(".", 1)[-1], set()).add(kind)
    clear = {last for last, kinds in endings.items() if len(kinds) == 1}
    return {
        name: (layer, kind.rsplit(".", 1)[-1] if kind.rsplit(".", 1)[-1] in clear else kind)
        for name, (layer, kind) in split.items()
    }


def _module(name: str, lora: bool) -> str:
    """The module that owns a tensor."""
    return name.rsplit(".lora_", 1)[0] if lora else name.rpartition(".")[0] or name


def _split(name: str, lora: bool) -> tuple[str, str]:
    """The layer, up to the first number of a name, and what follows it."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return (name, parts[-1]) if lora or len(parts) == 1 else (".".join(parts[:-1]), parts[-1])
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :]) or parts[-1]


def _grouped(group_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name, group in group_of.items():
        groups.setdefault(group, []).append(name)
    return {group: tuple(names) for group, names in groups.items()}
