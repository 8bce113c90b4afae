"""What the trainer and the evaluation engine ask of a base model with something small and trainable about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcanalysis.params.point import Point


class AdaptedModel(ABC):
    """A frozen base with trainable tensors: a LoRA adapter, or prompts.

    `network` is the module that is trained (its trainable parameters are `parameters`, by their short names);
    `tokenizer` and `name` are the base's.
    """

    network: nn.Module
    tokenizer: Any
    name: str
    parameters: dict[str, nn.Parameter]

    @property
    def device(self) -> torch.device:
        """Where the trainable tensors lie."""
        return next(iter(self.parameters.values())).device

    @abstractmethod
    def point(self) -> Point:
        """A copy of what is trained, as a point."""

    @abstractmethod
    def base_point(self) -> Point:
        """The point at which the model is the base itself."""

    @abstractmethod
    def in_place(self, point: Mapping[str, Tensor]) -> AbstractContextManager[nn.Module]:
        """Yield a network that computes as the model does at a point; afterwards all is as it was."""

    def num_prompts(self, point: Mapping[str, Tensor] | None = None) -> int:
        """Trained vectors that are read before each row at a point, or, without one, in training."""
        return 0

    def beside_tokens(self, prompt_lengths: Tensor, columns: int) -> dict[str, Any]:
        """What the network is given besides (rows, columns) of tokens that begin with prompts of these lengths."""
        return {}

    @abstractmethod
    def save(self, directory: str | Path, point: Mapping[str, Tensor] | None = None) -> None:
        """Write a point, or without one what is being trained, into a folder."""

    @abstractmethod
    def read(self, directory: str | Path) -> Point:
        """The point that `save` wrote."""

    def raw(self) -> dict[str, Tensor]:
        """The trainable tensors as they are, for a checkpoint."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def load_raw(self, raw: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a checkpoint into the trainable ones, bit for bit."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(raw[name])

    def gradient(self) -> dict[str, Tensor]:
        """The gradients as they stand, of the parameters that have one."""
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
