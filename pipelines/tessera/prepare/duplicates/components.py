"""Connected components on Spark by alternating stars (Kiveris, Lattanzi, Mirrokni, Rastogi and Vassilvitskii 2014).

A round hangs the larger neighbours of every node on its smallest neighbour (large star), then the smaller ones with the
node itself (small star). Neither parts what is connected nor joins what is not, and when nothing changes any more every
component is a star around its smallest node. A chain of n nodes takes about log2 n rounds. A round shuffles the edges,
which never become more, three times; the driver sees two numbers. A node of many neighbours is spilled, not held.

Few edges, as an increment has them, are joined on the driver instead, in a second where rounds of Spark take ten.
"""

from typing import cast

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

DRIVER_EDGES = 100_000
"""Edges up to this number are joined on the driver: 13 MB of hashes."""


def components(edges: DataFrame) -> DataFrame:
    """The connected component of every node but the smallest of each, which names it.

    Args:
        edges: sha256, centre; in any direction, repeated or not. Read once.

    Returns:
        sha256, group, with group < sha256; each node once. Spark keeps it until `unpersist` is called on it.
    """
    kept = edges.select("sha256", "centre").where("sha256 != centre").distinct().persist(StorageLevel.DISK_ONLY)
    before, state = None, _state(kept)
    if state[0] <= DRIVER_EDGES:
        pairs = kept.toArrow()
        kept.unpersist()
        return edges.sparkSession.createDataFrame(_join(pairs))
    while state != before:
        larger = _small_star(_large_star(kept)).persist(StorageLevel.DISK_ONLY)
        before, state = state, _state(larger)
        kept.unpersist()
        kept = larger
    return kept.withColumnRenamed("centre", "group")


def _large_star(edges: DataFrame) -> DataFrame:
    """Every node's larger neighbours, on the smallest of the node and its neighbours: centre < sha256; some twice."""
    there = F.struct(F.col("sha256").alias("node"), F.col("centre").alias("other"))
    back = F.struct(F.col("centre").alias("node"), F.col("sha256").alias("other"))
    both = edges.select(F.inline(F.array(there, back)))
    smallest = F.least(F.min("other").over(Window.partitionBy("node")), "node")
    hung = both.select("node", "other", smallest.alias("centre")).where("other > node")
    return hung.select(F.col("other").alias("sha256"), "centre")


def _small_star(edges: DataFrame) -> DataFrame:
    """Every node and its smaller neighbours, on the smallest of them.

    Args:
        edges: sha256, centre; centre < sha256.
    """
    smallest = F.min("centre").over(Window.partitionBy("sha256"))
    hung = edges.select("sha256", "centre", smallest.alias("smallest"))
    ends = F.array(_edge("sha256"), _edge("centre"))
    return hung.select(F.inline(ends)).where("sha256 != centre").distinct()


def _edge(node: str) -> Column:
    return F.struct(F.col(node).alias("sha256"), F.col("smallest").alias("centre"))


def _state(edges: DataFrame) -> tuple[int, int | None]:
    """How many edges, and a hash of all of them, whatever their order."""
    found = edges.agg(F.count("*").alias("n"), F.bit_xor(F.xxhash64("sha256", "centre")).alias("hash")).first()
    assert found is not None
    return int(found["n"]), cast(int | None, found["hash"])


def _join(edges: pa.Table) -> pa.Table:
    """`components` of a table in memory: union and find, with path halving (Tarjan and van Leeuwen 1984)."""
    above: dict[str, str] = {}

    def root(node: str) -> str:
        while (parent := above.setdefault(node, node)) != node:
            above[node] = node = above[parent]
        return node

    for one, other in zip(edges["sha256"].to_pylist(), edges["centre"].to_pylist(), strict=True):
        low, high = sorted((root(one), root(other)))
        above[high] = low
    groups = {node: root(node) for node in sorted(above)}
    hung = {node: group for node, group in groups.items() if node != group}
    return pa.table({"sha256": pa.array(hung, pa.string()), "group": pa.array(hung.values(), pa.string())})
