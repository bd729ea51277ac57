"""Publishing: parent assertion, conflicts, kills around the commit, and the ledger that follows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tessera import publish, tables
from tessera.errors import Conflict, SourceError
from tessera.home import Home
from tessera.lineage import Record, SampleRecord, TableVersion, now

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
