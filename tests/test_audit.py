"""The audit table: whatever is changed in it, taken out of it or put into it shows; and nobody's entry is lost.

An attacker here can write the home: `rewrite` makes the table anew, with a log that looks as ours does.
"""

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from typer.testing import CliRunner, Result

from tessera import audit, delta_log, publish, tables
from tessera.audit_commands import app
from tessera.errors import Conflict, FormatError
from tessera.home import Home
from tessera.lineage import AuditHead, PrepareRecord, TableVersion

KEY = "not to be found anywhere"
SOURCES = (
    TableVersion(name="notes", path="tables/notes", version=3, table_id="1"),
    TableVersion(name="pages", path="catalog.schema.pages", version=12, table_id="2"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(audit.KEY, raising=False)
    monkeypatch.setenv(audit.USER, "anna")
    monkeypatch.setenv("COLUMNS", "60")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(audit.KEY, KEY)
    return KEY


def add(home: Home, *, version: int = 0, purpose: str | None = "train") -> AuditHead:
    output = TableVersion(name="documents", path="tables/documents", version=version)
    return audit.append(
        home, stage="prepare", inputs=SOURCES, rows=1000 + version, purpose=purpose, output=output, fingerprint="f" * 64
    )


def fill(home: Home, *, entries: int = 4) -> list[AuditHead]:
    return [add(home, version=version) for version in range(entries)]


def rewrite(home: Home, entries: list[dict[str, Any]]) -> None:
    """Makes the table anew out of these entries, a commit each."""
    shutil.rmtree(audit.path(home))
    DeltaTable.create(audit.path(home), schema=audit.SCHEMA, configuration=audit.PROPERTIES)
    for entry in entries:
        write_deltalake(audit.path(home), pa.Table.from_pylist([entry], schema=audit.SCHEMA), mode="append")


def digest_of(entry: dict[str, Any]) -> str:
    """As docs/audit.md says it, so that anybody can."""
    fields = {name: value for name, value in entry.items() if name not in ("hash", "mac")}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def chained(entries: list[dict[str, Any]], *, macs: str | None) -> list[dict[str, Any]]:
    """The entries with new seqs and hashes, each with a mac by this key, or none."""
    done: list[dict[str, Any]] = []
    for entry in entries:
        made = {**entry, "seq": len(done), "previous": done[-1]["hash"] if done else "0" * 64}
        made["hash"] = digest_of(made)
        made["mac"] = hmac.digest(macs.encode(), made["hash"].encode(), "sha256").hex() if macs else None
        done.append(made)
    return done


def problems(home: Home, *, heads: list[AuditHead] | None = None, keyed_from: int = 0) -> str:
    return "\n".join(audit.verify(home, heads=heads or [], keyed_from=keyed_from).problems)


def test_an_entry_says_who_read_what_and_can_be_checked_by_anybody(home: Home, key: str) -> None:
    heads = [add(home, version=5), add(home, version=6, purpose=None)]

    first, second = audit.entries(home)
    assert {name: first[name] for name in ("format", "seq", "who", "stage", "rows", "purpose", "output")} == {
        "format": 1, "seq": 0, "who": "anna", "stage": "prepare", "rows": 1005, "purpose": "train",
        "output": "documents@5",
    }  # fmt: skip
    assert json.loads(first["inputs"]) == [
        {"name": "notes", "path": "tables/notes", "version": 3},
        {"name": "pages", "path": "catalog.schema.pages", "version": 12},
    ]
    assert first["previous"] == "0" * 64
    assert (second["previous"], second["purpose"]) == (first["hash"], None)
    assert first["at"] < second["at"]
    for entry, head in zip((first, second), heads, strict=True):
        assert entry["hash"] == digest_of(entry) == head.hash
        assert entry["mac"] == hmac.digest(KEY.encode(), head.hash.encode(), "sha256").hex()
    found = audit.verify(home, heads=heads)
    assert found == audit.Audited(entries=2, head=heads[-1], heads=2, macs=2, problems=())


def test_the_key_is_nowhere_and_without_it_there_is_no_mac(
    home: Home, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(home)
    monkeypatch.setenv(audit.KEY, "")
    add(home)

    assert [entry["mac"] is None for entry in audit.entries(home)] == [False, True]
    assert not [file for file in home.root.rglob("*") if file.is_file() and key.encode() in file.read_bytes()]
    found = audit.verify(home, heads=[])
    assert (found.macs, found.problems) == (0, ())


CHANGES: dict[str, Any] = {
    "format": 2, "seq": 9, "at": "2020-01-01T00:00:00.000000+00:00", "who": "mallory", "stage": "score", "inputs": "[]",
    "rows": 1, "purpose": None, "output": "documents@99", "fingerprint": "0" * 64, "previous": "1" * 64,
    "hash": "2" * 64, "mac": "3" * 64,
}  # fmt: skip


@pytest.mark.parametrize("field", audit.SCHEMA.names)
def test_any_field_of_any_entry_that_is_changed_shows(home: Home, key: str, field: str) -> None:
    fill(home, entries=3)
    original = audit.entries(home)

    for place, entry in enumerate(original):
        rewrite(home, [*original[:place], {**entry, field: CHANGES[field]}, *original[place + 1 :]])
        said = problems(home)
        assert f"entry {9 if field == 'seq' else place}: found" in said, said
        assert key not in said


@pytest.mark.parametrize("field", [name for name in audit.SCHEMA.names if name != "mac"])
def test_without_the_key_any_field_but_the_mac_shows(home: Home, field: str) -> None:
    fill(home, entries=2)
    entry, last = audit.entries(home)

    rewrite(home, [{**entry, field: CHANGES[field]}, last])

    assert problems(home)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([0, 2, 3], "entry 1: found none, expected 1"),
        ([0, 3], "entries 1 to 2: found none, expected 2"),
        ([1, 2, 3], "entry 0: found none, expected 1"),
        ([0, 1, 1, 2, 3], "entry 1: found more than one of this seq, expected entry 2"),
    ],
)
def test_an_entry_that_is_taken_out_or_doubled_leaves_a_gap(home: Home, kept: list[int], said: str) -> None:
    fill(home)
    original = audit.entries(home)

    rewrite(home, [original[place] for place in kept])

    assert problems(home) == said


def test_entries_that_are_cut_off_show_by_the_heads_alone(home: Home, key: str) -> None:
    heads = fill(home)

    rewrite(home, audit.entries(home)[:2])

    assert problems(home) == "", "nothing in the table itself can tell"
    assert problems(home, heads=heads[:2]) == ""
    said = problems(home, heads=heads)
    assert [line.partition(", which")[0] for line in said.splitlines()] == [
        f"entry {head.seq}: found none, expected hash {head.hash[:16]}" for head in heads[2:]
    ]
    add(home, version=9)
    assert "entry 2: found hash" in problems(home, heads=heads), "an entry in its place does not hide it"


def test_a_table_that_is_rolled_back_or_gone_shows_by_the_heads(home: Home) -> None:
    heads = fill(home)
    log = audit.path(home) / "_delta_log"
    (log / f"{delta_log.commits(audit.path(home))[-1]:020}.json").unlink()
    assert "entry 3: found none" in problems(home, heads=heads)

    shutil.rmtree(audit.path(home))
    assert audit.verify(home, heads=[]).entries == 0
    assert len(problems(home, heads=heads).splitlines()) == 4


@pytest.mark.parametrize("macs", [None, "a guess"])
def test_a_chain_that_is_made_anew_shows_by_macs_and_by_heads(
    home: Home, key: str, monkeypatch: pytest.MonkeyPatch, macs: str | None
) -> None:
    heads = fill(home)
    forged = audit.entries(home)
    forged[1]["who"] = "mallory"
    forged[1:] = chained(forged, macs=macs)[1:]
    rewrite(home, forged)

    said = problems(home)
    if macs is None:
        assert said == f"entries 1 to 3: found no mac, expected one by {audit.KEY}"
    else:
        assert said.splitlines() == [
            f"entry {place}: found another mac, expected that of its fields by {audit.KEY}" for place in (1, 2, 3)
        ]
    right = hmac.digest(key.encode(), forged[1]["hash"].encode(), "sha256").hex()
    assert right[:16] not in said, "the mac that a forger lacks is not given away"
    monkeypatch.delenv(audit.KEY)
    assert problems(home) == "", "without key and heads it is a chain like any other"
    assert [line[:7] for line in problems(home, heads=heads).splitlines()] == ["entry 1", "entry 2", "entry 3"]


def test_a_mac_of_another_entry_or_of_another_key_does_not_pass(
    home: Home, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(home, entries=2)
    first, second = audit.entries(home)
    rewrite(home, [{**first, "mac": second["mac"]}, {**second, "mac": "nö mac"}])
    assert len(problems(home).splitlines()) == 2
    rewrite(home, [first, second])
    monkeypatch.setenv(audit.KEY, "another")

    assert len(problems(home).splitlines()) == 2


def test_a_key_that_came_later_is_told_from_outside_the_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, entries=2)
    monkeypatch.setenv(audit.KEY, KEY)
    fill(home, entries=2)

    assert problems(home) == f"entries 0 to 1: found no mac, expected one by {audit.KEY}"
    found = audit.verify(home, heads=[], keyed_from=2)
    assert (found.macs, found.problems) == (2, ())
    stripped = [{**entry, "mac": None} for entry in audit.entries(home)]
    rewrite(home, stripped)
    assert problems(home, keyed_from=2) == f"entries 2 to 3: found no mac, expected one by {audit.KEY}"
    forged = chained([{**stripped[0], "who": "mallory"}, *stripped[1:]], macs=None)
    rewrite(home, [*forged[:2], *stripped[2:]])
    assert "entry 2: found previous hash" in problems(home, keyed_from=2), "keyed entries vouch for those before"


def unlocked(home: Home) -> DeltaTable:
    table = DeltaTable(audit.path(home))
    table.alter.set_table_properties({"delta.appendOnly": "false"})
    return table


def test_delta_itself_refuses_to_take_rows_out(home: Home) -> None:
    fill(home)

    with pytest.raises(CommitFailedError, match="append-only"):
        DeltaTable(audit.path(home)).delete("seq = 1")
    assert problems(home) == ""


@pytest.mark.parametrize("operation", ["delete", "update", "overwrite", "restore", "create"])
def test_any_commit_but_an_append_shows_in_the_log(home: Home, operation: str) -> None:
    """Also when all entries are as they were: then the log alone tells."""
    heads = fill(home)
    rows = tables.read(audit.path(home))
    table = unlocked(home)
    before = table.version()
    if operation == "delete":
        table.delete("seq = 3")
        write_deltalake(table, rows.filter(pa.compute.equal(rows["seq"], 3)), mode="append")
    elif operation == "update":
        table.update({"who": "who"})
    elif operation == "overwrite":
        write_deltalake(table, rows, mode="overwrite")
    elif operation == "restore":
        table.delete("seq = 3")
        table.restore(before)
    else:
        DeltaTable.create(audit.path(home), schema=audit.SCHEMA, mode="overwrite", configuration=audit.PROPERTIES)
        write_deltalake(audit.path(home), rows, mode="append")

    said = problems(home, heads=heads)

    assert len(audit.entries(home)) == 4
    assert f"log version {before + 1}: found" in said
    assert f"log version {before}: found SET TBLPROPERTIES, expected an append" in said
    assert all(line.startswith("log version") for line in said.splitlines()), said


def test_optimize_is_no_harm_and_entries_go_on_after_it(home: Home) -> None:
    heads = fill(home)
    DeltaTable(audit.path(home)).optimize.compact()
    heads += fill(home, entries=2)

    found = audit.verify(home, heads=heads)

    assert (found.entries, found.problems) == (6, ())


def test_a_log_that_lost_its_beginning_shows(home: Home) -> None:
    fill(home)
    DeltaTable(audit.path(home)).create_checkpoint()
    for version in (0, 2):
        (audit.path(home) / "_delta_log" / f"{version:020}.json").unlink()

    said = problems(home)

    assert [line.partition(":")[0] for line in said.splitlines()] == ["log version 0", "log version 2"]
    fill(home, entries=1)
    assert len(audit.entries(home)) == 5, "appending does not need them"


def test_what_cannot_be_read_is_a_problem_and_no_entry(home: Home) -> None:
    fill(home)
    file = next(audit.path(home).glob("*.parquet"))
    content = file.read_bytes()
    file.unlink()
    assert file.name in problems(home)
    file.write_bytes(content)
    log = audit.path(home) / "_delta_log" / f"{2:020}.json"
    log.write_text(log.read_text()[:-30])
    assert problems(home)


def test_a_column_more_or_of_another_type_is_a_problem(home: Home) -> None:
    fill(home)
    rows = tables.read(audit.path(home))
    shutil.rmtree(audit.path(home))
    write_deltalake(audit.path(home), rows.append_column("text", [["x"] * 4]))
    assert "has the columns format, seq," in problems(home)
    shutil.rmtree(audit.path(home))
    write_deltalake(audit.path(home), rows.set_column(1, "seq", rows["seq"].cast(pa.string())))

    assert "of the types of an audit table" in problems(home)


def test_an_entry_of_nulls_is_a_problem_and_is_listed_as_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, entries=1)
    rewrite(home, [*audit.entries(home), dict.fromkeys(audit.SCHEMA.names)])
    monkeypatch.setenv("TESSERA_HOME", str(home.root))

    assert problems(home)
    assert "no entry that Tessera wrote" in run().stdout


