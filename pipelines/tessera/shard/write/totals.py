"""Counts of documents, bytes and tokens: of the table that is read, and of the files that came out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tessera import tables
from tessera.errors import ShardingFailed, ShardSetError
from tessera.home import Home
from tessera.lineage import Generation, GenerationTotals, SourceTotals, SplitTotals, TableVersion
from tessera.shard import manifest
from tessera.shard.cell import ANSWERS, Recipe, mixed_kinds
from tessera.shard.run_manifest import SPLITS

MAX_BUCKETS = 2**16

COUNT_SQL = """
SELECT added AS generation, split, count(*) AS documents, sum(num_bytes) AS num_bytes, {preferences} AS preferences
FROM rows GROUP BY added, split ORDER BY added, split
"""

FILES_SQL = """
SELECT split, generation, bucket, ordinal, file, buckets, file_bytes AS num_bytes, file_sha256 AS sha256,
    file_samples AS samples, file_padding AS padding, sum(num_tokens) AS tokens, sum(document_bytes) AS text_bytes,
    content, sum(CASE WHEN piece = 0 THEN 1 ELSE 0 END) AS documents, sum(document_tokens) AS tokenized
FROM rows WHERE {condition}
GROUP BY split, generation, bucket, ordinal, file, buckets, file_bytes, file_sha256, file_samples, file_padding, content
"""
"""A row a shard file; `tokenized` is what the tokenizer gave for the documents that begin there."""

SOURCES_SQL = """
SELECT source, sum(CASE WHEN piece = 0 THEN 1 ELSE 0 END) AS documents, sum(num_tokens) AS tokens,
    sum(loss_tokens) AS loss_tokens, sum(document_bytes) AS num_bytes,
    sum(CASE WHEN truncated_tokens > 0 THEN 1 ELSE 0 END) AS truncated, sum(truncated_tokens) AS truncated_tokens,
    sum(dropped_turns) AS dropped_turns, sum(CASE WHEN piece > 0 THEN 1 ELSE 0 END) AS cuts
