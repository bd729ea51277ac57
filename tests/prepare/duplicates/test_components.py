"""Components against networks whose components are known, and union-find against breadth-first search."""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.prepare.duplicates import components as module
from tessera.prepare.duplicates.components import components

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Edge = tuple[str, str]


def searched(edges: Iterable[Edge]) -> dict[str, str]:
    """Node -> smallest node that can be reached from it, for all that are not it themselves."""
    neighbours: dict[str, set[str]] = {}
    for one, other in edges:
        neighbours.setdefault(one, set()).add(other)
        neighbours.setdefault(other, set()).add(one)
    groups: dict[str, str] = {}
    for start in sorted(neighbours):
        pending = [start]
        while pending:
            node = pending.pop()
            if node not in groups:
                groups[node] = start
                pending.extend(neighbours[node])
    return {node: group for node, group in groups.items() if node != group}


nodes = st.integers(0, 25).map(str)


@given(edges=st.lists(st.tuples(nodes, nodes).filter(lambda edge: edge[0] != edge[1]), max_size=40))
@settings(deadline=None)
def test_union_and_find_agrees_with_a_search(edges: list[Edge]) -> None:
    table = pa.table({"sha256": [one for one, _ in edges], "centre": [other for _, other in edges]},
                     schema=pa.schema([("sha256", pa.string()), ("centre", pa.string())]))  # fmt: skip

    found = module._join(table)

    assert dict(zip(found["sha256"].to_pylist(), found["group"].to_pylist(), strict=True)) == searched(edges)
    assert found.num_rows == len(searched(edges))


def networks() -> list[Edge]:
    """A hundred random networks side by side, chains of a thousand in order and out of it, a hub, a clique, loops."""
    random.seed(17)
    edges = []
    for number in range(100):
        size = random.randint(2, 12)
        some = [f"r{number}-{random.randrange(10**9)}" for _ in range(size)]
        edges += [(random.choice(some), random.choice(some)) for _ in range(random.randint(1, 2 * size))]
    edges += [(f"chain{i:04}", f"chain{i + 1:04}") for i in range(1000)]
    mixed = [f"mixed{i:04}" for i in random.sample(range(1000), 1000)]
    edges += [*zip(mixed[1:], mixed, strict=False), *zip(mixed[:-5], mixed[5:], strict=True)]
    edges += [("hub", f"arm{i:04}") for i in range(2000)]
    edges += [(f"clique{i}", f"clique{j}") for i in range(20) for j in range(20)]
    return edges


@pytest.mark.spark
@pytest.mark.parametrize("most_rounds", [0, 13], ids=["on the driver", "in rounds"])
def test_components_of_networks(spark: "SparkSession", most_rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of a thousand takes log2(1000) = 10 rounds, and one to see that nothing changes any more."""
    if most_rounds:
        monkeypatch.setattr(module, "DRIVER_EDGES", 0)
    rounds: list[int] = []
    small_star = module._small_star
    monkeypatch.setattr(module, "_small_star", lambda edges: rounds.append(1) or small_star(edges))
    edges = networks()
    frame = spark.createDataFrame(edges, "sha256 string, centre string").repartition(5)

    found = components(frame)

    rows = [(row["sha256"], row["group"]) for row in found.collect()]
    found.unpersist()
    assert len(rows) == len(dict(rows))
    assert dict(rows) == searched(edges)
    assert len(rounds) <= most_rounds


@pytest.mark.spark
def test_no_edges_no_groups(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch) -> None:
    none = spark.createDataFrame([("a", "a")], "sha256 string, centre string")
    assert components(none).collect() == []
    monkeypatch.setattr(module, "DRIVER_EDGES", -1)
    assert components(none).collect() == []
