"""Checks a shard set at a version, byte by byte: what manifest, side table and tokenizer promise is what lies there.

Every file is read once, mapped, and hashed; then its samples are walked with array operations, and each piece of a
document is where the side table says. Files go to as many
threads as there are cores: hashing frees the interpreter's lock. About one GiB a second and core; memory for a file's
starts and, of each split, the documents of one file. Nothing is written.
"""

import hashlib
import json
import mmap
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tessera import lineage, tables
from tessera.errors import CorruptShard, SourceError, TesseraError
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.progress import Tell, silent
from tessera.shard import contents, manifest, tokenizer
from tessera.shard.contents import Preferences, Sequences
from tessera.shard.read.manifest import SPLITS, ShardFile, token_dtype
from tessera.shard.write import totals

Int = NDArray[np.int64]

SPANS_SQL = """
SELECT file, count(*) AS pieces, sum(CASE WHEN piece = 0 THEN 1 ELSE 0 END) AS documents, sum(num_tokens) AS tokens,
    sum({labels}) AS labels, sum((sample * {seq_len} + start + 1) * num_tokens) AS places
FROM rows GROUP BY file
"""

CONTENT_SQL = """
SELECT split, generation, bucket,
    encode(sha256(array_to_string(array_sort(array_agg(concat(doc_id, sha256))), '')), 'hex') AS content
FROM rows WHERE piece = 0 GROUP BY split, generation, bucket
"""
"""`cell.content_hash` of each cell."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as promised."""

    file: str
    """Relative to the home."""
    what: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}: found {self.found}, expected {self.expected}"


@dataclass
class Verified:
    """What was looked at, and what is wrong."""

    name: str
    version: int
    files: int = 0
    num_bytes: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    imported: bool = False
    """Whether it was made of an MDS folder, which mends it."""
    damages: list[Damage] = field(default_factory=list)


@dataclass(frozen=True)
class Spans:
    """What the side table says of one file."""

    pieces: int
    documents: int
    tokens: int
    labels: int
    """Tokens that count."""
    places: int
    """The sum over its pieces of place in the file times length: no place or length can change without it."""


NO_SPANS = Spans(pieces=0, documents=0, tokens=0, labels=0, places=0)


@dataclass(frozen=True)
class Limits:
    """What every file of a set is held against."""

    folder: Path
    seq_len: int
    vocab_size: int
    end_id: int
    dtype: str


def verify(
    home: Home, *, name: str, version: int | None = None, threads: int | None = None, tell: Tell = silent
) -> Verified:
    """Reads a whole set.

    Args:
        threads: as many as there are cores by default.
        tell: told how far it is.

    Raises:
        ShardSetError: there is no such set or version.
        SourceError: its manifest is no longer readable.
    """
    began = time.monotonic()
    record = manifest.read_record(home, name=name, version=version)
    table = manifest.read_manifest(home, name, record.manifest.version)
    files = [file for split in SPLITS for file in manifest.shard_files(table, split=split)]
    made = Verified(name=name, version=record.manifest.version, imported=record.imported)
    spans: dict[str, Spans] | None = None
    try:
        spans = _spans(home, record)
        made.damages.extend(_check_side_table(home, record))
    except SourceError as error:
        made.damages.append(Damage(record.spans.path, "side table", str(error), f"version {record.spans.version}"))
    limits = Limits(
        folder=manifest.set_folder(home, name=name), seq_len=record.seq_len, vocab_size=record.tokenizer.vocab_size,
        end_id=record.tokenizer.end_id, dtype=token_dtype(record.tokenizer.vocab_size),
    )  # fmt: skip
    prefix = home.relative(limits.folder)

    def check(file: ShardFile) -> list[Damage]:
        found = _check_file(file, spans=None if spans is None else spans.get(file.file, NO_SPANS), limits=limits)
        return [Damage(f"{prefix}/{file.file}", *one) for one in found]

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for file, damages in zip(files, pool.map(check, files), strict=True):
            made.damages.extend(damages)
            made.files += 1
            made.num_bytes += file.num_bytes
            made.samples += file.samples
            made.tokens += file.tokens
            tell(f"{made.files} of {len(files)} files")
    for file_name in sorted((spans or {}).keys() - {file.file for file in files}):
        made.damages.append(Damage(f"{prefix}/{file_name}", "in the side table", "documents", "none: no such shard"))
    made.damages.extend(_check_around(home, record))
    made.seconds = time.monotonic() - began
    return made


