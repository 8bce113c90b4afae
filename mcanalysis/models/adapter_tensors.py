"""The tensors of a PEFT adapter on disk: read as factors A and B, refused by name where they are anything else."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapter_config import AdapterConfig
from mcanalysis.params.lora import key_b, module_names, ranks
from mcanalysis.store.recorded import check_recorded

logger = logging.getLogger(__name__)

PREFIX = "base_model.model."
"""What PEFT puts before the names of a base's modules."""

_MAGNITUDE = re.compile(r"\.lora_magnitude_vector(\.weight)?$")
_FACTOR = re.compile(r".+\.lora_[AB]\.weight")
# What stands before a layer's number, the number, what follows, the last name.
_NUMBERED = re.compile(r"((?:.*?\.)?)(\d+)(\.(?:.*\.)?)([^.]+)")


def check_own_names(point: Mapping[str, Tensor]) -> None:
    """Raise `PointMismatchError` for tensors as PEFT's state dicts have them, without the scaling in B.

    >>> check_own_names({"q.lora_A.weight": torch.ones(2, 5)})
    """
    named = next((name for name in point if name.startswith(PREFIX)), None)
    if named is not None:
        raise PointMismatchError(
            f"Expected names of the base's own modules and α/r multiplied into B, got '{named}' of a PEFT state dict, "
            "which lacks both; save the adapter with save_pretrained(folder) and take mc.load_adapter(folder).point."
        )


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32, unless it is wider: a factor α/r would be rounded in bfloat16, and PEFT widens, too.

    >>> widened(torch.ones(1, dtype=torch.bfloat16)).dtype, widened(torch.ones(1, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    file = directory / "adapter_model.safetensors"
    if not file.exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"Expected adapter_model.safetensors in '{directory}', got adapter_model.bin, a pickle, which is not "
            "opened here; load the adapter with PEFT and save it again, which writes safetensors."
        )
    check_recorded(file)
    try:
        return load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"Expected a PEFT adapter (adapter_config.json, adapter_model.safetensors) in '{directory}', got: "
            f"{getattr(error, 'strerror', None) or error}; give the folder that PEFT's save_pretrained wrote."
        ) from None


def read_factors(directory: Path, *, dora: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The factors A and B by point name, finite and in float32 at least; a `UserError` names what else is there.

    Then the magnitudes of DoRA by module, where `dora` says that there are to be some.
    """
    tensors = _read_tensors(directory)
    names = [k for k in tensors if _MAGNITUDE.search(k)] if dora else []
    magnitudes = {_MAGNITUDE.sub("", k.removeprefix(PREFIX)): widened(tensors.pop(k)) for k in names}
    if not tensors:
        raise _unread(directory, "no tensor", "save the adapter again with PEFT")
    outer = [k for k in tensors if ".lora_embedding_" in k or ".base_layer." in k]
    if outer:
        got = f"an adapted embedding or output layer ({first_of(outer)})"
        raise _unread(directory, got, "train one of the linear layers between them")
    other = [k for k in tensors if not _FACTOR.fullmatch(k)]
    if other:
        raise _unread(
            directory,
            f"tensors that are not LoRA factors ({first_of(other)})",
            "train a plain one, of linear layers (bias='none', no modules_to_save, no embeddings)",
        )
    empty = [k for k, v in tensors.items() if v.dim() < 2 or not v.numel()]
    if empty:
        raise _unread(
            directory,
            f"tensors that are empty or flat ({first_of(empty)})",
            "gather the shards of DeepSpeed or FSDP before save_pretrained",
        )
    wide = [k for k, v in tensors.items() if v.dim() > 2]
    if wide:
        raise _unread(directory, f"factors of convolutions ({first_of(wide)})", "train one of linear layers")
    not_float = [k for k, v in tensors.items() if not v.is_floating_point()]
    if not_float:
        raise _unread(
            directory,
            f"tensors of dtype {tensors[not_float[0]].dtype} ({first_of(not_float)})",
            "save it in float32 or bfloat16",
        )
    raw = {k.removeprefix(PREFIX): widened(v) for k, v in tensors.items()}
    if len(raw) != len(tensors):
        raise _unread(directory, f"names that stand there with and without '{PREFIX}'", "save it again with PEFT")
    broken = [k for k, v in (raw | magnitudes).items() if not bool(v.isfinite().all())]
    if broken:
        raise _unread(
            directory,
            f"values that are NaN or infinite in {len(broken)} of {len(raw)} tensors ({first_of(broken)})",
            "take a checkpoint from before its training diverged",
        )
    try:
        modules = module_names(raw)
    except UserError as error:
        raise UserError(f"The adapter in '{directory}' cannot be read. {error}") from None
    if dora and {m: (len(raw[key_b(m)]),) for m in modules} != {m: tuple(v.shape) for m, v in magnitudes.items()}:
        raise _unread(directory, "DoRA without one magnitude for each output of its modules", "save it again with PEFT")
    return raw, magnitudes


def _unread(directory: Path, got: str, remedy: str) -> UserError:
    return UserError(f"Expected a plain LoRA adapter in '{directory}', got one with {got}; {remedy}.")


def first_of(names: Sequence[str]) -> str:
    """The first name and how many there are besides.

    >>> first_of(["a", "b", "c"])
    "'a' and 2 more"
    """
    return f"'{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def warn_of_lacks(directory: Path, config: AdapterConfig, factors: Mapping[str, Tensor]) -> None:
    """Say in one line each what an adapter lacks that can be read all the same.

    Another rank than its settings name, modules that its other layers have, and a B that is 0 throughout.
    """
    of_rank = ranks(factors)
    others = [module for module, rank in of_rank.items() if config.rank_of(module) != rank]
    if others:
        logger.warning(
            "the adapter in '%s' has tensors of rank %d where its adapter_config.json says r = %d (%s): they are "
            "scaled by their own rank; PEFT refuses such an adapter",
            directory,
            of_rank[others[0]],
            config.rank_of(others[0]),
            first_of(others),
        )
    lacking = _lacking(list(of_rank)) if _asks_for_all_layers(config.settings) else []
    if lacking:
        logger.warning(
            "the adapter in '%s' has no tensors for %s, which others of its layers have: there the base stays as it is",
            directory,
            first_of(lacking),
        )
    if not config.settings.get("use_dora") and not any(
        config.scaling(module, rank) and bool(factors[key_b(module)].any()) for module, rank in of_rank.items()
    ):
        logger.warning(
            "the adapter in '%s' changes nothing, its B or its scaling is 0 in every module, as before training: "
            "what is measured is the base",
            directory,
        )


def _asks_for_all_layers(settings: Mapping[str, Any]) -> bool:
    targets = settings.get("target_modules")
    restricted = settings.get("layers_to_transform") is not None or settings.get("exclude_modules")
    return isinstance(targets, list) and not restricted and not any(re.search(r"\.\d+\.", str(t)) for t in targets)


def _lacking(modules: Sequence[str]) -> list[str]:
    """Modules that are missing in a layer whose siblings are there, by their names.

    >>> _lacking(["h.0.q", "h.0.v", "h.1.q"])
    ['h.1.v']
    """
    found = [match.groups() for module in modules if (match := _NUMBERED.fullmatch(module))]
    last_names: dict[tuple[str, str], dict[str, None]] = {}
    for before, _, after, last in found:
        last_names.setdefault((before, after), {})[last] = None
    expected = dict.fromkeys(
        f"{before}{number}{after}{last}" for before, number, after, _ in found for last in last_names[before, after]
    )
    has = set(modules)
    return [module for module in expected if module not in has]
