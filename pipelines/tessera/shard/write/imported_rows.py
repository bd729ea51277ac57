"""The documents of an MDS folder that others wrote, one after another, without those that were erased.

One foreign shard is in memory. A document of tokens is compared with erased contents by the text that it decodes to.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera import erasures
from tessera.erasures import Erased
from tessera.errors import ShardSetError
from tessera.progress import Tell
from tessera.shard import foreign
from tessera.shard.cell import Recipe
from tessera.shard.foreign import ForeignShard
from tessera.shard.run_manifest import SPLITS
from tessera.shard.settings import ShardSettings
from tessera.shard.tokenizer import Tokenizer


@dataclass
class Imported:
    """What was read of a folder."""

    samples: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason: `blank` text, samples of end tokens alone (`empty`), what was `erased`."""
    counts: dict[str, list[int]] = field(default_factory=lambda: {split: [0, 0] for split in SPLITS})
    """Split -> documents and their bytes of text."""

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


@dataclass(frozen=True)
class Row:
    """One document on its way: text to be tokenized, or tokens with their end."""

    doc_id: str
    sha256: str
    num_bytes: int
    text: str | None = None
    tokens: NDArray[np.uint32] | None = None


def smallest(shards: list[ForeignShard], *, column: str, sample_bytes: int, name: str, erased: Erased) -> list[str]:
    """The texts of smallest content hash that fit `sample_bytes`, in that order; at least one.

    Args:
        name: of the set.
    """
    kept: list[tuple[str, str]] = []
    size = number = 0
    for shard in shards:
        data = foreign.read_shard(shard)
        for text in foreign.column(data, shard, name=column):
            content, doc_id = hash_of(text.encode()), _doc_id(name, {"sample": number})
            number += 1
            if _is_erased(doc_id, content, erased=erased):
                continue
            kept.append((content, text))
            size += len(text.encode())
            if size > 2 * sample_bytes:
                kept, size = _prune(kept, sample_bytes=sample_bytes)
    return [text for _, text in _prune(kept, sample_bytes=sample_bytes)[0]]


def _prune(kept: list[tuple[str, str]], *, sample_bytes: int) -> tuple[list[tuple[str, str]], int]:
    kept = sorted(kept)
    sizes = np.cumsum([len(text.encode()) for _, text in kept])
    number = max(int(np.searchsorted(sizes, sample_bytes, side="right")), 1)
    return kept[:number], int(sizes[:number][-1]) if len(sizes) else 0


def read_rows(
    shards: list[ForeignShard], *, column: str, kind: str, settings: ShardSettings, how: Recipe, imported: Imported,
    erased: Erased, progress: Tell,
) -> Iterator[Row]:  # fmt: skip
    """The documents of all samples, in order; `doc_id` is of the set's name and the sample's number.

    Raises:
        ShardSetError: a sample is no row of tokens of the vocabulary.
        CorruptShard: a shard of the folder is not what its index says.
    """
    loaded = Tokenizer(how.tokenizer)
    for done, shard in enumerate(shards):
        progress("reading shards", done, len(shards))
        data = foreign.read_shard(shard)
        for value in foreign.column(data, shard, name=column):
            number = imported.samples
            imported.samples += 1
            if kind == "str":
                encoded, doc_id = value.encode(), _doc_id(settings.name, {"sample": number})
                content = hash_of(encoded)
                if not value.strip():
                    imported.drop("blank")
                elif _is_erased(doc_id, content, erased=erased):
                    imported.drop(erasures.REASON)
                else:
                    yield Row(doc_id, content, len(encoded), text=value)
                continue
            ids = _ids(value, number=number, shard=shard, vocab_size=how.tokenizer.vocab_size)
            documents = _split_at(ids, end_id=how.tokenizer.end_id)
            if not documents:
                imported.drop("empty")
            for piece, tokens in enumerate(documents):
                encoded = loaded.decode(tokens[:-1].tolist()).encode()
                doc_id = _doc_id(settings.name, {"document": piece, "sample": number})
                content = hash_of(tokens.astype("<u4").tobytes())
                if _is_erased(doc_id, content, hash_of(encoded), erased=erased):
                    imported.drop(erasures.REASON)
                else:
                    yield Row(doc_id, content, len(encoded), tokens=tokens)


def _is_erased(doc_id: str, *contents: str, erased: Erased) -> bool:
    return doc_id in erased.doc_ids or not erased.contents.isdisjoint(contents)


def _ids(value: Any, *, number: int, shard: ForeignShard, vocab_size: int) -> NDArray[np.uint32]:
    """A sample's tokens, each in the vocabulary."""
    if isinstance(value, bytes) and len(value) % 8:
        raise ShardSetError(
            f"shard {shard.name}: sample {number} has {len(value)} bytes, no whole number of int64; "
            "import a column of text, or of ndarray"
        )
    ids = np.frombuffer(value, "<i8") if isinstance(value, bytes) else np.asarray(value)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ShardSetError(
            f"shard {shard.name}: sample {number} is {ids.dtype} of {ids.ndim} dimensions, wanted a row of integers"
        )
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        odd = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ShardSetError(
            f"shard {shard.name}: sample {number} has token {odd}, the tokenizer has 0 to {vocab_size - 1}; "
            "give the tokenizer that the folder was written with: --tokenizer"
        )
    return ids.astype(np.uint32)


def _split_at(ids: NDArray[np.uint32], *, end_id: int) -> list[NDArray[np.uint32]]:
    """Documents, each closed by the end token, which is added to a sample that stops without; empty ones are none."""
    parts = np.split(ids, np.flatnonzero(ids == end_id) + 1)
    closed = [part if part.size and part[-1] == end_id else np.append(part, np.uint32(end_id)) for part in parts]
    return [part for part in closed if part.size > 1]


def _doc_id(name: str, key: dict[str, int]) -> str:
    """As prepare makes it: of the source's name and the canonical JSON of the row key."""
    return hash_of(f"{name}\n{json.dumps(key, sort_keys=True, separators=(',', ':'))}".encode())


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
