"""Shard sets without erased rows: only the cells that held them are packed again, out of the tokens of their own files.

`publish_without` makes a new version of each set: the surviving documents of a cell are cut out of its shard files
where the side table says they lie, and packed as writing them anew would, byte for byte. No text is read and nothing is
tokenized. `remove_files` then takes every shard file that holds an erased row, whichever version named it. No JVM.
Costs a read of the affected cells; one cell is in memory.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

from tessera import lineage, publish, tables
from tessera.erasures import Erased
from tessera.errors import CorruptShard, ShardSetError, SourceError
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord, TableVersion
from tessera.shard import manifest, recipe, stage
from tessera.shard.cell import ANSWERS, Cell, CellFile, Recipe, cell_files
from tessera.shard.format import mds
from tessera.shard.run_manifest import SPLITS
from tessera.shard.settings import ShardSettings
from tessera.shard.write import changes, spans, totals
from tessera.shard.write.changes import CellName

CELLS_SQL = "SELECT DISTINCT split, generation, bucket FROM rows WHERE {condition}"
PLACES_SQL = "SELECT * FROM rows WHERE {condition} ORDER BY doc_id, sha256, piece"
FILES_SQL = "SELECT DISTINCT file FROM rows WHERE {condition}"
SEEN_SQL = "SELECT doc_id, sha256, file, sample FROM rows WHERE split = 'train' AND ({condition})"

PIECES = {"tokens": "tokens", "loss": "loss"}
"""Column of a tokenized document -> column of a packed sample that its pieces lie in."""
OF_DOCUMENT = {
    "num_tokens": "document_tokens", "num_bytes": "document_bytes", "truncated_tokens": "truncated_tokens",
    "dropped_turns": "dropped_turns", "cut_tokens": "cut_tokens",
}  # fmt: skip
"""Column of a tokenized document -> column of its first piece in the side table."""

Replaces = Callable[[TableVersion], bool]
Sample = dict[str, Any]


def set_names(home: Home) -> list[str]:
    """The published sets of a home."""
    return sorted(path.parent.name for path in home.shards.glob("*/manifest") if tables.exists(path))


def publish_without(
    home: Home, *, name: str, erased: Erased, documents: PrepareRecord | None, replaces: Replaces
) -> ShardRecord | None:
    """Publishes a set's newest version without erased rows; None when it holds none.

    Nor is one made of a set in direct mode, which has no files: its next version is written from the new documents.

    Args:
        documents: the newest.
        replaces: whether they are a given documents version without its erased rows: then they are what the new version
            was made from, and the next `tessera shard` finds it.

    Raises:
        ShardSetError: the set was written by a Tessera that did not record how, or nothing would be left of it.
        CorruptShard: a file of an affected cell is damaged.
        Conflict: another writer published first.
    """
    publication = publish.begin(manifest.manifest_path(home, name=name), name=f"shards/{name}")
    before = manifest.read_record(home, name=name)
    cells = _cells(home, before, erased=erased)
    if not cells or before.direct:
        return None
    _refuse_unknown(before)
    how = recipe.recorded(before, home=home)
    rows = manifest.read_cells(home, before)
    kept = rows.filter(pa.array([CellName(*cell) not in cells for cell in _names(rows)]))
    written = [file for cell in cells for file in _pack_again(home, before, cell=cell, erased=erased, recipe=how)]
    side_table = _replace_spans(home, before, cells=cells, files=written, publish_id=publication.publish_id)
    again = [
        tables.query(
            home.resolve(side_table.path), version=side_table.version, sql=totals.FILES_SQL.format(condition=condition)
        ).select(kept.column_names).cast(kept.schema)
        for condition in changes.slices(cells)
    ]  # fmt: skip
    after = manifest.sorted_rows(pa.concat_tables([kept, *again]), schema=manifest.CELL_SCHEMA)
    if after.num_rows == 0:
        raise ShardSetError(
            f"nothing would be left of shard set {name}; remove its folder, {home.relative(home.shards / name)}"
        )
    if missing := manifest.missing_shards(manifest.set_folder(home, name=name), after):
        raise CorruptShard(
            f"shard set {name}: {len(missing)} files are not there, such as {missing[0]}; see: tessera shard verify"
        )
    record = _record(home, before, rows=after, spans=side_table, version=publication.version, kept=kept.num_rows)
    record = _with_input(home, record, erased=erased, documents=documents, replaces=replaces)
    publish.commit(publication, after, record=record, stats_columns=manifest.STATS_COLUMNS)
    manifest.write_indexes(home, name=name, version=publication.version)
    return record


def remove_files(home: Home, *, name: str, erased: Erased) -> list[Path]:
    """Removes a set's shard files that hold an erased row, and those that no version can account for.

    Files of a version whose side table cannot be read any more are among the latter, unless the newest one names them.
    Indexes that a writer who died after its commit left as they were are written again: they may name what goes now.
    """
    folder = manifest.set_folder(home, name=name)
    path = manifest.manifest_path(home, name=name)
    newest = set(tables.read(path, columns=["file"])["file"].to_pylist()) if tables.exists(path) else set()
    sound = {file for version in _versions(path) for file in _sound_files(home, name, version, erased=erased)}
    if newest and manifest.read_record(home, name=name).direct:
        newest &= sound
    elif newest:
        _mend_indexes(home, name=name)
    removed = []
    for split in SPLITS:
        for file in sorted((folder / split).glob("*")):
            named = f"{split}/{file.name}"
            if file.name == "index.json":
                if not any(one.startswith(f"{split}/") for one in newest):
                    file.unlink()
            elif named not in newest and named not in sound:
                file.unlink(missing_ok=True)
                removed.append(file)
    return removed


def _mend_indexes(home: Home, *, name: str) -> None:
    version = tables.open_table(manifest.manifest_path(home, name=name)).version()
    indexes = [manifest.set_folder(home, name=name) / split / "index.json" for split in SPLITS]
    texts = [path.read_text(encoding="utf-8") for path in indexes if path.exists()]
    if any(json.loads(text).get("tessera_manifest_version") != version for text in texts):
        manifest.write_indexes(home, name=name, version=version)


def places(home: Home, *, name: str, version: int, erased: Erased) -> pa.Table:
    """(doc_id, sha256, file, sample) of each piece of an erased row that a version's train split held.

    Raises:
        ShardSetError: there is no such version.
        SourceError: its side table cannot be read any more.
    """
    record = manifest.read_record(home, name=name, version=version)
    return _query(home, record, sql=SEEN_SQL.format(condition=erased.condition()))


def _cells(home: Home, record: ShardRecord, *, erased: Erased) -> list[CellName]:
    found = _query(home, record, sql=CELLS_SQL.format(condition=erased.condition()))
    return sorted(CellName(*cell) for cell in _names(found))


def _names(rows: pa.Table) -> Iterator[tuple[str, int, int]]:
    return zip(*(rows[name].to_pylist() for name in changes.CELL), strict=True)


def _query(home: Home, record: ShardRecord, *, sql: str) -> pa.Table:
    return tables.query(home.resolve(record.spans.path), version=record.spans.version, sql=sql)


def _refuse_unknown(record: ShardRecord) -> None:
    if not record.settings:
        raise ShardSetError(
            f"shard set {record.name}@{record.manifest.version} was written by an older Tessera, which did not record "
            "how; write it again (tessera shard), then run forget again"
        )


def _pack_again(
    home: Home, record: ShardRecord, *, cell: CellName, erased: Erased, recipe: Recipe
) -> Iterator[CellFile]:
    """Writes the files of a cell's surviving documents."""
    rows = _query(home, record, sql=PLACES_SQL.format(condition=changes.sql_of([cell]))).to_pylist()
    left = [row for row in rows if row["doc_id"] not in erased.doc_ids and row["sha256"] not in erased.contents]
    if not left:
        return
    folder = manifest.set_folder(home, name=record.name)
    documents = _documents(left, cell=cell, samples=_samples(folder, left), dtype=recipe.dtype)
    packed = Cell(generation=cell.generation, bucket=cell.bucket, split=cell.split, documents=documents)
    for file in cell_files(packed, recipe=recipe):
        write_whole(folder / file.name, file.data)
        yield CellFile(name=file.name, data=b"", spans=file.spans)


