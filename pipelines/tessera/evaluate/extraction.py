"""Extraction: whether a model that is given the beginning of a training document goes on with it word for word.

The first 32 tokens are given, the next 32 are compared with what the model generates greedily (as Carlini et al. 2023
measure memorisation). Held-out documents, of which the model can only have guessed, stand beside it. Texts are compared
and let go: only counts come out.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.compute as pc

from tessera import lineage, tables
from tessera.evaluate.subject import Subject
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.model.batches import generate_batches

GIVEN, ASKED = 32, 32
"""Tokens."""
BATCH = 2000


@dataclass(frozen=True)
class Extracted:
    """Of documents of one split."""

    n: int
    """Documents that are long enough."""
    whole: int
    """Of which all ASKED tokens came."""
    half: int
    """Of which at least the first half came."""

    @property
    def share(self) -> float:
        return self.whole / self.n if self.n else 0.0


def measure(subject: Subject, *, n: int, home: Home, documents: TableVersion, split: str) -> Extracted:
    """What comes out of `n` documents of a split, the first by a hash of their ids."""
    end = subject.tokenizer.end_id
    given: list[tuple[int, ...]] = []
    wanted: list[tuple[int, ...]] = []
    for text in _texts(home, documents=documents, split=split, n=4 * n):
        ids = subject.tokenizer.encode_batch([text])[0]
        if len(ids) >= GIVEN + ASKED and len(given) < n:
            given.append((end, *ids[:GIVEN]))
            wanted.append(tuple(ids[GIVEN : GIVEN + ASKED]))
    whole = half = 0
    for place, made in generate_batches(
        subject.model, prompts=given, max_new_tokens=ASKED, vocab_size=subject.tokenizer.vocab_size,
        batch_tokens=subject.batch_tokens,
    ):  # fmt: skip
        whole += made.tokens == wanted[place]
        half += made.tokens[: ASKED // 2] == wanted[place][: ASKED // 2]
    return Extracted(n=len(given), whole=whole, half=half)


def _texts(home: Home, *, documents: TableVersion, split: str, n: int) -> Iterator[str]:
    """Texts of a split by a hash of their ids, at most n; one batch and n texts in memory."""
    dataset = tables.dataset(home.resolve(documents.path), version=documents.version)
    batches = dataset.to_batches(
        columns=["doc_id", "text"], filter=pc.field("split") == split, batch_size=BATCH
    )  # fmt: skip
    rows = (row for batch in batches for row in batch.to_pylist() if row["text"] is not None)
    chosen = heapq.nsmallest(n, ((lineage.sha256_json(row["doc_id"]), row["text"]) for row in rows))
    return (text for _, text in chosen)
