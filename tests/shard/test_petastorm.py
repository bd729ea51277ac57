"""petastorm over real Delta tables, held against delta-rs and pyarrow, which read the same files by other code."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable, WriterProperties, write_deltalake

from tessera.errors import ConfigError, SetupError, SourceError
from tessera.garbage import TICK_SECONDS
from tessera.home import Home
from tessera.shard.read.petastorm import Batch, batch_reader, make_spark_converter, shim, sweep, torch_loader
from tessera.shard.read.petastorm.garbage import cache_folder, garbage

NUM_ROWS = 1000
ROW_GROUP = 64


def make_rows(num_rows: int, *, first: int = 0) -> pa.Table:
    keys = range(first, first + num_rows)
    text = [None if key % 7 == 0 else f"row {key}: \0 tail\0" if key % 11 == 0 else f"\u00fc {key}" for key in keys]
    return pa.table(
        {
            "key": pa.array(keys, pa.int64()),
            "text": pa.array(text),
            "weight": pa.array([key / 3 for key in keys]),
            "part": pa.array([f"a b/{key % 3}%" for key in keys]),
        }
    )


def write(path: Path, table: pa.Table, *, row_group: int = ROW_GROUP, **options: Any) -> Path:
    properties = WriterProperties(max_row_group_size=row_group, write_batch_size=row_group)
    write_deltalake(path, table, writer_properties=properties, **options)
    return path


@pytest.fixture
def table(tmp_path):
    """Five files of four row groups, the first removed again from version 6 on."""
    path = tmp_path / "table"
    for first in range(0, NUM_ROWS, 200):
        write(path, make_rows(200, first=first), mode="append")
    DeltaTable(path).delete("key < 200")
    return path


def rows_of(batches: Iterable[Batch]) -> Counter[tuple[Any, ...]]:
    return Counter(row for batch in batches for row in zip(*(array.tolist() for array in batch.values()), strict=True))


def expected_rows(path: Path, *, version: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row.values()) for row in DeltaTable(path, version=version).to_pyarrow_table().to_pylist())


def replace_file(file: Path, rows: pa.Table) -> None:
    """Puts a valid Parquet file of `rows` in the place of `file`, of the same number of bytes."""
    num_bytes = file.stat().st_size
    pq.write_table(rows, file, compression="zstd")
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    file.write_bytes(data[:footer] + bytes(num_bytes - len(data)) + data[footer:])
    assert pq.read_table(file).num_rows == rows.num_rows


def first_file(path: Path) -> Path:
    return Path(sorted(DeltaTable(path).file_uris())[0])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_epoch_returns_every_row_of_the_version(table, workers):
    reader = batch_reader(table, version=4, batch_size=96, epochs=20, workers=workers, seed=workers)
    assert len(reader.files.row_groups) == 20

    epochs = [rows_of(reader.epoch(number)) for number in range(20)]

    assert epochs == [expected_rows(table, version=4)] * 20
    assert rows_of(batch_reader(table, version=5, workers=workers)) == expected_rows(table, version=5)


def test_iterating_gives_all_epochs_and_can_be_broken_off(table):
    reader = batch_reader(table, version=4, columns=["key"], batch_size=300, epochs=3)
    running = threading.active_count()

    sizes = [len(batch["key"]) for batch in reader]
    for batch in reader:
        assert batch["key"].flags.writeable
        break
    del batch

    assert sizes == [300, 300, 300, 100] * 3
    assert threading.active_count() == running


def test_without_a_seed_one_worker_keeps_the_order_of_the_files(table):
    reader = batch_reader(table, version=4, columns=["key"], workers=1)

    found = np.concatenate([batch["key"] for batch in reader])

    stored = [pq.read_table(file, columns=["key"])["key"].to_numpy() for file in reader.files.paths]
    assert found.tolist() == np.concatenate(stored).tolist()


def test_a_seed_decides_the_order_and_each_epoch_has_its_own(table):
    def orders(seed):
        reader = batch_reader(table, version=4, columns=["key"], epochs=2, workers=1, batch_size=NUM_ROWS, seed=seed)
        return [batch["key"].tolist() for batch in reader]

    first, second = orders(5)

    assert orders(5) == [first, second]
    assert first != second
    assert orders(6)[0] != first
    inside = np.diff(np.array(first[:ROW_GROUP]))
    assert (inside < 0).any()
    assert (inside > 0).any()


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows_out(table, world_size, seed):
    readers = [
        batch_reader(table, version=5, columns=["key"], rank=rank, world_size=world_size, seed=seed)
        for rank in range(world_size)
    ]

    shares = [rows_of(reader) for reader in readers]

    assert [share.total() for share in shares] == [reader.num_rows for reader in readers]
    assert all(shares)
    assert sum(shares, Counter()) == Counter((key,) for key in range(200, NUM_ROWS))


def test_more_ranks_than_row_groups_are_refused(tmp_path):
    path = write(tmp_path / "table", make_rows(100))

    with pytest.raises(SourceError, match="2 row groups, wanted one for each of 3 ranks"):
        batch_reader(path, version=0, rank=0, world_size=3)


@pytest.mark.parametrize("num_rows", [40, 350])
def test_an_epoch_that_is_short_or_doubled_raises(table, num_rows):
    reader = batch_reader(table, version=4, columns=["key"], batch_size=96, epochs=2)
    assert rows_of(reader.epoch(0)) == Counter((key,) for key in range(NUM_ROWS))
    given = []

    replace_file(first_file(table), make_rows(num_rows).select(["key"]))
    with pytest.raises(SourceError, match=f"epoch 1 of rank 0 of 1 gave .* rows, wanted {NUM_ROWS}"):
        given.extend(reader.epoch(1))

    assert 0 < sum(len(batch["key"]) for batch in given) <= NUM_ROWS


def test_a_file_with_other_rows_than_the_log_says_is_refused_when_opened(table):
    replace_file(first_file(table), make_rows(40).select(["key"]))

    with pytest.raises(SourceError, match="holds 40 rows, the Delta log says 200"):
        batch_reader(table, version=5)


def test_a_file_of_another_size_or_none_is_refused(table):
    reader = batch_reader(table, version=5)
    file = first_file(table)
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(SourceError, match="bytes, the Delta log says"):
        batch_reader(table, version=5)
    with pytest.raises(SourceError, match="bytes, the Delta log says"):
        next(reader.epoch(0))

    file.unlink()
    with pytest.raises(SourceError, match="is gone; VACUUM took it"):
        batch_reader(table, version=5)


def test_a_damaged_page_raises_and_no_value_is_printed(table, capfd):
    reader = batch_reader(table, version=5, columns=["text"])
    file = first_file(table)
    data = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    file.write_bytes(data)

    with pytest.raises(SourceError, match="cannot be read"):
        list(reader)

    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_legal_order_of_events_loses_no_row_group(moment):
    """The last row group is handed out while the pool asks, for the `moment`-th time, whether all have been."""
    pools = shim.load("workers_pool.thread_pool")
    ours = pools.ThreadPool.get_results

    assert results(ours.__wrapped__, moment=moment) == []  # as petastorm has it
    assert results(ours, moment=moment) == ["row group"]


def results(get_results, *, moment: int) -> list[str]:
    """What a pool of petastorm gives of one item that its own ventilator hands out at an unlucky moment."""
    gate = threading.Event()

    class Ventilator(shim.load("workers_pool.ventilator").ConcurrentVentilator):
        asked = 0

        def completed(self):
            if threading.current_thread() is threading.main_thread():
                self.asked += 1
                if self.asked == moment:
                    gate.set()
                    self._ventilation_thread.join()
            return super().completed()

    class Worker(shim.load("workers_pool.worker_base").WorkerBase):
        def process(self, item):
            self.publish_func(item)

    pool = shim.load("workers_pool.thread_pool").ThreadPool(1)
    ventilator = Ventilator(lambda item: (gate.wait(), pool.ventilate(item)), [{"item": "row group"}])
    pool.start(Worker, ventilator=ventilator)
    found = []
    try:
        while True:
            found.append(get_results(pool))
    except shim.load("workers_pool").EmptyResultError:
        return found
    finally:
        pool.stop()
        pool.join()


def test_pyarrow_and_numpy_are_left_as_they_were():
    script = """