def _samples(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, list[Sample]]:
    """The samples of the files that these pieces lie in, each file compared with its hash."""
    hashes = {row["file"]: row["file_sha256"] for row in rows}
    for name, sha256 in hashes.items():
        if not (folder / name).is_file() or (found := lineage.sha256_file(folder / name)) != sha256:
            what = f"has SHA-256 {found}, wanted {sha256}" if (folder / name).is_file() else "is not there"
            raise CorruptShard(
                f"{folder / name} {what}; write the set again (tessera shard --fresh), then forget again"
            )
    return {name: list(mds.read_samples(folder / name)) for name in hashes}


def _documents(
    rows: Sequence[dict[str, Any]], *, cell: CellName, samples: dict[str, list[Sample]], dtype: str
) -> pa.Table:
    """The documents of these pieces, which come by document and number, as `encode.TOKENIZED`."""
    firsts = [place for place, row in enumerate(rows) if row["piece"] == 0]
    ends = [*firsts[1:], len(rows)]
    values = [_values(rows[first:end], samples=samples, dtype=dtype) for first, end in zip(firsts, ends, strict=True)]
    heads = [rows[first] for first in firsts]
    number = len(heads)
    columns = {
        "generation": pa.array([cell.generation] * number, pa.int64()),
        "bucket": pa.array([cell.bucket] * number, pa.int32()),
        "split": pa.array([cell.split] * number, pa.string()),
        **{name: pa.array([head[name] for head in heads], pa.string()) for name in ("doc_id", "sha256")},
        "source": pa.array([head.get("source") for head in heads], pa.string()),
        **{name: pa.array([head.get(column, 0) for head in heads], pa.int64()) for name, column in OF_DOCUMENT.items()},
        **{name: pa.array([one[name] for one in values], pa.binary()) for name in ("tokens", "loss", "rejected")},
        "prompt_tokens": pa.array([one["prompt_tokens"] for one in values], pa.int32()),
    }
    return pa.Table.from_pydict(columns)


