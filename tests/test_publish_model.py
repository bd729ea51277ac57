"""Random histories of publishing against a reference: what was acknowledged is read, old or new, never a mixture.

The set here is as small as a set can be: a document is a number with a content, a cell is the documents of one
remainder, a file is a cell's JSON, named by its hash. Everything else is real: content-named files, a Delta side table
whose version is pinned, a Delta manifest with its record, the ledger, and the sweep that `tessera gc` uses. A step
costs some 0.1 s; `tests/shard/test_history.py` does the same to real shard sets.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tessera import failpoints, garbage, publish, tables
from tessera.errors import Conflict, SourceError
from tessera.failpoints import InjectedFault
from tessera.files import write_once
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion, TokenizerRef, now
from tessera.publish import Publication, Retention
from tessera.shard.garbage import garbage as of_shards
from tessera.shard.garbage import kept_versions
from tessera.shard.manifest import manifest_path, spans_path

SET = "docs"
CELLS = 3
DAY = 86_400
KILLED = {
    "files.before_rename": False,
    "shard.after_file": False,
    "shard.before_manifest": False,
    "publish.after_commit": True,
    "ledger.before_append": True,
}
"""Where a writer dies -> whether its version is there afterwards."""

Documents = dict[int, str]
Cell = tuple[str, bytes]
changes = st.dictionaries(st.integers(0, 8), st.one_of(st.none(), st.sampled_from("abcdef")), min_size=1, max_size=4)
"""Document -> its new content; None deletes it."""


@dataclass
class Reference:
    """What must be so: a list of versions, and what may be gone of them."""

    versions: list[Documents] = field(default_factory=list)
    swept: set[int] = field(default_factory=set)
    """Versions outside retention: read whole, or refused."""
    erased: set[int] = field(default_factory=set)
    """Versions that held an erased document: refused."""
    forgotten: set[int] = field(default_factory=set)
    in_ledger: set[int] = field(default_factory=set)

    @property
    def newest(self) -> Documents:
        return self.versions[-1] if self.versions else {}

    def publish(self, documents: Documents, *, in_ledger: bool = True) -> None:
        self.versions.append(documents)
        if in_ledger:
            self.in_ledger.add(len(self.versions) - 1)

    def forget(self, number: int) -> None:
        """Every version that holds the document names a file that goes."""
        self.erased |= {version for version, documents in enumerate(self.versions) if number in documents}
        self.publish({key: content for key, content in self.newest.items() if key != number})
        self.forgotten.add(number)

    def after(self, change: dict[int, str | None]) -> Documents:
        """The newest documents, changed; an erased one never comes back."""
        merged = {**self.newest, **change}
        return {key: content for key, content in sorted(merged.items()) if content and key not in self.forgotten}

    def sweep(self, *, keep: int | None) -> None:
        if keep is not None:
            self.swept |= set(range(len(self.versions) - keep))

    @staticmethod
    def cell(documents: Documents, number: int) -> str:
        return json.dumps({k: c for k, c in sorted(documents.items()) if k % CELLS == number % CELLS})


@dataclass
class Writer:
    """One writer at work on the set: begins, writes, publishes; each step may be the last it does."""

    home: Home
    documents: Documents
    publication: Publication
    files: dict[str, bytes] = field(default_factory=dict)
    record: ShardRecord | None = None

    @classmethod
    def begin(cls, home: Home, documents: Documents) -> "Writer":
        path = manifest_path(home, name=SET)
        return cls(home=home, documents=documents, publication=publish.begin(path, name=f"shards/{SET}"))

    def write(self) -> None:
        """Files, then the side table."""
        for cell in range(CELLS):
            held = {key: content for key, content in sorted(self.documents.items()) if key % CELLS == cell}
            data = json.dumps(held).encode()
            self.files[f"train/{cell}-{hashlib.sha256(data).hexdigest()[:16]}.mds"] = data
        for name, data in self.files.items():
            write_once(self.home.shards / SET / name, data)
            failpoints.hit("shard.after_file")
        side = spans_path(self.home, name=SET)
        ours = CommitProperties(
            custom_metadata={"userMetadata": json.dumps({"publish_id": self.publication.publish_id})}
        )
        rows = pa.table({"doc_id": [str(k) for k in self.documents], "content": list(self.documents.values())})
        write_deltalake(side, rows.cast(pa.schema([("doc_id", pa.string()), ("content", pa.string())])),
                        mode="overwrite", commit_properties=ours)  # fmt: skip
        version = publish.side_version(side, publish_id=self.publication.publish_id)
        assert version is not None
        self.record = a_record(self.home, self.publication, side_version=version)

    def commit(self, *, like_spark: bool = False) -> None:
        """Checks the files, then the one commit; raises Conflict when another was first."""
        assert self.record is not None
        folder = self.home.shards / SET
        for name, data in self.files.items():
            assert (folder / name).stat().st_size == len(data), f"{name} was taken from under its writer"
        failpoints.hit("shard.before_manifest")
        rows = pa.table({"file": list(self.files), "num_bytes": [len(data) for data in self.files.values()]})
        if like_spark and self.publication.parent != publish.NO_PARENT:
            self._commit_like_spark(rows)
        else:
            publish.commit(self.publication, rows, record=self.record, stats_columns="file")
        tables.Ledger(self.home.ledger).append(self.record)

    def _commit_like_spark(self, rows: pa.Table) -> None:
        """Delta's own way: on the newest version, whichever; and nothing at all when the transaction id is taken."""
        assert self.record is not None
        table = DeltaTable(self.publication.path)
        if (table.transaction_version(self.publication.name) or 0) < self.publication.version:
            ours = CommitProperties(
                custom_metadata={"userMetadata": self.publication.metadata(self.record)},
                app_transactions=[Transaction(self.publication.name, self.publication.version)],
            )
            write_deltalake(table, rows, mode="overwrite", commit_properties=ours)
        publish.confirm(self.publication)


