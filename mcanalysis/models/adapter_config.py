"""What an adapter_config.json of PEFT says: what is read of it, what is refused by name, what changes nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from mcanalysis.errors import UserError
from mcanalysis.store.recorded import check_recorded

# Every setting of PEFT's LoraConfig stands in one of these four; a test fails when PEFT adds one.
READ = frozenset(
    {
        "peft_type",
        "base_model_name_or_path",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "init_lora_weights",
        # which modules ought to have tensors:
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    }
)
# With these the model is not that of the weights W + s·B·A, or holds more than B and A.
REFUSED_WHERE_TRUE = frozenset(
    {
        "use_dora",
        "use_qalora",
        "lora_bias",
        "bias",
        "modules_to_save",
        "trainable_token_indices",
        "target_parameters",
        "layer_replication",
        "megatron_config",
    }
)
REFUSED_WHERE_GIVEN = frozenset(
    {"use_bdlora", "kasa_config", "monteclora_config", "velora_config", "arrow_config", "alora_invocation_tokens"}
)
# How the adapter was trained or started, or where it is to be kept: given its tensors they change nothing.
WITHOUT_EFFECT = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "revision",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",  # PEFT corrects it by the kind of layer
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",
        "ensure_weight_tying",  # concerns embeddings and whole modules, which are refused
        "merge_weights",  # of PEFT before 0.3
    }
)
_PLAIN_STARTS = ("gaussian", "orthogonal", "eva")  # the other named ones take B·A out of the base's weights first
_REMEDIES = {
    "use_dora": "measure it as a whole model, which connectivity.py --minima does, or train a plain one",
    "init_lora_weights": "save it again with save_pretrained(…, path_initial_model_for_weight_conversion=…)",
    "target_parameters": "train an adapter of linear layers (target_modules), such as the attention's",
}
_PLAIN = "train a plain one (bias='none', no modules_to_save, init_lora_weights=True)"
_PATTERN_SECONDS = 0.2


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a plain LoRA adapter: rank and alpha, for single modules by pattern, and the base's name.

    `settings` is all that the file says.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool
    base_name: str
    settings: Mapping[str, Any]

    def rank_of(self, module: str) -> int:
        """The rank that the settings give a module."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling(self, module: str, rank: int) -> float:
        """PEFT's factor of B·A: α/r, or α/√r for rank-stabilised LoRA."""
        return _by_pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_config(directory: Path, *, dora: bool = False) -> AdapterConfig:
    """Read the settings of an adapter in a folder; `dora`: DoRA is not refused.

    Raises `UserError` in one line for a folder or file that is not there or not of this form, and, naming them, for
    settings under which the model is not that of the weights W + s·B·A, or that nobody here knows.
    """
    settings = _read_object(directory)
    refused = dict(_refused(settings))
    if dora:
        refused.pop("use_dora", None)
    if refused:
        remedy = next((_REMEDIES[name] for name in refused if name in _REMEDIES), _PLAIN)
        raise UserError(
            f"Expected a plain LoRA adapter in '{directory}', got one with {' and '.join(refused.values())}, "
            f"for which paths are not defined here; {remedy}."
        )
    rank, alpha = settings.get("r", 8), settings.get("lora_alpha", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _wrong(directory, "a whole number r of 1 or more", f"r: {json.dumps(rank)}", "the adapter's rank")
    if not _is_number(alpha):
        raise _wrong(directory, "a number lora_alpha", f"lora_alpha: {json.dumps(alpha)}", "the one of its training")
    patterns = {}
    for name in ("rank_pattern", "alpha_pattern"):
        patterns[name] = settings.get(name) or {}
        if not isinstance(patterns[name], dict) or not all(map(_is_number, patterns[name].values())):
            got = f"{name}: {json.dumps(patterns[name])[:80]}"
            raise _wrong(directory, f"numbers by module name in {name}", got, "those of its training")
    return AdapterConfig(
        rank,
        float(alpha),
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        bool(settings.get("use_rslora")),
        str(settings.get("base_model_name_or_path") or ""),
        settings,
    )


def unknown_settings(settings: Mapping[str, Any]) -> list[str]:
    """Names with a value that stand in no list here: of a newer PEFT, or of another program.

    >>> unknown_settings({"r": 8, "later": None, "speed": 2})
    ['speed']
    """
    known = READ | REFUSED_WHERE_TRUE | REFUSED_WHERE_GIVEN | WITHOUT_EFFECT
    return [name for name, value in settings.items() if name not in known and value]


def _refused(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of what is refused, each with the words for it."""
    if settings.get("peft_type") != "LORA":
        yield "peft_type", f"peft_type {settings.get('peft_type')}"
        return  # the settings of another kind of adapter say nothing more
    for name in sorted(REFUSED_WHERE_TRUE):
        value = settings.get(name)
        if value and value != "none":
            yield name, {"use_dora": "DoRA", "bias": f"bias '{value}'"}.get(name, f"{name} {value}")
    for name in sorted(REFUSED_WHERE_GIVEN):
        if settings.get(name) not in (None, False):
            yield name, f"{name} {settings[name]}"
    start = settings.get("init_lora_weights", True)
    if start is not None and not isinstance(start, bool) and str(start).lower() not in _PLAIN_STARTS:
        yield "init_lora_weights", f"init_lora_weights '{start}'"
    for name in unknown_settings(settings):  # a switch or a part with settings of its own may make another function
        if settings[name] is True or isinstance(settings[name], (dict, list)):
            yield name, f"{name} {settings[name]}, which is not known here"


def _read_object(directory: Path) -> dict[str, Any]:
    file = directory / "adapter_config.json"
    if not directory.is_dir():
        got = "a file" if directory.exists() else "no such folder"
        raise _no_adapter(directory, got, "give the folder that PEFT's save_pretrained wrote")
    if not file.exists():
        inside = sorted(
            {f.parent for pattern in ("*", "*/*") for f in directory.glob(f"{pattern}/{file.name}")},
            key=lambda p: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", str(p))],
        )
        if inside:
            names = [str(p.relative_to(directory)) for p in inside]
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise _no_adapter(directory, f"a folder of adapters: {shown}", f"name one of them, such as '{inside[-1]}'")
        if (directory / "config.json").exists():
            raise _no_adapter(directory, "a whole model", "give the adapter's folder, and the model as its base")
        raise _no_adapter(directory, "no adapter_config.json", "give the folder that PEFT's save_pretrained wrote")
    check_recorded(file)
    try:
        settings = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _no_adapter(
            directory, f"an adapter_config.json that cannot be read ({reason})", "save it again"
        ) from None
    if not isinstance(settings, dict):
        got = f"an adapter_config.json with a {type(settings).__name__} instead of an object"
        raise _no_adapter(directory, got, "save it again")
    return settings


def _no_adapter(directory: Path, got: str, remedy: str) -> UserError:
    return UserError(
        f"Expected a PEFT adapter (adapter_config.json, adapter_model.safetensors) in '{directory}', got {got}; "
        f"{remedy}."
    )


def _wrong(directory: Path, expected: str, got: str, remedy: str) -> UserError:
    return UserError(f"Expected {expected} in '{directory}/adapter_config.json', got {got}; write {remedy} there.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def fits(pattern: str, module: str) -> bool:
    """Whether a regular expression fits a module's whole name; raises `UserError` where that takes too long.

    >>> fits(r".*\\.[qv]_proj", "layers.0.q_proj")
    True
    """
    try:
        re.compile(pattern)  # what PEFT matches with
        return regex.fullmatch(pattern, module, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"Expected patterns in adapter_config.json that can be matched in {_PATTERN_SECONDS:g} s, got '{pattern}', "
            f"which takes longer on '{module}'; write the modules' names instead."
        ) from None
    except (re.error, regex.error) as error:
        raise UserError(
            f"Expected regular expressions in adapter_config.json, got '{pattern}' ({error}); write the modules' names "
            "instead."
        ) from None


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's value for a module: that of the first pattern, a regular expression, that fits the end of its name."""
    return next((value for pattern, value in patterns.items() if fits(rf"(.*\.)?({pattern})", module)), default)
