"""A causal LM with one LoRA adapter: attach, save, load, and put the model at any point and back.

PEFT attaches, saves and loads; all combining of adapters is done on points
(`mcanalysis.params`), because PEFT's own linear combination scales both factors by the square root of the weight.

A model trains one adapter. Other points (a slow average, a place on a path) are never second adapters: they are put in
place for the length of one call, by `torch.func.functional_call` (unmerged, differentiable, any rank) or by swapping in
merged weights (fast, float32 and float64 only). Adapters of earlier tasks that stay active while a new one is trained
(O-LoRA, InfLoRA) are one fixed part of any rank, added to the outputs of the adapted layers: `freeze`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.models.adapter_files import LoraSettings, absorb_scaling, read_point
from mcanalysis.models.adapter_tensors import PREFIX, widened
from mcanalysis.models.encoding import Batch
from mcanalysis.models.forward import Forward, forward
from mcanalysis.models.modes import evaluating
from mcanalysis.models.target_modules import find_target_modules
from mcanalysis.params.lora import base_point, key_a, key_b, module_names
from mcanalysis.params.low_rank import concatenate
from mcanalysis.params.point import Point

if TYPE_CHECKING:
    from peft import PeftModel

_ADAPTER = "default"  # PEFT writes an adapter of this name into the folder itself, not into a subfolder


class LoraModel(AdaptedModel):
    """A base model with one trainable LoRA adapter.

    `peft` is the wrapped model, `parameters` the adapter's tensors by point name, `scaling` α/r per adapted module,
    `frozen` the fixed part that is active beside the adapter (empty unless `freeze` was called).
    """

    def __init__(self, peft: PeftModel, tokenizer: Any, name: str) -> None:
        self.peft = peft
        self.network = peft
        self.frozen: Point = {}
        self._frozen_hooks: list[Any] = []
        self.tokenizer = tokenizer
        self.name = name
        self.parameters: dict[str, nn.Parameter] = {}
        self.scaling: dict[str, float] = {}
        self._parameter_names: dict[str, str] = {}  # point name -> name inside the PEFT model
        infix = f".{_ADAPTER}."
        for full, parameter in peft.named_parameters():
            if ".lora_" in full and infix in full:
                short = full.removeprefix(PREFIX).replace(infix, ".")
                self.parameters[short] = parameter
                self._parameter_names[short] = full
        for module in module_names(self.parameters):
            self.scaling[module] = float(peft.get_submodule(PREFIX + module).scaling[_ADAPTER])  # type: ignore[index]

    @classmethod
    def attach(cls, base: nn.Module, tokenizer: Any, settings: LoraSettings, seed: int, name: str) -> LoraModel:
        """Attach a fresh adapter: A random by `seed` (the caller's random state is left alone), B zero, so ΔW = 0."""
        from peft import LoraConfig, get_peft_model  # seconds, which who only reads what is stored need not wait for

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            target_modules=find_target_modules(base, settings.target_modules),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # PEFT sets it right for Conv1D by itself
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks by the old name
            torch.manual_seed(seed)
            peft = get_peft_model(base, config, adapter_name=_ADAPTER)  # type: ignore[arg-type]
        peft.peft_config[_ADAPTER].base_model_name_or_path = name
        return cls(peft, tokenizer, name)  # type: ignore[arg-type]

    @property
    def base(self) -> nn.Module:
        """The base model inside; its adapter is active unless a point is put in place."""
        return self.peft.get_base_model()

    def point(self) -> Point:
        """A copy of the adapter as a point, the scaling multiplied into B; without the fixed part."""
        return absorb_scaling({k: v.detach().clone() for k, v in self.parameters.items()}, self.scaling)

    def whole_point(self) -> Point:
        """The adapter and the fixed part as one adapter of their ranks' sum."""
        return concatenate([self.frozen, self.point()], [1.0, 1.0]) if self.frozen else self.point()

    def fresh(self, seed: int) -> None:
        """Start the adapter anew: A random by `seed`, the same on every device, B zero, all of it trainable."""
        device = self.device
        self._move_adapter("cpu")  # PEFT draws where the factors lie, and each kind of device draws other numbers
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in self.scaling:
                self.peft.get_submodule(PREFIX + module).reset_lora_parameters(_ADAPTER, True)  # type: ignore[operator]
        self._move_adapter(device)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def _move_adapter(self, device: torch.device | str) -> None:
        for parameter in self.parameters.values():
            parameter.data = parameter.data.to(device)

    def freeze(self, point: Mapping[str, Tensor]) -> None:
        """Make a point, of any rank, the fixed part; an empty one takes it away."""
        self.frozen = dict(point)
        if point:
            self._check_modules(point)
        if bool(point) != bool(self._frozen_hooks):
            for hook in self._frozen_hooks:
                hook.remove()
            self._frozen_hooks = []
            for module in self.scaling if point else ():
                layer = self.peft.get_submodule(PREFIX + module)
                self._frozen_hooks.append(layer.register_forward_hook(partial(self._add_frozen, module)))

    def train_only_b(self) -> None:
        """Keep A as it is from now on (until `fresh`)."""
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(".lora_B." in name)

    @torch.no_grad()
    def input_covariances(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The mean of x·xᵀ over the tokens of the batches, padding left out, x the inputs of each adapted module.

        Shape (width, width) per module, float64; without dropout, with the adapter and the fixed part as they are.
        """
        sums: dict[str, Tensor] = {}
        number, kept = 0, torch.empty(0)

        def add(module: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = _rows_of(module, inputs[0], kept).double()
            sums[module] = sums[module] + x.T @ x if module in sums else x.T @ x

        with ExitStack() as stack:
            for module in self.scaling:
                layer = self.peft.get_submodule(PREFIX + module)
                stack.enter_context(layer.register_forward_pre_hook(partial(add, module)))
            stack.enter_context(self.without_dropout())
            for batch in batches:
                kept = batch.mask().bool().flatten()
                number += int(kept.sum())
                self.forward(batch)
        return {module: total / number for module, total in sums.items()}

    @contextmanager
    def summing_outputs(self, batch: Batch, sums: dict[str, Tensor]) -> Iterator[None]:
        """Add to `sums`, for each trained matrix, Σ|output| over the tokens of a batch in the passes inside.

        By point name: of A, shape (rank,), its own outputs; of B, shape (out,), those of the whole adapted layer.
        Padding is left out; float32. Passes that compute activations again, in backward, come after and do not count.
        """
        kept = batch.mask().bool().flatten()

        def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            total = _rows_of(name, output.detach(), kept).float().abs().sum(0)
            sums[name] = sums[name] + total if name in sums else total

        with ExitStack() as stack:
            for module in self.scaling:
                layer: Any = self.peft.get_submodule(PREFIX + module)
                stack.enter_context(layer.register_forward_hook(partial(add, key_b(module))))
                stack.enter_context(layer.lora_A[_ADAPTER].register_forward_hook(partial(add, key_a(module))))
            yield

    def _add_frozen(self, module: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.frozen:
            return None
        a, b = self.frozen[key_a(module)], self.frozen[key_b(module)]
        return output + linear(linear(inputs[0].to(a.dtype), a), b).to(output.dtype)

    @contextmanager
    def _without_frozen(self) -> Iterator[None]:
        """Switch the fixed part off while another point is in place, which stands for the whole model."""
        frozen, self.frozen = self.frozen, {}
        try:
            yield
        finally:
            self.frozen = frozen

    def load_point(self, point: Mapping[str, Tensor]) -> None:
        """Copy a point of the same rank and targets into the trainable adapter."""
        self._check_modules(point)
        raw = self._raw(point)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if raw[name].shape != parameter.shape:
                    raise PointMismatchError(
                        f"Expected {name} of shape {tuple(parameter.shape)}, got {tuple(raw[name].shape)}; "
                        "load an adapter of this run's rank."
                    )
                parameter.copy_(raw[name])

    def read(self, directory: str | Path) -> Point:
        """The adapter in a folder, as a point."""
        return read_point(directory)

    def base_point(self) -> Point:
        """The point of the base model itself: this adapter's A with B = 0."""
        return base_point(self.point())

    def forward(self, batch: Batch, hidden_states: bool = False) -> Forward:
        """One forward pass with the trainable adapter."""
        return forward(self.peft, batch, hidden_states)

    def forward_at(self, point: Mapping[str, Tensor], batch: Batch, hidden_states: bool = False) -> Forward:
        """One forward pass at a point of any rank, on any device; differentiable with respect to its tensors.

        With gradients, activations are kept even under gradient checkpointing: when the backward pass computed them
        again, the point would no longer be in place.
        """
        self._check_modules(point)
        raw = {self._parameter_names[k]: v.to(self.parameters[k].device) for k, v in self._raw(point).items()}
        with self._without_frozen(), _activations_kept(self.peft):
            return forward(
                self.peft, batch, hidden_states, call=lambda **inputs: functional_call(self.peft, raw, kwargs=inputs)
            )

    def without_dropout(self) -> AbstractContextManager[None]:
        """Switch dropout off for a while, so that a teacher does not answer through a random mask."""
        return evaluating(self.peft)

    def in_place(self, point: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        """The base at a point: merged where that is exact, else unmerged."""
        return self.merged(point) if self.can_merge() else self.unmerged(point)

    @contextmanager
    def merged(self, point: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Yield the base model with W + B·A in its adapted layers; afterwards the very same tensors are back.

        Only in float32 and float64: adding a small ΔW to bfloat16 weights would round it away. Costs one copy of the
        adapted weights.
        """
        self._check_modules(point)
        originals: list[tuple[nn.Parameter, Tensor]] = []
        try:
            with torch.no_grad(), self.peft.disable_adapter(), self._without_frozen():
                for module in module_names(point):
                    layer = self.peft.get_submodule(PREFIX + module)
                    weight = layer.get_base_layer().weight  # type: ignore[operator]
                    if not _is_exact(weight):
                        raise UserError(
                            f"Expected float32 weights to merge an adapter into, got {weight.dtype}; evaluate unmerged."
                        )
                    wide = torch.promote_types(point[key_b(module)].dtype, weight.dtype)
                    a = point[key_a(module)].to(weight.device, wide)
                    b = point[key_b(module)].to(weight.device, wide)
                    transposed = getattr(layer, "fan_in_fan_out", False)  # GPT-2's Conv1D keeps its weight so
                    left, right = (a.T, b.T) if transposed else (b, a)
                    originals.append((weight, weight.data))
                    # In one step: ΔW itself would be a second copy for a moment.
                    weight.data = torch.addmm(weight.data.to(wide), left, right).to(weight.dtype)
                yield self.base
        finally:
            for weight, data in reversed(originals):
                weight.data = data

    def can_merge(self) -> bool:
        """Whether all adapted weights are float32 or float64, and whole (FSDP keeps a part in each process)."""
        return all(_is_exact(w) for w in self._adapted_weights()) and not self._is_sharded()

    def _is_sharded(self) -> bool:
        return any(hasattr(w, "device_mesh") for w in self._adapted_weights())

    def _adapted_weights(self) -> Iterator[Tensor]:
        return (self.peft.get_submodule(PREFIX + m).get_base_layer().weight for m in self.scaling)  # type: ignore[operator]

    @contextmanager
    def unmerged(self, point: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """Yield the base model with the adapter's tensors replaced by the point's (any rank), then put back."""
        self._check_modules(point)
        raw = self._raw(point)
        originals = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = raw[name].to(parameter.device, parameter.dtype)
            with self._without_frozen():
                yield self.peft if self._is_sharded() else self.base  # FSDP gathers where its own root is entered
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = originals[name]

    def save(self, directory: str | Path, point: Mapping[str, Tensor] | None = None) -> None:
        """Write a standard PEFT adapter (`adapter_config.json`, `adapter_model.safetensors`).

        Without `point`, the trainable adapter, bit for bit. A point of another rank is written with that rank and
        scaling 1. Only these two files are written: a model card would carry nothing of use.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(self.peft.peft_config[_ADAPTER].to_dict(), default=_plain))
        if point is None:
            tensors: dict[str, Tensor] = {k: v.detach() for k, v in self.parameters.items()}
        else:
            self._check_modules(point)
            ranks = {m: point[key_a(m)].shape[0] for m in module_names(point)}
            if all(self.parameters[key_a(m)].shape[0] == rank for m, rank in ranks.items()):
                tensors = self._raw(point)  # of the ranks of this adapter, module by module
            elif len(set(ranks.values())) != 1:
                raise UserError(
                    f"Expected one rank for all modules, got {sorted(set(ranks.values()))}; truncate the point first."
                )
            else:
                tensors, rank = dict(point), max(ranks.values())
                config |= {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
        config["inference_mode"] = True
        if not isinstance(config["target_modules"], str):  # a pattern
            config["target_modules"] = sorted(config["target_modules"])
        save_file(
            {PREFIX + k: v.contiguous().cpu() for k, v in tensors.items()},
            directory / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def _raw(self, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        wide = {k: widened(v) for k, v in point.items()}
        return {k: v / self.scaling[k.rsplit(".lora_", 1)[0]] if ".lora_B." in k else v for k, v in wide.items()}

    def _check_modules(self, point: Mapping[str, Tensor]) -> None:
        difference = sorted(set(self.parameters) ^ set(point))
        if difference:
            first = difference[0]
            where = "the point" if first in point else "this model's adapter"
            raise PointMismatchError(
                f"Expected a point with the same adapted modules as this model, got {len(difference)} differing "
                f"name(s), the first is {first}, only in {where}; use adapters of one base and one set of targets."
            )


def _rows_of(name: str, values: Tensor, kept: Tensor) -> Tensor:
    """What a layer was given or gave for the tokens that count, a row each."""
    rows = values.flatten(0, -2)  # OPT gives its MLP the tokens of a batch in one row
    if len(rows) != len(kept):
        raise UserError(
            f"Expected {name} to be given all {len(kept)} tokens of a batch, got {len(rows)}; leave such layers "
            "(experts, say) out with --target-modules."
        )
    return rows[kept]


def _is_exact(weight: Tensor) -> bool:
    """Whether ΔW can be added: float32 or float64, and not four-bit codes, which bitsandbytes may store as float32."""
    return weight.dtype in (torch.float32, torch.float64) and not hasattr(weight, "quant_state")


@contextmanager
def _activations_kept(network: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off for a while, where gradients are wanted."""
    modules = network.modules() if torch.is_grad_enabled() else ()
    switched = [m for m in modules if getattr(m, "gradient_checkpointing", False)]
    for module in switched:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
