"""What an increment has to write: the cells that hold other documents than before.

A cell's documents are known by one hash over their ids and content hashes. Spark computes it of the documents table,
reading no text; the manifest has it of the cells that are stored. So no change feed is needed, and a version that went
back is seen like one that went on. Costs a pass over ids and hashes; the driver holds a row a cell.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard import manifest
from tessera.shard.cell import ID_BITS, Recipe

CELL = ("split", "generation", "bucket")
SLICE_CELLS = 1000


@dataclass(frozen=True, order=True)
class CellName:
    """One generation, range of ids and split."""

    split: str
    generation: int
    bucket: int


@dataclass(frozen=True)
class Changes:
    """The difference between what is stored and what the documents want."""

    kept: pa.Table
    """Manifest rows of cells that stay as they are."""
    wanted: Mapping[CellName, str]
    """Cells to be written -> the hash of what they will hold."""
    gone: Sequence[CellName]
    """Stored cells that have other documents now, or none."""

    @property
    def condition(self) -> str:
        """SQL on a side table: the rows of all cells that are written or gone."""
        return sql_of([*self.wanted, *self.gone])


def wanted_cells(table: DataFrame, *, recipe: Recipe) -> dict[CellName, str]:
    """The cells of a documents table, and the hash of what each holds: see `cell.content_hash`."""
    generation, bucket = generation_column(recipe), bucket_column(recipe)
    pair = F.concat("doc_id", "sha256")
    cells = (
        table.select("split", generation.alias("generation"), "doc_id", pair.alias("pair"))
        .withColumn("bucket", bucket)
        .groupBy(*CELL)
        .agg(F.sha2(F.array_join(F.array_sort(F.collect_list("pair")), ""), 256).alias("content"))
        .toArrow()
    )
    return {CellName(row["split"], row["generation"], row["bucket"]): row["content"] for row in cells.to_pylist()}


def compare(
    wanted: Mapping[CellName, str], *, parent: ShardRecord | None, recipe_hash: str, buckets: Mapping[int, int],
    home: Home, stored: bool,
) -> Changes:  # fmt: skip
    """Which stored cells can stay.

    Args:
        parent: the version that is gone on from; None for a new set.
        recipe_hash: see `recipe.hash_of`; under another one no file can stay.
        stored: whether a cell's files must be on disk to stay.
    """
    if parent is None or parent.recipe != recipe_hash:
        return Changes(kept=manifest.CELL_SCHEMA.empty_table(), wanted=wanted, gone=())
    rows = manifest.read_cells(home, parent)
    folder = manifest.set_folder(home, name=parent.name)
    missing = set(manifest.missing_shards(folder, rows)) if stored else set()
    names = names_of(rows)
    facts = zip(names, *(rows[name].to_pylist() for name in ("content", "buckets", "file")), strict=True)
    stale = {
        name for name, content, number, file in facts
        if wanted.get(name) != content or buckets.get(name.generation) != number or file in missing
    }  # fmt: skip
    kept = rows.filter(pa.array([name not in stale for name in names]))
    staying = set(names) - stale
    return Changes(
        kept=kept,
        wanted={name: content for name, content in wanted.items() if name not in staying},
        gone=sorted(stale),
    )


def only(table: DataFrame, *, cells: Sequence[CellName], recipe: Recipe) -> DataFrame:
    """The documents of these cells; files of the table without their generations are not opened."""
    generations = sorted({cell.generation for cell in cells})
    added = F.col("added").isin([one for one in generations if one != recipe.compacted])
    if recipe.compacted in generations:
        added |= F.col("added") <= recipe.compacted
    named = table.where(added).withColumn("generation", generation_column(recipe)).withColumn(
        "bucket", bucket_column(recipe)
    )  # fmt: skip
    return named.where(sql_of(cells)).drop("generation", "bucket")


def generation_column(recipe: Recipe) -> Column:
    """`Recipe.generation_of` in SQL."""
    return F.greatest(F.col("added"), F.lit(recipe.compacted).cast("long"))


def bucket_column(recipe: Recipe) -> Column:
    """`encode.bucket_of` in SQL, of `doc_id` and `generation`."""
    leading = F.conv(F.substring("doc_id", 1, ID_BITS // 4), 16, 10).cast("long")
    numbers = F.create_map(*(F.lit(value).cast("long") for pair in sorted(recipe.buckets.items()) for value in pair))
    return F.shiftright(leading * numbers[F.col("generation")], ID_BITS).cast("int")


def sql_of(cells: Iterable[CellName]) -> str:
    """A condition that these cells' rows meet, and no others'; for Spark, as long as it has to be.

    DataFusion dies of a list of tens of thousands, as of a chain of alternatives: see `slices` and `covering`.
    """
    parts = []
    for (split, generation), buckets in _by_generation(cells):
        if buckets[-1] - buckets[0] + 1 == len(buckets):
            chosen = f"bucket BETWEEN {buckets[0]} AND {buckets[-1]}"
        else:
            chosen = f"bucket IN ({', '.join(map(str, buckets))})"
        parts.append(f"(split = '{split}' AND generation = {generation} AND {chosen})")
    return " OR ".join(parts) or "false"


def slices(cells: Iterable[CellName]) -> Iterator[str]:
    """Conditions short enough for DataFusion, that together these cells' rows meet, and no others'."""
    listed = sorted(set(cells))
    for first in range(0, len(listed), SLICE_CELLS):
        yield sql_of(listed[first : first + SLICE_CELLS])


def covering(cells: Iterable[CellName]) -> str:
    """A short condition that these cells' rows meet, and those of cells between them."""
    return (
        " OR ".join(
            f"(split = '{split}' AND generation = {generation} AND bucket BETWEEN {buckets[0]} AND {buckets[-1]})"
            for (split, generation), buckets in _by_generation(cells)
        )
        or "false"
    )


def names_of(rows: pa.Table) -> list[CellName]:
    """The cell of each row."""
    return [CellName(*row) for row in zip(*(rows[name].to_pylist() for name in CELL), strict=True)]


def _by_generation(cells: Iterable[CellName]) -> Iterator[tuple[tuple[str, int], list[int]]]:
    """(split, generation) -> its buckets, ascending."""
    for key, group in groupby(sorted(set(cells)), key=lambda cell: (cell.split, cell.generation)):
        yield key, [cell.bucket for cell in group]
