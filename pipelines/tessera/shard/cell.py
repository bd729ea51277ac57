"""A cell becomes files: the tokenized documents of one generation, split and range of ids, packed and laid out.

The files are a function of the cell's documents and the recipe alone. So twins and retries of a task write the same
bytes to the same names, an increment writes what a rebuild would, and a cell that was never stored can be made again
where it is needed. One cell is in memory: its tokens twice, and one file. numpy and pyarrow only.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.shard.format import mds
from tessera.shard.pack import Packed, pack
from tessera.shard.run_manifest import token_dtype
from tessera.shard.tokenizer import Definition

SPANS = (
    "doc_id string, sha256 string, split string, generation long, bucket int, piece int, file string, sample int, "
    "start int, num_tokens long, document_tokens long, document_bytes long, buckets long, ordinal int, "
    "file_bytes long, file_sha256 string, file_samples long, file_padding long, content string"
)
"""A row a document piece: where its tokens lie. What concerns the document is on its first piece, zero on others; what
concerns the file is on each row, so that the manifest is an aggregate of a committed table."""

KEY_DIGITS = 16
ID_BITS = 32


@dataclass(frozen=True)
class Recipe:
    """Everything beside the documents that decides a file's bytes, as it travels to the workers."""

    buckets: dict[int, int]
    """Generation -> its number of buckets, a power of two."""
    compacted: int
    """Documents added up to this documents version are one generation, which has this number; -1: none are."""
    tokenizer: Definition
    seq_len: int
    seed: int
    shard_bytes: int

    @property
    def dtype(self) -> str:
        return token_dtype(self.tokenizer.vocab_size)

    def generation_of(self, added: int) -> int:
        """The generation of documents that appeared in this documents version."""
        return max(added, self.compacted)


@dataclass(frozen=True)
class Cell:
    """The tokenized documents of one cell, in the order (doc_id, content hash)."""

    generation: int
    bucket: int
    split: str
    documents: pa.Table
    """See `encode.TOKENIZED`."""


@dataclass(frozen=True)
class CellFile:
    """One shard file of a cell."""

    name: str
    """Relative to the set's folder."""
    data: bytes
    spans: pa.RecordBatch
    """SPANS of the document pieces in it."""


def cell_files(cell: Cell, *, recipe: Recipe) -> Iterator[CellFile]:
    """Packs a cell and lays out its files, one at a time."""
    packed = _pack(cell, recipe=recipe)
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:{recipe.dtype}:{recipe.seq_len}"}
    config = mds.make_config(columns, size_limit=recipe.shard_bytes, hashes=["sha256"])
    files = mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config
    )
    content = content_hash(cell.documents)
    first = 0
    for ordinal, (data, samples) in enumerate(files):
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{cell.split}/{cell.generation:06d}-{cell.bucket:04d}-{sha256[:16]}.mds"
        facts = {
            "file": name,
            "ordinal": ordinal,
            "file_bytes": len(data),
            "file_sha256": sha256,
            "file_samples": samples,
            "content": content,
        }
        spans = _spans(cell, packed, first=first, last=first + samples, facts=facts, recipe=recipe)
        yield CellFile(name=name, data=data, spans=spans)
        first += samples


def content_hash(documents: pa.Table) -> str:
    """What a cell holds: SHA-256 over the ids and content hashes of its documents, in order."""
    pairs = zip(documents["doc_id"].to_pylist(), documents["sha256"].to_pylist(), strict=True)
    return hashlib.sha256("".join(sorted(doc_id + sha256 for doc_id, sha256 in pairs)).encode()).hexdigest()


def _pack(cell: Cell, *, recipe: Recipe) -> Packed:
    documents = cell.documents
    tokens = np.concatenate([_values(chunk, dtype=recipe.dtype) for chunk in documents["tokens"].chunks])
    sizes = np.concatenate([np.diff(_offsets(chunk)) for chunk in documents["tokens"].chunks])
    keys = np.stack([_words(documents[name]) for name in ("doc_id", "sha256")], axis=1)
    return pack(
        tokens, lengths=sizes // np.dtype(recipe.dtype).itemsize, keys=keys, seq_len=recipe.seq_len,
        end_id=recipe.tokenizer.end_id, seed=recipe.seed,
    )  # fmt: skip


def _spans(
    cell: Cell, packed: Packed, *, first: int, last: int, facts: dict[str, Any], recipe: Recipe
) -> pa.RecordBatch:
    """The pieces in sequences `first` to `last` - 1, which are one file."""
    chosen = np.flatnonzero((packed.sequence_K >= first) & (packed.sequence_K < last))
    document, number = packed.pieces.document[chosen], packed.pieces.number[chosen]
    opens = number == 0
    num_tokens = packed.pieces.length[chosen]
    rows = cell.documents.select(["doc_id", "sha256", "num_tokens", "num_bytes"]).take(pa.array(document))
    constants = {
        **facts,
        "split": cell.split,
        "generation": cell.generation,
        "bucket": cell.bucket,
        "buckets": recipe.buckets[cell.generation],
        "file_padding": int(packed.padding_S(end_id=recipe.tokenizer.end_id)[first:last].sum()),
    }
    columns = {
        "doc_id": rows["doc_id"].combine_chunks(),
        "sha256": rows["sha256"].combine_chunks(),
        "piece": number,
        "sample": packed.sequence_K[chosen] - first,
        "start": packed.start_K[chosen],
        "num_tokens": num_tokens,
        "document_tokens": np.where(opens, rows["num_tokens"].to_numpy(), 0),
        "document_bytes": np.where(opens, rows["num_bytes"].to_numpy(), 0),
        **{name: pa.array([value] * len(chosen)) for name, value in constants.items()},
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in _SPAN_TYPES}, schema=pa.schema(_SPAN_TYPES))


def _offsets(chunk: pa.Array) -> NDArray[np.int64]:
    kind = np.dtype(np.int64 if pa.types.is_large_binary(chunk.type) else np.int32)
    return np.frombuffer(chunk.buffers()[1], kind, len(chunk) + 1, kind.itemsize * chunk.offset).astype(np.int64)


def _values(chunk: pa.Array, *, dtype: str) -> NDArray[np.unsignedinteger[Any]]:
    offsets = _offsets(chunk)
    data = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    return data.view(np.dtype(dtype).newbyteorder("<"))


def _words(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The leading 64 bits of hex digests."""
    digits = "".join(digest[:KEY_DIGITS] for digest in digests.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


_ARROW = {"string": pa.string(), "long": pa.int64(), "int": pa.int32()}
_SPAN_TYPES = {name: _ARROW[kind] for name, kind in (column.split() for column in SPANS.split(", "))}