import sys
import numpy, pyarrow, pyarrow.dataset, pyarrow.fs, pyarrow.parquet
modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("pyarrow", "numpy")}
before = {name: dict(vars(module)) for name, module in modules.items()}
from tessera.shard.read.petastorm import shim
shim.load("reader"), shim.load("spark.spark_dataset_converter")
import petastorm
assert petastorm.reader.pq.ParquetDataset is shim.ParquetDataset
for name, module in modules.items():
    assert sys.modules[name] is module, name
    changed = {key for key, value in vars(module).items() if before[name].get(key, module) is not value}
    added = {key for key in changed if f"{name}.{key}" in sys.modules}  # sub-modules imported meanwhile
    assert changed == added, (name, changed - added)
for name in ("pyarrow.filesystem", "pyarrow.hdfs", "pyarrow.LocalFileSystem"):
    assert name not in sys.modules
    assert not hasattr(pyarrow, name.split(".")[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_importing_the_reader_imports_neither_petastorm_nor_torch_nor_pyspark():
    script = "import sys, tessera.shard.read.petastorm\nassert not {'petastorm', 'torch', 'pyspark'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_another_petastorm_is_refused(monkeypatch):
    monkeypatch.setattr(shim, "version", lambda name: "0.13.1")

    with pytest.raises(SetupError, match=r"petastorm is 0.13.1, wanted 0.12.1"):
        shim.load.__wrapped__("reader")


@pytest.fixture
def typed(tmp_path):
    """Every type that is taken, with a null where one has a place."""
    moments = [datetime(1500, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), None, datetime(9000, 1, 1, tzinfo=UTC)]
    columns = {
        "byte": pa.array([-128, 0, 127], pa.int8()),
        "short": pa.array([1, 2, 3], pa.int16()),
        "int": pa.array([1, 2, 3], pa.int32()),
        "long": pa.array([2**63 - 1, 2**53 + 1, -(2**63)], pa.int64()),
        "flag": pa.array([True, False, True]),
        "float": pa.array([0.1, None, 3], pa.float32()),
        "double": pa.array([0.1, None, 3], pa.float64()),
        "moment": pa.array(moments, pa.timestamp("us", tz="UTC")),
        "clock": pa.array([None if at is None else at.replace(tzinfo=None) for at in moments], pa.timestamp("us")),
        "day": pa.array([date(1, 1, 1), None, date(9999, 12, 31)]),
        "text": pa.array(["", None, "a\0"]),
        "bytes": pa.array([b"\xff\0", None, b""]),
        "vector": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32())),
    }
    write_deltalake(tmp_path / "typed", pa.table(columns))
    return tmp_path / "typed", columns


