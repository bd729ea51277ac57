"""What Spark's workers do: tokenize batches of documents, then pack and write one cell after another.

A cell is what decides a file: the documents of one generation and one range of ids, by split. The files of a cell are
a function of its documents and the plan alone, so twins and retries of a task write the same bytes to the same names.
A worker holds one cell: a bucket's text, its tokens, and one file. Imports neither pyspark nor transformers.
"""

import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera import failpoints
from tessera.errors import TokenizerError
from tessera.shard.format import mds
from tessera.shard.pack import Packed, pack
from tessera.shard.run_manifest import token_dtype
from tessera.shard.tokenizer import Definition, Tokenizer

TOKENIZED = (
    "generation long, bucket int, split string, doc_id string, sha256 string, num_bytes long, num_tokens long, "
    "tokens binary"
)
"""A tokenized document: `num_tokens` is counted where the tokenizer gave them, `tokens` is what travels."""

SPANS = (
    "doc_id string, sha256 string, split string, generation long, bucket int, piece int, file string, sample int, "
    "start int, num_tokens long, document_tokens long, document_bytes long, buckets long, ordinal int, "
    "file_bytes long, file_sha256 string, file_samples long, file_padding long"
)
"""A row a document piece: where its tokens lie. What concerns the document is on its first piece, zero on others; what
concerns the file is on each row, so that the manifest is an aggregate of a committed table."""

BATCH_CHARS = 2**20
"""Text that one call of the tokenizer gets."""

KEY_DIGITS = 16
ID_BITS = 32


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes, as it travels to the workers."""

    folder: str
    """The set's folder, on a file system that all workers share."""
    buckets: dict[int, int]
    """Generation -> its number of buckets, a power of two."""
    tokenizer: Definition
    seq_len: int
    seed: int
    shard_bytes: int

    @property
    def dtype(self) -> str:
        return token_dtype(self.tokenizer.vocab_size)


@dataclass(frozen=True)
class Cell:
    """The tokenized documents of one cell, in the order (doc_id, content hash)."""

    generation: int
    bucket: int
    split: str
    documents: pa.Table


