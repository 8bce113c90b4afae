"""A pool of prompts with keys: each example reads the prompts whose keys are nearest to its query (L2P)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from mcanalysis.models.prompt_model import PromptModel, Prompts, check_prompts, vocabulary_vectors
from mcanalysis.params.point import Point


class PromptPool(Prompts):
    """`prompts` (pool, length, width) and `keys` (pool, width).

    Query = mean of the input embeddings that the mask keeps; the `num_selected` prompts whose keys have the largest
    cosine with it are read, the nearest first. `similarity` (rows, num_selected) are those cosines in the last pass.
    Every example chooses for itself: what else is in the batch does not matter.
    """

    similarity: Tensor

    def __init__(self, prompts: Tensor, keys: Tensor, num_selected: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts)
        self.keys = nn.Parameter(keys)
        self.num_selected = num_selected

    @property
    def length(self) -> int:
        return self.num_selected * self.prompts.shape[1]

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        kept = torch.ones(embeddings.shape[:2]) if mask is None else mask
        kept = kept.to(embeddings.device, torch.float32)[:, :, None]
        query = (embeddings.detach().float() * kept).sum(1) / kept.sum(1)
        best = cosine_similarity(query[:, None], self.keys[None], dim=-1).topk(self.num_selected, dim=1)
        self.similarity = best.values
        return self.prompts[best.indices].flatten(1, 2)


class PoolModel(PromptModel):
    """A frozen base with a pool of prompts; a point is `prompts` and `keys`.

    Written as `prompts.safetensors` and `prompt_config.json`.
    """

    config_file = "prompt_config.json"
    tensor_file = "prompts.safetensors"
    _identity = ("kind", "num_selected")
    prompts: PromptPool

    @classmethod
    def attach(
        cls,
        base: nn.Module,
        tokenizer: Any,
        name: str,
        *,
        pool_size: int,
        prompt_length: int,
        num_selected: int,
        seed: int,
    ) -> PoolModel:
        """A fresh pool: prompts are embeddings of random tokens, keys uniform in every coordinate with their size."""
        vectors = vocabulary_vectors(base, tokenizer, pool_size * prompt_length, f"pool/{seed}")
        generator = torch.Generator().manual_seed(seed)
        directions = torch.rand(pool_size, vectors.shape[1], generator=generator) * 2 - 1
        keys = directions * (vectors.square().mean() / directions.square().mean()).sqrt()
        pool = PromptPool(vectors.view(pool_size, prompt_length, -1), keys, num_selected)
        return cls(base, pool, tokenizer, name)

    def point(self) -> Point:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _prompts_at(self, point: Mapping[str, Tensor]) -> PromptPool:
        found = {k: check_prompts(k, point.get(k), tuple(p.shape)).to(self.device) for k, p in self.parameters.items()}
        return PromptPool(found["prompts"], found["keys"], self.prompts.num_selected)

    def _config(self, point: Mapping[str, Tensor]) -> dict[str, Any]:
        pool_size, prompt_length, width = point["prompts"].shape
        return {
            "kind": "prompt_pool",
            "base_model_name_or_path": self.name,
            "pool_size": pool_size,
            "prompt_length": prompt_length,
            "num_selected": self.prompts.num_selected,
            "width": width,
        }
