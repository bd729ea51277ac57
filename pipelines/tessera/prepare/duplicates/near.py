"""Near-duplicates on Spark: contents that share a bucket are compared, and those alike enough form groups.

The nodes are contents, known by their SHA-256. In each bucket every member is compared with the bucket's smallest one
only (a star), so a bucket of n members costs n - 1 comparisons and not n^2 / 2; a pair becomes an edge when the exact
Jaccard similarity of its shingles reaches the threshold. A group is a connected component, named by its smallest
content. All of that follows from the set of contents alone, so neither partitions nor the order of rows change a group.

Costs, on top of the band hashes (see `minhash`): a shuffle of `bands` rows of 100 bytes a content, and for each pair
one of the member's text. A task holds the shingles of one centre, and streams its members past.
"""

from functools import partial
from typing import cast

import pandas as pd
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from tessera.prepare.duplicates import compare, minhash
from tessera.prepare.duplicates.components import components
from tessera.prepare.duplicates.settings import NearDuplicateSettings

PAIRS = "sha256 string, centre string"
PART_MEMBERS = 1000
"""Members of a centre that one task compares; more are shared out, each task with the centre's text."""


def band_hashes(text: Column, *, settings: NearDuplicateSettings) -> Column:
    """The buckets of a text, `array<bigint>`: empty for a text without words, null for null and for invalid UTF-8."""
    bands, rows, words = settings.bands, settings.rows, settings.shingle_words

    def hashed(texts: pd.Series) -> pd.Series:
        array = pa.array(texts, pa.large_binary(), from_pandas=True)
        return minhash.band_hashes(array, bands=bands, rows=rows, words=words).to_pandas()

    made = F.pandas_udf(hashed, "array<bigint>")  # type: ignore[call-overload]
    return cast(Column, made(F.when(F.is_valid_utf8(text), text).cast("binary")))


def clusters(contents: DataFrame, *, settings: NearDuplicateSettings) -> DataFrame:
    """The group of every content that is not its own group's name: the whole of this module.

    Args:
        contents: sha256, text, bands; each content once. Read several times: persist it.

    Returns:
        sha256, group; Spark keeps it until `unpersist` is called on it.
    """
    pairs = stars(contents).persist(StorageLevel.DISK_ONLY)
    try:
        return components(verified(pairs, texts=contents, settings=settings))
    finally:
        pairs.unpersist()


def touched(members: DataFrame, *, changed: DataFrame) -> DataFrame:
    """The members that share a bucket with a changed content, the changed ones among them included.

    Args:
        members: sha256, bands.
        changed: sha256, bands; contents that came or went.

    Returns:
        sha256, each once.
    """
    asked = _in_buckets(changed).select("bucket").distinct()
    return _in_buckets(members).join(asked, on="bucket", how="left_semi").select("sha256").distinct()


def stars(members: DataFrame, *, among: DataFrame | None = None) -> DataFrame:
    """Pairs to compare: in each bucket every member with the smallest one.

    Args:
        members: sha256, bands.
        among: sha256; only pairs with one of these, which may be centre or not. None gives all.

    Returns:
        sha256, centre; each pair once, centre < sha256.
    """
    lying = _in_buckets(members)
    if among is not None:
        asked = _in_buckets(members.join(among, on="sha256", how="left_semi")).select("bucket").distinct()
        lying = lying.join(asked, on="bucket", how="left_semi")
    ends = lying.groupBy("bucket").agg(F.min("sha256").alias("centre"), F.max("sha256").alias("last"))
    centres = ends.where("centre < last").select("bucket", "centre")
    pairs = lying.join(centres, on="bucket").where("sha256 != centre").select("sha256", "centre").distinct()
    if among is None:
        return pairs
    wanted = among.select("sha256").distinct()
    member = wanted.select("sha256", F.lit(True).alias("member_wanted"))
    centre = wanted.select(F.col("sha256").alias("centre"), F.lit(True).alias("centre_wanted"))
    marked = pairs.join(member, on="sha256", how="left").join(centre, on="centre", how="left")
    return marked.where("member_wanted OR centre_wanted").select("sha256", "centre")


def verified(pairs: DataFrame, *, texts: DataFrame, settings: NearDuplicateSettings) -> DataFrame:
    """The pairs of which at least `threshold` of all shingles, each counted once, are in both texts.

    Args:
        pairs: sha256, centre.
        texts: sha256, text; each content once. A pair of which one is absent is not verified.

    Returns:
        sha256, centre.
    """
    of_centre = Window.partitionBy("centre")
    parts = F.ceil(F.count("*").over(of_centre) / PART_MEMBERS)
    shared_out = pairs.select("sha256", "centre", F.pmod(F.xxhash64("sha256"), parts).alias("part"))
    roles = F.array(
        F.struct(F.lit(0).alias("role"), F.col("centre").alias("sha256")),
        F.struct(F.lit(1).alias("role"), F.col("sha256")),
    )
    wanted = shared_out.select("centre", "part", F.inline(roles)).distinct()
    lined_up = (
        wanted.join(texts.select("sha256", "text"), on="sha256")
        .select("centre", "part", "role", "sha256", "text")
        .repartition("centre", "part")
        .sortWithinPartitions("centre", "part", "role", "sha256")
    )
    alike = partial(compare.alike, threshold=settings.threshold, words=settings.shingle_words)
    return lined_up.mapInArrow(alike, PAIRS)


def _in_buckets(members: DataFrame) -> DataFrame:
    return members.select("sha256", F.explode("bands").alias("bucket"))
