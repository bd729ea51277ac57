"""Documents become tokens: what Spark's workers do first, and direct mode when a cell is first needed.

Text is encoded as it is; conversations and preferences are written by a chat template (see `chat`), with a mask of the
tokens that are labels. Imports neither pyspark nor transformers. Costs what the tokenizer costs: 0.4 to 0.8 million
tokens a second and core.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.errors import ShardSetError, TokenizerError
from tessera.shard.cell import ANSWERS, ID_BITS, Recipe
from tessera.shard.chat import Encoded, Renderer, Template
from tessera.shard.tokenizer import Tokenizer

DOCUMENT_COLUMNS = (
    "doc_id", "sha256", "added", "split", "num_bytes", "text", "source", "kind", "messages", "prompt", "chosen",
    "rejected",
)  # fmt: skip
"""What is read of a documents table. Format 1 has none after `text` but source and kind: all its documents are text."""

TOKENIZED = (
    "generation long, bucket int, split string, doc_id string, sha256 string, num_bytes long, num_tokens long, "
    "tokens binary, source string, loss binary, rejected binary, prompt_tokens int, truncated_tokens long, "
    "dropped_turns long, cut_tokens long"
)
"""A tokenized document: `num_tokens` is counted where the tokenizer gave them, `tokens` is what travels. `loss` has a
byte a token, 1 for labels; null: all are. A preference has its chosen answer in `tokens`, the other in `rejected`."""

BATCH_BYTES = 2**20
"""Text that one call of the tokenizer gets."""


def tokenize(batch: pa.RecordBatch, *, tokenizer: Tokenizer, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """Documents (DOCUMENT_COLUMNS, those of the table's format) -> TOKENIZED, in order, about BATCH_BYTES at a time.

    Raises:
        TokenizerError: the tokenizer gives a document no token, or its end token; or a chat template is unfit.
        ShardSetError: a conversation is longer than a sequence, and `Recipe.truncate` is `refuse`.
    """
    for first, last in _stretches(batch["num_bytes"].to_pylist()):
        yield _tokenized(batch.slice(first, last - first), tokenizer=tokenizer, recipe=recipe)


def bucket_of(doc_ids: list[str], *, num_buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each document: the leading bits of its id, as many as its generation has buckets for."""
    leading = np.array([int(doc_id[: ID_BITS // 4], 16) for doc_id in doc_ids], dtype=np.int64)
    return leading * num_buckets >> ID_BITS


def _stretches(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Cuts rows of these sizes into stretches (first, last + 1) of about BATCH_BYTES."""
    first = total = 0
    for row, size in enumerate(sizes):
        total += size
        if total >= BATCH_BYTES:
            yield first, row + 1
            first, total = row + 1, 0
    if first < len(sizes):
        yield first, len(sizes)


def _tokenized(batch: pa.RecordBatch, *, tokenizer: Tokenizer, recipe: Recipe) -> pa.RecordBatch:
    encoded = _encode(batch, tokenizer=tokenizer, recipe=recipe)
    _refuse(encoded, batch=batch, recipe=recipe)
    return laid_out(encoded, batch=batch, recipe=recipe)


def laid_out(encoded: Sequence[Encoded], *, batch: pa.RecordBatch, recipe: Recipe) -> pa.RecordBatch:
    """TOKENIZED rows of documents that are encoded, whatever encoded them.

    Args:
        batch: DOCUMENT_COLUMNS of the same documents; what they say is not looked at.
    """
    generation = np.array([recipe.generation_of(added) for added in batch["added"].to_pylist()], dtype=np.int64)
    num_buckets = np.array([recipe.buckets[int(number)] for number in generation], dtype=np.int64)
    columns = {
        "generation": pa.array(generation, pa.int64()),
        "bucket": pa.array(bucket_of(batch["doc_id"].to_pylist(), num_buckets=num_buckets), pa.int32()),
        **{name: batch[name] for name in ("split", "doc_id", "sha256", "num_bytes")},
        "num_tokens": pa.array(
            [len(one.tokens) + (0 if one.rejected is None else len(one.rejected)) for one in encoded], pa.int64()
        ),
        "tokens": _binary([one.tokens for one in encoded], dtype=recipe.dtype),
        "source": _column(batch, "source", otherwise=""),
        "loss": _binary([one.loss for one in encoded], dtype="uint8"),
        "rejected": _binary([one.rejected for one in encoded], dtype=recipe.dtype),
        "prompt_tokens": pa.array([one.prompt_tokens for one in encoded], pa.int32()),
        **{
            name: pa.array([getattr(one, name) for one in encoded], pa.int64())
            for name in ("truncated_tokens", "dropped_turns", "cut_tokens")
        },
    }
    return pa.RecordBatch.from_pydict(columns)


def _encode(batch: pa.RecordBatch, *, tokenizer: Tokenizer, recipe: Recipe) -> list[Encoded]:
    """All documents of a batch: those of one kind in one call of the tokenizer."""
    kinds = np.array(_column(batch, "kind", otherwise="text").to_pylist())
    encoded: dict[int, Encoded] = {}
    for kind in sorted(set(kinds.tolist())):
        rows = np.flatnonzero(kinds == kind)
        part = batch if len(rows) == len(kinds) else batch.take(pa.array(rows))
        encoded.update(
            zip(rows.tolist(), _encode_kind(part, kind=kind, tokenizer=tokenizer, recipe=recipe), strict=True)
        )
    return [encoded[row] for row in range(len(kinds))]


def _encode_kind(part: pa.RecordBatch, *, kind: str, tokenizer: Tokenizer, recipe: Recipe) -> list[Encoded]:
    names = part["doc_id"].to_pylist()
    if kind == "text":
        texts = tokenizer.encode_arrays(unicode_texts(part["text"], names=names), names=names)
        return [Encoded(tokens=np.append(ids, np.uint32(tokenizer.end_id))) for ids in texts]
    renderer = _renderer(recipe.template, tokenizer)
    if kind == "preference":
        triples = list(zip(*(part[name].to_pylist() for name in ("prompt", "chosen", "rejected")), strict=True))
        return renderer.preferences(triples, names=names, seq_len=recipe.seq_len)
    return renderer.chats(part["messages"].to_pylist(), names=names, seq_len=recipe.seq_len)


@lru_cache(maxsize=2)
def _renderer(template: Template, tokenizer: Tokenizer) -> Renderer:
    return Renderer(template, tokenizer=tokenizer)


def _refuse(encoded: Sequence[Encoded], *, batch: pa.RecordBatch, recipe: Recipe) -> None:
    """Refuses documents without a token, and truncated ones where they are not wanted."""
    if empty := _places(encoded, lambda one: len(one.tokens) == 1):
        raise TokenizerError(
            f"the tokenizer gives no token for {len(empty)} documents, such as doc_id "
            f"{batch['doc_id'][empty[0]].as_py()}; drop them in prepare (min_chars), or use another tokenizer"
        )
    if recipe.truncate == "turns":
        return
    if long := _places(encoded, lambda one: one.truncated_tokens > 0):
        one = encoded[long[0]]
        found = one.truncated_tokens + len(one.tokens) + (0 if one.rejected is None else len(one.rejected))
        wanted = recipe.seq_len * (1 if one.rejected is None else ANSWERS)
        raise ShardSetError(
            f"{len(long)} of {len(encoded)} documents are longer than shard.seq_len, such as doc_id "
            f"{batch['doc_id'][long[0]].as_py()} with {found} tokens, wanted at most {wanted}; raise shard.seq_len, "
            "leave such rows out (prepare.sources[].where), or set shard.truncate to turns"
        )


def _places(encoded: Sequence[Encoded], meets: Callable[[Encoded], bool]) -> list[int]:
    return [place for place, one in enumerate(encoded) if meets(one)]


def unicode_texts(column: pa.Array, *, names: Sequence[str]) -> list[str]:
    """The texts of a column, in which a table may hold any bytes.

    Args:
        names: doc_ids, for errors.

    Raises:
        TokenizerError: naming the first document whose text is not UTF-8.
    """
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        for row, name in enumerate(names):
            try:
                column[row].as_py()
            except UnicodeDecodeError as error:
                raise TokenizerError(
                    f"doc_id {name}: byte {error.start} of its text is not UTF-8; mend the row, or leave it out "
                    "(prepare.sources[].where)"
                ) from None
        raise


def _column(batch: pa.RecordBatch, name: str, *, otherwise: str) -> pa.Array:
    """A column that not every documents table has."""
    if name in batch.schema.names:
        return batch[name]
    return pa.array([otherwise] * batch.num_rows, pa.string())


def _binary(arrays: Sequence[NDArray[Any] | None], *, dtype: str) -> pa.Array:
    """Arrays as little-endian bytes, a row each; null where there is none."""
    if all(array is None for array in arrays):
        return pa.nulls(len(arrays), pa.binary())
    kind = np.dtype(dtype).newbyteorder("<")
    if any(array is None for array in arrays):
        return pa.array([None if array is None else array.astype(kind).tobytes() for array in arrays], pa.binary())
    values = np.concatenate([array for array in arrays if array is not None]).astype(kind)
    sizes = [0 if array is None else len(array) for array in arrays]
    offsets = np.concatenate([[0], np.cumsum(sizes)]) * kind.itemsize
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(values)]
    return pa.BinaryArray.from_buffers(pa.binary(), len(arrays), buffers)
