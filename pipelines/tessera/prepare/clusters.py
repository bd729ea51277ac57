"""Duplicates: of rows with equal contents one stays, and of contents that are nearly the same one.

Everything here is about *contents*, known by their SHA-256, and reads no text but that of pairs which may be near-
duplicates. Which one stays depends on hashes alone: of equal rows the one with the smallest (doc_id, row hash), of a
cluster the content with the smallest hash, which names its group. So the outcome is a function of the set of rows, and
an increment only looks at the contents whose outcome a change may alter: see `affected`.
"""

from collections.abc import Callable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from tessera.erasures import REASON as ERASED
from tessera.prepare.duplicates import components, near
from tessera.prepare.duplicates.settings import NearDuplicateSettings
from tessera.prepare.scratch import Keep

DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
SPLIT_BITS = 52

Texts = Callable[[DataFrame], DataFrame]
"""(sha256) -> (sha256, text)."""


def affected(
    fit: DataFrame, *, changed: DataFrame, groups: DataFrame, settings: NearDuplicateSettings | None
) -> DataFrame:
    """Contents whose outcome may be another than before, as (sha256): no other row need be looked at.

    Those that came, went, or have other rows; where near-duplicates are looked for, also all that share a bucket with
    one of them, and the whole old clusters of any of these. A pair outside has the same buckets, with the same smallest
    members, as before.

    Args:
        fit: sha256 and bands of all contents that may be documents now.
        changed: the same of contents that came, went, or have other rows.
        groups: sha256 and group of all contents as they were before.
    """
    found = changed.select("sha256").distinct()
    if settings is None:
        return found
    found = found.union(near.touched(fit, changed=changed)).distinct()
    touched_groups = groups.join(found, on="sha256").select("group").distinct()
    return found.union(groups.join(touched_groups, on="group").select("sha256")).distinct()


def decided(
    rows: DataFrame, *, fit: DataFrame, among: DataFrame | None, texts: Texts,
    settings: NearDuplicateSettings | None, holdout: float, keep: Keep,
) -> DataFrame:  # fmt: skip
    """Adds reason, group, split and displaced_by to rows whose own judgement is `local`, null for those that are fit.

    Args:
        rows: all rows of the contents in question, with doc_id, row_sha256, updated, sha256 and local.
        fit: sha256 and bands of all contents that may be documents, those outside `rows` too.
        among: the contents in question; None: all.
        texts: reads the text of contents.
    """
    fit_rows = rows.where("local IS NULL")
    in_order = Window.partitionBy("sha256").orderBy("doc_id", "row_sha256", F.col("updated").asc_nulls_first())
    ranked = fit_rows.withColumn("place", F.row_number().over(in_order))
    first = ranked.where("place = 1").select("sha256", F.col("doc_id").alias("first_id"))
    if settings is None:
        grouped = ranked.withColumn("group", F.col("sha256"))
    else:
        clusters = _clusters(fit, among=among, texts=texts, settings=settings, keep=keep)
        grouped = ranked.join(clusters, on="sha256", how="left").withColumn("group", F.coalesce("group", "sha256"))
    survivor = first.select(F.col("sha256").alias("group"), F.col("first_id").alias("kept_id"))
    found = grouped.join(first, on="sha256").join(survivor, on="group", how="left")
    repeated, displaced = F.col("place") > 1, F.col("group") != F.col("sha256")
    outcome = found.select(
        *rows.columns,
        F.when(repeated, DUPLICATE).when(displaced, NEAR_DUPLICATE).alias("reason"),
        "group",
        split_of(F.col("group"), holdout=holdout).alias("split"),
        F.when(repeated, F.col("first_id")).when(displaced, F.col("kept_id")).alias("displaced_by"),
    )
    none = F.lit(None).cast("string")
    unfit = rows.where("local IS NOT NULL").select(
        *rows.columns, F.col("local").alias("reason"), none.alias("group"), none.alias("split"),
        none.alias("displaced_by"),
    )  # fmt: skip
    return outcome.unionByName(unfit)


def own_judgement(reason: Column) -> Column:
    """A recorded reason without what other rows had to do with it."""
    return F.when(reason.isin(DUPLICATE, NEAR_DUPLICATE, ERASED), None).otherwise(reason)


def split_of(group: Column, *, holdout: float) -> Column:
    """`heldout` for the share `holdout` of all groups, by hash: near-duplicates never sit on both sides."""
    digits = SPLIT_BITS // 4
    number = F.conv(F.substring(F.sha2(F.concat(F.lit("split "), group), 256), 1, digits), 16, 10).cast("long")
    return F.when(number < int(holdout * 2**SPLIT_BITS), "heldout").otherwise("train")


def _clusters(
    fit: DataFrame, *, among: DataFrame | None, texts: Texts, settings: NearDuplicateSettings, keep: Keep
) -> DataFrame:
    """(sha256, group) of contents whose group is another's."""
    pairs = keep(near.stars(fit, among=among))
    ends = pairs.select("sha256").union(pairs.select(F.col("centre").alias("sha256"))).distinct()
    found = components.components(near.verified(pairs, texts=texts(ends), settings=settings))
    groups = keep(found)
    found.unpersist()
    return groups
