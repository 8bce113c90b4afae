"""PEFT's LoRA adapters on disk, read as points."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.params.lora import key_a, module_names
from mcanalysis.params.point import Point

PREFIX = "base_model.model."
"""What PEFT puts before the names of a base's modules."""


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
    other PEFT types, DoRA, biases, `modules_to_save`, trained embeddings.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(directory / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"Expected a PEFT adapter (adapter_config.json, adapter_model.safetensors) in '{directory}', got: {error}; "
            "give the folder that PEFT's save_pretrained wrote."
        ) from None
    refused = [
        text
        for wrong, text in (
            (config.get("peft_type") != "LORA", f"peft_type {config.get('peft_type')}"),
            (bool(config.get("use_dora")), "DoRA"),
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
            "paths between such adapters are not defined here, train with bias='none' and without modules_to_save."
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
