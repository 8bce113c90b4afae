"""A growing prefix: the newest prompt, passed through a residual MLP, before the frozen ones of earlier tasks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from peft import PromptTuningConfig
from torch import Tensor, nn

from mcanalysis.models.prompt_model import FixedPrompts, PromptModel, Prompts, check_prompts, vocabulary_vectors
from mcanalysis.params.point import Point

_NAME = "prompt_embeddings"  # PEFT's


class PromptStack(Prompts):
    """[MLP(P) + P; frozen], with MLP(P) = up·relu(down·P), biases included; `prompt` is P (length, width)."""

    frozen: Tensor

    def __init__(self, prompt: Tensor, bottleneck: int) -> None:
        super().__init__()
        width = prompt.shape[1]
        self.prompt = nn.Parameter(prompt)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.register_buffer("frozen", prompt.new_empty(0, width))

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.frozen)

    def prefix(self) -> Tensor:
        """(length, width), the newest prompt first."""
        return torch.cat([self.prompt + self.up(self.down(self.prompt).relu()), self.frozen])

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        return self.prefix().expand(len(embeddings), -1, -1)


class StackModel(PromptModel):
    """A frozen base with a stack of prompts; a point is the whole prefix, as it is read.

    Written as a standard PEFT prompt-tuning adapter, which `PeftModel.from_pretrained` loads.
    """

    config_file = "adapter_config.json"
    tensor_file = "adapter_model.safetensors"
    _identity = ("peft_type",)
    prompts: PromptStack
    seed: int

    @classmethod
    def attach(
        cls, base: nn.Module, tokenizer: Any, name: str, *, prompt_length: int, bottleneck: int, seed: int
    ) -> StackModel:
        """A stack that holds its first prompt only; see `draw_starts`."""
        width = vocabulary_vectors(base, tokenizer, 1, "").shape[1]
        with torch.random.fork_rng():  # PyTorch draws the MLP's start, `start` another
            stack = PromptStack(torch.zeros(prompt_length, width), bottleneck)
        model = cls(base, stack, tokenizer, name)
        model.seed = seed
        model.draw_starts(1)
        model.start(0)
        return model

    def draw_starts(self, number: int) -> None:
        """Draw what each of `number` prompts starts from: embeddings of random tokens.

        Now, not when a prompt is begun: by then the base's embeddings may be sharded.
        """
        length = len(self.prompts.prompt)
        self._starts = [
            vocabulary_vectors(self.base, self.tokenizer, length, f"stack/{self.seed}/{k}") for k in range(number)
        ]

    def start(self, index: int) -> None:
        """Begin the prompt of a task, counted from 0, and its MLP: `down` random as PyTorch does it, `up` zero.

        So the prompt starts as tokens the base knows. The parameters stay the same objects.
        """
        generator = torch.Generator().manual_seed(random.Random(f"mlp/{self.seed}/{index}").getrandbits(63))
        stack = self.prompts
        with torch.no_grad():
            stack.prompt.copy_(self._starts[index])
            for parameter in stack.down.parameters():
                drawn = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.copy_(drawn / stack.down.in_features**0.5)
            for parameter in stack.up.parameters():
                parameter.zero_()

    def grow(self, index: int) -> None:
        """Freeze the newest prompt as its MLP puts it out, and start another before it; the old MLP is dropped."""
        self.prompts.frozen = self.point()[_NAME]
        self.start(index)

    def point(self) -> Point:
        with torch.no_grad():
            return {_NAME: self.prompts.prefix()}

    def raw(self) -> dict[str, Tensor]:
        """What is being trained and the frozen prompts beside it."""
        return {**super().raw(), "frozen": self.prompts.frozen}

    def load_raw(self, raw: Mapping[str, Tensor]) -> None:
        super().load_raw(raw)
        self.prompts.frozen = raw["frozen"].to(self.device)

    def _prompts_at(self, point: Mapping[str, Tensor]) -> FixedPrompts:
        shape = (None, self.prompts.prompt.shape[1])
        return FixedPrompts(check_prompts(_NAME, point.get(_NAME), shape).to(self.device))

    def _config(self, point: Mapping[str, Tensor]) -> dict[str, Any]:
        length, width = point[_NAME].shape
        base = self.base.config.get_text_config()  # type: ignore[operator,union-attr]
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.name,
            inference_mode=True,
            num_virtual_tokens=length,
            token_dim=width,
            num_transformer_submodules=1,
            num_attention_heads=getattr(base, "num_attention_heads", None),
            num_layers=getattr(base, "num_hidden_layers", None),
        )
        return {k: getattr(v, "value", v) for k, v in config.to_dict().items()}
