"""Near-duplicates on Spark against exact comparison of all pairs: same groups, whatever the partitions."""

import hashlib
import random
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
from pyspark.sql import functions as F

from tessera.prepare.duplicates import near
from tessera.prepare.duplicates.settings import NearDuplicateSettings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark

SETTINGS = NearDuplicateSettings()


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def texts() -> list[str]:
    """Thirty families of one to six texts of which some words differ, more or fewer, and some odd ones."""
    random.seed(3)
    found = []
    for number in range(30):
        words = [f"{random.randrange(10**6)}" for _ in range(random.randint(60, 300))]
        found.append(" ".join(words))
        for _ in range(number % 6):
            changed = list(words)
            for _ in range(random.choice([1, 1, 2, 40])):
                changed[random.randrange(len(words))] = f"{random.randrange(10**6)}"
            found.append(" ".join(changed))
    return [*found, "a few words", "A few words!", "...", "", "another one of few words"]


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = "".join(char if char.isalnum() else " " for char in text.lower()).split()
    return {tuple(words[i : i + 5]) for i in range(max(len(words) - 4, min(len(words), 1)))}


def expected_groups(all_texts: list[str]) -> dict[str, str]:
    """By comparing all pairs. No pair here is so near the threshold that a bucket might be missed."""
    sets = {sha256(text): shingle_set(text) for text in all_texts}
    group = {name: name for name in sets}
    for one, other in combinations(sets, 2):
        union = len(sets[one] | sets[other])
        if union and len(sets[one] & sets[other]) / union >= SETTINGS.threshold:
            low, high = sorted((group[one], group[other]))
            group = {name: low if held == high else held for name, held in group.items()}
    return {name: held for name, held in group.items() if name != held}


def contents_of(spark: "SparkSession", all_texts: list[str], *, partitions: int = 3) -> "DataFrame":
    rows = [(sha256(text), text) for text in dict.fromkeys(all_texts)]
    frame = spark.createDataFrame(rows, "sha256 string, text string").repartition(partitions)
    return frame.withColumn("bands", near.band_hashes(F.col("text"), settings=SETTINGS))


def pairs_in(frame: "DataFrame") -> list[tuple[str, ...]]:
    return sorted(tuple(row) for row in frame.collect())


@pytest.mark.parametrize("partitions", [1, 3, 50])
def test_groups_are_those_of_comparing_all_pairs(spark: "SparkSession", partitions: int) -> None:
    contents = contents_of(spark, texts(), partitions=partitions)

    found = near.clusters(contents, settings=SETTINGS)

    rows = pairs_in(found)
    found.unpersist()
    expected = expected_groups(texts())
    assert len(expected) > 30
    assert rows == sorted(expected.items())


def members_of(spark: "SparkSession", buckets: dict[str, list[int] | None]) -> "DataFrame":
    return spark.createDataFrame(list(buckets.items()), "sha256 string, bands array<bigint>").repartition(4)


BUCKETS: dict[str, list[int] | None] = {
    "a": [1, 2], "b": [1, 3], "c": [3, 2], "d": [3, 4], "e": [5], "f": [], "g": None, "h": [4],
}  # fmt: skip
STARS = [("b", "a"), ("c", "a"), ("c", "b"), ("d", "b"), ("h", "d")]


def test_stars_are_of_every_bucket_and_its_smallest(spark: "SparkSession") -> None:
    members = members_of(spark, BUCKETS)

    assert pairs_in(near.stars(members)) == STARS
    for some in (["a"], ["c"], ["h", "e"], ["f"]):
        among = spark.createDataFrame([(one,) for one in some], "sha256 string")
        assert pairs_in(near.stars(members, among=among)) == [pair for pair in STARS if set(pair) & set(some)]


def test_touched_are_all_that_share_a_bucket_with_a_change(spark: "SparkSession") -> None:
    members = members_of(spark, BUCKETS)
    changed = members_of(spark, {"gone": [2, 99], "e": [5], "empty": []})

    assert pairs_in(near.touched(members, changed=changed)) == [("a",), ("c",), ("e",)]


def test_a_thousand_texts_that_differ_in_a_word_make_as_many_pairs_as_texts(
    spark: "SparkSession", monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bucket holds nearly all, and its centre is compared in several parts."""
    monkeypatch.setattr(near, "PART_MEMBERS", 100)
    words = [f"word{i}" for i in range(200)]
    alike = [" ".join([*words[:100], f"other{number}", *words[100:]]) for number in range(1000)]
    contents = contents_of(spark, alike).persist()

    pairs = near.stars(contents).persist()
    edges = near.verified(pairs, texts=contents, settings=SETTINGS)

    smallest = min(map(sha256, alike))
    assert {row["sha256"] for row in edges.where(F.col("centre") == smallest).collect()} == {
        sha256(text) for text in alike
    } - {smallest}
    assert pairs.count() < 5 * len(alike)
    pairs.unpersist()
    contents.unpersist()


def test_only_pairs_with_both_texts_are_verified(spark: "SparkSession") -> None:
    held = {"a": "the same words here", "b": "The same words, here", "c": "other words"}
    frame = spark.createDataFrame(list(held.items()), "sha256 string, text string")
    pairs = spark.createDataFrame(
        [("b", "a"), ("c", "a"), ("gone", "a"), ("b", "absent")], "sha256 string, centre string"
    )

    assert pairs_in(near.verified(pairs, texts=frame, settings=SETTINGS)) == [("b", "a")]


def test_band_hashes_of_odd_texts(spark: "SparkSession") -> None:
    frame = spark.sql(
        "SELECT * FROM VALUES (1, NULL), (2, '...'), (3, CAST(X'62FF' AS STRING)), (4, 'a') AS t(id, text)"
    )

    found = (
        frame.select("id", near.band_hashes(F.col("text"), settings=SETTINGS).alias("bands")).orderBy("id").collect()
    )

    assert [row["bands"] for row in found[:3]] == [None, [], None]
    assert len(found[3]["bands"]) == SETTINGS.bands
