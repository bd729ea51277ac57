"""How large the clusters of duplicates are, and how many rows each size displaced: sums over `tables/decisions`.

DataFusion holds a hash and two sums for each cluster of two or more, and the hashes of the row groups that it reads:
350 MiB for 260,000 clusters among 2 million decisions in row groups of a million. Where there may be more clusters than
CLUSTERS_A_PASS it passes over the two columns again, once for each first digit of the hashes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera import tables

CLUSTERS_A_PASS = 2**21
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
"""Reasons of rows that were displaced."""
DISPLACED = "CASE WHEN reason IS NULL THEN rows - 1 ELSE rows END"
"""Source rows that a decision took away: of equal rows that became a document, all but one."""


@dataclass(frozen=True)
class Clusters:
    """One sort of duplicates, as SQL on the decisions."""

    name: str
    reason: str
    displaced: str
    """The decisions that took rows away."""
    key: str
    """Equal within a cluster: a SHA-256 in hex."""
    others: str
    """How much larger than one they make their cluster."""


NEAR = Clusters("near", NEAR_DUPLICATE, displaced=f"reason = '{NEAR_DUPLICATE}'", key="group", others="count(*)")
"""As large as its contents, each of which may be that of several rows."""


def exact(*, extra_copies: str) -> Clusters:
    """As large as its rows.

    Args:
        extra_copies: the reason why equal rows of one document are dropped but one.
    """
    where = f"reason = '{DUPLICATE}'" + (" OR (reason IS NULL AND rows > 1)" if extra_copies == DUPLICATE else "")
    return Clusters("exact", DUPLICATE, displaced=where, key="sha256", others=f"sum({DISPLACED})")


def classes(path: Path, *, version: int, clusters: Clusters, displaced: int) -> Iterator[tuple[int, int, int]]:
    """(smallest size of the class, a power of two; clusters; rows they displaced), a class perhaps several times.

    Args:
        path: the table of decisions.
        displaced: rows that were displaced in all: there cannot be more clusters.
    """
    for prefix in _prefixes(displaced):
        sql = f"""
            SELECT CAST(floor(log2(others + 1)) AS INT) AS power, count(*) AS clusters, sum(displaced) AS displaced
            FROM (SELECT {clusters.others} AS others, sum({DISPLACED}) AS displaced FROM rows
                  WHERE ({clusters.displaced}) AND starts_with("{clusters.key}", '{prefix}')
                  GROUP BY "{clusters.key}")
            GROUP BY 1
        """
        for found in tables.query(path, version=version, sql=sql).to_pylist():
            yield 2 ** found["power"], found["clusters"], found["displaced"]


def _prefixes(number: int) -> list[str]:
    """First hex digits that part so many hashes into passes of about CLUSTERS_A_PASS; for none, no pass."""
    digits = 0
    while number > CLUSTERS_A_PASS * 16**digits:
        digits += 1
    return [f"{place:x}".zfill(digits)[:digits] for place in range(16**digits)] if number else []