def _values(
    pieces: Sequence[dict[str, Any]], *, samples: dict[str, list[Sample]], dtype: str
) -> dict[str, bytes | int | None]:
    """What one document's pieces hold, put together."""
    held = [samples[piece["file"]][piece["sample"]] for piece in pieces]
    if "chosen" in held[0]:
        (sample,) = held
        chosen, rejected = (_bytes(sample[name], dtype=dtype) for name in ("chosen", "rejected"))
        return {"tokens": chosen, "loss": None, "rejected": rejected, "prompt_tokens": int(sample["prompt"])}
    parts = [
        {column: sample[column][piece["start"] : piece["start"] + piece["num_tokens"]] for column in PIECES.values()
         if column in sample}
        for piece, sample in zip(pieces, held, strict=True)
    ]  # fmt: skip
    tokens = _bytes(np.concatenate([part["tokens"] for part in parts]), dtype=dtype)
    loss = np.concatenate([part["loss"] for part in parts]) if "loss" in parts[0] else None
    masked = loss is not None and not loss.all()  # where each token counts, no mask was given
    return {
        "tokens": tokens, "loss": _bytes(loss, dtype="uint8") if masked else None, "rejected": None,
        "prompt_tokens": None,
    }  # fmt: skip


def _bytes(values: Any, *, dtype: str) -> bytes:
    return np.asarray(values).astype(np.dtype(dtype).newbyteorder("<")).tobytes()


def _replace_spans(
    home: Home, record: ShardRecord, *, cells: Sequence[CellName], files: Sequence[CellFile], publish_id: str
) -> TableVersion:
    """Puts the places of the files in the side table, instead of those of these cells; a commit a slice of them."""
    path = home.resolve(record.spans.path)
    spans.go_back(path, parent=record, publish_id=publish_id)
    ours = CommitProperties(
        custom_metadata={"userMetadata": json.dumps({"publish_id": publish_id})}, max_commit_retries=0
    )
    table = DeltaTable(path)
    for condition in changes.slices(cells):
        table.delete(condition, commit_properties=ours)
    if files:
        data = pa.Table.from_batches([file.spans for file in files])
        columns = [field.name for field in table.schema().fields]
        write_deltalake(table, data.select(columns), mode="append", commit_properties=ours)
    return record.spans.model_copy(update={"version": DeltaTable(path).version()})


def _record(
    home: Home, before: ShardRecord, *, rows: pa.Table, spans: TableVersion, version: int, kept: int
) -> ShardRecord:
    """The record of the version without those rows, as writing it would give it."""
    folder = manifest.set_folder(home, name=before.name)
    preferences = "chosen" in mds.read_config(folder / rows["file"][0].as_py())["column_names"]
    counts = totals.of_set(rows, per_sample=before.seq_len * (ANSWERS if preferences else 1))
    changed = {
        "format": lineage.FORMAT,
        "manifest": before.manifest.model_copy(update={"version": version}),
        "spans": spans,
        "sources": totals.by_source(home, spans),
        "written": 0,
        "kept_shards": kept,
        "created": lineage.now(),
        "code": lineage.code_version(),
    }
    return before.model_copy(update={**counts, **changed})


def _with_input(
    home: Home, record: ShardRecord, *, erased: Erased, documents: PrepareRecord | None, replaces: Replaces
) -> ShardRecord:
    """With the documents that it could have been written from now, and the fingerprint that asks for just that."""
    if documents is None or not replaces(record.inputs[0]):
        gone = lineage.sha256_json({"base": record.fingerprint, "erasures": erased.digest})
        return record.model_copy(update={"fingerprint": gone})
    settings = ShardSettings.model_validate(record.settings)
    if not record.settings.get("tokenizer"):
        given = settings.tokenizer.model_copy(update={"path": str(home.resolve(record.tokenizer.path))})
        settings = settings.model_copy(update={"tokenizer": given})
    fingerprint = stage.fingerprint(documents, settings=settings, home=home)
    return record.model_copy(update={"fingerprint": fingerprint, "inputs": (documents.table,)})


def _versions(path: Path) -> list[int]:
    return [int(entry["version"]) for entry in tables.open_table(path).history()] if tables.exists(path) else []


def _sound_files(home: Home, name: str, version: int, *, erased: Erased) -> set[str]:
    """The files of a version that hold no erased row; none when that cannot be told."""
    try:
        record = manifest.read_record(home, name=name, version=version)
        named = set(
            tables.read(home.resolve(record.manifest.path), version=version, columns=["file"])["file"].to_pylist()
        )
        holding = _query(home, record, sql=FILES_SQL.format(condition=erased.condition()))
    except (ShardSetError, SourceError, OSError):
        return set()
    return named - set(holding["file"].to_pylist())
