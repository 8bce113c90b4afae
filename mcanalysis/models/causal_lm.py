"""What is inside the wrappers of a causal LM."""

from __future__ import annotations

from torch import nn


def causal_lm(model: nn.Module) -> nn.Module:
    """The causal LM inside PEFT's, an engine's or a wrapper of our own."""
    while hasattr(model, "get_base_model") or hasattr(model, "module"):
        model = model.get_base_model() if hasattr(model, "get_base_model") else model.module  # type: ignore
    return model
