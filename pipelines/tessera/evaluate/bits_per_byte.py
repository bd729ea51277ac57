"""Bits per byte: how many bits the model needs for a byte of held-out text. Comparable across tokenizers.

One forward over the whole split, nothing sampled and nothing cut, so the figure is exact for the model and the way
documents are packed (a document longer than a sequence starts anew in each of its pieces).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tessera.model.loss import token_nats


@dataclass(frozen=True)
class Score:
    """The sum over one split."""

    nats: float
    """Summed over every token of every document, end-of-document tokens included."""
    tokens: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * text_bytes)."""
        return self.nats / (math.log(2) * self.text_bytes)


@torch.inference_mode()
def score(
    model: Any,
    *,
    batches: Iterable[Mapping[str, torch.Tensor]],
    text_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Sums the loss over all `batches`, in float64.

    Args:
        model: a causal model; it is put into evaluation mode and back.
        batches: a split in stored order, each token of it exactly once (labels -100 are skipped).
        text_bytes: UTF-8 bytes of the split's documents, from the manifest.
        progress: hears how many tokens are done.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            counted = on_device["labels"] != -100
            losses = token_nats(model, on_device)
            nats += float(losses.double()[counted].sum())
            tokens += int(counted.sum())
            if progress:
                progress(tokens)
    finally:
        model.train(training)
    return Score(nats=nats, tokens=tokens, text_bytes=text_bytes)
