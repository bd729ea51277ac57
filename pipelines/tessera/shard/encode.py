"""Documents become tokens: what Spark's workers do first, and direct mode when a cell is first needed.

Imports neither pyspark nor transformers. Costs what the tokenizer costs: 0.4 to 0.8 million tokens a second and core.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera.errors import TokenizerError
from tessera.shard.cell import ID_BITS, Recipe
from tessera.shard.tokenizer import Tokenizer

DOCUMENT_COLUMNS = ("doc_id", "sha256", "added", "split", "num_bytes", "text")
"""What is read of a documents table."""

TOKENIZED = (
    "generation long, bucket int, split string, doc_id string, sha256 string, num_bytes long, num_tokens long, "
    "tokens binary"
)
"""A tokenized document: `num_tokens` is counted where the tokenizer gave them, `tokens` is what travels."""

BATCH_CHARS = 2**20
"""Text that one call of the tokenizer gets."""


def tokenize(batch: pa.RecordBatch, *, tokenizer: Tokenizer, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """Documents (DOCUMENT_COLUMNS) -> TOKENIZED, in order, in batches of about BATCH_CHARS.

    Raises:
        TokenizerError: the tokenizer gives a document no token, or its end token.
    """
    texts = batch["text"].to_pylist()
    for first, last in _stretches([len(text) for text in texts]):
        yield _tokenized(batch.slice(first, last - first), texts[first:last], tokenizer=tokenizer, recipe=recipe)


def bucket_of(doc_ids: list[str], *, num_buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each document: the leading bits of its id, as many as its generation has buckets for."""
    leading = np.array([int(doc_id[: ID_BITS // 4], 16) for doc_id in doc_ids], dtype=np.int64)
    return leading * num_buckets >> ID_BITS


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


def _tokenized(batch: pa.RecordBatch, texts: list[str], *, tokenizer: Tokenizer, recipe: Recipe) -> pa.RecordBatch:
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
    dtype = np.dtype(recipe.dtype).newbyteorder("<")
    tokens = np.fromiter(chain.from_iterable(encoded), dtype, count=int(lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)]) * dtype.itemsize
    generation = np.array([recipe.generation_of(added) for added in batch["added"].to_pylist()], dtype=np.int64)
    num_buckets = np.array([recipe.buckets[int(number)] for number in generation], dtype=np.int64)
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
