"""Bits per byte: how many bits the model needs for a byte of held-out text. Comparable across tokenizers.

One forward over the whole split, nothing sampled and nothing cut, so the figure is exact for the model and the way
documents are packed (a document longer than a sequence starts anew in each of its pieces).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tessera.evaluate.parallel import in_parallel
from tessera.model.loss import token_nats


@dataclass(frozen=True)
class Score:
    """The sum over one split."""

    nats: float
    """Summed over every label: each token of each document, end-of-document tokens included, or the assistant's."""
    tokens: int
    """Labels."""
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * text_bytes)."""
        return self.nats / (math.log(2) * self.text_bytes)


def score(
    model: Any,
    *,
    batches: Iterable[Mapping[str, torch.Tensor]],
    text_bytes: int,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Score:
    """Sums the loss over all `batches`, in float64; the sum does not depend on `workers`.

    Args:
        model: a causal model; it is put into evaluation mode and back.
        batches: a split in stored order, each token of it exactly once (labels -100 are skipped).
        text_bytes: UTF-8 bytes of what the labels stand for.
        workers: batches computed at once, each by one thread. On a CPU one for each core is faster than all cores on
            one batch of a small model; on a GPU one is right.
        progress: hears how many tokens are done.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch_nats, batch_tokens in in_parallel(lambda batch: _sum(model, batch, device), batches, workers=workers):
            nats, tokens = nats + batch_nats, tokens + batch_tokens
            if progress:
                progress(tokens)
    finally:
        model.train(training)
    return Score(nats=nats, tokens=tokens, text_bytes=text_bytes)


@torch.inference_mode()
def _sum(model: Any, batch: Mapping[str, torch.Tensor], device: torch.device) -> tuple[float, int]:
    """Nats and tokens of one batch."""
    on_device = {name: tensor.to(device) for name, tensor in batch.items()}
    counted = on_device["labels"] != -100
    losses = token_nats(model, on_device)
    return float(losses.double()[counted].sum()), int(counted.sum())
