"""A frozen causal LM with trained vectors, prompts, read before the tokens of every example.

    [padding | prompts | tokens]

The prompts stand right before an example's first token, behind its padding, so that a padded row sees what the same row
alone would see, whatever the base's positions or attention windows are. They are read once: a pass that is given keys
and values of earlier tokens finds the prompts' among them.
"""

from __future__ import annotations

import inspect
import json
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcanalysis.errors import PointMismatchError, UserError
from mcanalysis.models.adapted_model import AdaptedModel
from mcanalysis.params.point import Point
from mcanalysis.store.recorded import check_recorded


class Prompts(nn.Module, ABC):
    """What is read before each row; its parameters are what is trained."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Vectors before each row."""

    @abstractmethod
    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """(rows, length, width), from the input embeddings and the mask (None: all) of what may decide over them."""


class FixedPrompts(Prompts):
    """The same vectors (length, width) before every row."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    @property
    def length(self) -> int:
        return len(self.vectors)

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        return self.vectors.expand(len(embeddings), -1, -1)


class PromptNetwork(nn.Module):
    """A causal LM that reads prompts before each row; called as the LM itself, its outputs are those of the tokens.

    `query_mask` says which tokens may decide over the prompts: the attention mask where it is left out. Positions are
    counted from the first prompt.
    """

    def __init__(self, base: nn.Module, prompts: Prompts) -> None:
        super().__init__()
        self.base = base
        self.prompts = prompts
        for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # the Trainer calls the one
            if hasattr(base, name):  # that its version knows
                setattr(self, name, getattr(base, name))
        self.train(base.training)

    def get_base_model(self) -> nn.Module:
        """The causal LM inside."""
        return self.base

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        query_mask: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        number, columns = self.prompts.length, input_ids.shape[1]
        mask = attention_mask
        if mask is not None:  # padding is on the left: where ones are added among ones does not matter
            mask = torch.cat([mask, mask.new_ones(len(mask), number)], dim=1)
        if past_key_values is not None and past_key_values.get_seq_length():
            return self.base(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=None if position_ids is None else position_ids + number,
                past_key_values=past_key_values,
                **inputs,
            )
        embeddings = self.base.get_input_embeddings()(input_ids)  # type: ignore[operator]
        prompts = self.prompts(embeddings, attention_mask if query_mask is None else query_mask)
        if mask is None:
            positions = torch.arange(number + columns, device=input_ids.device).expand(len(input_ids), -1)
        else:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.base(
            inputs_embeds=_before_tokens(prompts.to(embeddings.dtype), embeddings, attention_mask),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=past_key_values,
            **inputs,
        )
        if output.logits.dim() == 3:  # else the head was asked for chosen places only, see `models.forward`
            output.logits = output.logits[:, -columns:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(h[:, -columns:] for h in output.hidden_states)
        return output


def _before_tokens(prompts: Tensor, embeddings: Tensor, mask: Tensor | None) -> Tensor:
    """[padding | prompts | tokens], row by row."""
    both = torch.cat([prompts, embeddings], dim=1)
    if mask is None:
        return both
    number, padding = prompts.shape[1], (mask == 0).sum(1, keepdim=True)
    column = torch.arange(both.shape[1], device=mask.device).expand(len(both), -1)
    source = torch.where(column < padding + number, column - padding, column)
    source = torch.where(column < padding, column + number, source)
    return both.gather(1, source[:, :, None].expand_as(both))


class PromptModel(AdaptedModel):
    """A base whose parameters are frozen, and prompts before its input.

    A point holds the prompts; the empty point is the base itself. Prompts are kept in float32 whatever the base is.
    """

    config_file: ClassVar[str]
    tensor_file: ClassVar[str]

    def __init__(self, base: nn.Module, prompts: Prompts, tokenizer: Any, name: str) -> None:
        if "inputs_embeds" not in inspect.signature(type(base).forward).parameters:
            raise UserError(
                f"Expected a base that takes embeddings as input, got {type(base).__name__}, which does not; "
                "choose another base, or a strategy that trains LoRA."
            )
        self.base = base.requires_grad_(False)
        self.prompts = prompts.to(embedding_device(base))
        self.network = PromptNetwork(self.base, self.prompts)
        self.tokenizer = tokenizer
        self.name = name
        self.parameters = dict(self.prompts.named_parameters())

    def num_prompts(self, point: Mapping[str, Tensor] | None = None) -> int:
        if point is None:
            return self.prompts.length
        return self._prompts_at(point).length if point else 0

    def base_point(self) -> Point:
        return {}

    def beside_tokens(self, prompt_lengths: Tensor, columns: int) -> dict[str, Any]:
        """Answers have no say in what is read before them."""
        places = torch.arange(columns, device=prompt_lengths.device)
        return {"query_mask": (places < prompt_lengths[:, None]).long()}

    @contextmanager
    def in_place(self, point: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The network with a point's prompts, or none, for those being trained."""
        width = next(iter(self.parameters.values())).shape[-1]
        empty = FixedPrompts(torch.zeros(0, width, device=self.device))
        # Always through the network itself, which FSDP may have wrapped.
        self.network.prompts = self._prompts_at(point) if point else empty
        try:
            yield self.network
        finally:
            self.network.prompts = self.prompts

    @abstractmethod
    def _prompts_at(self, point: Mapping[str, Tensor]) -> Prompts:
        """The prompts of a point on this model's device; raises `PointMismatchError` where they do not fit."""

    @abstractmethod
    def _config(self, point: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is written beside a point's tensors."""

    def save(self, directory: str | Path, point: Mapping[str, Tensor] | None = None) -> None:
        """Write a point, or what is being trained, as one safetensors and one JSON file."""
        point = self.point() if point is None else point
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().contiguous().cpu() for k, v in point.items()}
        save_file(tensors, directory / self.tensor_file, metadata={"format": "pt"})
        text = json.dumps(self._config(point), indent=2, sort_keys=True, ensure_ascii=False)
        (directory / self.config_file).write_text(text + "\n", encoding="utf-8")

    def read(self, directory: str | Path) -> Point:
        """The point that `save` wrote; raises `UserError` for a folder without prompts, or with others."""
        directory = Path(directory)
        for name in (self.config_file, self.tensor_file):
            check_recorded(directory / name)
        try:
            config = json.loads((directory / self.config_file).read_text(encoding="utf-8"))
            point: Point = load_file(directory / self.tensor_file)
            self._prompts_at(point)
            expected = self._config(point)
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise UserError(
                f"Expected prompts of this model ({self.config_file}, {self.tensor_file}) in '{directory}', "
                f"got: {error}; give a folder that the same strategy wrote."
            ) from None
        for name in self._identity:
            if config.get(name) != expected[name]:
                raise UserError(
                    f"Expected prompts with {name} {expected[name]} in '{directory}', got {config.get(name)}; "
                    "give a folder that the same strategy wrote with the same settings."
                )
        return point

    _identity: ClassVar[tuple[str, ...]] = ()  # entries of the configuration that must be the model's own


