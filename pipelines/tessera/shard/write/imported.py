"""An MDS folder that others wrote becomes a shard set: text is tokenized, tokens are taken as they are. No JVM.

Shard files are read one after another; what comes of them is kept on disk by cell until each cell is packed by itself.
So memory holds one foreign shard, and one cell; disk holds the tokens once more while it runs. Text is tokenized on all
cores. The set is a function of the folder's samples, in their order, the tokenizer, the settings and what was erased.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, write_deltalake

from tessera import erasures, lineage, publish, tables
from tessera.erasures import Erased
from tessera.errors import Conflict, ShardSetError
from tessera.files import write_once
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef
from tessera.progress import Tell, silent
from tessera.shard import artefact, encode, foreign, manifest, recipe
from tessera.shard.cell import Cell, Recipe, cell_files
from tessera.shard.chat import Encoded
from tessera.shard.foreign import ForeignShard
from tessera.shard.run_manifest import SPLITS
from tessera.shard.settings import ShardSettings
from tessera.shard.tokenizer import Tokenizer
from tessera.shard.write import totals
from tessera.shard.write.imported_rows import Imported, Row, hash_of, read_rows, smallest
from tessera.shard.write.spans import STATS_COLUMNS
from tessera.shard.write.totals import Group

SEMANTICS = 1
"""Raised when the same folder and settings give other shards."""

SPLIT_BITS = 52
BATCH_DOCUMENTS = 4096
GENERATION = 0
"""An imported set has one generation."""


def import_folder(
    home: Home,
    *,
    folder: Path,
    settings: ShardSettings,
    holdout: float,
    column: str | None = None,
    fresh: bool = False,
    progress: Tell = silent,
) -> tuple[ShardRecord, Imported | None]:
    """Writes and publishes the set `settings.name` from an MDS folder.

    Args:
        settings: `tokenizer.path` is needed for tokens; text without it trains a tokenizer, as prepare's text does.
        holdout: share of the documents, by hash of their content, that goes to the held-out split.
        column: of text (`str`) or tokens (integers, or `bytes` of int64); by default `tokens`, else `text`.
        fresh: write it again although the set holds this very folder; damaged files are mended so.

    Returns:
        the record; and what was read, or None where the set holds this very folder already.

    Raises:
        ShardSetError: the folder is not understood, or holds what cannot become documents; the set is another's.
        CorruptShard: a shard of the folder is not what its index says.
        TokenizerError: the tokenizer is unfit, or lacks ids that the folder has.
        Conflict: another writer published first, or rows were erased meanwhile.
    """
    began = time.monotonic()
    shards = foreign.read_index(folder)
    name, kind = _column(shards, folder=folder, column=column)
    path = manifest.manifest_path(home, name=settings.name)
    publication = publish.begin(path, name=f"shards/{settings.name}")
    source = TableVersion(name=f"mds:{folder.name}", path=folder.as_posix(), version=0)
    parent = _parent(home, settings=settings, source=source, exists=publication.parent != publish.NO_PARENT)
    erased = erasures.read(home)
    ref = _tokenizer(shards, column=name, kind=kind, settings=settings, home=home, erased=erased, progress=progress)
    fingerprint = lineage.fingerprint(
        stage="import", semantics=SEMANTICS, config=settings.identity(),
        inputs={"index": lineage.sha256_file(folder / foreign.INDEX), "column": name, "holdout": holdout,
                "tokenizer": ref.sha256, **({"erasures": erased.digest} if erased else {})},
    )  # fmt: skip
    if not fresh and parent is not None and parent.fingerprint == fingerprint and _is_whole(home, parent):
        return parent, None
    num_bytes = sum(shard.raw.num_bytes for shard in shards)
    how = recipe.make(
        settings.identity(), ref=ref, compacted=-1, home=home,
        buckets={GENERATION: totals.num_buckets(num_bytes, bucket_bytes=settings.bucket_bytes)},
    )  # fmt: skip
    imported = Imported()
    rows = read_rows(
        shards, column=name, kind=kind, settings=settings, how=how, imported=imported, erased=erased, progress=progress
    )
    with _scratch(home) as spill:
        _spill(rows, folder=spill, how=how, source=source.name, holdout=holdout, imported=imported)
        groups = _groups(imported, folder=folder)
        progress("packing")
        side_table = _commit_spans(
            _write_files(spill, how=how, folder=manifest.set_folder(home, name=settings.name)), home=home,
            name=settings.name, publish_id=publication.publish_id,
        )  # fmt: skip
    progress("checking and publishing")
    manifest_rows = _rows(home, name=settings.name, side_table=side_table, groups=groups, how=how)
    record = ShardRecord(
        fingerprint=fingerprint,
        inputs=(source,),
        spans=side_table,
        sources=totals.by_source(home, side_table),
        written=int(pc.sum(manifest_rows["documents"]).as_py()),
        seconds=round(time.monotonic() - began, 3),
        **recipe.facts(settings, ref=ref, publication=publication, home=home),
        **totals.of_set(manifest_rows, per_sample=settings.seq_len),
    )
    if erasures.read(home).digest != erased.digest:
        raise Conflict("rows were erased while the folder was imported; nothing was published. Import it again")
    publish.commit(publication, manifest_rows, record=record, stats_columns=manifest.STATS_COLUMNS)
    manifest.write_indexes(home, name=settings.name, version=publication.version)
    return record, imported


@contextmanager
def _scratch(home: Home) -> Iterator[Path]:
    """A folder that goes when the work ends; of a name that gc and forget know, should it not."""
    home.spill.mkdir(parents=True, exist_ok=True)
    spill = Path(mkdtemp(prefix="spark-import-", dir=home.spill))
    try:
        yield spill
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _rows(home: Home, *, name: str, side_table: TableVersion, groups: list[Group], how: Recipe) -> pa.Table:
    """The manifest to come: what the side table says of the files, all counted again."""
    sql = totals.FILES_SQL.format(condition="true")
    files = tables.query(home.resolve(side_table.path), version=side_table.version, sql=sql)
    totals.check(files, groups=groups, recipe=how)
    rows = manifest.sorted_rows(files, schema=manifest.CELL_SCHEMA)
    totals.refuse_missing(rows, folder=manifest.set_folder(home, name=name))
    return rows


def _column(shards: list[ForeignShard], *, folder: Path, column: str | None) -> tuple[str, str]:
    """The column that is imported, and its encoding, which all shards must agree on."""
    if not shards:
        raise ShardSetError(f"{folder}/{foreign.INDEX} lists no shards; there is nothing to import")
    columns = shards[0].columns
    name = column or next((wanted for wanted in ("tokens", "text") if wanted in columns), None)
    if name not in columns:
        wanted = f"no column {column!r}" if column else "neither a column tokens nor a column text"
        raise ShardSetError(f"{folder} has {wanted}, but {', '.join(columns)}; name one of them: --column")
    assert name is not None
    kinds = {shard.columns.get(name) for shard in shards}
    if len(kinds) > 1:
        raise ShardSetError(f"{folder}: column {name!r} is {kinds} in its shards; import each kind by itself")
    kind = columns[name]
    dtype = kind.split(":")[1] if kind.startswith("ndarray:") else ""
    if kind not in ("str", "bytes", "ndarray") and not dtype.lstrip("u").startswith("int"):
        raise ShardSetError(
            f"{folder}: column {name!r} is {kind}, wanted str for text, ndarray of integers or bytes of int64 for "
            "tokens; name another column"
        )
    return name, kind


def _parent(home: Home, *, settings: ShardSettings, source: TableVersion, exists: bool) -> ShardRecord | None:
    if not exists:
        return None
    record = manifest.read_record(home, name=settings.name)
    if record.inputs[0].name != source.name:
        raise ShardSetError(
            f"shard set {settings.name} is of {record.inputs[0].name}, not of {source.name}; give another --name"
        )
    return record


def _is_whole(home: Home, record: ShardRecord) -> bool:
    """Whether its files are there, with their size."""
    rows = manifest.read_cells(home, record)
    return not manifest.missing_shards(manifest.set_folder(home, name=record.name), rows)


def _tokenizer(
    shards: list[ForeignShard], *, column: str, kind: str, settings: ShardSettings, home: Home, erased: Erased,
    progress: Tell,
) -> TokenizerRef:  # fmt: skip
    """The set's own; else the folder that the settings name; else, for text, one that is trained on it."""
    if pinned := artefact.find_pinned(home, settings=settings):
        return pinned.ref
    if settings.tokenizer.path is not None:
        return artefact.copy(home, settings=settings, folder=Path(settings.tokenizer.path))
    if kind != "str":
        raise ShardSetError(
            f"column {column!r} holds tokens, and no tokenizer says what they mean; give the one that they were "
            "written with: --tokenizer FOLDER"
        )
    progress("training the tokenizer")
    texts = smallest(
        shards, column=column, sample_bytes=settings.tokenizer.sample_bytes, name=settings.name, erased=erased
    )
    return artefact.train(home, settings=settings, texts=texts, fingerprint="")