def tokenize(batches: Iterator[pa.RecordBatch], *, plan: Plan) -> Iterator[pa.RecordBatch]:
    """Documents (doc_id, sha256, added, split, num_bytes, text) -> TOKENIZED."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Spark has as many workers as cores
    tokenizer = _tokenizer(plan.tokenizer)
    for batch in batches:
        texts = batch["text"].to_pylist()
        for first, last in _stretches([len(text) for text in texts]):
            yield _tokenized(batch.slice(first, last - first), texts[first:last], tokenizer=tokenizer, plan=plan)


def write_cells(batches: Iterator[pa.RecordBatch], *, plan: Plan) -> Iterator[pa.RecordBatch]:
    """TOKENIZED, sorted by cell, doc_id and content hash -> shard files, and SPANS of them."""
    for cell in _cells(batches):
        yield from _write_cell(cell, plan=plan)


def bucket_of(doc_ids: list[str], *, num_buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each document: the leading bits of its id, as many as its generation has buckets for."""
    leading = np.array([int(doc_id[: ID_BITS // 4], 16) for doc_id in doc_ids], dtype=np.int64)
    return leading * num_buckets >> ID_BITS


@lru_cache(maxsize=2)
def _tokenizer(definition: Definition) -> Tokenizer:
    return Tokenizer(definition)


def _stretches(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cuts rows of these sizes into stretches (first, last + 1) of about BATCH_CHARS."""
    first = total = 0
    for row, size in enumerate(sizes):
        total += size
        if total >= BATCH_CHARS:
            yield first, row + 1
            first, total = row + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


def _tokenized(batch: pa.RecordBatch, texts: list[str], *, tokenizer: Tokenizer, plan: Plan) -> pa.RecordBatch:
    encoded = tokenizer.encode_batch(texts)
    lengths = np.array([len(ids) + 1 for ids in encoded], dtype=np.int64)
    if (lengths == 1).any():
        doc_id = batch["doc_id"][int(np.argmin(lengths))].as_py()
        raise TokenizerError(
            f"the tokenizer gives no token for {int((lengths == 1).sum())} documents, such as doc_id {doc_id}; "
            "drop them in prepare (min_chars), or use another tokenizer"
        )
    for ids in encoded:
        ids.append(tokenizer.end_id)
    dtype = np.dtype(plan.dtype).newbyteorder("<")
    tokens = np.fromiter(chain.from_iterable(encoded), dtype, count=int(lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * dtype.itemsize
    generation = batch["added"].to_numpy()
    num_buckets = np.array([plan.buckets[int(added)] for added in generation], dtype=np.int64)
    columns = {
        "generation": pa.array(generation, pa.int64()),
        "bucket": pa.array(bucket_of(batch["doc_id"].to_pylist(), num_buckets=num_buckets), pa.int32()),
        "split": batch["split"],
        "doc_id": batch["doc_id"],
        "sha256": batch["sha256"],
        "num_bytes": batch["num_bytes"],
        "num_tokens": pa.array(lengths),
        "tokens": pa.BinaryArray.from_buffers(
            pa.binary(), len(lengths), [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(tokens)]
        ),
    }
    return pa.RecordBatch.from_pydict(columns)


def _cells(batches: Iterator[pa.RecordBatch]) -> Iterator[Cell]:
    """Consecutive documents of one cell, put together."""
    key: tuple[int, int, str] | None = None
    parts: list[pa.RecordBatch] = []
    for batch in batches:
        keys = list(zip(*(batch[name].to_pylist() for name in ("generation", "bucket", "split")), strict=True))
        cuts = [0, *(row for row in range(1, len(keys)) if keys[row] != keys[row - 1]), len(keys)]
        for first, last in pairwise(cuts):
            if first == last:
                continue
            if parts and keys[first] != key:
                yield _cell(key, parts)
                parts = []
            key = keys[first]
            parts.append(batch.slice(first, last - first))
    if parts:
        yield _cell(key, parts)


def _cell(key: tuple[int, int, str] | None, parts: list[pa.RecordBatch]) -> Cell:
    assert key is not None
    return Cell(generation=key[0], bucket=key[1], split=key[2], documents=pa.Table.from_batches(parts))


def _write_cell(cell: Cell, *, plan: Plan) -> Iterator[pa.RecordBatch]:
    """Packs a cell, writes its files, and yields the spans of each file's documents."""
    packed = _pack(cell, plan=plan)
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:{plan.dtype}:{plan.seq_len}"}
    config = mds.make_config(columns, size_limit=plan.shard_bytes, hashes=["sha256"])
    files = mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, config=config
    )
    first = 0
    for ordinal, (data, samples) in enumerate(files):
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{cell.split}/{cell.generation:06d}-{cell.bucket:04d}-{sha256[:16]}.mds"
        write_file(Path(plan.folder) / name, data)
        failpoints.hit("shard.after_file")
        facts = {
            "file": name,
            "ordinal": ordinal,
            "file_bytes": len(data),
            "file_sha256": sha256,
            "file_samples": samples,
        }
        yield _spans(cell, packed, first=first, last=first + samples, facts=facts, plan=plan)
        first += samples


def _pack(cell: Cell, *, plan: Plan) -> Packed:
    documents = cell.documents
    tokens = np.concatenate([_values(chunk, dtype=plan.dtype) for chunk in documents["tokens"].chunks])
    sizes = np.concatenate([np.diff(_offsets(chunk)) for chunk in documents["tokens"].chunks])
    keys = np.stack([_words(documents[name]) for name in ("doc_id", "sha256")], axis=1)
    return pack(
        tokens, lengths=sizes // np.dtype(plan.dtype).itemsize, keys=keys, seq_len=plan.seq_len,
        end_id=plan.tokenizer.end_id, seed=plan.seed,
    )  # fmt: skip


def _spans(cell: Cell, packed: Packed, *, first: int, last: int, facts: dict[str, Any], plan: Plan) -> pa.RecordBatch:
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
        "buckets": plan.buckets[cell.generation],
        "file_padding": int(packed.padding_S(end_id=plan.tokenizer.end_id)[first:last].sum()),
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


def write_file(path: Path, data: bytes) -> None:
    """Writes a file so that its name never holds anything but all of `data`, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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
