"""A documents table becomes a published shard set: count, tokenizer, tokenize and pack, check, commit.

The text is read twice, once for the tokenizer's sample and once to tokenize it, and shuffled as tokens. The driver
holds the sample and a row a file. What a worker writes is visible to nobody until the manifest's commit, and that is
made only when every document, byte and token of the table is accounted for in files that exist.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import failpoints, publish, tables, tasks
from tessera.errors import ShardingFailed, ShardSetError
from tessera.home import Home
from tessera.lineage import Generation, ShardRecord, TableVersion, TokenizerRef
from tessera.progress import Tell, silent
from tessera.shard import encode, manifest, recipe, stage
from tessera.shard.cell import SPANS, Recipe
from tessera.shard.settings import ShardSettings
from tessera.shard.write import cells, changes, spans, tokenizers, totals
from tessera.shard.write.changes import Changes
from tessera.shard.write.totals import Group
from tessera.spark_tables import at_version

TASKS_PER_CORE = 2
SMALL_BYTES = 2**26
"""Text for each core below which a table is spread over all of them before it is tokenized."""


@tasks.told
def write_shards(
    spark: SparkSession,
    *,
    documents: TableVersion,
    settings: ShardSettings,
    fingerprint: str,
    home: Home,
    generations: Sequence[Generation] = (),
    compacted: int = stage.NOT_COMPACTED,
    partitions: int | None = None,
    fresh: bool = False,
    progress: Tell = silent,
) -> ShardRecord:
    """Writes and publishes the set `settings.name` from a documents table at its pinned version.

    Only cells that hold other documents than in the set's newest version are written; the others' files are kept. What
    comes out is what writing the whole set would give.

    Args:
        fingerprint: see `tessera.shard.stage.fingerprint`.
        generations: of the documents, as prepare recorded them; those that are missing here are counted in the table.
        compacted: see `tessera.shard.stage.compaction`.
        partitions: of the input; None leaves it to Spark. The shards do not depend on it.
        fresh: write every cell, also those that are there: a file that was damaged is mended.
        progress: told what happens, and how many of Spark's tasks are done.

    Raises:
        ShardSetError: a split has no documents, preferences are mixed with other kinds, or the set was imported.
        TokenizerError: the tokenizer folder is unfit, or the tokenizer does not fit the text.
        ShardingFailed: what was written is not what was read; nothing was published.
        Conflict: another writer published first.
    """
    began = time.monotonic()
    publication = publish.begin(manifest.manifest_path(home, name=settings.name), name=f"shards/{settings.name}")
    parent = _parent(publication, name=settings.name, fresh=fresh, home=home)
    table = at_version(spark, home.resolve(documents.path), version=documents.version)
    progress("counting documents")
    groups = totals.count(home, documents)
    progress("making the tokenizer")
    ref = tokenizers.of_set(table, groups=groups, settings=settings, fingerprint=fingerprint, home=home)
    work = _Work(
        settings=settings, home=home, publication=publication, parent=parent, groups=groups, tokenizer=ref,
        recipe=_recipe(ref, groups=groups, generations=generations, compacted=compacted, settings=settings, home=home),
    )  # fmt: skip
    progress("comparing with the set")
    difference = changes.compare(
        changes.wanted_cells(table, recipe=work.recipe), parent=parent, recipe_hash=work.recipe_hash,
        buckets=work.recipe.buckets, home=home, stored=work.stored,
    )  # fmt: skip
    side_table = _write(spark, table, difference=difference, work=work, partitions=partitions, progress=progress)
    progress("checking and publishing")
    rows = _rows(difference, side_table=side_table, work=work)
    failpoints.hit("shard.before_manifest")
    record = ShardRecord(
        fingerprint=fingerprint,
        inputs=(documents,),
        spans=side_table,
        compactions=_compactions(compacted, version=documents.version, name=settings.name, home=home),
        sources=totals.by_source(home, side_table),
        written=_documents(rows) - _documents(difference.kept),
        kept_shards=difference.kept.num_rows,
        direct=not work.stored,
        seconds=round(time.monotonic() - began, 3),
        **recipe.facts(settings, ref=ref, publication=publication, home=home),
        **totals.of_set(rows, per_sample=totals.slots(groups, seq_len=settings.seq_len)),
    )
    publish.commit(publication, rows, record=record, stats_columns=manifest.STATS_COLUMNS)
    if work.stored:
        manifest.write_indexes(home, name=settings.name, version=publication.version)
    return record


@dataclass(frozen=True)
class _Work:
    """One writing of a set: how, from what counts, and what it goes on from."""

    settings: ShardSettings
    home: Home
    publication: publish.Publication
    parent: ShardRecord | None
    groups: Sequence[Group]
    tokenizer: TokenizerRef
    recipe: Recipe

    @property
    def stored(self) -> bool:
        """Whether there will be files."""
        return self.settings.mode == "sharded"

    @property
    def folder(self) -> Path:
        return manifest.set_folder(self.home, name=self.settings.name)

    @property
    def recipe_hash(self) -> str:
        return recipe.hash_of(self.settings.identity(), tokenizer_sha256=self.tokenizer.sha256)


def _parent(publication: publish.Publication, *, name: str, fresh: bool, home: Home) -> ShardRecord | None:
    """The newest version of the set, whose files may be kept; None when all is to be written.

    That is so when its tables lack files, which a vacuum may have taken.
    """
    if publication.parent == publish.NO_PARENT:
        return None
    record = manifest.read_record(home, name=name)
    if record.imported:
        raise ShardSetError(
            f"shard set {name} is of {record.inputs[0].name}, not of documents; write another: --set shard.name=NAME"
        )
    lacking = fresh or any(
        tables.missing_files(home.resolve(table.path), version=table.version)
        for table in (record.manifest, record.spans)
    )
    return None if lacking else record


def _compactions(compacted: int, *, version: int, name: str, home: Home) -> tuple[int, ...]:
    """All that there were, this one included; a smaller one that is asked for undoes those up to these documents."""
    before = stage.compactions(home, name=name)
    if compacted == stage.NOT_COMPACTED:
        return before
    return tuple(sorted({compacted, *(done for done in before if not compacted < done <= version)}))


def _recipe(
    ref: TokenizerRef, *, groups: Sequence[Group], generations: Sequence[Generation], compacted: int,
    settings: ShardSettings, home: Home,
) -> Recipe:  # fmt: skip
    buckets = totals.buckets(groups, generations=generations, compacted=compacted, bucket_bytes=settings.bucket_bytes)
    return recipe.make(
        settings.identity(), ref=ref, buckets=buckets, compacted=compacted, home=home,
        max_uncut_bytes=settings.tokenizer.max_uncut_bytes,
    )  # fmt: skip


def _write(
    spark: SparkSession, table: DataFrame, *, difference: Changes, work: _Work, partitions: int | None, progress: Tell
) -> TableVersion:
    """Writes the shard files of the cells that changed, and commits the side table that says where documents lie."""
    if not difference.wanted and not difference.gone:
        assert work.parent is not None
        return work.parent.spans
    cores = tasks.parallelism(spark)
    if partitions is None and sum(group.num_bytes for group in work.groups) < SMALL_BYTES * cores:
        partitions = cores
    with tasks.watched(spark, "tokenizing and packing", tell=progress):
        return spans.commit(
            _placed(table, difference=difference, work=work, partitions=partitions, cores=cores),
            changes=difference, parent=work.parent, name=work.settings.name, home=work.home,
            publish_id=work.publication.publish_id,
        )  # fmt: skip


def _placed(table: DataFrame, *, difference: Changes, work: _Work, partitions: int | None, cores: int) -> DataFrame:
    """`cell.SPANS` of the cells that changed; computing them writes their files."""
    wanted = list(difference.wanted)
    if difference.kept.num_rows:
        table = changes.only(table, cells=wanted, recipe=work.recipe)
    columns = [name for name in encode.DOCUMENT_COLUMNS if name in table.columns]
    spread = table if partitions is None else table.repartition(partitions)
    folder = str(work.folder) if work.stored else None
    return (
        spread.select(*columns)
        .mapInArrow(partial(cells.tokenize, recipe=work.recipe), encode.TOKENIZED)
        .repartition(max(min(len(wanted), TASKS_PER_CORE * cores), 1), *changes.CELL)
        .sortWithinPartitions(*changes.CELL, "doc_id", "sha256")
        .mapInArrow(partial(cells.write_cells, recipe=work.recipe, folder=folder), SPANS)
        .select(*(F.col(name).cast(kind) for name, kind in map(str.split, SPANS.split(", "))))
    )  # the casts are for Spark Connect: a string from Python is `string collate UTF8_BINARY` there, unread by delta-rs


def _rows(difference: Changes, *, side_table: TableVersion, work: _Work) -> pa.Table:
    """The manifest to come: files that were kept, and what the side table says of the new ones, all counted again."""
    sql = totals.FILES_SQL.format(condition=changes.covering(difference.wanted))
    found = tables.query(work.home.resolve(side_table.path), version=side_table.version, sql=sql)
    stored = set(changes.names_of(difference.kept))
    written = found.filter(pa.array([name not in stored for name in changes.names_of(found)], pa.bool_()))
    _check_contents(written, wanted=difference.wanted)
    kept = difference.kept.append_column("tokenized", difference.kept["tokens"])
    files = pa.concat_tables([kept, written.select(kept.column_names).cast(kept.schema)])
    totals.check(files, groups=work.groups, recipe=work.recipe)
    rows = manifest.sorted_rows(files, schema=manifest.CELL_SCHEMA)
    if work.stored:
        totals.refuse_missing(rows, folder=work.folder)
    return rows


def _check_contents(written: pa.Table, *, wanted: Mapping[changes.CellName, str]) -> None:
    """Each cell that was written holds what the documents table wants in it, and no other cell was written."""
    found = dict(zip(changes.names_of(written), written["content"].to_pylist(), strict=True))
    if found != dict(wanted):
        odd = next(name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name))
        raise ShardingFailed(
            f"{odd.split}, generation {odd.generation}, bucket {odd.bucket}: written with documents of hash "
            f"{str(found.get(odd))[:12]}, wanted {str(wanted.get(odd))[:12]}; nothing was published. Run again"
        )


def _documents(rows: pa.Table) -> int:
    return int(pc.sum(rows["documents"]).as_py() or 0)
