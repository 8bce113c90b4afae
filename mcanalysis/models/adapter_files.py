"""PEFT's LoRA adapters on disk, read as points and written from points."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, key_b, module_names, ranks
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.point import Point
from mcanalysis.store.atomic import write_bytes_atomic, write_json_atomic

PREFIX = "base_model.model."
"""What PEFT puts before the names of a base's modules."""

_PLAIN_STARTS = ("gaussian", "orthogonal", "eva")  # the other named ones take B·A out of the base's weights first
# Settings of PEFT with which the model is not that of the weights W + s·B·A.
_OTHER_FUNCTIONS = (
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
)


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapter: ΔW = (alpha / rank)·B·A on the modules whose name ends in one of `target_modules`.

    None means the attention projections, found by name (q, k, v and output, or the fused one). Rank 8 and alpha 16 are
    the values of LLMCL, the reference code of I-LoRA; dropout 0 keeps a run exactly repeatable.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


def absorb_scaling(raw: Mapping[str, Tensor], scaling: Mapping[str, float]) -> Point:
    """The tensors as PEFT keeps them as a point: each module's scaling α/r multiplied into its B."""
    return {k: v * scaling[k.rsplit(".lora_", 1)[0]] if ".lora_B." in k else v for k, v in raw.items()}


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from disk: its point (scaling multiplied into B) and the settings that made it."""

    point: Point
    settings: LoraSettings
    base_name: str


def load_adapter(directory: str | Path) -> SavedAdapter:
    """Read a standard PEFT LoRA adapter as a point, in the dtype it was saved in.

    Raises `UserError`, naming what is wrong, for a folder without an adapter and for what this algebra does not cover:
    other PEFT types, DoRA and other variants in which the weights do not become W + s·B·A, initialisations that change
    W itself (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), biases, `modules_to_save`, trained embeddings.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"Expected a PEFT adapter (adapter_config.json, adapter_model.safetensors) in '{directory}', got: "
            f"{getattr(error, 'strerror', None) or error}; give the folder that PEFT's save_pretrained wrote."
        ) from None
    start = config.get("init_lora_weights", True)
    refused = [
        text
        for wrong, text in (
            (config.get("peft_type") != "LORA", f"peft_type {config.get('peft_type')}"),
            (bool(config.get("use_dora")), "DoRA"),
            *((bool(config.get(name)), f"{name} {config.get(name)}") for name in _OTHER_FUNCTIONS),
            (not isinstance(start, bool) and start not in _PLAIN_STARTS, f"init_lora_weights '{start}'"),
            (config.get("bias", "none") != "none", f"bias '{config.get('bias')}'"),
            (bool(config.get("modules_to_save")), f"modules_to_save {config.get('modules_to_save')}"),
            (
                any(".lora_" not in k or "embedding" in k for k in tensors),
                "tensors that are not LoRA factors",
            ),
        )
        if wrong
    ]
    if refused:
        raise UserError(
            f"Expected a plain LoRA adapter in '{directory}', got one with {' and '.join(refused)}; "
            "paths between such adapters are not defined here, train a plain one (bias='none', no modules_to_save, "
            "init_lora_weights=True)."
        )
    raw = {k.removeprefix(PREFIX): v for k, v in tensors.items()}
    modules = module_names(raw)
    scaling: dict[str, float] = {}
    for module in modules:
        rank = raw[key_a(module)].shape[0]
        alpha = _pattern(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
        scaling[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    settings = LoraSettings(int(config["r"]), float(config["lora_alpha"]), 0.0, tuple(modules))
    point = absorb_scaling(raw, scaling)
    return SavedAdapter(point, settings, str(config.get("base_model_name_or_path") or ""))


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's per-module alpha: the first pattern, a regular expression, that fits the end of the module's name."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def save_adapter(
    point: Mapping[str, Tensor],
    directory: str | Path,
    base_name: str,
    rank: int | None = None,
    target_modules: Sequence[str] | None = None,
) -> float:
    """Write any LoRA point as a standard PEFT adapter, without a model in memory, and return what truncation lost.

    A point of a `delta` path is written at its full rank r₁ + r₂, or at `rank` by the SVD of each ΔW
    (`mcanalysis.params.truncate`). The scaling is part of B already, so the adapter is written with α = r; modules of
    other ranks than the most frequent one are named in `rank_pattern` and `alpha_pattern`, and modules of rank 0 are
    left out. `load_adapter` gives the tensors back bit for bit. An adapter that is there already is replaced; a kill
    leaves a folder without `adapter_config.json`, which nothing takes for an adapter.

    Args:
        point: a LoRA point, in the dtype that is to be written.
        directory: made where it lacks; gets `adapter_config.json` and `adapter_model.safetensors`.
        base_name: the base model, a folder or a hub id, as PEFT is to look it up.
        rank: the highest rank to write; None: as the point is.
        target_modules: the names by which PEFT is to find the modules, such as `["q_proj", "v_proj"]`; by default the
            modules' full names.

    Returns:
        ‖ΔW − ΔW_written‖ / ‖ΔW‖ over all modules, in [0, 1]; 0 without `rank`.

    Raises:
        PointMismatchError: if the point is not a LoRA point.
        UserError: if `rank` is below 1, no module has a rank, or `target_modules` misses a module of the point.

    >>> import tempfile, torch
    >>> a = {"q.lora_A.weight": torch.diag(torch.tensor([4.0, 3.0])), "q.lora_B.weight": torch.eye(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     error = save_adapter(a, folder, "my/base", rank=1)
    ...     round(error, 6), load_adapter(folder).settings.rank
    (0.6, 1)
    """
    directory = Path(directory)
    error = 0.0
    if rank is not None:
        point, error = truncate(point, rank)
    rank_of = {module: r for module, r in ranks(point).items() if r}
    if not rank_of:
        raise UserError("Expected an adapter of rank 1 at least, got rank 0 in every module; there is nothing to save.")
    names = sorted(rank_of) if target_modules is None else sorted(target_modules)
    for module in rank_of:
        if not any(module == name or module.endswith(f".{name}") for name in names):
            raise UserError(
                f"Expected target_modules that fit every module of the point, got {', '.join(names) or 'none'}, which "
                f"miss {module}; add its name or leave target_modules out."
            )
    usual = Counter(rank_of.values()).most_common(1)[0][0]
    pattern = {f"^{re.escape(module)}": r for module, r in rank_of.items() if r != usual}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": names,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    tensors = {
        PREFIX + key(module): point[key(module)].detach().cpu().clone(memory_format=torch.contiguous_format)
        for module in rank_of
        for key in (key_a, key_b)
    }
    (directory / "adapter_config.json").unlink(missing_ok=True)
    write_bytes_atomic(directory / "adapter_model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    write_json_atomic(directory / "adapter_config.json", config)
    return error
