"""Random histories of real shard sets: append, change, delete, compact, kill, sweep, and going back to an old version.

After each step the newest version holds exactly its documents, cells with the same documents keep their very files,
and no older version has changed; at the end a rebuild in another home gives the same bytes. A fixed history runs
always; the machine, at some 10 s a step, is marked slow.
"""

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.shard.history import History, hashes, row_of, spans, texts_of, write_set
from tests.shard.test_increments import SETTINGS, rebuilt
from tests.shard.test_write import failing

from tessera import failpoints, garbage
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.shard import manifest, tokenizer
from tessera.shard.format import mds
from tessera.shard.garbage import garbage as of_shards

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DAY = 86_400
FIRST = texts_of(range(120))
KILLED = {"files.before_rename": False, "shard.before_manifest": False, "publish.after_commit": True}
"""Where the driver dies -> whether its version is there afterwards."""


@dataclass(frozen=True)
class Published:
    """A version of the set, as it was when it was published."""

    record: ShardRecord
    prepared: PrepareRecord
    texts: dict[int, str]
    files: dict[str, str]


class Sets:
    """One home with one set, and what its versions must be."""

    def __init__(self, spark: "SparkSession", folder: Path) -> None:
        self.spark = spark
        self.folder = folder
        self.home = Home(folder / "home")
        self.history = History(self.home)
        self.published: list[Published] = []
        self.texts: dict[int, str] = {}
        self.publish(FIRST)

    def publish(self, texts: dict[int, str]) -> None:
        """A new documents version, and the set of it."""
        prepared = self.history.write(texts)
        self.texts = texts
        before = self.inodes()
        self.note(write_set(self.spark, self.home, prepared, settings=SETTINGS), prepared=prepared, texts=texts)
        self.kept_files_are_the_same(before)

    def append(self, number: int) -> None:
        first = max(self.texts) + 1
        self.publish(self.texts | texts_of(range(first, first + number)))

    def change(self, keys: set[int]) -> None:
        edition = len(self.published)
        self.publish(self.texts | {key: texts_of(range(key, key + 1), edition=edition)[key] for key in keys})

    def delete(self, keys: set[int]) -> None:
        self.publish({key: text for key, text in self.texts.items() if key not in keys})

    def compact(self) -> None:
        newest = self.history.records[-1]
        chosen = SETTINGS.model_copy(update={"compact_through": newest.table.version})
        self.note(write_set(self.spark, self.home, newest, settings=chosen), prepared=newest, texts=self.texts)

    def go_back(self, number: int) -> None:
        """The set of an old documents version again."""
        old = self.published[number % len(self.published)]
        record = write_set(self.spark, self.home, old.prepared, settings=SETTINGS)
        self.note(record, prepared=old.prepared, texts=old.texts)

    def die(self, point: str, *, number: int) -> None:
        """The driver dies; what it had begun is there whole, or not at all, and the next writer goes on."""
        texts = self.texts | texts_of(range(5 * number, 5 * number + 3), edition=100 + len(self.published))
        prepared = self.history.write(texts)
        self.texts = texts
        failpoints._passed.clear()
        os.environ["TESSERA_FAIL"] = f"{point}:raise"
        try:
            with pytest.raises(Exception, match=f"failpoint {point}"):
                write_set(self.spark, self.home, prepared, settings=SETTINGS)
        finally:
            del os.environ["TESSERA_FAIL"]
        if KILLED[point]:
            self.note(manifest.read_record(self.home, name="docs"), prepared=prepared, texts=texts)

    def lose_a_task(self, number: int) -> None:
        """A worker raises after a file; Spark runs its task again."""
        marker = self.folder / f"lost-{len(self.published)}"
        with failing(self.spark, f"shard.after_file:raise:1:{marker}"):
            self.append(number)
        assert marker.exists()

    def sweep(self) -> None:
        for file in self.home.shards.rglob("*"):
            os.utime(file, times=(time.time() - 2 * DAY,) * 2)
        garbage.remove(list(of_shards(self.home, before=time.time() - DAY)))
        named = {file for one in self.published for file in one.files}
        folder = manifest.set_folder(self.home, name="docs")
        found = {f"{split}/{file.name}" for split in ("train", "heldout") for file in (folder / split).iterdir()}
        assert found - {"train/index.json", "heldout/index.json"} == named

    def note(self, record: ShardRecord, *, prepared: PrepareRecord, texts: dict[int, str]) -> None:
        assert record.manifest.version == len(self.published)
        self.published.append(
            Published(record=record, prepared=prepared, texts=texts, files=hashes(self.home, name="docs"))
        )

    def inodes(self) -> dict[str, int]:
        folder = manifest.set_folder(self.home, name="docs")
        files = self.published[-1].files if self.published else {}
        return {file: (folder / file).stat().st_ino for file in files}

    def kept_files_are_the_same(self, before: dict[str, int]) -> None:
        """Cells with the same documents have the same files, and nobody has written these again."""
        if len(self.published) < 2:
            return
        after = self.inodes()
        old, new = (cells_of(spans(self.home, one.record)) for one in self.published[-2:])
        for cell, (documents, files) in old.items():
            if cell in new and new[cell][0] == documents:
                assert new[cell][1] == files
                assert {file: before[file] for file in files} == {file: after[file] for file in files}

    def check_newest(self) -> None:
        """Exactly the documents of the newest version, token by token."""
        newest = self.published[-1]
        loaded = tokenizer.load(self.home.resolve(newest.record.tokenizer.path))
        encoded = loaded.encode_batch(list(newest.texts.values()))
        wanted = {
            row_of(key, "")["doc_id"]: [*ids, loaded.end_id] for key, ids in zip(newest.texts, encoded, strict=True)
        }
        assert documents_of(self.home, newest.record) == wanted

    def check_all(self) -> None:
        """No version has changed since it was published."""
        for version, one in enumerate(self.published):
            assert hashes(self.home, name="docs", version=version) == one.files
            held = {row["doc_id"] for row in spans(self.home, one.record)}
            assert held == {row_of(key, "")["doc_id"] for key in one.texts}

    def check_rebuild(self, number: int = -1) -> None:
        """Written whole, in another home, from the same documents: the same bytes."""
        one = self.published[number]
        compacted = one.record.generations[0].generation if one.record.compactions else None
        chosen = SETTINGS.model_copy(update={"compact_through": compacted})
        target = self.folder / f"rebuilt-{time.monotonic_ns()}"
        other, record = rebuilt(self.spark, self.home, one.prepared, to=target, settings=chosen)
        assert hashes(other, name="docs") == one.files
        assert spans(other, record) == spans(self.home, one.record)
        assert manifest.read_cells(other, record).equals(manifest.read_cells(self.home, one.record))
        shutil.rmtree(target)


