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

from tessera.errors import ShardSetError
from tessera.shard.chat import PLAIN_TEMPLATE, Template
from tessera.shard.format import mds
from tessera.shard.pack import Packing, keyed_order, pack
from tessera.shard.run_manifest import token_dtype
from tessera.shard.tokenizer import Definition

SPANS = (
    "doc_id string, sha256 string, split string, generation long, bucket int, piece int, file string, sample int, "
    "start int, num_tokens long, document_tokens long, document_bytes long, buckets long, ordinal int, "
    "file_bytes long, file_sha256 string, file_samples long, file_padding long, content string, source string, "
    "loss_tokens long, truncated_tokens long, dropped_turns long, cut_tokens long"
)
"""A row a document piece: where its tokens lie, and how many are labels. What concerns the document is on its first
piece, zero on others; what concerns the file is on each row, so that the manifest is an aggregate of a committed table.
A preference is one piece: both its answers with their prompts, in a sample of `Recipe.seq_len` slots for each."""

ANSWERS = 2
"""Token columns of a preference."""

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
    packing: Packing = "best-fit"
    template: Template = PLAIN_TEMPLATE
    """How conversations are written."""
    truncate: str = "turns"
    """`turns` or `refuse`: what happens to a conversation that is longer than a sequence."""

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


@dataclass(frozen=True)
class _Placed:
    """Laid out files, and where each piece of each document is. K = pieces, S = samples."""

    files: Iterator[tuple[bytes, int]]
    document_K: NDArray[np.int64]
    number_K: NDArray[np.int64]
    sample_K: NDArray[np.int64]
    start_K: NDArray[np.int64]
    tokens_K: NDArray[np.int64]
    labels_K: NDArray[np.int64]
    padding_S: NDArray[np.int64]


def cell_files(cell: Cell, *, recipe: Recipe) -> Iterator[CellFile]:
    """Packs a cell and lays out its files, one at a time.

    Raises:
        ShardSetError: preferences are mixed with other documents.
    """
    num_preferences = len(cell.documents) - cell.documents["rejected"].null_count
    if num_preferences not in (0, len(cell.documents)):
        raise mixed_kinds(num_preferences, of=len(cell.documents))
    placed = (_preferences if num_preferences else _sequences)(cell, recipe=recipe)
    content = content_hash(cell.documents)
    first = 0
    for ordinal, (data, samples) in enumerate(placed.files):
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
        spans = _spans(cell, placed, first=first, last=first + samples, facts=facts, recipe=recipe)
        yield CellFile(name=name, data=data, spans=spans)
        first += samples


def mixed_kinds(num_preferences: int, *, of: int) -> ShardSetError:
    """Preferences have other columns than sequences, so that no set holds both."""
    return ShardSetError(
        f"{num_preferences} of {of} documents are of kind preference, the others are not; a set holds preferences "
        "only or none: give prepare.sources of one sort, in a home of their own"
    )


def content_hash(documents: pa.Table) -> str:
    """What a cell holds: SHA-256 over the ids and content hashes of its documents, in order."""
    pairs = zip(documents["doc_id"].to_pylist(), documents["sha256"].to_pylist(), strict=True)
    return hashlib.sha256("".join(sorted(doc_id + sha256 for doc_id, sha256 in pairs)).encode()).hexdigest()


def _sequences(cell: Cell, *, recipe: Recipe) -> _Placed:
    """Packed sequences: columns `tokens`, `starts` and, where not every token of the cell is a label, `loss`."""
    documents = cell.documents
    tokens_N, lengths = _ragged(documents["tokens"], dtype=recipe.dtype)
    loss_N = _loss(documents["loss"], lengths=lengths)
    packed = pack(
        tokens_N, lengths=lengths, keys=_keys(documents), seq_len=recipe.seq_len, end_id=recipe.tokenizer.end_id,
        seed=recipe.seed, packing=recipe.packing, loss_N=loss_N,
    )  # fmt: skip
    columns = {"starts": "ndarray:uint16", "tokens": f"ndarray:{recipe.dtype}:{recipe.seq_len}"}
    if loss_N is not None:
        columns["loss"] = f"ndarray:uint8:{recipe.seq_len}"
    files = mds.token_shards(
        packed.tokens_ST, starts_P=packed.starts_P, num_starts_S=packed.num_starts_S, loss_ST=packed.loss_ST,
        config=mds.make_config(columns, size_limit=recipe.shard_bytes, hashes=["sha256"]),
    )  # fmt: skip
    pieces = packed.pieces
    labels = pieces.length
    if loss_N is not None:
        summed = np.concatenate([[0], np.cumsum(loss_N, dtype=np.int64)])
        begin = (np.cumsum(lengths) - lengths)[pieces.document] + pieces.begin
        labels = summed[begin + pieces.length] - summed[begin]
    return _Placed(
        files=files, document_K=pieces.document, number_K=pieces.number, sample_K=packed.sequence_K,
        start_K=packed.start_K, tokens_K=pieces.length, labels_K=labels,
        padding_S=packed.padding_S(end_id=recipe.tokenizer.end_id),
    )  # fmt: skip


