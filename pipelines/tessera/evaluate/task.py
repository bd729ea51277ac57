"""What a model is asked, and what came of it: the types that reading, scoring and comparing share. No torch.

A task is a list of items of one kind. An item's key is a hash of its content, so that the outcomes of two models on the
same items can be paired; outcomes hold keys and numbers, never text. A task's digest covers its items and all that
decides their scores, so that a score is looked up by (weights, digest).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

SEMANTICS = 1
"""Raised when the same model and items give other outcomes."""

Kind = Literal["multiple_choice", "schema", "language_modeling", "generation", "code", "perplexity"]
KEY_DIGITS = 16
METRICS: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_tokens"),
    "schema": ("acc", "acc_norm", "acc_bytes", "acc_tokens"),
    "language_modeling": ("acc", "nats", "bits_per_byte"),
    "generation": ("exact_match", "f1"),
    "code": ("pass_at_1",),
    "perplexity": ("bits_per_byte",),
}
"""What each kind measures; the first is the primary metric unless the task names another.

`acc` is the choice of the greatest sum of log-likelihoods; `acc_norm`, `acc_bytes` and `acc_tokens` divide each sum by
the continuation's characters, UTF-8 bytes and tokens. Of language modelling `acc` says that every token of the
continuation is the most likely one. `pass_at_K` (Chen et al. 2021) is there for each K that the task asks for.
"""


@dataclass(frozen=True)
class Choices:
    """Which of several continuations; of a schema, after which of several contexts."""

    pairs: tuple[tuple[str, str], ...]
    """(context, continuation) of each choice; the continuation with the blank in front of it."""
    gold: int
    doc_id: str | None = None
    """The document that it was made of: left out for a model that was trained on it."""


@dataclass(frozen=True)
class Completion:
    """One continuation, to be predicted token by token."""

    context: str
    continuation: str
    doc_id: str | None = None


@dataclass(frozen=True)
class Question:
    """A prompt that is answered by generating; the first answer is the reference."""

    prompt: str
    answers: tuple[str, ...]
    doc_id: str | None = None


@dataclass(frozen=True)
class Program:
    """A prompt that is completed to a program, which is run with its test."""

    prompt: str
    test: str
    """Python that raises when the program is wrong."""
    entry_point: str = ""
    """A function that the test is called with, as `check(entry_point)`; none runs the test as it stands."""
    doc_id: str | None = None


@dataclass(frozen=True)
class Passage:
    """A document whose bits per byte are measured."""

    text: str
    doc_id: str | None = None


Item = Choices | Completion | Question | Program | Passage


def key_of(item: Item) -> str:
    """The first 16 hex digits of the SHA-256 of an item's content, its document left out."""
    content = {name: value for name, value in asdict(item).items() if name != "doc_id"}
    return hashlib.sha256(_canonical([type(item).__name__, content])).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class Decoding:
    """How answers are generated."""

    max_tokens: int = 64
    stop: tuple[str, ...] = ("\n",)
    """An answer ends before the first of these."""
    temperature: float = 0.0
    samples: int = 1
    """Answers of each prompt; more than one asks for a temperature, and counts for pass@k."""
    seed: int = 17


@dataclass(frozen=True)
class Task:
    """Items of one kind under one name, few-shot examples and template already in their text."""

    name: str
    kind: Kind
    items: tuple[Item, ...] = field(repr=False)
    category: str = ""
    metric: str = ""
    """The primary one; empty takes the first of its kind."""
    decoding: Decoding = Decoding()
    baseline: float | None = None
    """Accuracy by chance; None computes it: the mean of one over the choices, 0 where there are none."""
    ks: tuple[int, ...] = (1,)
    """Of pass@k."""

    @property
    def primary(self) -> str:
        return self.metric or METRICS[self.kind][0]

    @property
    def lower_is_better(self) -> bool:
        return self.primary in ("bits_per_byte", "nats")

    @property
    def chance(self) -> float:
        if self.baseline is not None:
            return self.baseline
        counts = [len(item.pairs) for item in self.items if isinstance(item, Choices)]
        return sum(1 / count for count in counts) / len(counts) if counts else 0.0

    @property
    def digest(self) -> str:
        """Over the items, in any order, and what else decides their outcomes; the name and category do not."""
        said = {
            "semantics": SEMANTICS,
            "kind": self.kind,
            "decoding": asdict(self.decoding) if self.kind in ("generation", "code") else None,
            "ks": self.ks if self.kind == "code" else None,
            "items": sorted(key_of(item) for item in self.items),
        }
        return hashlib.sha256(_canonical(said)).hexdigest()


@dataclass(frozen=True)
class Outcomes:
    """What a model did on each item of a task: numbers only."""

    keys: tuple[str, ...]
    """Of the items, in the task's order."""
    values: Mapping[str, tuple[float, ...]]
    """Metric -> a value an item."""
    weights: tuple[float, ...] = ()
    """What each item counts in a mean, for perplexity its UTF-8 bytes; empty counts each once."""
    tokens: int = 0
    """That the model computed."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Score:
    """One metric of one model on one task."""

    metric: str
    value: float
    """The (weighted) mean over items."""
    low: float
    high: float
    """95 % interval, by bootstrap over items."""
    n: int
    chance: float

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval is."""
        return self.low > self.chance


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