def test_nothing_is_appended_to_what_a_newer_tessera_wrote(home: Home) -> None:
    fill(home, entries=1)
    (entry,) = audit.entries(home)
    rewrite(home, chained([{**entry, "format": 7}], macs=None))

    assert problems(home) == "entry 0: found format 7, expected 1"
    with pytest.raises(FormatError, match=r"newest entry of .* has format 7, .* newer Tessera"):
        add(home)
    assert len(audit.entries(home)) == 1


def test_another_append_in_between_is_chained_upon(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = publish.begin
    pending = [7, 8]

    def interrupted(path: Path, *, name: str) -> publish.Publication:
        mine = begin(path, name=name)
        if pending:
            with monkeypatch.context() as meanwhile:
                meanwhile.setattr(publish, "begin", begin)
                add(home, version=pending.pop(0))
        return mine

    monkeypatch.setattr(publish, "begin", interrupted)
    mine = add(home, version=1)

    assert mine.seq == 2
    assert [entry["rows"] for entry in audit.entries(home)] == [1007, 1008, 1001]
    assert problems(home, heads=[mine]) == ""
    monkeypatch.setattr(audit, "ATTEMPTS", 2)
    pending.extend([2, 3])
    with pytest.raises(Conflict, match="other processes appended first, 2 times"):
        add(home, version=5)


CHILD = """
import sys
from pathlib import Path
from tessera import audit, publish
from tessera.home import Home
from tessera.lineage import Record, TableVersion
from pyarrow import table
import deltalake

home, me = Home(Path(sys.argv[1])), sys.argv[2]
output = TableVersion(name="documents", path="tables/documents", version=0)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    publication = publish.begin(home.documents, name="documents") if me == "publishes" else None
    head = audit.append(home, stage="prepare", inputs=[output], rows=number, purpose=me, output=output, fingerprint="f")
    print(head.seq, head.hash, flush=True)
    if publication:
        record = Record(stage="prepare", fingerprint="f")
        publish.commit(publication, table({"id": ["a"]}), record=record, stats_columns="id")
"""


def start(home: Home, *, me: str, entries: int, fail: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home.root), me, str(entries)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "TESSERA_FAIL": fail},
    )  # fmt: skip


