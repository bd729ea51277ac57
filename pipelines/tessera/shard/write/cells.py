"""What Spark's workers do: tokenize batches of documents, then pack and write one cell after another.

A worker holds one cell: a bucket's text, its tokens, and one file. Imports neither pyspark nor transformers.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from tessera import failpoints
from tessera.files import write_once
from tessera.shard import encode
from tessera.shard.cell import Cell, Recipe, cell_files
from tessera.shard.tokenizer import Definition, Tokenizer


def tokenize(batches: Iterator[pa.RecordBatch], *, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """`encode.DOCUMENT_COLUMNS` -> `encode.TOKENIZED`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Spark has as many workers as cores
    for batch in batches:
        yield from encode.tokenize(batch, tokenizer=_tokenizer(recipe.tokenizer), recipe=recipe)


def write_cells(batches: Iterator[pa.RecordBatch], *, recipe: Recipe, folder: str | None) -> Iterator[pa.RecordBatch]:
    """`encode.TOKENIZED`, sorted by cell, doc_id and content hash -> shard files, and `cell.SPANS` of them.

    Args:
        folder: the set's, on a file system that all workers share; None stores no files: see `read.direct`.
    """
    for cell in _cells(batches):
        for file in cell_files(cell, recipe=recipe):
            if folder is not None:
                write_once(Path(folder) / file.name, file.data)
            failpoints.hit("shard.after_file")
            yield file.spans


@lru_cache(maxsize=2)
def _tokenizer(definition: Definition) -> Tokenizer:
    return Tokenizer(definition)


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