def test_types_and_nulls_come_as_documented(typed):
    path, columns = typed

    (batch,) = batch_reader(path, version=0)

    assert list(batch) == list(columns)
    kinds = {"flag": "bool", "moment": "M8[us]", "clock": "M8[us]", "day": "M8[D]", "text": "O", "bytes": "O"}
    widths = {"byte": "i1", "short": "i2", "int": "i4", "long": "i8", "float": "f4", "double": "f8", "vector": "f4"}
    assert {name: array.dtype for name, array in batch.items()} == {
        name: np.dtype(kind) for name, kind in (kinds | widths).items()
    }
    for name in ("byte", "short", "int", "long", "flag", "text", "bytes", "vector", "clock", "day"):
        assert batch[name].tolist() == columns[name].to_pylist()
    assert batch["moment"].tolist() == batch["clock"].tolist()
    for name in ("float", "double"):
        assert np.isnan(batch[name]).tolist() == [False, True, False]
        assert batch[name][[0, 2]].tolist() == columns[name].take([0, 2]).to_pylist()


def test_a_torch_loader_gives_tensors(typed):
    path, columns = typed
    names = [name for name in columns if name not in ("moment", "clock", "day")]

    (batch,) = torch_loader(batch_reader(path, version=0, columns=[*names, "moment"], fill={"moment": datetime.min}))

    assert {name for name, value in batch.items() if not isinstance(value, torch.Tensor)} == {"text", "bytes"}
    assert batch["text"] == ["", None, "a\0"]
    assert batch["long"].tolist() == columns["long"].to_pylist()
    assert batch["vector"].shape == (3, 2)
    assert batch["flag"].dtype == torch.bool
    assert batch["moment"].dtype == torch.int64
    assert batch["moment"][2].item() == int(datetime(9000, 1, 1, tzinfo=UTC).timestamp()) * 10**6
    with pytest.raises(SourceError, match="column day has nulls, 1 of them"):
        list(torch_loader(batch_reader(path, version=0, columns=["day"])))