def cells_of(rows: list[dict[str, Any]]) -> dict[tuple[str, int, int], tuple[set[tuple[str, str]], set[str]]]:
    """Cell -> (its documents with their contents, its files)."""
    cells: dict[tuple[str, int, int], tuple[set[tuple[str, str]], set[str]]] = {}
    for row in rows:
        documents, files = cells.setdefault((row["split"], row["generation"], row["bucket"]), (set(), set()))
        documents.add((row["doc_id"], row["sha256"]))
        files.add(row["file"])
    return cells


def documents_of(home: Home, record: ShardRecord) -> dict[str, list[int]]:
    """doc_id -> its tokens, as they lie in the files that the manifest names."""
    folder = manifest.set_folder(home, name=record.name)
    names = manifest.read_manifest(home, record.name, record.manifest.version)["file"].to_pylist()
    samples = {file: list(mds.read_samples(folder / file)) for file in names}
    found: dict[str, list[int]] = {}
    for span in spans(home, record):
        tokens = samples[span["file"]][span["sample"]]["tokens"]
        found.setdefault(span["doc_id"], []).extend(tokens[span["start"] : span["start"] + span["num_tokens"]].tolist())
    return found


def test_a_fixed_history(spark: "SparkSession", tmp_path: Path) -> None:
    sets = Sets(spark, tmp_path)
    sets.append(15)
    sets.die("shard.before_manifest", number=1)
    sets.sweep()
    sets.die("publish.after_commit", number=7)
    sets.compact()
    sets.change({3, 5, 130})
    sets.go_back(1)
    sets.sweep()

    sets.check_newest()
    sets.check_all()
    sets.check_rebuild(-2)


class Histories(RuleBasedStateMachine):
    """The same, in any order."""

    def __init__(self, spark: "SparkSession", folder: Path) -> None:
        super().__init__()
        self.folder = folder / hashlib.sha256(str(time.monotonic_ns()).encode()).hexdigest()[:12]
        self.folder.mkdir()
        self.sets = Sets(spark, self.folder)

    @rule(number=st.integers(1, 30))
    def append(self, number: int) -> None:
        self.sets.append(number)

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        self.sets.change(data.draw(st.sets(st.sampled_from(sorted(self.sets.texts)), min_size=1, max_size=5)))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.sets.delete(data.draw(st.sets(st.sampled_from(sorted(self.sets.texts)), min_size=1, max_size=20)))

    @rule()
    def compact(self) -> None:
        self.sets.compact()

    @rule(number=st.integers(0, 20))
    def go_back(self, number: int) -> None:
        self.sets.go_back(number)

    @rule(point=st.sampled_from(["shard.before_manifest", "publish.after_commit"]), number=st.integers(0, 20))
    def die(self, point: str, number: int) -> None:
        self.sets.die(point, number=number)

    @rule(number=st.integers(1, 5))
    def lose_a_task(self, number: int) -> None:
        self.sets.lose_a_task(number)

    @rule()
    def sweep(self) -> None:
        self.sets.sweep()

    @rule(number=st.integers(0, 20))
    def rebuild(self, number: int) -> None:
        self.sets.check_rebuild(number % len(self.sets.published))

    @invariant()
    def newest_holds_its_documents(self) -> None:
        self.sets.check_newest()
        self.sets.check_all()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_random_histories(spark: "SparkSession", tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: Histories(spark, tmp_path),
        settings=settings(
            max_examples=4, stateful_step_count=8, deadline=None, print_blob=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
