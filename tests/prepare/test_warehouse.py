"""Documents and decisions among other tables of a warehouse: comments, constraints, few files."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as F
from tests.prepare.test_documents import make_table, prepare, rows_of, texts
from tests.prepare.test_increments import Table, check

from tessera import publish, tables
from tessera.home import Home
from tessera.prepare import decisions, table, warehouse

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def test_every_column_says_what_it_holds_and_constraints_hold(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    make_table(tmp_path / "t", rows_of(texts(60)))
    prepare(spark, home, source={"path": str(tmp_path / "t")})

    for path, columns in ((home.documents, table.COLUMNS), (decisions.path(home), decisions.COLUMNS)):
        told = spark.sql(f"DESCRIBE TABLE delta.`{path}`").collect()
        assert {row.col_name: row.comment for row in told} == {name: warehouse.COMMENTS[name] for name in columns}
    properties = DeltaTable(home.documents).metadata().configuration
    assert warehouse.CONSTRAINTS.items() <= properties.items()
    row = spark.read.format("delta").load(str(home.documents)).limit(1)
    (text,) = (one.text for one in row.collect())
    for column, value in (("split", "'test'"), ("sha256", "'abc'"), ("num_bytes", "-1L"), ("doc_id", "string(NULL)")):
        with pytest.raises(Exception, match="CHECK constraint") as raised:  # a JVM's, or pyspark's own
            row.withColumn(column, F.expr(value)).write.format("delta").mode("append").save(str(home.documents))
        assert text not in str(raised.value)
    assert tables.read(home.documents).num_rows == 60


def test_small_files_that_changes_left_are_joined(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Table(tmp_path / "t", seed=2, feed=True)
    given = {"path": str(source.path)}
    prepare(spark, home, source=given)
    source.insert()
    prepare(spark, home, source=given)
    assert all(len(DeltaTable(path).file_uris()) > 1 for path in (home.documents, decisions.path(home)))
    monkeypatch.setattr(warehouse, "MAX_SMALL_FILES", 1)
    source.delete()

    record = check(spark, home, Home(tmp_path / "whole"), given)

    assert record.changes == {"t": "feed"}
    newest, before = DeltaTable(home.documents).history(2)
    assert (newest["version"], before["operation"]) == (record.table.version, "OPTIMIZE")
    joined = tables.data_files(home.documents, version=record.table.version - 1)
    assert len(joined) == 1
    assert len(DeltaTable(decisions.path(home)).file_uris()) == 1
    assert publish.read_record(home.documents) == record.model_dump(mode="json")