def test_a_torch_loader_gives_every_row_every_epoch(table):
    loader = torch_loader(batch_reader(table, version=4, columns=["key"], batch_size=96, epochs=3, seed=1))

    keys = torch.cat([batch["key"] for batch in loader]).reshape(3, NUM_ROWS)

    assert torch.equal(keys.sort().values, torch.arange(NUM_ROWS).expand(3, -1))


def test_null_numbers_are_refused_unless_filled(tmp_path):
    rows = pa.table({"number": pa.array([1, None, 2**53 + 1]), "flag": pa.array([None, True, False])})
    write_deltalake(tmp_path / "table", rows)

    with pytest.raises(SourceError, match="column number has nulls, 1 of them met so far; give fill="):
        list(batch_reader(tmp_path / "table", version=0, columns=["number"]))
    (batch,) = batch_reader(tmp_path / "table", version=0, fill={"number": -1, "flag": True})
    assert batch["number"].tolist() == [1, -1, 2**53 + 1]
    assert batch["flag"].tolist() == [True, True, False]


def test_types_that_are_not_taken_are_refused_by_name(tmp_path):
    rows = pa.table(
        {
            "price": pa.array([1], pa.decimal128(10, 2)),
            "point": pa.array([{"x": 1}]),
            "words": pa.array([["a"]]),
            "key": pa.array([5]),
        }
    )
    write_deltalake(tmp_path / "table", rows)

    with pytest.raises(SourceError, match=r"cannot hold price \(decimal.*, point \(struct.*, words \(list"):
        batch_reader(tmp_path / "table", version=0)
    assert rows_of(batch_reader(tmp_path / "table", version=0, columns=["key"])) == Counter([(5,)])


def test_lists_of_several_lengths_are_refused(tmp_path):
    for lists in ([[1, 2], [3]], [[1, 2], [3, 4]]):
        rows = pa.table({"vector": pa.array(lists, pa.list_(pa.int32()))})
        write_deltalake(tmp_path / "table", rows, mode="append")

    with pytest.raises(SourceError, match="column vector has lists of 1 to 2 values"):
        list(batch_reader(tmp_path / "table", version=0))
    write_deltalake(
        tmp_path / "table", pa.table({"vector": pa.array([[1, 2, 3]], pa.list_(pa.int32()))}), mode="overwrite"
    )
    write_deltalake(tmp_path / "table", rows, mode="append")
    with pytest.raises(SourceError, match="column vector has lists of 2 to 3 values"):
        list(batch_reader(tmp_path / "table", version=3))


def test_partition_columns_come_back(tmp_path):
    rows = make_rows(100).append_column("number", pa.array([None if key % 4 == 0 else key % 4 for key in range(100)]))
    path = write(tmp_path / "table", rows, partition_by=["part", "number"])

    found = rows_of(batch_reader(path, version=0, fill={"number": -1}))

    expected = Counter(
        (*(row[name] for name in ("key", "text", "weight", "part")), -1 if row["number"] is None else row["number"])
        for row in rows.to_pylist()
    )
    assert found == expected


