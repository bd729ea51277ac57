"""What becomes of each row: its own judgement together with duplicates, erasures and, in an increment, what was before.

`whole` decides all rows at once; `increment` the rows that changed and those whose outcome hangs on them. Frames hold
hashes, not text. The outcome is the same either way, which `tests/prepare/test_increments.py` holds over random
histories.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from tessera import erasures
from tessera.erasures import Erased
from tessera.prepare import clusters, read
from tessera.prepare.clusters import Texts
from tessera.prepare.decisions import KEY, OUTCOME
from tessera.prepare.increments import ID
from tessera.prepare.scratch import Keep
from tessera.prepare.settings import PrepareSettings

OWN = (*KEY, "rows", "kind", "sha256", "num_bytes", "private", "contaminated", "bands", "local", "fresh")
"""A row before others are looked at: `local` is its own reason; `fresh` whether it was judged just now."""

SUPERSEDED = "superseded"
"""Another row of the key is newer."""


@dataclass(frozen=True)
class Outcome:
    """What was decided."""

    decided: DataFrame
    """OWN and `decisions.OUTCOME` of all rows that were looked at, and whether a row is `as_before`."""
    among: DataFrame | None
    """The contents (sha256) that were looked at; None: all."""
    gone: DataFrame | None
    """The KEY of rows that are no more; None: all that are not in `decided`."""


def own(judged: DataFrame, *, erased: Erased, settings: PrepareSettings) -> DataFrame:
    """OWN of the rows that were judged just now: equal rows are one, with their number."""
    others = ("kind", "sha256", "num_bytes", "private", "contaminated", "bands")
    found = judged.groupBy(*KEY).agg(
        F.count("*").alias("rows"), *(F.first(name).alias(name) for name in (*others, read.UPDATED_NUMBER)),
        F.first("unfit").alias("local"),
    )  # fmt: skip
    if settings.on_duplicate == "last":
        found = found.withColumn("local", F.when(_superseded(), SUPERSEDED).otherwise(F.col("local")))
    return _without_erased(found.withColumn("fresh", F.lit(True)), erased=erased).select(*OWN)


def extra_copies(settings: PrepareSettings) -> str:
    """Why equal rows of one document are dropped but one."""
    return SUPERSEDED if settings.on_duplicate == "last" else clusters.DUPLICATE


def whole(rows: DataFrame, *, texts: Texts, settings: PrepareSettings, keep: Keep) -> Outcome:
    """Decides all rows of the sources, OWN."""
    decided = clusters.decided(
        rows, fit=_fit(rows), among=None, texts=texts, settings=settings.near_duplicates, holdout=settings.holdout,
        keep=keep,
    )  # fmt: skip
    return Outcome(decided=decided.withColumn("as_before", F.lit(False)), among=None, gone=None)


def increment(
    rows: DataFrame, *, ids: DataFrame, was: DataFrame, erased: Erased, texts: Callable[[DataFrame], Texts],
    settings: PrepareSettings, keep: Keep,
) -> Outcome:  # fmt: skip
    """Decides the rows that changed, and those that share contents, buckets or clusters with one that did.

    Args:
        rows: OWN of the rows with these ids, as they are now.
        ids: source and doc_id of all rows that may be other than before.
        was: the decisions before.
        texts: of OWN of all rows -> what reads the text of contents.
    """
    left = _of_ids(was, ids, how="left_semi")
    staying = keep(_staying(_of_ids(was, ids, how="left_anti"), erased=erased))
    everything = rows.unionByName(staying.select(*OWN))
    turned = staying.where(F.col("turned")).select("sha256", F.col("was_bands").alias("bands"))
    changed = left.where("group IS NOT NULL").select("sha256", "bands").union(_fit(rows)).union(turned)
    fit = _fit(everything) if settings.near_duplicates is None else keep(_fit(everything))
    groups = was.where("group IS NOT NULL").select("sha256", "group").distinct()
    among = keep(clusters.affected(fit, changed=changed, groups=groups, settings=settings.near_duplicates))
    others = staying.where("local IS NULL").join(among, on="sha256", how="left_semi")
    in_question = rows.unionByName(others.unionByName(staying.where("turned AND local IS NOT NULL")).select(*OWN))
    decided = clusters.decided(
        in_question, fit=fit, among=among, texts=texts(everything), settings=settings.near_duplicates,
        holdout=settings.holdout, keep=keep,
    )  # fmt: skip
    same = [F.col(name).eqNullSafe(F.col(f"was_{name}")) for name in OUTCOME]
    recorded = staying.select(*KEY, *(f"was_{name}" for name in OUTCOME), F.lit(True).alias("known"))
    compared = read.null_safe_join(decided, recorded, on=KEY)
    as_before = reduce(and_, same, F.col("known").isNotNull())
    return Outcome(
        decided=compared.select(*decided.columns, as_before.alias("as_before")),
        among=among,
        gone=read.null_safe_join(left.select(*KEY), rows.select(*KEY), on=KEY, how="left_anti"),
    )


def _superseded() -> Column:
    """Whether another row of the key is newer by `updated`: by number, then by text, then by hashes."""
    newest = Window.partitionBy("source", F.coalesce("doc_id", "row_sha256")).orderBy(
        *(F.desc_nulls_last(name) for name in (read.UPDATED_NUMBER, "updated", "sha256", "row_sha256"))
    )
    return F.col("doc_id").isNotNull() & (F.rank().over(newest) > 1)


def _staying(was: DataFrame, *, erased: Erased) -> DataFrame:
    """OWN of recorded rows, their outcome as `was_*`, and whether an erasure `turned` it: the displaced come back."""
    found = was.withColumns({
        "local": clusters.own_judgement(F.col("reason")), "fresh": F.lit(False), "was_bands": F.col("bands"),
        **{f"was_{name}": F.col(name) for name in OUTCOME},
    })  # fmt: skip
    found = _without_erased(found, erased=erased)
    was_erased = F.coalesce(F.col("was_reason") == erasures.REASON, F.lit(False))
    is_erased = F.coalesce(F.col("local") == erasures.REASON, F.lit(False))
    lost = _listed(was.sparkSession, erased.doc_ids, name="lost")
    found = found.join(lost, found["was_displaced_by"] == lost["lost"], "left")
    return found.withColumn("turned", (was_erased != is_erased) | F.col("lost").isNotNull())


def _without_erased(rows: DataFrame, *, erased: Erased) -> DataFrame:
    """With `local` for what was erased, by id or by content, of the rows that are fit: other reasons stay."""
    if not erased:
        return rows
    by_id = _listed(rows.sparkSession, erased.doc_ids, name="erased_id")
    by_content = _listed(rows.sparkSession, erased.contents, name="erased_content")
    marked = rows.join(by_id, rows["doc_id"] == by_id["erased_id"], "left").join(
        by_content, rows["sha256"] == by_content["erased_content"], "left"
    )
    hit = F.col("erased_id").isNotNull() | F.col("erased_content").isNotNull()
    gone = {name: F.when(~hit, F.col(name)) for name in ("private", "bands")}
    local = F.when(hit & F.col("local").isNull(), erasures.REASON).otherwise(F.col("local"))
    return marked.withColumns({"local": local, **gone}).drop("erased_id", "erased_content")


def _listed(spark: SparkSession, values: Iterable[str], *, name: str) -> DataFrame:
    return F.broadcast(spark.createDataFrame([(value,) for value in sorted(values)], f"{name} string"))


def _fit(rows: DataFrame) -> DataFrame:
    """sha256 and bands of the contents that may be documents."""
    return rows.where("local IS NULL").groupBy("sha256").agg(F.first("bands").alias("bands"))


def _of_ids(rows: DataFrame, ids: DataFrame, *, how: str) -> DataFrame:
    return read.null_safe_join(rows, ids, on=ID, how=how)
