"""The keys and values of a common prefix: computed once at a setting of the weights, read by every batch after it."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mcanalysis.models.causal_lm import causal_lm
from mcanalysis.models.forward import accepts_logits_to_keep
from mcanalysis.models.positions import SCALED, rope_kinds


class SharedPrefix:
    """Keys and values of tokens (1, length) that all rows of later batches begin with."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        inputs: dict[str, Any] = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}
        self.ids = ids
        self.length = ids.shape[1]
        self._cache = model(input_ids=ids, attention_mask=None, use_cache=True, **inputs).past_key_values

    def cache(self, rows: int) -> Any:
        """A cache of its own for a batch of so many rows; the prefix itself is not copied."""
        cache = copy(self._cache)
        cache.layers = []
        for layer in self._cache.layers:
            own = copy(layer)
            own.keys, own.values = (x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values))
            cache.layers.append(own)
        return cache


def can_share(model: nn.Module) -> bool:
    """Whether what a model keeps of a token depends on the tokens before it only, and is keys and values only.

    Not so for recurrent layers, for caches of a kind of their own, and for positions scaled by the whole length.
    """
    config: Any = causal_lm(model).config
    return not {kind for kind, _ in rope_kinds(config)} & SCALED and _keeps_keys_and_values(config)


def _keeps_keys_and_values(config: Any) -> bool:
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # a configuration this class knows nothing of
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