def test_a_file_that_is_older_than_a_column_gives_nulls(tmp_path):
    path = write(tmp_path / "table", make_rows(10))
    newer = make_rows(10, first=10).append_column("added", pa.array(["new"] * 10))
    write(path, newer, mode="append", schema_mode="merge")

    found = rows_of(batch_reader(path, version=1, columns=["added", "key"]))

    assert found == Counter([(None, key) for key in range(10)] + [("new", key) for key in range(10, 20)])


def test_names_that_are_odd_or_begin_alike(tmp_path):
    names = ["a", "a.c", "abc", "_id", "class", "with space", "fields"]
    rows = pa.table({name: [number] for number, name in enumerate(names)})
    write_deltalake(tmp_path / "table", rows)

    (batch,) = batch_reader(tmp_path / "table", version=0, columns=["a.c", "with space", "_id", "class", "fields", "a"])

    assert {name: array.tolist() for name, array in batch.items()} == {
        "a.c": [1], "with space": [5], "_id": [3], "class": [4], "fields": [6], "a": [0]
    }  # fmt: skip


def test_a_version_without_rows_gives_no_batches(table):
    DeltaTable(table).delete()

    assert list(batch_reader(table, version=6, epochs=2)) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"columns": ["nope"]},
            SourceError,
            "has the columns key, text, weight, part; found columns nope, wanted each once",
        ),
        ({"columns": ["key", "key"]}, SourceError, "found columns key, key, wanted"),
        ({"columns": []}, SourceError, "found columns none, wanted"),
        ({"fill": {"nope": 1}}, SourceError, "and fill for nope"),
        ({"version": 99}, SourceError, "has versions 0 to 5, wanted 99"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, wanted at least 1"),
        ({"epochs": 0}, ConfigError, "epochs is 0"),
        ({"workers": 0}, ConfigError, "workers is 0"),
        ({"rank": 2, "world_size": 2}, ConfigError, "rank is 2, wanted 0 to 1"),
    ],
)
def test_what_cannot_be_read_is_refused(table, options, error, message):
    with pytest.raises(error, match=message):
        batch_reader(table, **{"version": 5, **options})


@pytest.mark.spark
def test_deletion_vectors_are_refused_until_they_are_purged(spark, tmp_path):
    path = tmp_path / "table"
    frame = spark.range(100).coalesce(1).write.format("delta")
    frame.option("delta.enableDeletionVectors", "true").save(str(path))
    assert rows_of(batch_reader(path, version=0)).total() == 100
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id % 10 = 3")

    with pytest.raises(SourceError, match=r"1 files have deletion vectors.*REORG TABLE ... APPLY \(PURGE\)"):
        batch_reader(path, version=1)
    spark.sql(f"REORG TABLE delta.`{path}` APPLY (PURGE)")
    assert rows_of(batch_reader(path, version=2)) == Counter((key,) for key in range(100) if key % 10 != 3)


@pytest.mark.spark
def test_tables_of_spark(spark, tmp_path):
    """Spark's 96-bit timestamps keep years that nanoseconds cannot hold; mapped columns are refused."""
    path = tmp_path / "table"
    rows = (
        "VALUES (1, TIMESTAMP '1500-01-01 00:00:00', 'a b'), (2, TIMESTAMP '3000-01-01 00:00:00', NULL) AS t(k, at, p)"
    )
    spark.sql(f"SELECT * FROM {rows}").write.format("delta").partitionBy("p").save(str(path))
    assert rows_of(batch_reader(path, version=0, columns=["k", "at", "p"])) == Counter(
        [(1, datetime(1500, 1, 1), "a b"), (2, datetime(3000, 1, 1), None)]
    )

    mapped = tmp_path / "mapped"
    spark.range(3).write.format("delta").option("delta.columnMapping.mode", "name").save(str(mapped))
    with pytest.raises(SourceError, match="maps its columns by name"):
        batch_reader(mapped, version=0)


