"""Chunked cross-entropy: logits of a few tokens at a time, with their gradients at once; see `model.loss`.

Holds chunk x vocabulary numbers instead of tokens x vocabulary: 64 MB instead of 1.5 GB for 4,096 tokens of 32,768
words, and 1.2 times as fast. Without the method all logits are held.
"""

from functools import partial
from typing import Literal

from pydantic import Field

from tessera.train.method import Method, MethodSettings


class ChunkedLossSettings(MethodSettings):
    """The loss of a few tokens at a time, whose logits are never held all; without it, of all at once."""

    strength: Literal[0, 1] = 1  # type: ignore[assignment]
    """1 is with it, 0 without."""
    chunk: int = Field(1024, ge=1)
    """Tokens projected at a time."""


class ChunkedLoss(Method[ChunkedLossSettings]):
    """Replaces the job's cross-entropy."""

    settings_type = ChunkedLossSettings
    place = 20

    def init(self) -> None:
        from tessera.model.loss import chunked_cross_entropy

        self.job.cross_entropy = partial(chunked_cross_entropy, chunk=self.settings.chunk)