def embedding_device(base: nn.Module) -> torch.device:
    """Where the base's input embeddings lie."""
    return base.get_input_embeddings().weight.device  # type: ignore[operator]


def vocabulary_vectors(base: nn.Module, tokenizer: Any, number: int, seed: str) -> Tensor:
    """Input embeddings of `number` tokens drawn by `seed`, none of them special, as float32 on the CPU.

    They have the scale of what the base is used to read.
    """
    embed = base.get_input_embeddings()  # type: ignore[operator]
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(min(len(tokenizer), embed.num_embeddings)) if i not in special]
    drawn = random.Random(seed).choices(ids, k=number)
    with torch.no_grad():
        return embed(torch.tensor(drawn, device=embed.weight.device)).float().cpu()


def check_prompts(name: str, tensor: Tensor | None, shape: tuple[int | None, ...]) -> Tensor:
    """The tensor of a point; raises `PointMismatchError` unless it is there with this shape (None: any)."""
    found = None if tensor is None else tuple(tensor.shape)
    if found is None or len(found) != len(shape) or any(s not in (None, f) for f, s in zip(found, shape, strict=True)):
        raise PointMismatchError(
            f"Expected prompts '{name}' of shape {tuple('any' if s is None else s for s in shape)}, "
            f"got {'none' if found is None else found}; use a point of this strategy and base."
        )
    assert tensor is not None
    return tensor