def _spill(rows: Iterable[Row], *, folder: Path, how: Recipe, source: str, holdout: float, imported: Imported) -> None:
    """Tokenizes and leaves the documents on disk, a file a cell: Arrow streams one after another."""
    loaded = Tokenizer(how.tokenizer)
    for batch in _batches(rows, source=source, holdout=holdout, imported=imported):
        for part in _tokenized(batch, tokenizer=loaded, how=how):
            buckets, splits = part["bucket"].to_numpy(), part["split"].to_numpy(zero_copy_only=False)
            for split in SPLITS:
                for bucket in np.unique(buckets[splits == split]).tolist():
                    chosen = part.filter(pa.array((buckets == bucket) & (splits == split)))
                    _append(folder / f"{split}-{bucket:06d}.arrow", chosen)


def _append(path: Path, batch: pa.RecordBatch) -> None:
    with path.open("ab") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)


def _batches(
    rows: Iterable[Row], *, source: str, holdout: float, imported: Imported
) -> Iterator[tuple[pa.RecordBatch, list[Row]]]:
    """Rows with `encode.DOCUMENT_COLUMNS`, as many as a batch of the tokenizer has, and the rows themselves."""
    waiting: list[Row] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += row.num_bytes
        if size >= encode.BATCH_BYTES or len(waiting) >= BATCH_DOCUMENTS:
            yield _batch(waiting, source=source, holdout=holdout, imported=imported), waiting
            waiting, size = [], 0
    if waiting:
        yield _batch(waiting, source=source, holdout=holdout, imported=imported), waiting


