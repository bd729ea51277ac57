"""The keys and values of a beginning that many sequences share, computed once.

Each forward after it costs the positions of its own rows only. Memory: the cache of the beginning, and of each batch a
copy for every row while it is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Shapes: P = tokens of the beginning, B = rows, H = key-value heads, W = width of a head.


@dataclass(frozen=True)
class Prefix:
    """A beginning of P tokens."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values of each layer, [1, H, P, W]."""


@torch.inference_mode()
def compute(model: Any, tokens: Sequence[int]) -> Prefix:
    """One forward over `tokens`, P >= 1."""
    cache = new_cache(model)
    device = next(model.parameters()).device
    model.base_model(
        input_ids=torch.tensor([list(tokens)], dtype=torch.int64, device=device), past_key_values=cache, use_cache=True
    )
    return Prefix(length=len(tokens), layers=tuple((layer.keys, layer.values) for layer in cache.layers))


def expanded(model: Any, prefix: Prefix, *, rows: int) -> Any:
    """A cache for a batch of B rows that all begin so."""
    cache = new_cache(model)
    for place, (keys, values) in enumerate(prefix.layers):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), place)
    return cache


def new_cache(model: Any) -> Any:
    """An empty key-value cache."""
    from transformers.cache_utils import DynamicCache  # here, after the model's own lean import of transformers

    return DynamicCache(config=model.config)
