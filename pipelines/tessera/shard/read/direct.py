"""Direct mode: shard files that are not stored, made from the documents table when a sample of them is first needed.

The launcher pins the table's Parquet files in `documents.json` beside shards.arrow. A reader looks up once which rows
each cell holds (ids only; 16 bytes a document), then reads the row groups of a cell, tokenizes and packs it by the
functions that write shard files, and compares what comes out with the manifest's SHA-256. So tokens and order equal
those of stored files, or nothing is given. The price: a cell costs its tokenizing (3 MB of text a second) in each
process that needs it, at its block's beginning. Needs pyarrow and tokenizers, which no other reader does.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tessera.errors import CorruptShard, ShardSetError
from tessera.lineage import Entry, TableVersion, TokenizerRef
from tessera.shard import chat, encode, tokenizer
from tessera.shard.cell import Cell, Recipe, cell_files
from tessera.shard.pack import Packing
from tessera.shard.read.manifest import ShardFile, ShardFiles, seal, unseal

FORMAT = 1
"""Of documents.json."""
BUCKET_BITS = 20
"""A generation has fewer buckets than 2 to this."""

AGAIN = "run the command again: the launcher writes it"
Int = NDArray[np.int64]


class ParquetFile(Entry):
    """A data file of the documents table."""

    path: str
    """Relative to the home."""
    num_bytes: int


class CellRecipe(Entry):
    """`cell.Recipe` but for the tokenizer and the template, which lie in the tokenizer's folder."""

    buckets: dict[int, int]
    compacted: int
    seq_len: int
    seed: int
    shard_bytes: int
    packing: Packing
    truncate: str


class RunDocuments(Entry):
    """documents.json: the documents of a set, for readers that know no Delta."""

    format: int = FORMAT
    table: TableVersion
    files: tuple[ParquetFile, ...]
    tokenizer: TokenizerRef
    recipe: CellRecipe

    def to_json(self) -> str:
        """With a hash of its own: no digit of it can change unnoticed."""
        return seal(self, name="documents")

    @property
    def name(self) -> str:
        return f"{self.table.name}@{self.table.version}"


def read_run_documents(path: Path) -> RunDocuments:
    """The inverse of `RunDocuments.to_json`.

    Raises:
        ShardSetError: the file cannot be read, differs from its hash, or is of another format.
    """
    documents = unseal(path, kind=RunDocuments, name="documents", remedy=AGAIN)
    if documents.format != FORMAT:
        raise ShardSetError(f"{path} has format {documents.format}, wanted {FORMAT}; {AGAIN}")
    return documents


@dataclass(frozen=True)
class Rows:
    """Where the documents of one split lie: those of a cell stand together. D = documents."""

    cell_D: Int
    """Generation and bucket in one number, ascending."""
    file_D: NDArray[np.int32]
    row_D: NDArray[np.int32]

    def of(self, cell: int) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """(file, ascending rows) of a cell's documents."""
        part = slice(*np.searchsorted(self.cell_D, [cell, cell + 1]))
        files, rows = self.file_D[part], self.row_D[part]
        for file in np.unique(files).tolist():
            yield file, np.sort(rows[files == file])


