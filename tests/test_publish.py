"""Publishing: parent assertion, conflicts, kills around the commit, and the ledger that follows."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, write_deltalake

from tessera import delta_log, publish, tables
from tessera.errors import Conflict, FormatError, SourceError
from tessera.files import write_once
from tessera.home import Home
from tessera.lineage import FORMAT, Record, SampleRecord, TableVersion, now
from tessera.publish import Retention

ROWS = pa.table({"id": ["a", "b"], "text": ["alpha", "beta"]})


def a_record(rows: int = 2) -> SampleRecord:
    table = TableVersion(name="t", path="tables/t", version=0)
    return SampleRecord(fingerprint="f" * 64, rows=rows, table=table, created=now())


def put(path: Path, *, rows: int = 2) -> int:
    return publish.commit(publish.begin(path, name="t"), ROWS, record=a_record(rows), stats_columns="id")


def test_a_commit_carries_its_record_and_keeps_text_out_of_the_log(home: Home) -> None:
    path = home.tables / "t"

    assert [put(path, rows=1), put(path, rows=2)] == [0, 1]

    first = publish.read_record(path, version=0)
    newest = publish.read_record(path)
    assert first is not None
    assert newest is not None
    assert (first["rows"], newest["rows"]) == (1, 2)
    log = "".join(file.read_text() for file in (path / "_delta_log").glob("*.json"))
    assert "alpha" not in log
    assert '"minValues\\":{\\"id\\"' in log


def test_a_record_is_read_from_its_own_commit_and_records_come_newest_first(home: Home) -> None:
    path = home.tables / "t"
    for rows in range(4):
        put(path, rows=rows)
    for version in (0, 1, 3):  # what others hold is not looked at; the newest version is named by a file's name
        log = path / "_delta_log" / f"{version:020}.json"
        log.rename(log.with_suffix(".away"))

    assert publish.read_record(path, version=2)["rows"] == 2
    assert publish.read_record(path, version=1) is None, "Delta has cleaned it up: nothing is made up"
    for log in (path / "_delta_log").glob("*.away"):
        log.rename(log.with_suffix(".json"))
    assert [record["rows"] for record in publish.records(path)] == [3, 2, 1, 0]
    assert publish.side_version(path, publish_id="nobody's") is None


def test_a_record_of_a_newer_tessera_is_refused_by_name_and_nothing_is_published_upon_it(home: Home) -> None:
    path = home.tables / "t"
    put(path)
    newer = a_record().model_copy(update={"format": FORMAT + 1})
    with pytest.raises(FormatError, match="newer Tessera"):
        publish.commit(publish.begin(path, name="t"), ROWS, record=newer, stats_columns="id")

    for refused in (lambda: publish.read_record(path), lambda: publish.begin(path, name="t"),
                    lambda: list(publish.records(path))):  # fmt: skip
        with pytest.raises(FormatError, match=rf"t version 1 has format {FORMAT + 1}, .* written by a newer Tessera"):
            refused()
    assert publish.read_record(path, version=0) is not None
    with pytest.raises(FormatError, match="newer Tessera"):
        SampleRecord.from_json(newer.to_json())


def test_the_log_of_a_table_of_ours_is_never_cut(home: Home) -> None:
    put(home.tables / "t")

    assert DeltaTable(home.tables / "t").metadata().configuration["delta.enableExpiredLogCleanup"] == "false"


@pytest.mark.parametrize("cut", [False, True])
def test_the_files_of_versions_are_those_that_delta_rs_finds(home: Home, cut: bool) -> None:
    path = home.tables / "t"
    rows = pa.table({"id": ["a"], "part": ["x=1 %20/ż"]})
    for version in range(8):
        mode = "overwrite" if version in (0, 5) else "append"
        write_deltalake(path, rows, mode=mode, partition_by=["part"])
        if version == 3 and cut:
            DeltaTable(path).create_checkpoint()
    first = 0
    if cut:
        first = 3
        for version in range(3):
            (path / "_delta_log" / f"{version:020}.json").unlink()
    by_delta_rs = {
        version: {str(Path(file).relative_to(path)) for file in DeltaTable(path, version=version).file_uris()}
        for version in range(first, 8)
    }

    assert delta_log.versions(path) == range(first, 8)
    for chosen in ([version] for version in by_delta_rs):
        assert delta_log.files(path, at=chosen) == by_delta_rs[chosen[0]]
    assert delta_log.files(path, at=[4, 7]) == by_delta_rs[4] | by_delta_rs[7]
    assert all((path / file).is_file() for file in delta_log.files(path, at=[7]))


@pytest.mark.parametrize(
    ("retention", "pinned", "kept"),
    [
        (Retention(), (), {0, 1, 2, 3, 4}),
        (Retention(versions=1), (), {4}),
        (Retention(versions=3), (0, 9), {0, 2, 3, 4}),
        (Retention(days=7), (), {2, 3, 4}),
        (Retention(days=0), (), {4}),
        (Retention(versions=4, days=7), (), {1, 2, 3, 4}),
    ],
)
def test_retention_keeps_the_newest_what_was_newest_lately_and_what_is_pinned(
    home: Home, retention: Retention, pinned: tuple[int, ...], kept: set[int]
) -> None:
    """Versions 0 to 3 are 40, 30, 20 and 5 days old: 2 was the newest until 5 days ago."""
    path = home.tables / "t"
    for age in (40, 30, 20, 5, 0):
        version = put(path)
        log = path / "_delta_log" / f"{version:020}.json"
        moment = int((time.time() - age * 86_400) * 1000)
        log.write_text(re.sub(r'"timestamp":\d+', f'"timestamp":{moment}', log.read_text()))

    assert publish.retained(path, retention=retention, pinned=pinned) == kept


def test_orphans_are_old_data_files_that_no_version_names(home: Home) -> None:
    path = home.tables / "t"
    put(path)
    put(path)
    named = delta_log.files(path, at=[0, 1])
    for name in ("old.parquet", ".old.parquet.crc", "part=1/old.parquet", "young.parquet", "old.txt"):
        file = path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    for file in path.rglob("*"):
        if file.name != "young.parquet":
            os.utime(file, times=(1, 1))

    def found(*versions: int) -> set[str]:
        return {str(file.relative_to(path)) for file in publish.orphans(path, versions=versions, before=2)}

    expected = {"old.parquet", ".old.parquet.crc", "part=1/old.parquet"}
    assert found(0, 1) == expected
    assert found(1) == expected | (named - delta_log.files(path, at=[1]))


def test_a_file_named_by_its_content_is_written_once_kept_young_and_mended(home: Home) -> None:
    file = home.shards / "a.mds"
    assert write_once(file, b"content")
    os.utime(file, times=(1, 1))
    inode = file.stat().st_ino

    assert not write_once(file, b"content")
    assert file.stat().st_ino == inode
    assert file.stat().st_mtime > time.time() - 60, "a sweep that is about to take it must see that it is wanted"
    file.write_bytes(b"cantent")
    assert write_once(file, b"content"), "damage of the same size is mended"
    assert file.read_bytes() == b"content"
    assert [path.name for path in home.shards.iterdir()] == ["a.mds"]


def test_a_kill_before_a_file_has_its_name_leaves_no_such_file(home: Home) -> None:
    script = (
        "import sys; from pathlib import Path; from tessera.files import write_once; "
        "write_once(Path(sys.argv[1]), b'x' * 1000)"
    )
    file = home.shards / "docs" / "train" / "a.mds"
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], env={**os.environ, "TESSERA_FAIL": "files.before_rename:kill"},
        check=False,
    )  # fmt: skip

    assert done.returncode == -9
    assert not file.exists()
    assert len(list(file.parent.iterdir())) == 1, "the passing name is left, which the sweep takes"


def test_the_second_of_two_writers_from_one_parent_gets_a_conflict(home: Home) -> None:
    path = home.tables / "t"
    put(path)
    one, two = publish.begin(path, name="t"), publish.begin(path, name="t")
    publish.commit(one, ROWS, record=a_record(), stats_columns="id")

    with pytest.raises(Conflict, match="version 1"):
        publish.commit(two, ROWS, record=a_record(), stats_columns="id")

    assert DeltaTable(path).version() == 1


def test_a_first_commit_that_lost_its_race_gets_a_conflict(home: Home) -> None:
    path = home.tables / "t"
    one, two = publish.begin(path, name="t"), publish.begin(path, name="t")
    publish.commit(one, ROWS, record=a_record(), stats_columns="id")

    with pytest.raises(Conflict):
        publish.commit(two, ROWS, record=a_record(), stats_columns="id")

    assert DeltaTable(path).version() == 0


def test_a_silently_skipped_commit_is_noticed(home: Home) -> None:
    """Delta skips a commit whose transaction id is taken; only reading again tells."""
    path = home.tables / "t"
    put(path)
    ours = publish.begin(path, name="t")
    put(path)

    with pytest.raises(Conflict):
        publish.confirm(ours)


@pytest.mark.parametrize("point", ["publish.after_commit:kill", "ledger.before_append:kill"])
def test_a_kill_after_the_commit_loses_only_the_ledger_row_and_repair_adds_it_once(home: Home, point: str) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from tests_publish_child import put_and_note; put_and_note(Path(sys.argv[1]))\n"
    )
    child = Path(__file__).parent / "children"
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.root), str(child)],
        env={**os.environ, "TESSERA_FAIL": point}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr

    ledger = tables.Ledger(home.ledger)
    recorded = publish.read_record(home.tables / "t")
    assert recorded is not None
    assert ledger.rows() == []
    record = SampleRecord.model_validate(recorded)
    assert ledger.repair(record)
    assert not ledger.repair(record)
    assert ledger.find(stage="sample", fingerprint=record.fingerprint) == record.to_json()


def test_the_ledger_finds_the_newest_finished_row(home: Home) -> None:
    ledger = tables.Ledger(home.ledger)
    old, new = a_record(1), a_record(2)
    ledger.append(old)
    ledger.append(new)
    ledger.append(Record(stage="sample", fingerprint=old.fingerprint), status="failed")

    found = ledger.find(stage="sample", fingerprint=old.fingerprint)

    assert found is not None
    assert json.loads(found)["rows"] == 2
    assert ledger.find(stage="sample", fingerprint="other") is None
    assert [row["status"] for row in ledger.rows()] == ["done", "done", "failed"]


def test_open_table_names_what_is_wrong(home: Home, tmp_path: Path) -> None:
    path = home.tables / "t"
    put(path)
    with pytest.raises(SourceError, match="is not a Delta table"):
        tables.open_table(tmp_path / "nothing")
    with pytest.raises(SourceError, match="versions 0 to 0, wanted 7"):
        tables.open_table(path, version=7)
    with pytest.raises(SourceError, match="ISO 8601"):
        tables.open_table(path, timestamp="yesterday")


def test_open_table_at_a_timestamp(home: Home) -> None:
    path = home.tables / "t"
    put(path)
    time.sleep(0.05)  # commits are dated to the millisecond
    moment = now()
    time.sleep(0.05)
    put(path)

    assert tables.open_table(path, timestamp=moment).version() == 0
    assert tables.open_table(path).version() == 1


def test_missing_and_truncated_files_are_named(home: Home) -> None:
    path = home.tables / "t"
    put(path)
    assert tables.missing_files(path, version=0) == []
    file = next(path.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])
    assert tables.missing_files(path, version=0) == [file.name]
    file.unlink()
    assert tables.missing_files(path, version=0) == [file.name]


def test_a_gap_in_the_log_is_an_error(home: Home) -> None:
    path = home.tables / "t"
    for _ in range(3):
        put(path)
    (path / "_delta_log" / f"{1:020}.json").unlink()

    with pytest.raises(SourceError):
        tables.open_table(path, version=0)


def test_a_commit_of_ours_that_came_to_lie_on_anothers_is_undone(tmp_path: Path) -> None:
    """Spark's writers go on from the newest version, whoever made it."""
    path = tmp_path / "t"
    first = a_record(1)
    publish.commit(publish.begin(path, name="t"), pa.table({"id": ["a"]}), record=first, stats_columns="id")
    ours = publish.begin(path, name="t")
    write_deltalake(path, pa.table({"id": ["b"]}), mode="append")
    with pytest.raises(Conflict):
        ours.spark_options(a_record(2))
    metadata = CommitProperties(custom_metadata={"userMetadata": ours.metadata(a_record(2))})
    write_deltalake(path, pa.table({"id": ["c"]}), mode="append", commit_properties=metadata)
    assert publish.read_record(path) == first.model_dump(mode="json"), "not even for a moment"

    with pytest.raises(Conflict):
        publish.confirm(ours)

    assert sorted(tables.read(path)["id"].to_pylist()) == ["a", "b"]
    assert publish.read_record(path) == first.model_dump(mode="json")
    with pytest.raises(Conflict):
        publish.confirm(ours)
    assert sorted(tables.read(path)["id"].to_pylist()) == ["a", "b"], "and once only"