def _spans(home: Home, record: ShardRecord) -> dict[str, Spans]:
    path, version = home.resolve(record.spans.path), record.spans.version
    columns = tables.open_table(path, version=version).schema().to_arrow().names
    labels = "loss_tokens" if "loss_tokens" in columns else "num_tokens"  # format 1: every token is a label
    rows = tables.query(path, version=version, sql=SPANS_SQL.format(labels=labels, seq_len=record.seq_len))
    return {row.pop("file"): Spans(**row) for row in rows.to_pylist()}


def _check_side_table(home: Home, record: ShardRecord) -> Iterator[Damage]:
    """What the side table says of documents: their ids and hashes by cell, and the counts by source."""
    if record.format > 1:  # format 1 knew neither
        found = _contents(tables.query(home.resolve(record.spans.path), version=record.spans.version, sql=CONTENT_SQL))
        for cell, content in _contents(manifest.read_cells(home, record)).items():
            if found.get(cell) != content:
                what = "documents of {}, generation {}, bucket {}".format(*cell)
                yield Damage(record.spans.path, what, found.get(cell, "none"), content)
        if (sources := totals.by_source(home, record.spans)) != record.sources:
            yield Damage(record.spans.path, "counts by source", *(lineage.sha256_json(
                [one.model_dump() for one in counts]) for counts in (sources, record.sources)))  # fmt: skip


def _contents(rows: pa.Table) -> dict[tuple[str, int, int], str]:
    """Cell (split, generation, bucket) -> hash of what it holds."""
    *cells, contents = (rows[name].to_pylist() for name in ("split", "generation", "bucket", "content"))
    return dict(zip(zip(*cells, strict=True), contents, strict=True))


def _check_file(file: ShardFile, *, spans: Spans | None, limits: Limits) -> Iterator[tuple[str, str, str]]:
    """(what, found, expected) of all that is wrong with a file; of one that differs in size or hash, that alone."""
    path = limits.folder / file.file
    try:
        found_bytes = path.stat().st_size
    except OSError as error:
        yield "file", error.strerror or "unreadable", f"{file.num_bytes:,} bytes"
        return
    if found_bytes != file.num_bytes or found_bytes == 0:
        yield "size", f"{found_bytes:,} bytes", f"{file.num_bytes:,} bytes"
        return
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if (found := hashlib.sha256(mapped).hexdigest()) != file.sha256:
            yield "SHA-256", found, file.sha256
            return
        try:
            samples = contents.parse(mapped, seq_len=limits.seq_len)
        except CorruptShard as error:
            yield "layout", str(error), "a shard of this set"
            return
    if isinstance(samples, Sequences):
        counts = _counts_of_sequences(samples, file=file, spans=spans, limits=limits)
    else:
        counts = _counts_of_preferences(samples, file=file, spans=spans, limits=limits)
    for what, (found_number, expected) in counts.items():
        if found_number != expected:
            yield what, f"{found_number:,}", f"{expected:,}"
    yield from _check_tokens(samples, limits=limits)