class Maker:
    """Makes the files of one split, a cell at a time."""

    def __init__(self, documents: RunDocuments, *, files: ShardFiles, split: str, home: Path) -> None:
        self.documents = documents
        self.files = files
        self.split = split
        self.home = home

    def __getstate__(self) -> dict[str, Any]:
        """Each process looks up rows and loads the tokenizer by itself."""
        return {name: self.__dict__[name] for name in ("documents", "files", "split", "home")}

    def __call__(self, number: int) -> dict[int, NDArray[np.uint8]]:
        """The bytes of file `number`, and of the other files of its cell, by number.

        Raises:
            CorruptShard: what comes out is not what the manifest says.
            ShardSetError: a file of the documents table, or the tokenizer, is not as it was.
        """
        file = self.files[number]
        first = number - file.ordinal
        made: dict[int, NDArray[np.uint8]] = {}
        for ordinal, one in enumerate(cell_files(self._cell(file), recipe=self._recipe)):
            if not self._is_ours(first + ordinal, file=file):
                break
            self._check(one.data, file=self.files[first + ordinal])
            made[first + ordinal] = np.frombuffer(one.data, np.uint8)
        if number not in made:
            raise self._other(file, found=f"{len(made)} files in its cell")
        return made

    def _is_ours(self, number: int, *, file: ShardFile) -> bool:
        if number >= len(self.files):
            return False
        other = self.files[number]
        return (other.generation, other.bucket) == (file.generation, file.bucket)

    def _check(self, data: bytes, *, file: ShardFile) -> None:
        if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
            raise self._other(file, found=f"{len(data)} bytes of SHA-256 {found}")

    def _other(self, file: ShardFile, *, found: str) -> CorruptShard:
        return CorruptShard(
            f"{file.file}, made of {self.documents.name}: found {found}, expected {file.num_bytes} bytes of SHA-256 "
            f"{file.sha256}; the documents are not those that the set was made from. Make it again: "
            "tessera shard --fresh, or store its files: --set shard.mode=sharded"
        )

    def _cell(self, file: ShardFile) -> Cell:
        """The tokenized documents of a file's cell."""
        rows = self._rows.of(file.generation << BUCKET_BITS | file.bucket)
        parts = [part for number, wanted in rows for part in self._read(number, rows=wanted)]
        if not parts:
            raise self._other(file, found="no documents of its cell")
        found = pa.concat_tables(parts, promote_options="permissive")
        order = pc.sort_indices(found, sort_keys=[("doc_id", "ascending"), ("sha256", "ascending")])
        batches = found.take(order).combine_chunks().to_batches()
        tokenized = [one for batch in batches for one in encode.tokenize(
            batch, tokenizer=self._tokenizer, recipe=self._recipe)]  # fmt: skip
        return Cell(
            generation=file.generation, bucket=file.bucket, split=self.split,
            documents=pa.Table.from_batches(tokenized),
        )  # fmt: skip

    def _read(self, number: int, *, rows: NDArray[np.int32]) -> Iterator[pa.Table]:
        """These rows of a Parquet file, of which only the row groups that hold them are read."""
        with self._open(number) as parquet:
            columns = [name for name in encode.DOCUMENT_COLUMNS if name in parquet.schema_arrow.names]
            first = 0
            for group in range(parquet.num_row_groups):
                last = first + parquet.metadata.row_group(group).num_rows
                inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, last)]
                if len(inside):
                    yield parquet.read_row_group(group, columns=columns).take(pa.array(inside - first))
                first = last

    def _open(self, number: int) -> pq.ParquetFile:
        file = self.documents.files[number]
        path = self.home / file.path
        remedy = "restore it, or prepare and shard again"
        try:
            found = path.stat().st_size
            if found != file.num_bytes:
                raise ShardSetError(
                    f"{path} of {self.documents.name} has {found} bytes, expected {file.num_bytes}; {remedy}"
                )
            return pq.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise ShardSetError(
                f"{path} of {self.documents.name} cannot be read ({type(error).__name__}), expected "
                f"{file.num_bytes} bytes; {remedy}"
            ) from None

    @cached_property
    def _rows(self) -> Rows:
        parts = [self._rows_of(number) for number in range(len(self.documents.files))]
        cells = np.concatenate([cells for cells, _ in parts])
        order = np.argsort(cells, kind="stable")
        files = np.repeat(np.arange(len(parts), dtype=np.int32), [len(cells) for cells, _ in parts])
        return Rows(cell_D=cells[order], file_D=files[order], row_D=np.concatenate([rows for _, rows in parts])[order])

    def _rows_of(self, number: int) -> tuple[Int, NDArray[np.int32]]:
        """The cell of each document of this split in a Parquet file, and its row."""
        with self._open(number) as parquet:
            found = parquet.read(columns=["doc_id", "added", "split"])
        mine = pc.equal(found["split"], self.split)
        rows = np.flatnonzero(mine.to_numpy()).astype(np.int32)
        found = found.filter(mine)
        generation = np.maximum(found["added"].to_numpy(), self._recipe.compacted)
        if unknown := set(np.unique(generation).tolist()) - self._recipe.buckets.keys():
            raise ShardSetError(
                f"{self.documents.name} has documents of generation {min(unknown)}, which the set has not; {AGAIN}"
            )
        num_buckets = np.zeros(max(self._recipe.buckets) + 1, np.int64)
        num_buckets[list(self._recipe.buckets)] = list(self._recipe.buckets.values())
        bucket = encode.bucket_of(found["doc_id"].to_pylist(), num_buckets=num_buckets[generation])
        return generation << BUCKET_BITS | bucket, rows

    @cached_property
    def _tokenizer(self) -> tokenizer.Tokenizer:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many ranks as cores
        return tokenizer.Tokenizer(self._recipe.tokenizer)

    @cached_property
    def _recipe(self) -> Recipe:
        ref, values = self.documents.tokenizer, self.documents.recipe
        folder = self.home / ref.path
        if (found := tokenizer.identity(folder)) != ref.sha256:
            raise ShardSetError(f"{folder} has SHA-256 {found}, expected {ref.sha256}; restore the tokenizer's folder")
        unlimited = replace(tokenizer.definition(folder), max_uncut_bytes=sys.maxsize)  # writing the set had the limit
        return Recipe(
            tokenizer=unlimited, template=chat.load(folder),
            **{name: getattr(values, name) for name in CellRecipe.model_fields},
        )  # fmt: skip