@pytest.mark.spark
def test_a_converter_gives_the_rows_of_its_dataframe(spark, tmp_path):
    home = Home(tmp_path / "my home")
    frame = spark.range(300).selectExpr("id AS key", "id / 3 AS third", "array(id, -id) AS pair").repartition(3)

    with make_spark_converter(frame, home=home) as converter:
        assert len(converter) == 300
        (folder,) = (path for path in cache_folder(home).iterdir() if path.is_dir())
        reader = converter.batch_reader(epochs=20, workers=2, batch_size=70, seed=1)
        for number in range(20):
            batches = list(reader.epoch(number))
            assert Counter(np.concatenate([batch["key"] for batch in batches]).tolist()) == Counter(range(300))
        for batch in batches:
            assert (batch["third"] == batch["key"] / 3).all()
            assert (batch["pair"] == batch["key"][:, None] * [1, -1]).all()
        shares = [rows_of(converter.batch_reader(columns=["key"], rank=rank, world_size=2)) for rank in (0, 1)]
        assert shares[0] + shares[1] == Counter((key,) for key in range(300))
        assert sum(len(batch["key"]) for batch in torch_loader(converter.batch_reader())) == 300

    assert not folder.exists()
    assert list(cache_folder(home).iterdir()) == []


@pytest.mark.spark
def test_a_converter_is_of_the_rows_of_now(spark, home, tmp_path):
    """petastorm alone gives the second converter the cache of the first: the two plans read the same path."""
    path = str(tmp_path / "rows")
    spark.range(10).write.parquet(path)
    first = make_spark_converter(spark.read.parquet(path), home=home)
    spark.range(10, 20).write.mode("append").parquet(path)
    second = make_spark_converter(spark.read.parquet(path), home=home)

    assert (len(first), len(second)) == (10, 20)
    assert rows_of(second.batch_reader()) == Counter((key,) for key in range(20))
    first.delete()
    assert rows_of(second.batch_reader()).total() == 20
    second.delete()


@pytest.mark.spark
def test_what_uses_a_cache_keeps_it(spark, home):
    reader = make_spark_converter(spark.range(50), home=home).batch_reader()

    assert sweep(home) == 0
    assert rows_of(reader).total() == 50
    del reader
    assert list(cache_folder(home).iterdir()) == []


def test_sweep_removes_what_a_killed_process_left(home):
    script = f"""
import sys, time
from pathlib import Path
from tessera.home import Home
from tessera.shard.read.petastorm.garbage import claim_folder
folder, lock = claim_folder(Home(Path({str(home.root)!r})))
(folder / "part.parquet").write_bytes(bytes(1000))
print(folder, flush=True)
time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        folder = Path(child.stdout.readline().strip())
        assert sweep(home) == 0
        assert folder.is_dir()
    finally:
        child.kill()
        child.communicate()
    orphan = cache_folder(home) / "orphan"
    orphan.mkdir()
    time.sleep(5 * TICK_SECONDS)  # what changed a moment ago may be in use: it is left alone

    assert list(garbage(home, before=time.time() - 3600)) == []
    assert {one.path: one.num_bytes for one in garbage(home, before=time.time() + 1)} == {
        folder: 1000, folder.with_name(f"{folder.name}.lock"): 0, orphan: 0
    }  # fmt: skip
    assert sweep(home) == 1000
    assert list(cache_folder(home).iterdir()) == []


@pytest.mark.spark
def test_homes_that_petastorm_would_misread_are_refused(spark, tmp_path):
    with pytest.raises(ConfigError, match="holds #, which petastorm cuts addresses at"):
        make_spark_converter(spark.range(3), home=Home(tmp_path / "a#b"))


def test_object_stores_are_refused():
    with pytest.raises(SourceError, match="petastorm reads mounted folders here"):
        batch_reader("s3://bucket/table", version=0)
