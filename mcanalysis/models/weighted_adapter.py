"""What the installed PEFT makes of saved adapters by `add_weighted_adapter`, faults included, without their base."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mcanalysis.errors import UserError
from mcanalysis.models.adapter_files import load_adapter
from mcanalysis.params.lora import key_a, key_b, module_names
from mcanalysis.params.point import Point


def weighted_adapter(folders: Sequence[str], weights: Sequence[float], **options: Any) -> Point:
    """Return the point of PEFT's `add_weighted_adapter(…, weights, combination_type=…)` on the adapters in `folders`.

    Raises `UserError` for adapters that are none, and with PEFT's own words where it refuses or fails.
    """
    import peft

    points = [load_adapter(folder).point for folder in folders]
    shapes = {m: (p[key_b(m)].shape[0], p[key_a(m)].shape[1]) for p in points for m in module_names(p)}
    names = [f"a{i}" for i in range(len(folders))]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            config = peft.PeftConfig.from_pretrained(folders[0])
            config.task_type = None  # the layers alone are no language model
            model: Any = peft.PeftModel.from_pretrained(_layers(shapes), folders[0], names[0], config=config)
            for name, folder in zip(names[1:], folders[1:], strict=True):
                model.load_adapter(folder, name)
            model.base_model.add_weighted_adapter(names, list(weights), "merged", **options)
            found = _read(model, shapes)
        except Exception as error:  # whatever a library raises is its answer
            words = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f"Expected PEFT {peft.__version__} to merge {', '.join(folders)}, got: {words}; change the recipe."
            ) from None
    return found


def _read(model: Any, shapes: Mapping[str, tuple[int, int]]) -> Point:
    found: Point = {}
    for module in shapes:
        layer = model.base_model.model.get_submodule(module)
        if "merged" in layer.lora_A:
            found[key_a(module)] = layer.lora_A["merged"].weight.detach().clone()
            found[key_b(module)] = layer.lora_B["merged"].weight.detach() * layer.scaling["merged"]
    return found


def _layers(shapes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """Linear layers of these shapes under their names, whose weights (zeros) take no memory."""
    root = nn.Module()
    for name, (out, into) in shapes.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        layer = nn.Linear(into, out, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.zeros(1).expand(out, into), requires_grad=False)
        parent.add_module(last, layer)
    return root