def _preferences(cell: Cell, *, recipe: Recipe) -> _Placed:
    """A sample a document, in keyed order: columns `chosen`, `rejected` and `prompt`, their common beginning."""
    order = keyed_order(_keys(cell.documents), seed=recipe.seed)
    documents = cell.documents.select(["tokens", "rejected", "prompt_tokens"]).take(pa.array(order))
    values = [_ragged(documents[name], dtype=recipe.dtype) for name in ("tokens", "rejected")]
    chosen, rejected = (np.split(tokens, np.cumsum(lengths)[:-1]) for tokens, lengths in values)
    prompts = documents["prompt_tokens"].to_numpy().astype(np.int64)
    samples = [
        {"chosen": one, "prompt": prompt, "rejected": other}
        for one, prompt, other in zip(chosen, prompts, rejected, strict=True)
    ]
    kind = f"ndarray:{recipe.dtype}"
    columns = {"chosen": kind, "prompt": "uint32", "rejected": kind}
    config = mds.make_config(columns, size_limit=recipe.shard_bytes, hashes=["sha256"])
    num_tokens = values[0][1] + values[1][1]
    zeros = np.zeros(len(order), np.int64)
    return _Placed(
        files=mds.shard_bytes(config, samples), document_K=order, number_K=zeros, sample_K=np.arange(len(order)),
        start_K=zeros, tokens_K=num_tokens, labels_K=num_tokens - ANSWERS * prompts,
        padding_S=ANSWERS * recipe.seq_len - num_tokens,
    )  # fmt: skip


def _spans(
    cell: Cell, placed: _Placed, *, first: int, last: int, facts: dict[str, Any], recipe: Recipe
) -> pa.RecordBatch:
    """The pieces in samples `first` to `last` - 1, which are one file."""
    chosen = np.flatnonzero((placed.sample_K >= first) & (placed.sample_K < last))
    opens = placed.number_K[chosen] == 0
    rows = cell.documents.drop_columns(["tokens", "loss", "rejected"]).take(pa.array(placed.document_K[chosen]))
    constants = {
        **facts,
        "split": cell.split,
        "generation": cell.generation,
        "bucket": cell.bucket,
        "buckets": recipe.buckets[cell.generation],
        "file_padding": int(placed.padding_S[first:last].sum()),
    }
    of_document = {
        "document_tokens": "num_tokens", "document_bytes": "num_bytes", "truncated_tokens": "truncated_tokens",
        "dropped_turns": "dropped_turns", "cut_tokens": "cut_tokens",
    }  # fmt: skip
    columns = {
        **{name: rows[name].combine_chunks() for name in ("doc_id", "sha256", "source")},
        "piece": placed.number_K[chosen],
        "sample": placed.sample_K[chosen] - first,
        "start": placed.start_K[chosen],
        "num_tokens": placed.tokens_K[chosen],
        "loss_tokens": placed.labels_K[chosen],
        **{name: np.where(opens, rows[column].to_numpy(), 0) for name, column in of_document.items()},
        **{name: pa.array([value] * len(chosen)) for name, value in constants.items()},
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in _SPAN_TYPES}, schema=pa.schema(_SPAN_TYPES))


def _keys(documents: pa.Table) -> NDArray[np.uint64]:
    return np.stack([_words(documents[name]) for name in ("doc_id", "sha256")], axis=1)


def _ragged(column: pa.ChunkedArray, *, dtype: str) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.int64]]:
    """The values of all rows one after another, and how many each row has; null rows have none."""
    values = np.concatenate([_values(chunk, dtype=dtype) for chunk in column.chunks])
    sizes = np.concatenate([np.diff(_offsets(chunk)) for chunk in column.chunks])
    return values, sizes // np.dtype(dtype).itemsize


def _loss(column: pa.ChunkedArray, *, lengths: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """The mask of all documents one after another; None when no document has one."""
    if column.null_count == len(column):
        return None
    masked = column.is_valid().to_numpy()
    loss_N = np.ones(int(lengths.sum()), np.uint8)
    loss_N[np.repeat(masked, lengths)] = _ragged(column.drop_null(), dtype="uint8")[0]
    return loss_N


def _offsets(chunk: pa.Array) -> NDArray[np.int64]:
    kind = np.dtype(np.int64 if pa.types.is_large_binary(chunk.type) else np.int32)
    return np.frombuffer(chunk.buffers()[1], kind, len(chunk) + 1, kind.itemsize * chunk.offset).astype(np.int64)


def _values(chunk: pa.Array, *, dtype: str) -> NDArray[np.unsignedinteger[Any]]:
    offsets = _offsets(chunk)
    buffer = chunk.buffers()[2]
    data = np.frombuffer(buffer if buffer is not None else b"", np.uint8)[offsets[0] : offsets[-1]]
    return data.view(np.dtype(dtype).newbyteorder("<"))


def _words(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """The leading 64 bits of hex digests."""
    digits = "".join(digest[:KEY_DIGITS] for digest in digests.to_pylist())
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


_ARROW = {"string": pa.string(), "long": pa.int64(), "int": pa.int32()}
_SPAN_TYPES = {name: _ARROW[kind] for name, kind in (column.split() for column in SPANS.split(", "))}