def a_record(home: Home, publication: Publication, *, side_version: int) -> ShardRecord:
    def table(path: Path, version: int) -> TableVersion:
        return TableVersion(name=path.name, path=home.relative(path), version=version)

    return ShardRecord(
        fingerprint="f" * 64, created=now(), name=SET, manifest=table(publication.path, publication.version),
        spans=table(spans_path(home, name=SET), side_version), seq_len=16, tokens=0, shards=CELLS, splits={}, fill=1.0,
        tokenizer=TokenizerRef(path="t", sha256="t", vocab_size=300, end_id=0),
    )  # fmt: skip


def read(home: Home, version: int) -> Documents:
    """What a reader of this version gets, from the files and from the side table; raises when it cannot be read."""
    path = manifest_path(home, name=SET)
    rows = tables.read(path, version=version).to_pylist()
    record = publish.read_record(path, version=version)
    assert record is not None
    documents: Documents = {}
    for row in rows:
        data = (home.shards / SET / row["file"]).read_bytes()
        assert len(data) == row["num_bytes"]
        documents.update({int(key): content for key, content in json.loads(data).items()})
    spans = record["spans"]
    side = tables.read(home.resolve(spans["path"]), version=spans["version"]).to_pylist()
    assert {int(row["doc_id"]): row["content"] for row in side} == documents, "files and side table are of one version"
    return documents


@contextmanager
def dying_at(point: str, *, passed: int) -> Iterator[None]:
    failpoints._passed.clear()
    os.environ["TESSERA_FAIL"] = f"{point}:raise:{passed}"
    try:
        yield
    finally:
        del os.environ["TESSERA_FAIL"]


