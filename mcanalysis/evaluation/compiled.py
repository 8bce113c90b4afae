"""`torch.compile` for the part of a causal LM below its output layer, which is where element-wise work can be fused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mcanalysis.errors import UserError
from mcanalysis.models.causal_lm import causal_lm


class Compiled:
    """Compiles a model's decoder once, for batches of any size, at every setting of the weights."""

    def __init__(self) -> None:
        self._compiled: Any = None

    @contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Let the model run its compiled decoder for a while; the first pass compiles it, which takes a while."""
        decoder = _decoder(model)
        if self._compiled is None:
            self._compiled = torch.compile(decoder.forward, dynamic=True)
        decoder.forward = self._compiled
        try:
            yield
        finally:
            del decoder.forward  # an attribute of the object; its class's is as it was


def check_can_compile(model: nn.Module, device: torch.device) -> None:
    """Raise `UserError` where a model cannot be compiled here."""
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise UserError("Expected a C++ compiler to compile the model with, got none; install g++, or do not compile.")
    _decoder(model)


def _decoder(model: nn.Module) -> nn.Module:
    causal = causal_lm(model)
    decoder = getattr(causal, getattr(causal, "base_model_prefix", "") or "", None)
    if not isinstance(decoder, nn.Module):
        raise UserError(
            f"Expected a model made of a decoder and an output layer, got {type(causal).__name__}; do not compile it."
        )
    return decoder