FROM rows GROUP BY source ORDER BY source
"""


@dataclass(frozen=True)
class Group:
    """The documents of one generation and split, as the table counts them."""

    generation: int
    split: str
    documents: int
    num_bytes: int
    preferences: int = 0
    """How many of them are of that kind."""


def count(home: Home, documents: TableVersion) -> list[Group]:
    """The groups of a documents table.

    Raises:
        ShardSetError: a split has none, or preferences are mixed with other kinds.
    """
    path = home.resolve(documents.path)
    columns = tables.open_table(path, version=documents.version).schema().to_arrow()
    kinds = "sum(CASE WHEN kind = 'preference' THEN 1 ELSE 0 END)" if "kind" in columns.names else "0"
    sql = COUNT_SQL.format(preferences=kinds)
    groups = [Group(**row) for row in tables.query(path, version=documents.version, sql=sql).to_pylist()]
    for split in SPLITS:
        if not any(group.split == split for group in groups):
            raise ShardSetError(
                f"{documents.name}@{documents.version} has no {split} documents; give prepare more rows or another "
                "holdout"
            )
    total, preferences = (sum(getattr(group, name) for group in groups) for name in ("documents", "preferences"))
    if preferences not in (0, total):
        raise mixed_kinds(preferences, of=total)
    return groups


def slots(groups: Sequence[Group], *, seq_len: int) -> int:
    """Token slots of a sample: a preference has as many for each of its answers."""
    return seq_len * (ANSWERS if any(group.preferences for group in groups) else 1)


def buckets(
    groups: Sequence[Group], *, generations: Sequence[Generation], compacted: int, bucket_bytes: int
) -> dict[int, int]:
    """Generation -> its number of buckets, from its bytes as they were when it first appeared.

    A compacted one has the bytes of all documents when the newest of its parts appeared: what was changed often counts
    once.

    Args:
        generations: as prepare recorded them; those that are missing here are taken as they are now.
    """
    num_bytes: dict[int, int] = {}
    for group in groups:
        num_bytes[group.generation] = num_bytes.get(group.generation, 0) + group.num_bytes
    num_bytes |= {one.added: one.num_bytes for one in generations}
    merged: dict[int, int] = {}
    for added, number in num_bytes.items():
        generation = max(added, compacted)
        merged[generation] = merged.get(generation, 0) + number
    if last := max((one for one in generations if one.added <= compacted), key=lambda one: one.added, default=None):
        merged[compacted] = last.all_bytes or merged[compacted]
    return {generation: num_buckets(total, bucket_bytes=bucket_bytes) for generation, total in merged.items()}


def num_buckets(num_bytes: int, *, bucket_bytes: int) -> int:
    """The smallest power of two that leaves a bucket at most `bucket_bytes` of text on average."""
    wanted = -(-num_bytes // bucket_bytes)
    return int(min(1 << max(wanted - 1, 0).bit_length(), MAX_BUCKETS))


def check(files: pa.Table, *, groups: Sequence[Group], recipe: Recipe) -> None:
    """Every document, byte and token that went in came out, by generation and split.

    Three counts of tokens must agree: the tokenizer's, the spans', and the token slots of the files less padding.

    Args:
        files: manifest rows with `tokenized`, what the tokenizer gave for the documents that begin there.

    Raises:
        ShardingFailed: naming the first that differ.
    """
    per_sample = slots(groups, seq_len=recipe.seq_len)
    summed = files.group_by(["generation", "split"]).aggregate(
        [(name, "sum") for name in ("documents", "text_bytes", "tokenized", "tokens", "samples", "padding")]
    )
    found = {(row["generation"], row["split"]): row for row in summed.to_pylist()}
    wanted = _by_generation(groups, recipe=recipe)
    for key in sorted(found.keys() | wanted.keys()):
        row, (documents, text_bytes) = found.get(key), wanted.get(key, (0, 0))
        tokenized = row["tokenized_sum"] if row else 0
        checks = {
            "documents": (documents, row["documents_sum"] if row else 0),
            "bytes of text": (text_bytes, row["text_bytes_sum"] if row else 0),
            "tokens in documents": (tokenized, row["tokens_sum"] if row else 0),
            "tokens in shard files": (tokenized, row["samples_sum"] * per_sample - row["padding_sum"] if row else 0),
        }
        for name, (went_in, came_out) in checks.items():
            if went_in != came_out:
                raise ShardingFailed(
                    f"generation {key[0]}, {key[1]}: {name}: {went_in} went in, {came_out} came out; nothing was "
                    "published. Run again; if it stays, this is a fault of Tessera"
                )


def refuse_missing(rows: pa.Table, *, folder: Path) -> None:
    """Each file that the manifest's rows name is in the set's folder, with its size.

    Raises:
        ShardingFailed: naming the first that is not.
    """
    if missing := manifest.missing_shards(folder, rows):
        raise ShardingFailed(
            f"{len(missing)} of {rows.num_rows} shard files are not there, such as {missing[0]}; run again"
        )


def of_set(rows: pa.Table, *, per_sample: int) -> dict[str, Any]:
    """The counts of a ShardRecord, from its manifest's rows."""
    splits = {row["split"]: row for row in _sums(rows, by="split")}
    tokens, samples = (int(pc.sum(rows[name]).as_py()) for name in ("tokens", "samples"))
    return {
        "tokens": tokens,
        "shards": rows.num_rows,
        "fill": round(tokens / (samples * per_sample), 6),
        "splits": {name: SplitTotals(**_named(row), padding=row["padding_sum"]) for name, row in splits.items()},
        "generations": tuple(
            GenerationTotals(generation=row["generation"], **_named(row)) for row in _sums(rows, by="generation")
        ),
    }


def by_source(home: Home, spans: TableVersion) -> tuple[SourceTotals, ...]:
    """What each source gave, and what truncation took of it: one pass over the side table."""
    found = tables.query(home.resolve(spans.path), version=spans.version, sql=SOURCES_SQL)
    return tuple(SourceTotals(**row) for row in found.to_pylist())


def _by_generation(groups: Sequence[Group], *, recipe: Recipe) -> Mapping[tuple[int, str], tuple[int, int]]:
    """(documents, bytes) by generation of the set, which compaction makes fewer than the documents' own, and split."""
    merged: dict[tuple[int, str], tuple[int, int]] = {}
    for group in groups:
        key = recipe.generation_of(group.generation), group.split
        documents, num_bytes = merged.get(key, (0, 0))
        merged[key] = documents + group.documents, num_bytes + group.num_bytes
    return merged


def _sums(rows: pa.Table, *, by: str) -> list[dict[str, Any]]:
    names = ("documents", "tokens", "text_bytes", "samples", "padding")
    summed = rows.group_by(by).aggregate([*((name, "sum") for name in names), ("file", "count")])
    return list(summed.sort_by(by).to_pylist())


def _named(row: Mapping[str, Any]) -> dict[str, int]:
    return {
        "documents": row["documents_sum"], "tokens": row["tokens_sum"], "num_bytes": row["text_bytes_sum"],
        "sequences": row["samples_sum"], "shards": row["file_count"],
    }  # fmt: skip
