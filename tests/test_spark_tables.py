"""Our tables as plain Parquet hold just what Delta's own reader gives, at every version."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tessera.errors import SourceError
from tessera.spark_tables import at_version

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("partitioned", [False, True])
def test_every_version_is_as_delta_reads_it(spark: "SparkSession", tmp_path: Path, partitioned: bool) -> None:
    path = tmp_path / "a home" / "t"
    by = ["kind"] if partitioned else None
    write_deltalake(path, pa.table({"kind": ["a b", "c"], "n": [1, 2]}), partition_by=by)
    more = pa.table({"kind": ["c"], "n": [3], "texts": [["x", None]]})
    write_deltalake(path, more, mode="append", schema_mode="merge")
    DeltaTable(path).delete("n = 1")
    DeltaTable(path).delete()

    for version in range(4):
        ours = at_version(spark, path, version=version)
        theirs = spark.read.format("delta").option("versionAsOf", version).load(str(path))
        assert ours.columns == theirs.columns
        assert sorted(map(str, ours.collect())) == sorted(map(str, theirs.collect()))
    with pytest.raises(SourceError, match="has versions 0 to 3, wanted 4"):
        at_version(spark, path, version=4)
