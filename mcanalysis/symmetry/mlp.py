"""The permutations of a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.symmetry.permutation_spec import PermutationSpec


def mlp_spec(point: Mapping[str, Tensor], layers: Sequence[str]) -> PermutationSpec:
    """Return the specification of a chain of linear layers with elementwise activations between them.

    Each hidden layer may be permuted: the rows of its weight, its bias, and the columns of the next weight. Dropout
    makes no difference. Anything else with parameters in the point is refused, since it might tell units apart
    (a normalisation between the layers does): write a `PermutationSpec` that says what happens to it. What has no
    parameters is not seen, such as a connection that skips a layer: permute a point and compare outputs.

    Args:
        point: holds `<layer>.weight` of shape (out, in), as `torch.nn.Linear` has it, and optionally `<layer>.bias`.
        layers: the names of the layers from input to output, at least two; "0" and "2" for
            `nn.Sequential(nn.Linear(…), nn.ReLU(), nn.Linear(…))`.

    Raises:
        UserError: if a layer is missing or not linear, or the point holds other tensors.
        PointMismatchError: if one layer's outputs are not the next one's inputs.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> mlp_spec(dict(net.named_parameters()), ["0", "2"]).axes
    {'0.weight': ('units of 0', None), '0.bias': ('units of 0',), '2.weight': (None, 'units of 0'), '2.bias': (None,)}
    """
    if len(layers) < 2 or len(set(layers)) < len(layers):
        raise UserError(
            f"Expected the names of at least two different layers, got {list(layers)}; list them from input to output."
        )
    axes: dict[str, tuple[str | None, ...]] = {}
    inputs: str | None = None
    for layer in layers:
        weight = point.get(f"{layer}.weight")
        if weight is None or weight.ndim != 2:
            got = "none" if weight is None else f"shape {tuple(weight.shape)}"
            raise UserError(
                f"Expected a matrix '{layer}.weight', got {got} in a point that has {_some(point)}; name linear layers."
            )
        outputs = None if layer == layers[-1] else f"units of {layer}"
        axes[f"{layer}.weight"] = (outputs, inputs)
        if f"{layer}.bias" in point:
            axes[f"{layer}.bias"] = (outputs,)
        inputs = outputs
    others = [name for name in point if name not in axes]
    if others:
        raise UserError(
            f"Expected a point of the layers {', '.join(layers)} alone, got also {_some(others)}; name all layers, or "
            "write a PermutationSpec that says how the others are permuted."
        )
    spec = PermutationSpec(axes)
    spec.sizes(point)
    return spec


def _some(names: Mapping[str, Tensor] | Sequence[str], most: int = 5) -> str:
    shown = [f"'{name}'" for name in list(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
