"""Another model that a challenger is held against: who it is, and where its files come from when they are needed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Rival:
    """A registered model version, or any other model whose weights are known."""

    name: str
    """As people call it: `tessera-docs version 3`."""
    weights_sha256: str
    run: str
    """The folder of the run that trained it, relative to the home; empty where it is not known."""
    checkpoint: Callable[[], Path] = field(repr=False, compare=False)
    """Configuration, weights and tokenizer on this machine; may fetch them."""
