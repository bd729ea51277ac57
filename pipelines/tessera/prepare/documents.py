"""Rows of the sources become documents: judged, decided, split and published in one commit.

The first prepare, and one by other rules, looks at all rows; any other only at those that changed since the newest
documents (`increments`), and publishes the difference. Either gives the same set of documents. One pass over the text
of the rows that are judged, which are kept as Parquet meanwhile, and one that writes what is new. Nothing is collected
a row at a time; the driver sees counts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import audit, erasures, failpoints, lineage, publish, tasks
from tessera.erasures import Erased
from tessera.errors import Conflict, SourceError
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare import decisions, governance, increments, judge, kinds, outcome, read, stage, table, warehouse
from tessera.prepare.clusters import Texts
from tessera.prepare.decisions import KEY
from tessera.prepare.judge import Rules
from tessera.prepare.scratch import scratch
from tessera.prepare.settings import PrepareSettings
from tessera.prepare.sources import Source
from tessera.progress import Tell, silent
from tessera.publish import Publication


@tasks.told
def write_documents(
    spark: SparkSession,
    *,
    sources: Sequence[Source],
    settings: PrepareSettings,
    fingerprint: str,
    home: Home,
    partitions: int | None = None,
    fresh: bool = False,
    tell: Tell = silent,
) -> PrepareRecord:
    """Reads the pinned sources and publishes `tables/documents`.

    Args:
        partitions: of the input; None leaves it to Spark. The documents do not depend on it.
        fresh: judge all rows, also where only a few changed.
        tell: told in words what happens next.

    Raises:
        SourceError: a row filter that is not SQL, duplicate row keys, nothing left to train on, or a source that does
            not allow what is asked.
        ConfigError: a key that is needed is not in the environment.
        Conflict: another writer published first.
    """
    began = time.monotonic()
    governance.check([source.settings for source in sources], purpose=settings.purpose, licenses=settings.licenses)
    erased = erasures.read(home)
    rows_of = [(source, read.source_rows(spark, source, partitions=partitions)) for source in sources]
    judging = _Judging(rows_of, rules=judge.rules(settings))
    publication, parent = _begin(home, sources=sources, rules=judging.rules, fresh=fresh)
    if parent is not None and warehouse.join_small_files(spark, home.documents, tell=tell):
        publication, parent = _begin(home, sources=sources, rules=judging.rules, fresh=fresh)
    with scratch(home, name=publication.publish_id) as (keep, keep_text):
        changed = increments.changed(rows_of, parent=parent, home=home, spark=spark) if parent is not None else None
        ids = keep(changed.ids) if changed is not None else None
        tell("judging rows" if changed is None else "judging rows that changed")
        judged = keep_text(judging.judged(ids=ids))
        rows = keep(outcome.own(judged, erased=erased, settings=settings))
        _refuse_duplicates(rows, settings=settings)
        texts = partial(_texts, judged=judged, judging=judging)
        if parent is None or ids is None:
            found = outcome.whole(rows, texts=texts(rows), settings=settings, keep=keep)
        else:
            found = outcome.increment(
                rows, ids=ids, was=decisions.read(spark, home=home, record=parent), erased=erased, texts=texts,
                settings=settings, keep=keep,
            )  # fmt: skip
        decided = keep(found.decided)
        decisions_at = _write_decisions(decided, gone=found.gone, parent=parent, home=home, publication=publication)
        counts = decisions.counts(home, version=decisions_at, extra_copies=outcome.extra_copies(settings))
        _refuse_nothing(counts, sources=sources, settings=settings)
        failpoints.hit("prepare.before_commit")
        tell("writing documents")
        changes = keep(table.changes(decided, among=found.among, publication=publication))
        counted = table.totals(changes)
        record = PrepareRecord(
            fingerprint=fingerprint,
            base=stage.base_fingerprint(sources, settings=settings) if erased else "",
            inputs=tuple(source.pinned for source in sources),
            table=TableVersion(name="documents", path="tables/documents", version=publication.version),
            decisions=decisions_at,
            rules=judging.rules.hash,
            recipes={source.settings.name: stage.recipe(source) for source in sources},
            purposes={source.settings.name: source.settings.purposes for source in sources},
            changes=changed.how if changed is not None else {},
            moved=counted.changed_split,
            **_content(parent, counted=counted),
            seconds=round(time.monotonic() - began, 3),
            code=lineage.code_version(),
            created=lineage.now(),
            generations=table.generations(counted, num_bytes=counts["num_bytes"], publication=publication),
            **counts,
        )
        _refuse_other_erasures(home, erased=erased)
        head = audit.append(
            home, stage="prepare", inputs=record.inputs, rows=record.rows, purpose=settings.purpose,
            output=record.table, fingerprint=fingerprint,
        )  # fmt: skip
        record = record.model_copy(update={"audit": head})
        failpoints.hit("audit.after_append")
        whole = parent is None
        new = _new_documents(changes, counted=counted, whole=whole, judged=judged, judging=judging)
        table.write(changes, counted=counted, new=new, whole=whole, publication=publication, record=record)
        _refuse_other_erasures(home, erased=erased, published=True)
    table.check_written(home.documents, record=record)
    return record


def _begin(
    home: Home, *, sources: Sequence[Source], rules: Rules, fresh: bool
) -> tuple[Publication, PrepareRecord | None]:
    """The right to publish, and the documents that are gone on from, if there are any."""
    publication = publish.begin(home.documents, name="documents")
    if fresh:
        return publication, None
    return publication, increments.find_parent(home, publication=publication, sources=sources, rules=rules.hash)


@dataclass(frozen=True)
class _Judging:
    """Reads and judges rows of all sources."""

    rows: Sequence[tuple[Source, DataFrame]]
    rules: Rules

    def judged(self, *, ids: DataFrame | None) -> DataFrame:
        """`judge.COLUMNS` of all rows, or of those with these ids."""
        return read.union([
            judge.rows(rows, source=source, rules=self.rules, ids=ids) for source, rows in self.rows
        ])  # fmt: skip


def _texts(rows: DataFrame, *, judged: DataFrame, judging: _Judging) -> Texts:
    """What reads the text of contents: out of rows that were judged just now, else of the sources again."""

    def read_texts(wanted: DataFrame) -> DataFrame:
        found = judged.join(wanted, on="sha256", how="left_semi")
        others = rows.where("NOT fresh AND local IS NULL").join(wanted, on="sha256", how="left_semi")
        if not others.isEmpty():
            again = judging.judged(ids=others.select(*increments.ID).distinct())
            found = found.unionByName(again.join(wanted, on="sha256", how="left_semi"))
        return found.select("sha256", kinds.whole_text().alias("text")).dropDuplicates(["sha256"])

    return read_texts


def _write_decisions(
    decided: DataFrame, *, gone: DataFrame | None, parent: PrepareRecord | None, home: Home,
    publication: Publication,
) -> TableVersion:  # fmt: skip
    if parent is None or gone is None:
        return decisions.write(decided, home=home, publish_id=publication.publish_id)
    changed = decided.where("NOT as_before")
    return decisions.change(changed, gone=gone, parent=parent, home=home, publish_id=publication.publish_id)


def _content(parent: PrepareRecord | None, *, counted: table.Totals) -> dict[str, Any]:
    """Which prepare first gave just these documents, where it was an earlier one."""
    if parent is None or any(counted.by_status.get(status) for status in (table.NEW, table.MOVED, table.GONE)):
        return {}
    version = parent.table.version if parent.content_version is None else parent.content_version
    return {"content": parent.content or parent.fingerprint, "content_version": version}


def _new_documents(
    found: DataFrame, *, counted: table.Totals, whole: bool, judged: DataFrame, judging: _Judging
) -> DataFrame:
    """`table.COLUMNS` of the documents that are new, or of all: what was decided of a row, with what it holds."""
    chosen = found.where(F.col("status") != table.GONE) if whole else found.where(F.col("status") == table.NEW)
    if counted.not_fresh and not whole:  # what was displaced comes back
        again = chosen.where("NOT fresh").select(*increments.ID).distinct()
        judged = judged.unionByName(judging.judged(ids=again))
    documents = read.null_safe_join(
        judged.drop("sha256", "num_bytes"), chosen.drop("fresh", "was_split", "status"), on=KEY, how="inner"
    ).select(*table.COLUMNS)
    unique = judging.rules.settings.on_duplicate == "refuse"
    return documents if unique else documents.dropDuplicates(["doc_id", "sha256"])


def _refuse_other_erasures(home: Home, *, erased: Erased, published: bool = False) -> None:
    if erasures.read(home).digest == erased.digest:
        return
    if published:
        raise Conflict("rows were erased while documents were written, which may hold them; run the same forget again")
    raise Conflict("rows were erased while documents were prepared; nothing was published. Run prepare again")


def _refuse_duplicates(rows: DataFrame, *, settings: PrepareSettings) -> None:
    if settings.on_duplicate != "refuse":
        return
    keys = rows.where("doc_id IS NOT NULL").groupBy("source", "doc_id").agg(F.sum("rows").alias("n")).where("n > 1")
    found = keys.groupBy("source").agg(F.count("*").alias("keys"), F.sum("n").alias("n")).orderBy("source").first()
    if found is not None:
        raise SourceError(
            f"prepare.sources {found.source}: {found['keys']} row keys occur more than once, in {found['n']} rows; "
            "name more columns in id, or set prepare.on_duplicate to last (newest row) or all (every row)"
        )


def _refuse_nothing(counts: dict[str, Any], *, sources: Sequence[Source], settings: PrepareSettings) -> None:
    names = ", ".join(source.settings.name for source in sources)
    if counts["rows"] == 0:
        raise SourceError(f"prepare.sources {names}: no rows; look at the table's version and at where")
    if counts["documents"] == 0:
        raise SourceError(f"prepare.sources {names}: all {counts['rows']} rows were dropped: {counts['dropped']}")
    for split, number in counts["splits"].items():
        if number == 0:
            raise SourceError(
                f"prepare.holdout {settings.holdout} leaves no {split} documents of {counts['documents']}; "
                "give a table with more rows or another share"
            )
