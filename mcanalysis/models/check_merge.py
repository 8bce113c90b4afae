"""What combining adapters must satisfy, asked of every way to combine them: PEFT's, mergekit's where installed, ours.

Everything is compared in ΔW, in float64, with sums that NumPy makes of the factors and the scalings of their settings.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mcanalysis.errors import UserError
from mcanalysis.params.gauge import random_gauge
from mcanalysis.params.lora import delta_weights, is_lora_point, key_a, key_b
from mcanalysis.params.merging import dare, magmax, task_arithmetic, ties
from mcanalysis.params.point import Point
from mcanalysis.params.spaces import get_space

BOUND = 1e-6
"""The largest error, relative to ΔW, with which an identity holds."""
_SHAPES = {"q": (10, 12), "v": (9, 10)}
_RANK = 3

Combine = Callable[[Sequence[Point], Sequence[float]], Mapping[str, Tensor]]
"""Of LoRA points, scaling in B, and weights: a LoRA point, or ΔW (out, in) by module."""
Deltas = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class _Adapter:
    """Factors, and the settings that scale them, as PEFT's `LoraConfig` names them."""

    factors: Point
    r: int = _RANK
    lora_alpha: int = _RANK
    use_rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def drawn(cls, seed: int, modules: Sequence[str] = tuple(_SHAPES), **settings: Any) -> _Adapter:
        generator = torch.Generator().manual_seed(seed)
        empty = cls({}, **settings)
        factors: Point = {}
        for module in modules:
            (out, into), rank = _SHAPES[module], empty.rank(module)
            for key, shape in ((key_a(module), (rank, into)), (key_b(module), (out, rank))):
                factors[key] = torch.randn(shape, generator=generator, dtype=torch.float64)
        return cls(factors, **settings)

    @property
    def modules(self) -> list[str]:
        return [module for module in _SHAPES if key_a(module) in self.factors]

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(module, self.r)

    def scaling(self, module: str) -> float:
        rank = self.rank(module)
        return self.alpha_pattern.get(module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def point(self) -> Point:
        """As a LoRA point: the scaling in B."""
        scaled = {key_b(module): self.scaling(module) for module in self.modules}
        return {name: tensor * scaled.get(name, 1.0) for name, tensor in self.factors.items()}

    @property
    def deltas(self) -> Deltas:
        """ΔW by NumPy, zeros for a module that it lacks."""
        found = {module: np.zeros(shape) for module, shape in _SHAPES.items()}
        for module in self.modules:
            B, A = (self.factors[key(module)].numpy() for key in (key_b, key_a))
            found[module] = self.scaling(module) * (B @ A)
        return found


class Way(NamedTuple):
    """One way to combine adapters: whose it is, its name, whether it is said to be linear in ΔW, how it runs, and
    whether it has a weight for each adapter (or one scale for all)."""

    source: str
    mode: str
    is_linear: bool
    run: Callable[[Sequence[_Adapter], Sequence[float]], Mapping[str, Tensor]]
    has_weights: bool = True


class _Identity(NamedTuple):
    words: str
    adapters: tuple[_Adapter, ...]
    weights: tuple[float, ...]
    of: str = "all"  # which ways claim it: all, those with weights, or those linear in ΔW
    as_if: tuple[tuple[_Adapter, ...], tuple[float, ...], float] | None = None
    """Adapters and weights whose result, times a number, it must equal; None: Σ wᵢ·ΔWᵢ."""


def check_merge(combine: Combine | None = None) -> pd.DataFrame:
    """Ask of ways to combine adapters which identities hold: one row per way and identity.

    Adapters are small and random; sparse methods keep every entry (density 1), so that what is asked is what they do to
    scalings, signs and factors. With density below 1 none of them gives an adapter back.

    Args:
        combine: a function of yours, `combine(points, weights)`, of LoRA points (the scaling in B) in float64, which
            returns such a point or a dict of ΔW by module; None for all ways of the installed PEFT, of mergekit where
            it is installed, and ours.

    Returns:
        Columns `source`, `mode`, `identity`, `claimed` (False where only methods with a weight for each adapter, or
        linear in ΔW, must satisfy it, and this one is not said to be one), `result` (holds, violated, refused: it
        raised a ValueError or UserError, crashed: anything else, not installed), `error` (‖ΔW − expected‖ / ‖expected‖;
        NaN without a result) and `words` (of what was raised).

    Raises:
        UserError: if `combine` cannot be called, or returns neither.

    >>> from mcanalysis.params.low_rank import concatenate
    >>> set(check_merge(concatenate).result)
    {'holds'}
    """
    if combine is None:
        ways = [*_of_peft(), *_of_mergekit(), *_of_ours()]
    elif callable(combine):
        ways = [Way("yours", getattr(combine, "__name__", type(combine).__name__), True, _on_points(combine))]
    else:
        raise UserError(
            f"Expected a function of points and weights, got {type(combine).__name__}; pass one, or nothing for all "
            "known ways."
        )
    rows = [_row(way, identity) for way in ways for identity in _identities()]
    if combine is None and importlib.util.find_spec("mergekit") is None:
        absent = {"source": "mergekit", "mode": "", "identity": "", "claimed": False, "error": math.nan}
        rows.append({**absent, "result": "not installed", "words": "mergekit is not installed: skipped"})
    return pd.DataFrame(rows)


def _row(way: Way, identity: _Identity) -> dict[str, Any]:
    claims = ["all", *(["weights"] * way.has_weights), *(["linear"] * (way.has_weights and way.is_linear))]
    claimed = identity.of in claims
    row = {"source": way.source, "mode": way.mode, "identity": identity.words, "claimed": claimed}
    try:
        found = _dense(way.run(identity.adapters, identity.weights))
        if identity.as_if is None:
            each = [adapter.deltas for adapter in identity.adapters]
            expected = {m: sum(w * d[m] for w, d in zip(identity.weights, each, strict=True)) for m in _SHAPES}
        else:
            adapters, weights, factor = identity.as_if
            expected = {m: factor * d for m, d in _dense(way.run(adapters, weights)).items()}
    except Exception as error:  # whatever a library raises is its answer
        if way.source == "yours" and isinstance(error, _NoDeltaError):
            raise
        result = "refused" if isinstance(error, (ValueError, UserError)) else "crashed"
        return {**row, "result": result, "error": math.nan, "words": " ".join(f"{error}".split())[:160]}
    apart, norm = (math.sqrt(sum(float(np.square(d).sum()) for d in ds)) for ds in (
        [found[m] - expected[m] for m in _SHAPES], expected.values()))  # fmt: skip
    error = apart / norm if norm else apart
    return {**row, "result": "holds" if error <= BOUND else "violated", "error": error, "words": ""}


def _identities() -> list[_Identity]:
    a, b = _Adapter.drawn(1, lora_alpha=6), _Adapter.drawn(2, lora_alpha=2)
    twin = _Adapter(random_gauge(a.factors, 0), lora_alpha=6)  # the same ΔW in other factors
    stable, other = _Adapter.drawn(3, lora_alpha=6, use_rslora=True), _Adapter.drawn(4, use_rslora=True)
    patterned = _Adapter.drawn(5, lora_alpha=6, rank_pattern={"v": 2}, alpha_pattern={"v": 8})
    small, partly = _Adapter.drawn(6, r=2, lora_alpha=4), _Adapter.drawn(7, ("q",))
    return [
        _Identity("one adapter of weight 1 comes back", (a,), (1.0,)),
        _Identity("weights 1 and 0: the first", (a, b), (1.0, 0.0), "weights"),
        _Identity("two equal ones at ½, ½: the adapter", (a, a), (0.5, 0.5), "weights"),
        _Identity("ΔW = 0.3·ΔW₁ + 0.7·ΔW₂", (a, b), (0.3, 0.7), "linear"),
        _Identity("one adapter of weight −1: −ΔW", (a,), (-1.0,)),
        _Identity("ΔW = 0.7·ΔW₁ − 0.3·ΔW₂", (a, b), (0.7, -0.3), "linear"),
        _Identity("weights 2, 2: twice 1, 1", (a, b), (2.0, 2.0), "all", ((a, b), (1.0, 1.0), 2.0)),
        _Identity("order does not matter", (a, b), (1.0, 1.0), "all", ((b, a), (1.0, 1.0), 1.0)),
        _Identity("(B·R, R⁻¹·A) merges as (B, A)", (twin, b), (1.0, 1.0), "all", ((a, b), (1.0, 1.0), 1.0)),
        _Identity("rsLoRA: weight 1 comes back", (stable,), (1.0,)),
        _Identity("rsLoRA: 0.3·ΔW₁ + 0.7·ΔW₂", (stable, other), (0.3, 0.7), "linear"),
        _Identity("rsLoRA beside plain: 0.3·ΔW₁ + 0.7·ΔW₂", (stable, b), (0.3, 0.7), "linear"),
        _Identity("rank and alpha patterns: weight 1 comes back", (patterned,), (1.0,)),
        _Identity("patterns beside none: 0.3·ΔW₁ + 0.7·ΔW₂", (patterned, b), (0.3, 0.7), "linear"),
        _Identity("ranks 3 and 2: 0.3·ΔW₁ + 0.7·ΔW₂", (a, small), (0.3, 0.7), "linear"),
        _Identity("a module that one lacks: 0.3·ΔW₁ + 0.7·ΔW₂", (a, partly), (0.3, 0.7), "linear"),
    ]


class _NoDeltaError(UserError):
    """What a function of the caller returned is no adapter."""


def _dense(found: Mapping[str, Tensor]) -> Deltas:
    """ΔW by module as NumPy arrays, zeros for a module that is not there."""
    if not isinstance(found, Mapping) or not set(found) or not all(isinstance(x, Tensor) for x in found.values()):
        raise _NoDeltaError(
            f"Expected a LoRA point or ΔW by module, got {type(found).__name__}; return a dict of tensors."
        )
    deltas = delta_weights(found) if is_lora_point(found) else dict(found)
    for module, delta in deltas.items():
        if delta.shape != _SHAPES.get(module):
            raise _NoDeltaError(
                f"Expected ΔW of shape {_SHAPES.get(module)} at '{module}', got {tuple(delta.shape)}; return (out, in)."
            )
    absent = {module: np.zeros(shape) for module, shape in _SHAPES.items()}
    return absent | {module: delta.detach().double().numpy() for module, delta in deltas.items()}


def _on_points(combine: Combine) -> Callable[[Sequence[_Adapter], Sequence[float]], Mapping[str, Tensor]]:
    return lambda adapters, weights: combine([adapter.point for adapter in adapters], list(weights))


def _of_ours() -> list[Way]:
    def scaled(method: Callable[..., Point], points: Sequence[Point], weights: Sequence[float]) -> Point:
        if len(set(weights)) > 1:
            raise UserError(f"Expected one scale for all adapters, got weights {weights}; the method has no weights.")
        return method(points, scale=weights[0])

    spaces = [
        Way("mcanalysis", f"{name} space", True, _on_points(get_space(name).combine)) for name in ("delta", "factor")
    ]
    methods = {
        "task_arithmetic": task_arithmetic, "ties": partial(ties, density=1.0), "dare": partial(dare, density=1.0),
        "magmax": magmax,
    }  # fmt: skip
    return spaces + [
        Way("mcanalysis", name, name in ("task_arithmetic", "dare"), _on_points(partial(scaled, method)), False)
        for name, method in methods.items()
    ]


class _Base(nn.Module):
    """The layers that PEFT's adapters are put on."""

    def __init__(self) -> None:
        super().__init__()
        for name, (out, into) in _SHAPES.items():
            self.add_module(name, nn.Linear(into, out, bias=False))


def _of_peft() -> list[Way]:
    """Every `combination_type` of `add_weighted_adapter`; those with an SVD also with a rank that cuts nothing off."""
    named = ("linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune")
    modes = [*named, *(f"{name}_svd" for name in named[3:])]
    ways = [(mode, mode, {}) for mode in modes]
    rank = 2 * _RANK
    ways += [(f"{mode}, svd_rank={rank}", mode, {"svd_rank": rank}) for mode in modes if mode.endswith("svd")]
    source = f"PEFT {version('peft')}"
    return [Way(source, name, "ties" not in mode, partial(_peft_merge, mode, more)) for name, mode, more in ways]


def _peft_merge(
    mode: str, options: Mapping[str, Any], adapters: Sequence[_Adapter], weights: Sequence[float]
) -> Mapping[str, Tensor]:
    """ΔW of what `add_weighted_adapter` makes, by PEFT's own `get_delta_weight`."""
    from peft import LoraConfig, get_peft_model

    if mode.removesuffix("_svd") not in ("linear", "cat", "svd"):
        options = {**options, "density": 1.0}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # PEFT draws factors, which are then replaced
        warnings.simplefilter("ignore")  # of a density of 1, and of a base without a name
        configs = [
            LoraConfig(
                r=a.r, lora_alpha=a.lora_alpha, use_rslora=a.use_rslora, rank_pattern=dict(a.rank_pattern),
                alpha_pattern=dict(a.alpha_pattern), target_modules=a.modules,
            )
            for a in adapters
        ]  # fmt: skip
        names = [f"a{i}" for i in range(len(adapters))]
        model: Any = get_peft_model(_Base(), configs[0], adapter_name=names[0])  # type: ignore[arg-type]
        for name, config in zip(names[1:], configs[1:], strict=True):
            model.add_adapter(name, config)
        model.double()
        layers = {module: model.base_model.model.get_submodule(module) for module in _SHAPES}
        for name, adapter in zip(names, adapters, strict=True):
            for module in adapter.modules:
                layers[module].lora_A[name].weight.data = adapter.factors[key_a(module)].clone()
                layers[module].lora_B[name].weight.data = adapter.factors[key_b(module)].clone()
        model.base_model.add_weighted_adapter(names, list(weights), "merged", combination_type=mode, **options)
        return {m: layer.get_delta_weight("merged") for m, layer in layers.items() if "merged" in layer.lora_A}


def _of_mergekit() -> list[Way]:
    """Its methods with a weight per model, on whole weights W + ΔW; none where it is not installed."""
    if importlib.util.find_spec("mergekit") is None:
        return []
    source = f"mergekit {version('mergekit')}"
    linear = ("task_arithmetic", "dare_linear")
    return [Way(source, m, m in linear, partial(_mergekit_merge, m)) for m in (*linear, "ties", "dare_ties")]


def _mergekit_merge(method: str, adapters: Sequence[_Adapter], weights: Sequence[float]) -> Mapping[str, Tensor]:
    from mergekit.merge_methods import merge_tensors  # type: ignore[import-not-found]  # since 0.1.5

    found = {}
    for module, shape in _SHAPES.items():
        deltas = [torch.from_numpy(adapter.deltas[module]) for adapter in adapters]
        found[module] = merge_tensors(
            [torch.zeros(shape, dtype=torch.float64), *deltas], method, base_index=0,
            parameters={"weight": {i: w for i, w in enumerate(weights, start=1)}, "density": 1.0},
        )  # fmt: skip
    return found
