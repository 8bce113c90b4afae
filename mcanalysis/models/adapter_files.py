"""PEFT's LoRA adapters on disk, read as points and written from points."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_config import AdapterConfig, fits, read_config, unknown_settings
from mcanalysis.models.adapter_tensors import PREFIX, check_own_names, first_of, read_factors, warn_of_lacks, widened
from mcanalysis.params.lora import key_a, key_b, module_names, ranks
from mcanalysis.params.low_rank import truncate
from mcanalysis.params.point import Point
from mcanalysis.store.atomic import write_bytes_atomic, write_json_atomic

logger = logging.getLogger(__name__)


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
    """The tensors as PEFT keeps them as a point: each module's scaling α/r multiplied into its B, float32 at least."""
    wide = {k: widened(v) for k, v in raw.items()}
    return {k: v * scaling[k.rsplit(".lora_", 1)[0]] if ".lora_B." in k else v for k, v in wide.items()}


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from disk: its point (scaling multiplied into B) and the settings that made it.

    `config` is what PEFT wrote beside the tensors. `magnitudes`: of a DoRA adapter the lengths of the rows of
    W + s·B·A, shape (out,), by module.
    """

    point: Point
    settings: LoraSettings
    base_name: str
    config: AdapterConfig
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)


def load_adapter(directory: str | Path, *, dora: bool = False) -> SavedAdapter:
    """Read a standard PEFT LoRA adapter as a point, in float32 (float64 where it was saved in that).

    With `dora` also one of DoRA, whose point and `magnitudes` together make the weights; the point alone does not.

    Tensors of lower precision are widened before the scaling is multiplied into B, as PEFT widens them. What the
    adapter lacks is said as a warning: tensors of another rank than its settings name (scaled by their own, α/r),
    modules that its other layers have, and an adapter that changes nothing, B being 0.

    Raises `UserError`, naming what is wrong, for a folder without an adapter, for numbers that are not finite, and for
    what this algebra does not cover: other PEFT types, DoRA and other variants in which the weights do not become
    W + s·B·A, initialisations that change W itself (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), biases, `modules_to_save`,
    `target_parameters` (experts), trained embeddings, convolutions. `docs/adapters-read.md` has them all.
    """
    directory = Path(directory)
    adapter, factors = _read(directory, dora)
    warn_of_lacks(directory, adapter.config, factors)
    for name in unknown_settings(adapter.config.settings):
        logger.warning("the adapter in '%s' has a setting '%s', which is unknown here and is ignored", directory, name)
    return adapter


def read_point(directory: str | Path) -> Point:
    """The point of an adapter that a run has just written: what `load_adapter` reads, and nothing is said of it."""
    return _read(Path(directory))[0].point


def _read(directory: Path, dora: bool = False) -> tuple[SavedAdapter, Point]:
    """An adapter, and its factors before α/r is multiplied in."""
    config = read_config(directory, dora=dora)
    factors, magnitudes = read_factors(directory, dora=bool(config.settings.get("use_dora")))
    point = absorb_scaling(factors, {module: config.scaling(module, rank) for module, rank in ranks(factors).items()})
    settings = LoraSettings(config.rank, config.alpha, 0.0, tuple(module_names(factors)))
    return SavedAdapter(point, settings, config.base_name, config, magnitudes), factors


def missing_modules(adapter: SavedAdapter, base: nn.Module) -> list[str]:
    """Modules of a base that an adapter's settings ask for and that it has no tensors of; PEFT leaves them as they are.

    The rule is PEFT's own: `target_modules`, `exclude_modules`, `layers_to_transform`, `layers_pattern`.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    said = adapter.config.settings
    names = [name for name, _ in base.named_modules() if name]
    targets, excluded = said.get("target_modules"), said.get("exclude_modules")
    if isinstance(excluded, str):
        names, excluded = [name for name in names if not fits(excluded, name)], None
    if isinstance(targets, str):
        targets = [] if targets == "all-linear" else [name for name in names if fits(targets, name)]
    if not targets:
        return []
    asked = LoraConfig(
        target_modules=targets,
        exclude_modules=excluded,
        layers_to_transform=said.get("layers_to_transform"),
        layers_pattern=said.get("layers_pattern"),
    )
    has = set(module_names(adapter.point))
    return [name for name in names if name not in has and check_target_module_exists(asked, name) is True]


def warn_of_missing(adapter: SavedAdapter, base: nn.Module, directory: str | Path) -> None:
    """Say in one line which modules of the base an adapter was to adapt and does not."""
    try:
        missing = missing_modules(adapter, base)
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # what PEFT makes of values of other types
        reason = " ".join(f"{type(error).__name__} {error}".split()).rstrip(".")[:200]
        raise UserError(
            f"Expected target_modules, exclude_modules, layers_to_transform and layers_pattern that PEFT reads in "
            f"adapter_config.json in '{directory}', got: {reason}; restore those of its training."
        ) from error
    if missing:
        logger.warning(
            "the adapter in '%s' has no tensors for %s of the base, which its settings ask for: there the base stays "
            "as it is, as with PEFT",
            directory,
            first_of(missing),
        )


def _holds_a_model(directory: Path) -> bool:
    """Whether transformers would load a model from a folder: its config.json names a kind of model."""
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and not {"model_type", "architectures"}.isdisjoint(config)


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
    left out. `load_adapter` gives the values back bit for bit, in float32 where the point's dtype is lower. An adapter
    that is there already is replaced; a kill leaves a folder without `adapter_config.json`, which nothing takes for an
    adapter.

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
        UserError: if `rank` is below 1, no module has a rank, `target_modules` misses a module of the point, or the
            folder holds a model.

    >>> import tempfile, torch
    >>> a = {"q.lora_A.weight": torch.diag(torch.tensor([4.0, 3.0])), "q.lora_B.weight": torch.eye(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     error = save_adapter(a, folder, "my/base", rank=1)
    ...     round(error, 6), load_adapter(folder).settings.rank
    (0.6, 1)
    """
    directory = Path(directory)
    if _holds_a_model(directory):
        raise UserError(
            f"Expected a folder for an adapter, got '{directory}', which holds a model (config.json): loaded from "
            "there, it would be the model with this adapter; name another folder."
        )
    check_own_names(point)
    error = 0.0
    if rank is not None:
        point, error = truncate(point, rank)
    rank_of = {module: r for module, r in ranks(point).items() if r}
    if not rank_of:
        raise UserError(
            "Expected an adapter of rank at least 1, got rank 0 in every module; save one that has been trained."
        )
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
