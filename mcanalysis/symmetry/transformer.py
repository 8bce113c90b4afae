"""The permutations of the hidden units in a transformer's MLP blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.symmetry.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class _Block:
    """The layers of one kind of MLP block. `into` lead to the hidden units, `out` leads away from them.

    Anything else in the module that holds them must be among `beside`: a normalisation of the hidden units would tell
    them apart.
    """

    models: str
    into: tuple[str, ...]
    out: str
    beside: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.into, self.out)


_OPT_LAYER = ("self_attn", "encoder_attn", "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
_BLOCKS = (
    _Block("Llama, Mistral, Qwen, Gemma", ("gate_proj", "up_proj"), "down_proj"),
    _Block("GPT-2", ("c_fc",), "c_proj"),
    _Block("GPT-NeoX", ("dense_h_to_4h",), "dense_4h_to_h"),
    _Block("OPT", ("fc1",), "fc2", frozenset(_OPT_LAYER)),
)


def transformer_mlp_spec(point: Mapping[str, Tensor]) -> PermutationSpec:
    """Return the specification of the hidden units of every MLP block found in a transformer's parameters.

    Found by the names of Llama (also Mistral, Qwen, Gemma: `gate_proj`, `up_proj`, `down_proj`), GPT-2 (`c_fc`,
    `c_proj`, stored transposed; GPT-Neo's, which are not, are told apart by the length of their biases), GPT-NeoX
    (`dense_h_to_4h`, `dense_4h_to_h`) and OPT (`fc1`, `fc2`). Each block has a permutation of its own, named after the
    module, so that weight matching finds the optimum in one sweep. The residual stream and the attention heads are
    left alone: with rotary embeddings, grouped heads or a tied output layer more than one axis would move together.

    Args:
        point: parameters by name, as `dict(model.named_parameters())` gives them; adapters are not permuted.

    Raises:
        UserError: if there is no such block; if one holds tensors of another kind (a normalisation of the hidden
            units, fused or quantised weights); or if its orientation cannot be told.
        PointMismatchError: if the shapes of a block do not fit each other.

    >>> import torch
    >>> point = {"mlp.fc1.weight": torch.zeros(8, 2), "mlp.fc2.weight": torch.zeros(2, 8)}
    >>> transformer_mlp_spec(point).axes
    {'mlp.fc1.weight': ('mlp units', None), 'mlp.fc2.weight': (None, 'mlp units')}
    """
    inside: dict[str, list[str]] = defaultdict(list)
    for name in point:
        parts = name.split(".")
        for depth in range(len(parts)):
            inside[".".join(parts[:depth])].append(".".join(parts[depth:]))
    axes: dict[str, tuple[str | None, ...]] = {}
    for parent, names in inside.items():
        for block in _BLOCKS:
            if {f"{layer}.weight" for layer in block.layers} <= set(names):
                _check_names(block, parent, names)
                axes |= _block_axes(point, block, parent)
    if not axes:
        known = "; ".join(f"{', '.join(block.layers)} ({block.models})" for block in _BLOCKS)
        raise UserError(
            f"Expected MLP blocks with layers named {known}, got {_leaves(point)}; write a PermutationSpec for this "
            "architecture."
        )
    spec = PermutationSpec(axes)
    spec.sizes(point)
    return spec


def _check_names(block: _Block, parent: str, names: Sequence[str]) -> None:
    own = {f"{layer}.{kind}" for layer in block.layers for kind in ("weight", "bias")}
    for name in names:
        if name not in own and name.split(".")[0] not in block.beside:
            raise UserError(
                f"Expected nothing but {', '.join(block.layers)} ({block.models}) in the MLP block '{parent}', got "
                f"'{name}', which may tell hidden units apart; write a PermutationSpec for this architecture."
            )


def _block_axes(point: Mapping[str, Tensor], block: _Block, parent: str) -> dict[str, tuple[str | None, ...]]:
    def full(layer: str, kind: str) -> str:
        return ".".join(part for part in (parent, layer, kind) if part)

    units = f"{parent} units".strip()
    transposed = block.models == "GPT-2" and _is_transposed(point, *(full(n, "weight") for n in block.layers))
    axes: dict[str, tuple[str | None, ...]] = {}
    for layer in block.into:
        axes[full(layer, "weight")] = (None, units) if transposed else (units, None)
        if full(layer, "bias") in point:
            axes[full(layer, "bias")] = (units,)
    axes[full(block.out, "weight")] = (units, None) if transposed else (None, units)
    return axes


def _is_transposed(point: Mapping[str, Tensor], into: str, out: str) -> bool:
    """Whether weights are stored as (in, out), as GPT-2's Conv1D does; told by the lengths of the biases."""
    biases = [point.get(f"{name.removesuffix('weight')}bias") for name in (into, out)]
    shape = tuple(point[into].shape)
    if len(shape) != 2 or tuple(point[out].shape) != shape[::-1]:
        raise PointMismatchError(
            f"Expected '{into}' and '{out}' of mirrored shapes, got {shape} and {tuple(point[out].shape)}; check the "
            "point."
        )
    units = len(biases[0]) if biases[0] is not None else None
    width = len(biases[1]) if biases[1] is not None else None
    plain = [s for s in (shape, shape[::-1]) if units in (None, s[0]) and width in (None, s[1])]
    if len(set(plain)) != 1 or (units, width) == (None, None) or shape[0] == shape[1]:
        raise UserError(
            f"Expected '{into}' of shape {shape} with biases whose lengths tell which axis the hidden units are on, "
            "got none such; write a PermutationSpec for this network."
        )
    return plain[0] != shape


def _leaves(point: Mapping[str, Tensor], most: int = 8) -> str:
    leaves = list(dict.fromkeys(".".join(name.split(".")[-3:-1]) or name for name in point))
    return ", ".join(leaves[:most]) + (f" and {len(leaves) - most} more" if len(leaves) > most else "")
