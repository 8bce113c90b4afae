"""A causal LM whose adapted weights are trained themselves, in the small singular directions that PEFT's OSF frees.

    W = U_high·S_high·V_high + U_low·S_low·V_low

The first part is kept, U_low, S_low and V_low are trained; PEFT holds the gradients of U_low and V_low orthogonal to it
and computes the layer as W·x + ΔW·x. There is no low rank: a point is ΔW from the base, as a LoRA adapter of a layer's
whole width, so that a minimum is a standard adapter like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import OSFConfig, PeftModel, get_peft_model
from peft.tuners.osf import OSFLayer
from torch import Tensor, nn

from mcanalysis.errors import UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.adapter_files import read_point, save_adapter
from mcanalysis.models.adapter_tensors import PREFIX
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.params.lora import delta_weights, module_names
from mcanalysis.params.merging import dense_factors
from mcanalysis.params.point import Point

_ADAPTER = "default"


class OsfModel(AdaptedModel):
    """A base in PEFT's OSF tuner.

    `parameters` are U_low, S_low and V_low by module. While a task is trained the base's weights are those that it
    began with, W + ΔW so far; where another point is in place, W is its own again.
    """

    def __init__(self, peft: PeftModel, tokenizer: Any, name: str) -> None:
        self.peft = peft
        self.network = peft
        self.tokenizer = tokenizer
        self.name = name
        found = peft.named_modules()
        self._layers = {full.removeprefix(PREFIX): m for full, m in found if isinstance(m, OSFLayer)}
        self._originals = {module: self._weight(module).data.clone() for module in self._layers}
        self._so_far = {module: torch.zeros_like(weight) for module, weight in self._originals.items()}
        self.parameters = self._trained()

    @classmethod
    def attach(
        cls, base: nn.Module, tokenizer: Any, name: str, *, preserved: float, target_modules: tuple[str, ...] | None
    ) -> OsfModel:
        """Decompose the weights of the layers to adapt; `preserved` is the part of the directions that is kept.

        Raises `UserError` for layers other than `torch.nn.Linear` in float32 or float64 (PEFT passes over Conv1D in
        silence, and ΔW would be rounded away in weights of lower precision), and where no direction would be kept.
        """
        targets = find_target_modules(base, target_modules)
        for target in targets:
            layer = base.get_submodule(target)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            is_wide = isinstance(layer, nn.Linear) and weight.dtype in (torch.float32, torch.float64)
            if not is_wide:
                raise UserError(
                    f"Expected torch.nn.Linear layers in float32 or float64 for osf, got {type(layer).__name__} in "
                    f"{weight.dtype} at {target}; choose --dtype float32, other --target-modules, or a strategy that "
                    "trains LoRA."
                )
            if int(preserved * min(weight.shape)) < 1:
                raise UserError(
                    f"Expected preserved to keep one direction at least, got {preserved} of {min(weight.shape)} at "
                    f"{target}; raise it."
                )
        config = OSFConfig(effective_rank=preserved, target_modules=targets, task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks by the old name
            return cls(get_peft_model(base, config, adapter_name=_ADAPTER), tokenizer, name)  # type: ignore[arg-type]

    def _weight(self, module: str) -> nn.Parameter:
        weight: Any = self._layers[module].get_base_layer().weight
        if hasattr(weight, "device_mesh"):
            raise UserError("Expected whole weights for osf, which trains them, got shards (FSDP); use DDP.")
        return weight

    def _trained(self) -> dict[str, nn.Parameter]:
        return {
            f"{module}.{name}": parameter
            for module, layer in self._layers.items()
            for name, parameter in layer.osf_svd_params[_ADAPTER].named_parameters()
        }

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Make what was trained part of the weights, and decompose these again: other directions become the small."""
        for module, layer in self._layers.items():
            self._so_far[module] = self._so_far[module] + layer.get_delta_weight(_ADAPTER)
            self._weight(module).data = self._originals[module] + self._so_far[module]
            config: Any = self.peft.peft_config[_ADAPTER]
            layer.update_layer(_ADAPTER, layer.effective_rank[_ADAPTER], config=config)
        self.parameters = self._trained()

    def raw(self) -> dict[str, Tensor]:
        """What is trained, and what it rests on: ΔW before the task, and what PEFT keeps of the decomposition."""
        found = {**super().raw(), **{f"{module}.so_far": delta for module, delta in self._so_far.items()}}
        return found | {f"{module}.{name}": kept for module in self._layers for name, kept in self._kept(module)}

    @torch.no_grad()
    def load_raw(self, raw: Mapping[str, Tensor]) -> None:
        super().load_raw(raw)
        for module in self._layers:
            self._so_far[module].copy_(raw[f"{module}.so_far"])
            self._weight(module).data = self._originals[module] + self._so_far[module]
            for name, kept in self._kept(module):
                kept.copy_(raw[f"{module}.{name}"])

    def _kept(self, module: str) -> list[tuple[str, Tensor]]:
        return [(name, b) for name, b in self._layers[module].named_buffers() if "_osf_" in name]  # type: ignore[operator]

    @torch.no_grad()
    def point(self) -> Point:
        """ΔW from the base, of each module as itself and an identity."""
        point: Point = {}
        for module, layer in self._layers.items():
            point |= dense_factors(module, self._so_far[module] + layer.get_delta_weight(_ADAPTER))
        return point

    def base_point(self) -> Point:
        return {}

    @contextmanager
    def in_place(self, point: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The base with W + ΔW in its adapted layers; the empty point is the base itself."""
        for module in module_names(point) if point else ():
            if module not in self._layers:
                raise UserError(f"Expected a point of this model's layers, got one with {module}; use one of this run.")
        training = {module: self._weight(module).data for module in self._layers}
        try:
            with torch.no_grad(), self.peft.disable_adapter():
                for module, weight in self._originals.items():
                    self._weight(module).data = weight
                for module, delta in delta_weights(point).items() if point else ():
                    weight = self._originals[module]
                    self._weight(module).data = weight + delta.to(weight.device, weight.dtype)
                yield self.peft.get_base_model()  # type: ignore[operator]
        finally:
            for module, weight in training.items():
                self._weight(module).data = weight

    def save(self, directory: str | Path, point: Mapping[str, Tensor] | None = None) -> None:
        """Write a standard PEFT LoRA adapter."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        save_adapter(self.point() if point is None else point, directory, self.name)

    def read(self, directory: str | Path) -> Point:
        return read_point(directory)