def _batch(rows: list[Row], *, source: str, holdout: float, imported: Imported) -> pa.RecordBatch:
    splits = [_split(row.sha256, holdout=holdout) for row in rows]
    for row, split in zip(rows, splits, strict=True):
        imported.counts[split][0] += 1
        imported.counts[split][1] += row.num_bytes
    return pa.RecordBatch.from_pydict(
        {
            "doc_id": [row.doc_id for row in rows],
            "sha256": [row.sha256 for row in rows],
            "added": pa.array([GENERATION] * len(rows), pa.int64()),
            "split": splits,
            "num_bytes": pa.array([row.num_bytes for row in rows], pa.int64()),
            "text": pa.array([row.text for row in rows], pa.string()),
            "source": [source] * len(rows),
            "kind": ["text"] * len(rows),
        }
    )


def _tokenized(
    batch: tuple[pa.RecordBatch, list[Row]], *, tokenizer: Tokenizer, how: Recipe
) -> Iterator[pa.RecordBatch]:
    """`encode.TOKENIZED` of text, by the tokenizer; of tokens, as they are."""
    documents, rows = batch
    if rows[0].tokens is None:
        yield from encode.tokenize(documents, tokenizer=tokenizer, recipe=how)
    else:
        encoded = [Encoded(tokens=row.tokens) for row in rows if row.tokens is not None]
        yield encode.laid_out(encoded, batch=documents, recipe=how)


def _split(sha256: str, *, holdout: float) -> str:
    """As prepare splits: by a hash of the content hash, so that equal content never sits on both sides."""
    number = int(hash_of(b"split " + sha256.encode())[: SPLIT_BITS // 4], 16)
    return "heldout" if number < int(holdout * 2**SPLIT_BITS) else "train"


def _groups(imported: Imported, *, folder: Path) -> list[Group]:
    for split, (documents, _) in imported.counts.items():
        if not documents:
            raise ShardSetError(
                f"{folder} leaves no {split} documents of {imported.samples} samples; import more, or set "
                "prepare.holdout"
            )
    return [
        Group(generation=GENERATION, split=split, documents=documents, num_bytes=num_bytes)
        for split, (documents, num_bytes) in imported.counts.items()
    ]


def _write_files(spill: Path, *, how: Recipe, folder: Path) -> Iterator[pa.RecordBatch]:
    """Packs each cell and writes its files; gives the rows of the side table."""
    for path in sorted(spill.glob("*.arrow")):
        split, _, bucket = path.stem.partition("-")
        documents = pa.concat_tables(_streams(path)).sort_by([("doc_id", "ascending"), ("sha256", "ascending")])
        cell = Cell(generation=GENERATION, bucket=int(bucket), split=split, documents=documents)
        for file in cell_files(cell, recipe=how):
            write_once(folder / file.name, file.data)
            yield file.spans
        path.unlink()


def _streams(path: Path) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        size = path.stat().st_size
        while file.tell() < size:
            yield pa.ipc.open_stream(file).read_all()


def _commit_spans(batches: Iterator[pa.RecordBatch], *, home: Home, name: str, publish_id: str) -> TableVersion:
    """Commits the side table, as it is made."""
    path = manifest.spans_path(home, name=name)
    first = next(batches)

    def all_of_them() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    exists = tables.exists(path)
    write_deltalake(
        path,
        pa.RecordBatchReader.from_batches(first.schema, all_of_them()),
        mode="overwrite",
        schema_mode="overwrite" if exists else None,
        configuration=None if exists else {**publish.UNLOGGED_TEXT, "delta.dataSkippingStatsColumns": STATS_COLUMNS},
        commit_properties=CommitProperties(
            custom_metadata={"userMetadata": json.dumps({"publish_id": publish_id})}, max_commit_retries=0
        ),
    )
    version = publish.side_version(path, publish_id=publish_id)
    assert version is not None, path
    return TableVersion(name=f"{name}/documents", path=home.relative(path), version=version)