def _counts_of_sequences(
    samples: Sequences, *, file: ShardFile, spans: Spans | None, limits: Limits
) -> dict[str, tuple[int, int]]:
    """What is counted -> found in the file, and expected by manifest and, if it can be read, side table."""
    padding_S = samples.padding_S(end_id=limits.end_id)
    padding = int(padding_S.sum())
    tokens = samples.tokens_ST.size - padding
    counts = {
        "samples": (len(samples), file.samples),
        "padding": (padding, file.padding),
        "tokens": (tokens, file.tokens),
    }
    if spans is not None:
        counts |= {
            "tokens in the side table": (spans.tokens, file.tokens),
            "documents in the side table": (spans.documents, file.documents),
            "document pieces": (len(samples.starts_P) - int((padding_S > 0).sum()), spans.pieces),
            "labels": (tokens if samples.loss_ST is None else int(samples.loss_ST.sum()), spans.labels),
        }
    if spans is not None and samples.first_odd() is None:
        counts["places of document pieces"] = (_places_of_sequences(samples, padding_S=padding_S), spans.places)
    return counts


def _places_of_sequences(samples: Sequences, *, padding_S: Int) -> int:
    """`Spans.places` from the boundaries in the file; where a sequence ends in padding, its last piece is none."""
    seq_len = samples.tokens_ST.shape[1]
    sample_P = np.repeat(np.arange(len(samples)), samples.num_starts_S)
    place_P = sample_P * seq_len + samples.starts_P
    length_P = np.diff(place_P, append=len(samples) * seq_len)
    length_P[np.cumsum(samples.num_starts_S)[padding_S > 0] - 1] = 0
    return int(((place_P + 1) * length_P).sum())


def _counts_of_preferences(
    samples: Preferences, *, file: ShardFile, spans: Spans | None, limits: Limits
) -> dict[str, tuple[int, int]]:
    length_S = np.array([len(one) + len(other) for one, other in zip(samples.chosen, samples.rejected, strict=True)])
    tokens = int(length_S.sum())
    counts = {
        "samples": (len(samples), file.samples),
        "padding": (2 * limits.seq_len * len(samples) - tokens, file.padding),
        "tokens": (tokens, file.tokens),
    }
    if spans is not None:
        places = (np.arange(len(samples)) * limits.seq_len + 1) * length_S
        counts |= {
            "tokens in the side table": (spans.tokens, file.tokens),
            "documents in the side table": (spans.documents, file.documents),
            "document pieces": (len(samples), spans.pieces),
            "labels": (tokens - 2 * int(samples.prompt_S.sum()), spans.labels),
            "places of document pieces": (int(places.sum()), spans.places),
        }
    return counts


def _check_tokens(samples: Sequences | Preferences, *, limits: Limits) -> Iterator[tuple[str, str, str]]:
    if samples.dtype != limits.dtype:
        yield "type of a token", samples.dtype, limits.dtype
    arrays = [samples.tokens_ST] if isinstance(samples, Sequences) else [*samples.chosen, *samples.rejected]
    if (largest := max((int(array.max()) for array in arrays if array.size), default=0)) >= limits.vocab_size:
        yield "token id", str(largest), f"less than {limits.vocab_size}"
    if (odd := samples.first_odd()) is not None:
        yield f"sample {odd}", "boundaries that do not fit its tokens", "boundaries ascending within it"


def _check_around(home: Home, record: ShardRecord) -> Iterator[Damage]:
    """The tokenizer folder, and the index of each split."""
    try:
        found = tokenizer.identity(home.resolve(record.tokenizer.path))
    except (TesseraError, OSError) as error:
        found = type(error).__name__
    if found != record.tokenizer.sha256:
        yield Damage(record.tokenizer.path, "tokenizer", found, record.tokenizer.sha256)
    newest = manifest.read_record(home, name=record.name).manifest.version
    if record.manifest.version != newest:
        return
    folder = manifest.set_folder(home, name=record.name)
    for split, counts in record.splits.items():
        path = folder / split / "index.json"
        if counts.shards and (found := _index_version(path)) != str(newest):
            yield Damage(home.relative(path), "manifest version in the index", found, str(newest))


def _index_version(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("tessera_manifest_version"))
    except (OSError, ValueError, AttributeError) as error:
        return type(error).__name__
