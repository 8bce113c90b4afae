"""A PEFT model that somebody else trains, as the rest of the package knows one; what it cannot measure is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import safe_open
from torch import Tensor

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_config import read_config
from mcanalysis.models.adapter_tensors import PREFIX
from mcanalysis.models.base_identity import base_files, cached_folder
from mcanalysis.models.base_source import EMBEDDED, EMBEDDED_DIRECTORY
from mcanalysis.models.loading import load_tokenizer
from mcanalysis.models.lora_model import LoraModel

_COMPARED_MODULES, _COMPARED_NUMBERS = 8, 1000  # of the base in memory with its files


def unwrapped(network: Any) -> Any:
    """The model inside what an engine or a compiler has wrapped about it."""
    return extract_model_from_parallel(network, keep_torch_compile=False)


def lora_of(network: Any) -> LoraModel:
    """Return a user's PEFT model as a `LoraModel` without tokenizer: the same tensors, which are read, never changed.

    Raises `UserError` in one line for a model without an adapter, full fine-tuning, another number or kind of adapters
    than one LoRA adapter called `default`, trained parameters outside it, weights that an engine shards, and an adapter
    that W + s·B·A does not describe (`models.adapter_config`).
    """
    network = unwrapped(network)
    adapters = getattr(network, "peft_config", None) or {}
    if not (adapters and hasattr(network, "get_base_model")):
        raise UserError(
            f"Expected a PEFT model with a LoRA adapter, got {type(network).__name__} without one, all of whose "
            "weights would be trained; pass peft_config=LoraConfig(…) to TRL's trainer, or wrap it with get_peft_model."
        )
    kinds = {name: getattr(config.peft_type, "value", config.peft_type) for name, config in adapters.items()}
    if kinds != {"default": "LORA"}:
        got = ", ".join(f"'{name}' ({kind})" for name, kind in kinds.items())
        raise UserError(
            f"Expected one LoRA adapter, called 'default' as PEFT does by itself, got {got}; train one with a fresh "
            "get_peft_model, or delete the others (model.delete_adapter)."
        )
    others = [name for name, p in network.named_parameters() if p.requires_grad and ".lora_" not in name]
    if others:
        raise UserError(
            f"Expected nothing but the LoRA adapter to be trained, got {len(others)} other parameters such as "
            f"{others[0]}; leave out modules_to_save and bias, and freeze the base (requires_grad_(False))."
        )
    if any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in network.parameters()):
        raise UserError(
            "Expected whole weights in each process, got weights that FSDP or DeepSpeed has sharded; train with plain "
            "data parallelism, or measure the saved adapters with connectivity.py --minima."
        )
    with tempfile.TemporaryDirectory() as folder:
        adapters["default"].save_pretrained(folder)
        try:
            read_config(Path(folder))
        except UserError as error:
            raise UserError(str(error).replace(f" in '{folder}'", "")) from None
    name = adapters["default"].base_model_name_or_path or network.get_base_model().config.name_or_path
    return LoraModel(network, None, name or "")


def adopt(network: Any, base: str | None = None) -> LoraModel:
    """The same with the tokenizer of the base's files, with which a run directory's points are measured later, too.

    `base`: the folder or id that the base is loaded from again, by default what adapter or base say of it. Raises
    `UserError` besides for a base that cannot be found here, and one whose weights are not those of its files.
    """
    model = lora_of(network)
    name = base or model.name
    if name and Path(name).resolve() == EMBEDDED_DIRECTORY.resolve():
        name = EMBEDDED
    if not name or cached_folder(name) is None:
        raise UserError(
            f"Expected a base that can be loaded again from this machine, got '{name}'; save it with its tokenizer "
            "and pass base=FOLDER."
        )
    model.name, model.tokenizer = name, load_tokenizer(name, base_commit(model.network))
    _check_base(model)
    return model


def base_commit(network: Any) -> str | None:
    """The commit of the hub that the base was loaded at, if it was loaded from there."""
    return getattr(network.get_base_model().config, "_commit_hash", None)


def _check_base(model: LoraModel) -> None:
    """Raise `UserError` where adapted weights are not those of the base's files, as after merging an adapter into them.

    Some numbers of some modules are compared, where the files have them by the same names.
    """
    modules = [*model.scaling]
    chosen = modules[:: max(1, len(modules) // _COMPARED_MODULES)]
    layers: dict[str, Any] = {f"{m}.weight": model.peft.get_submodule(PREFIX + m).get_base_layer() for m in chosen}  # type: ignore[operator]
    folder = cached_folder(model.name)
    assert folder is not None  # see `adopt`
    for file in base_files(folder):
        if file.suffix != ".safetensors":
            continue
        with safe_open(str(file), framework="pt") as tensors:
            for name in layers.keys() & set(tensors.keys()):
                held = layers[name].weight
                if held.is_floating_point() and not hasattr(held, "quant_state"):
                    saved = _some(tensors.get_tensor(name).to(held.dtype))
                    if not torch.equal(saved, _some(held.detach()).cpu()):
                        raise UserError(
                            f"Expected the base as it lies in '{folder}', got another {name}, as after merging an "
                            "adapter into it: minima are adapters of one base; keep the adapter apart, or save the "
                            "merged base and start a run of its own on it."
                        )


def _some(weight: Tensor) -> Tensor:
    flat = weight.flatten()
    return flat[:: max(1, len(flat) // _COMPARED_NUMBERS)]
