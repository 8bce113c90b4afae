"""What `--minima` names: folders and hub ids of adapters and of whole models, put on one base."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mcanalysis.errors import UserError
from mcanalysis.evaluation.adapter_objective import attach_slot, check_fits
from mcanalysis.models.adapter_files import SavedAdapter, load_adapter
from mcanalysis.models.base_identity import base_identity
from mcanalysis.models.base_source import EMBEDDED, gguf_file
from mcanalysis.models.lora_model import LoraModel
from mcanalysis.models.weight_files import AdaptedWeights, WeightFiles
from mcanalysis.models.whole_model import WholeModel
from mcanalysis.params.lora import module_names, share_modules
from mcanalysis.params.point import Point, content_hash
from mcanalysis.store.hashing import hash_json

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def expanded(entries: Sequence[str]) -> tuple[str, ...]:
    """The folders that the entries name, those of a pattern such as `out/checkpoint-*` in natural order.

    Raises `UserError` for a pattern that fits no folder.
    """
    found: list[str] = []
    for entry in entries:
        if not glob.has_magic(entry) or Path(entry).exists():
            found.append(entry)
            continue
        folders = [place for place in glob.glob(entry) if Path(place).is_dir()]  # noqa: PTH207 (as a shell would)
        if not folders:
            raise UserError(f"Expected folders that fit '{entry}', got none; check --minima.")
        found += sorted(folders, key=_natural)
    return tuple(found)


def _natural(text: str) -> list[tuple[int, str]]:
    """What sorts numbers in a text by their value.

    >>> sorted(["checkpoint-100", "checkpoint-20"], key=_natural)
    ['checkpoint-20', 'checkpoint-100']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def labels(places: Sequence[str]) -> list[str]:
    """`<k>-<name>` for each, of its short name without a number that it begins with.

    >>> labels(["runs/a/last", "runs/b/last"])
    ['1-a', '2-b']
    """
    return [f"{k}-{re.sub(r'^[0-9]+-', '', name)}" for k, name in enumerate(short_names(places), start=1)]


def short_names(places: Sequence[str]) -> list[str]:
    """The last part of the paths in which all differ, else what tells them apart.

    >>> short_names(["runs/1-a/fast", "runs/2-b/fast"])
    ['1-a', '2-b']
    """
    parts = [Path(place).resolve().parts for place in places]
    if len(set(parts)) < len(parts):
        return [of_place[-1] for of_place in parts]
    depth = min(map(len, parts))
    columns = ([of_place[-n] for of_place in parts] for n in range(1, depth + 1))
    joined = (["-".join(of_place[-n:]) for of_place in parts] for n in range(1, depth + 1))
    apart = (c for names in (columns, joined) for c in names if len(set(c)) == len(parts))
    return next(apart, [of_place[-1] for of_place in parts])


def read_minimum(place: str) -> SavedAdapter | None:
    """The adapter in a folder; None for a whole model, which is read when its weights are needed.

    Raises `UserError` as `load_adapter` does; DoRA is read.
    """
    folder = Path(place)
    is_model = place == EMBEDDED or gguf_file(place) is not None
    if folder.is_dir():
        has_adapter = (folder / "adapter_config.json").exists()
        if has_adapter and (folder / "config.json").exists():
            raise UserError(
                f"Expected an adapter or a whole model, got '{place}', which holds both; take one of them out of the "
                "folder."
            )
        is_model = not has_adapter and ((folder / "config.json").exists() or bool(list(folder.glob("optimizer*"))))
    elif not folder.exists() and _HUB_ID.fullmatch(place):
        is_model = True
    return None if is_model else load_adapter(place, dora=True)


def put_on(
    base: nn.Module,
    tokenizer: object,
    name: str,
    minima: Sequence[tuple[str, SavedAdapter | None]],
    revision: str | None = None,
) -> tuple[LoraModel | WholeModel, list[Point], list[str]]:
    """A model that can stand at all minima and between them, their points, and their keys in a store.

    Plain LoRA adapters are points of factors. As soon as one minimum is a whole model, or has DoRA, all are whole
    weights (`models.whole_model`): an adapter is then that of the base with it merged.

    Args:
        base: as `load_base` gave it.
        name: by which it was loaded, at `revision`.
        minima: names of places, each with what `read_minimum` gave.

    Raises `PointMismatchError` and `UserError`, naming the tensor, for what does not fit the base.
    """
    adapters = [adapter for _, adapter in minima if adapter is not None]
    if len(adapters) == len(minima) and not any(adapter.magnitudes for adapter in adapters):
        points = [adapter.point for adapter in adapters]
        keys = list(map(content_hash, points))
        if len(points) > 2:  # a path between two of them says what the modules of the others are: unchanged
            points = share_modules(points)
        return attach_slot(base, tokenizer, points, name), points, keys
    lower = next((p.dtype for p in base.parameters() if p.dtype not in (torch.float32, torch.float64)), None)
    if adapters and lower is not None:
        raise UserError(
            f"Expected float32 weights to merge adapters into, got {str(lower).removeprefix('torch.')}, which would "
            "round them away; give --dtype float32."
        )
    of_base = WeightFiles(name, base, revision=revision)
    weights: list[Mapping[str, Tensor]] = [of_base]
    keys = []
    for place, adapter in minima:
        if adapter is None:
            weights.append(files := WeightFiles(place, base, tokenizer))
            keys.append(hash_json(["whole model", base_identity(str(files.folder))]))
        else:
            check_fits(base, module_names(adapter.point), name)
            weights.append(AdaptedWeights(of_base, adapter, base))
            lengths = {f"{module}.magnitude": length for module, length in adapter.magnitudes.items()}
            keys.append(hash_json(["merged adapter", content_hash({**adapter.point, **lengths})]))
    model = WholeModel(base, tokenizer, name, weights)
    return model, [model.minimum(k) for k in range(1, len(weights))], keys