def test_processes_that_append_at_the_same_time_all_get_in(home: Home, key: str) -> None:
    """The table is not there yet: they make it at the same time, too."""
    children = [start(home, me=f"child {number}", entries=6) for number in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    heads = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, err = child.communicate()
        assert child.returncode == 0, err
        heads += [AuditHead(seq=int(line.split()[0]), hash=line.split()[1]) for line in out.splitlines()]

    assert sorted(head.seq for head in heads) == list(range(18))
    assert problems(home, heads=heads) == ""
    by_child = [(entry["purpose"], entry["rows"]) for entry in audit.entries(home)]
    assert sorted(by_child) == [(f"child {number}", rows) for number in range(3) for rows in range(6)]


def test_a_table_that_several_make_at_the_same_time_is_made_once(home: Home) -> None:
    """delta-rs would otherwise make it twice, as versions 0 and 1: it did so in 26 of 60 such races."""
    places = [home.tables / str(number) for number in range(12)]
    together = threading.Barrier(4)

    def make() -> None:
        for place in places:
            together.wait()
            audit._create(place)

    with ThreadPoolExecutor(4) as pool:
        for made in [pool.submit(make) for _ in range(4)]:
            made.result()

    assert [delta_log.commits(place) for place in places] == [[0]] * len(places)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_is_killed_around_its_publishing_leaves_a_true_entry(home: Home, number: int) -> None:
    """First after the entry's commit, before the documents'; then after both."""
    died = start(home, me="publishes", entries=1, fail=f"publish.after_commit:kill:{number}")
    died.communicate("\n")
    assert died.returncode == -9
    assert tables.exists(home.documents) == (number == 2)

    again = start(home, me="publishes", entries=1)
    out, err = again.communicate("\n")

    assert again.returncode == 0, err
    seq, digest = out.splitlines()[-1].split()
    assert seq == "1"
    assert [entry["output"] for entry in audit.entries(home)] == ["documents@0", "documents@0"]
    assert problems(home, heads=[AuditHead(seq=1, hash=digest)]) == ""


def test_who_is_always_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("uid not found")

    assert audit.who() == "anna"
    monkeypatch.delenv(audit.USER)
    monkeypatch.setenv("LOGNAME", "berta")
    assert audit.who() == "berta"
    monkeypatch.setenv(audit.USER, os.fsdecode(b"\xff"))
    assert audit.who() == "\ufffd"
    monkeypatch.setenv(audit.USER, "")
    monkeypatch.setattr("getpass.getuser", nobody)
    assert audit.who() == f"uid {os.getuid()}"


def put(path: Path, *, name: str, head: AuditHead | None) -> None:
    table = TableVersion(name=name, path=name, version=0)
    record = PrepareRecord(
        fingerprint="f", rows=1, documents=1, dropped={}, splits={}, num_bytes=1, table=table, audit=head
    )
    publish.commit(publish.begin(path, name=name), pa.table({"id": ["a"]}), record=record, stats_columns="id")


def test_heads_are_those_of_all_versions_of_documents_and_sets(home: Home) -> None:
    heads = fill(home, entries=3)
    assert audit.recorded_heads(home) == []
    for head in (heads[0], None, heads[1]):
        put(home.documents, name="documents", head=head)
    put(home.shards / "docs" / "manifest", name="shards/docs", head=heads[2])

    assert sorted(audit.recorded_heads(home), key=lambda head: head.seq) == heads


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_lists_and_verifies(home: Home, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_HOME", str(home.root))
    assert "no entries yet" in run().stdout
    monkeypatch.setenv(audit.USER, "anna\x1b[2K\n" + "x" * 80)
    heads = fill(home, entries=2)
    put(home.documents, name="documents", head=heads[-1])

    listed = run().stdout
    assert listed.index("documents@0") < listed.index("documents@1"), "newest last"
    assert "\x1b" not in listed
    assert max(map(len, listed.splitlines())) <= 60
    assert json.loads(run("--json").stdout) == audit.entries(home)
    kept = f"{heads[0].seq}:{heads[0].hash}"
    verified = run("verify", "--head", kept)
    assert verified.exit_code == 0
    assert (
        f"entries: 2; heads: 2; macs: 2\nall as they were written\nkeep this head elsewhere:\n1:{heads[1].hash}\n"
        in (verified.stdout)
    )
    assert json.loads(run("verify", "--json").stdout) == {
        "entries": 2, "head": {"seq": 1, "hash": heads[1].hash}, "heads": 1, "macs": 2, "problems": []
    }  # fmt: skip
    monkeypatch.delenv(audit.KEY)
    assert "no macs, TESSERA_AUDIT_KEY is not set" in " ".join(run("verify").stdout.split())


def test_the_command_leaves_with_1_when_something_is_wrong_and_2_when_it_is_asked_wrongly(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_HOME", str(home.root))
    heads = fill(home, entries=2)
    put(home.documents, name="documents", head=heads[-1])
    rewrite(home, audit.entries(home)[:1])

    for arguments in (("verify",), ("verify", "--json")):
        done = run(*arguments)
        assert done.exit_code == 1
        assert "entry 1: found none, expected hash" in " ".join(done.stdout.split())
    assert run("verify", "--head", "1").exit_code == 2
    assert run("verify", "--head", "one:two").exit_code == 2
    before = run("--json", "verify")
    assert before.exit_code == 2
    assert "options go behind verify" in " ".join(before.output.replace("│", " ").split())
