"""The model that is examined: its folder, loaded once, with its tokenizer.

Our own code and safetensors, never a pickle. Texts become tokens without special ones; whether a context starts with
the end token, as a document does in training, is the caller's choice: see `EvaluateSettings.document_start`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tessera.errors import CorruptCheckpoint, ModelError
from tessera.lineage import sha256_file
from tessera.model import build
from tessera.model.generate import context_of
from tessera.shard import tokenizer
from tessera.shard.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """A causal model in evaluation mode, and what it takes to ask it."""

    model: Any = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    weights_sha256: str
    document_start: bool
    """Whether a context starts with the end token; an empty one always does."""
    batch_tokens: int
    """Tokens of one forward, padding included."""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def context(self) -> int:
        """Tokens that the model takes at once."""
        return context_of(self.model)


def open_subject(
    folder: Path,
    *,
    expected_sha256: str | None = None,
    device: torch.device | str = "cpu",
    document_start: bool = False,
    batch_tokens: int = 4096,
) -> Subject:
    """Loads `folder` (config.json, model.safetensors, tokenizer files).

    Args:
        expected_sha256: what the weights must be; None takes them as they are.

    Raises:
        CorruptCheckpoint: the weights are others.
        ModelError: the folder is no model, or its tokenizer has more tokens than the model.
    """
    weights = folder / build.WEIGHTS
    found = sha256_file(weights) if weights.is_file() else "no file"
    if expected_sha256 is not None and found != expected_sha256:
        raise CorruptCheckpoint(
            f"{weights}: found {found[:12]}, its record says {expected_sha256[:12]}; train again: tessera train --fresh"
        )
    if not weights.is_file():
        raise ModelError(f"{folder} holds no {build.WEIGHTS}; give a checkpoint or model folder")
    loaded: Any = build.load(folder).to(device).eval()
    words, size = tokenizer.load(folder), loaded.config.vocab_size
    if words.vocab_size > size:
        raise ModelError(
            f"{folder}: the tokenizer has {words.vocab_size} tokens, the model {size}; "
            "use the tokenizer that it was trained with"
        )
    return Subject(
        model=loaded, tokenizer=words, weights_sha256=found, document_start=document_start, batch_tokens=batch_tokens
    )