class Publishing(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory(prefix="publish-model-")
        self.home = Home(Path(self.folder.name) / "home")
        self.reference = Reference()

    def teardown(self) -> None:
        self.folder.cleanup()

    def begin(self, change: dict[int, str | None]) -> Writer:
        return Writer.begin(self.home, self.reference.after(change))

    @rule(change=changes, like_spark=st.booleans())
    def write(self, change: dict[int, str | None], like_spark: bool) -> None:
        writer = self.begin(change)
        writer.write()
        writer.commit(like_spark=like_spark)
        self.reference.publish(writer.documents)

    @rule()
    def retry(self) -> None:
        """The same documents once more: the same files, not one byte of them written again."""
        folder = self.home.shards / SET / "train"
        before = {file.name: file.stat().st_ino for file in folder.glob("*")} if self.reference.versions else {}
        writer = self.begin({})
        writer.write()
        writer.commit()
        for name in (Path(name).name for name in writer.files):
            assert name not in before or before[name] == (folder / name).stat().st_ino
        self.reference.publish(writer.documents)

    @rule(one=changes, other=changes, twin=st.booleans(), like_spark=st.booleans(), swap=st.booleans())
    def race(
        self, one: dict[int, str | None], other: dict[int, str | None], twin: bool, like_spark: bool, swap: bool
    ) -> None:
        """Two writers from one parent, at the same work or not: the second hears Conflict, its work is not there."""
        first, second = self.begin(one), self.begin(one if twin else other)
        for writer in (second, first) if swap else (first, second):
            writer.write()
        first.commit()
        self.reference.publish(first.documents)
        with pytest.raises(Conflict):
            second.commit(like_spark=like_spark)
        self.newest_is_read()

    @rule(change=changes, point=st.sampled_from(sorted(KILLED)), passed=st.integers(1, CELLS))
    def killed(self, change: dict[int, str | None], point: str, passed: int) -> None:
        """A writer dies somewhere; what it had acknowledged to nobody is there whole or not at all."""
        writer = self.begin(change)
        published = KILLED[point] and passed == 1
        try:
            with dying_at(point, passed=passed):
                writer.write()
                writer.commit()
        except InjectedFault:
            if published:
                self.reference.publish(writer.documents, in_ledger=False)
        else:  # the point was not passed so often
            self.reference.publish(writer.documents)

    @rule()
    def repair(self) -> None:
        """What a start of Tessera does: the newest record gets its row, once."""
        if not self.reference.versions:
            return
        record = publish.read_record(manifest_path(self.home, name=SET))
        tables.Ledger(self.home.ledger).repair(ShardRecord.model_validate(record))
        self.reference.in_ledger.add(len(self.reference.versions) - 1)

    @rule(keep=st.one_of(st.none(), st.integers(1, 3)), days=st.sampled_from([0, 2]))
    def sweep(self, keep: int | None, days: int) -> None:
        """A day passes, or none; then `tessera gc`."""
        self.age(days=days)
        self.remove(Retention(versions=keep))
        self.reference.sweep(keep=keep)
        if days:
            self.check_clean(Retention(versions=keep))

    @rule(change=changes)
    def sweep_under_a_writer(self, change: dict[int, str | None]) -> None:
        """Files of a killed writer lie there for days; the next takes them for its own while gc looks at them."""
        with suppress(InjectedFault), dying_at("shard.before_manifest", passed=1):
            dead = self.begin(change)
            dead.write()
            dead.commit()
        self.age(days=2)
        writer = self.begin(change)
        found = list(of_shards(self.home, before=time.time() - DAY))
        writer.write()
        garbage.remove(found)
        self.remove(Retention())
        writer.commit()
        self.reference.publish(writer.documents)

    @rule(number=st.integers(0, 8))
    def forget(self, number: int) -> None:
        """The document goes, and the files that hold it go at once, of all versions."""
        if number not in self.reference.newest:
            return
        folder = self.home.shards / SET
        holding = {file for file in folder.glob("train/*.mds") if str(number) in json.loads(file.read_bytes())}
        writer = self.begin({number: None})
        writer.write()
        writer.commit()
        for file in holding:
            file.unlink()
        self.reference.forget(number)
        assert not any(str(number) in json.loads(file.read_bytes()) for file in folder.glob("train/[0-9]*.mds"))

    @rule(data=st.data())
    def read_at_a_version(self, data: st.DataObject) -> None:
        if not self.reference.versions:
            return
        self.check_version(data.draw(st.integers(0, len(self.reference.versions) - 1)))

    @invariant()
    def newest_is_read(self) -> None:
        """Acknowledged = read; and no name ever holds anything but all that it says."""
        for file in (self.home.shards / SET / "train").glob("[0-9]*.mds"):
            assert hashlib.sha256(file.read_bytes()).hexdigest()[:16] == file.stem.split("-")[1]
        if not self.reference.versions:
            assert publish.read_record(manifest_path(self.home, name=SET)) is None
            return
        newest = len(self.reference.versions) - 1
        assert tables.open_table(manifest_path(self.home, name=SET)).version() == newest
        assert read(self.home, newest) == self.reference.newest

    @rule()
    def read_all(self) -> None:
        for version in range(len(self.reference.versions)):
            self.check_version(version)

    def check_version(self, version: int) -> None:
        """A version is as it was published; or, when it is no longer kept or was erased, refused, never another."""
        try:
            found = read(self.home, version)
        except (OSError, SourceError):
            assert version in self.reference.swept | self.reference.erased, f"version {version} is lost"
        else:
            assert version not in self.reference.erased, f"version {version} still gives an erased document"
            assert found == self.reference.versions[version]
        rows = [row for row in tables.Ledger(self.home.ledger).rows() if row["status"] == "done"]
        noted = [json.loads(row["record"])["manifest"]["version"] for row in rows]
        assert sorted(noted) == sorted(self.reference.in_ledger), "one row a version that was noted or repaired"

    def age(self, *, days: int) -> None:
        for file in self.home.shards.rglob("*"):
            moment = file.stat().st_mtime - days * DAY
            os.utime(file, times=(moment, moment))

    def remove(self, retention: Retention) -> None:
        garbage.remove(list(of_shards(self.home, before=time.time() - DAY, retention=retention)))

    def check_clean(self, retention: Retention) -> None:
        """Nothing lies in the set's folder but what kept versions name."""
        kept = kept_versions(self.home, name=SET, retention=retention)
        wanted = {
            f"{index % CELLS}-{hashlib.sha256(cell.encode()).hexdigest()[:16]}.mds"
            for version in kept
            for index, cell in enumerate(Reference.cell(self.reference.versions[version], n) for n in range(CELLS))
        }
        found = {file.name for file in (self.home.shards / SET / "train").glob("*")}
        assert found <= wanted, "leftovers survive the sweep"


TestPublishing = Publishing.TestCase
TestPublishing.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip
