"""Random histories of real shard sets: append, change, delete, forget, compact, kill, sweep, and going back.

After each step the newest version holds exactly its documents and is what a rebuild in another home gives, byte for
byte; cells with the same documents keep their very files; no older version has changed but by what an erasure took,
and what holds an erased row is nowhere on disk and refused. A fixed history runs always; the machine, at some 10 s a
step, is marked slow.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, assume, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.shard.history import History, hashes, row_of, spans, texts_of, write_set
from tests.shard.test_increments import SETTINGS, rebuilt
from tests.shard.test_write import failing

from tessera import erasures, failpoints, garbage, tables
from tessera.errors import CorruptShard, SourceError
from tessera.failpoints import InjectedFault
from tessera.forgetting import rooms
from tessera.forgetting.needles import Needles
from tessera.forgetting.search import Holdings
from tessera.forgetting.target import Target
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.prepare import forget as prepare_forget
from tessera.progress import silent
from tessera.shard import manifest, stage, tokenizer
from tessera.shard.format import mds
from tessera.shard.garbage import garbage as of_shards
from tessera.shard.read.batches import open_split, sequential
from tessera.shard.run_manifest import SPLITS, write_run_manifest
from tessera.shard.settings import ShardSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

DAY = 86_400
FIRST = texts_of(range(120))
KEPT = 20
"""Keys below are never deleted: there is always a document held out, and one to train on."""
KILLED = {"files.before_rename": False, "shard.before_manifest": False, "publish.after_commit": True}
"""Where the driver dies -> whether its version is there afterwards."""


@dataclass(frozen=True)
class Published:
    """A version of the set, as it was when it was published."""

    record: ShardRecord
    texts: dict[int, str]
    files: dict[str, str]
    keys: dict[str, set[int]]
    """File -> the documents of which it holds a piece."""

    @property
    def documents(self) -> int:
        return self.record.inputs[0].version

    @property
    def compacted(self) -> int | None:
        return max((done for done in self.record.compactions if done <= self.documents), default=None)


class Sets:
    """One home with one set, and what its versions must be."""

    def __init__(self, spark: "SparkSession", folder: Path) -> None:
        self.spark = spark
        self.folder = folder
        self.home = Home(folder / "home")
        self.history = History(self.home)
        self.published: list[Published] = []
        self.prepared: list[dict[int, str]] = []
        """The texts of each documents version."""
        self.without: dict[int, int] = {}
        """Documents version that `forget` made -> the one that it was made of."""
        self.contents: dict[int, set[str]] = {}
        """Every content that a row was ever seen with."""
        self.erased: set[int] = set()
        self.next_key = max(FIRST) + 1
        self.num_rebuilt = 0
        self.publish(FIRST)

    @property
    def texts(self) -> dict[int, str]:
        """The newest documents."""
        return self.prepared[-1]

    @property
    def folder_of_set(self) -> Path:
        return manifest.set_folder(self.home, name="docs")

    def prepare(self, texts: dict[int, str]) -> PrepareRecord:
        """A new documents version; as prepare does, without rows that were erased."""
        left = {key: text for key, text in texts.items() if key not in self.erased}
        record = self.history.write(left)
        self.prepared.append(left)
        for key, text in left.items():
            self.contents.setdefault(key, set()).add(row_of(key, text)["sha256"])
        return record

    def publish(self, texts: dict[int, str]) -> None:
        """A new documents version, and the set of it."""
        self.write(self.prepare(texts))

    def write(self, prepared: PrepareRecord, *, chosen: ShardSettings = SETTINGS) -> None:
        before = self.inodes()
        record = write_set(self.spark, self.home, prepared, settings=chosen)
        assert record.inputs == (prepared.table,)
        self.note(record, texts=self.prepared[prepared.table.version])
        self.kept_files_are_the_same(before)

    def append(self, number: int) -> None:
        first, self.next_key = self.next_key, self.next_key + number
        self.publish(self.texts | texts_of(range(first, first + number)))

    def change(self, keys: set[int]) -> None:
        edition = len(self.prepared)
        self.publish(self.texts | {key: texts_of(range(key, key + 1), edition=edition)[key] for key in keys})

    def delete(self, keys: set[int]) -> None:
        self.publish({key: text for key, text in self.texts.items() if key not in keys})

    def compact(self) -> None:
        newest = self.history.records[-1]
        self.write(newest, chosen=SETTINGS.model_copy(update={"compact_through": newest.table.version}))

    def go_back(self, number: int) -> None:
        """The set of an old documents version again; of one that an erasure took rows of there can be none."""
        version = number % len(self.prepared)
        if self.is_readable(version):
            self.write(self.history.records[version])
            return
        with pytest.raises(SourceError, match=f"at version {version} is no longer readable"):
            write_set(self.spark, self.home, self.history.records[version], settings=SETTINGS)
        assert manifest.read_record(self.home, name="docs") == self.published[-1].record

    def die(self, point: str, *, number: int) -> None:
        """The driver dies; what it had begun is there whole, or not at all, and the next writer goes on."""
        prepared = self.prepare(self.texts | texts_of(range(5 * number, 5 * number + 3), edition=100 + number))
        with failing_here(f"{point}:raise"), pytest.raises(InjectedFault, match=f"failpoint {point}"):
            write_set(self.spark, self.home, prepared, settings=SETTINGS)
        if KILLED[point]:
            self.note(manifest.read_record(self.home, name="docs"), texts=self.texts)

    def lose_a_task(self, number: int) -> None:
        """A worker raises after a file; Spark runs its task again."""
        marker = self.folder / f"lost-{len(self.published)}"
        with failing(self.spark, f"shard.after_file:raise:1:{marker}"):
            self.append(number)
        assert marker.exists()

    def forget(self, keys: set[int], *, dies_after: int = 0) -> None:
        """Erases rows, as `pipeline.forget` does; after so many commits it dies, and is run again."""
        pairs = [(row_of(key, "")["doc_id"], sha256) for key in keys for sha256 in self.contents[key]]
        target = Target(doc_ids=tuple({one for one, _ in pairs}), sources=(), present={}, texts={}, pairs=tuple(pairs))
        held = set(self.texts) & keys, set(self.published[-1].texts) & keys
        assert held[0] | held[1] <= self.keys_on_disk()
        before = self.inodes()
        if dies_after:
            with failing_here(f"publish.after_commit:raise:{dies_after}"), suppress(InjectedFault):
                self.forget_once(target)
        self.forget_once(target)
        self.erased |= keys
        self.note_forgotten(*map(bool, held))
        if held[1]:
            self.kept_files_are_the_same(before)
        named = {file for one in self.published for file in self.sound(one)}
        assert self.files_on_disk() == named, "nothing but what can be read is left, nothing that can be is lost"
        assert not keys & self.keys_on_disk()
        assert self.indexed() == self.published[-1].files.keys(), "also when it died before its index"
        assert rooms.publish(self.home, tell=silent) == (), "nothing is left to do"

    def forget_once(self, target: Target) -> None:
        erasures.record(self.home, pairs=target.pairs, why="asked for")
        rooms.publish(self.home, tell=silent)
        rooms.remove_files(self.home, target=target, before=Holdings(), needles=NOTHING)
        rooms.remove_documents(self.home)

    def note_forgotten(self, documents: bool, sets: bool) -> None:
        """Those that held the rows have one version more, and only those."""
        old = self.published[-1]
        if documents:
            record = prepare_forget.newest(self.home)
            assert record is not None
            self.history.forgot(record)
            self.without[record.table.version] = len(self.prepared) - 1
            self.prepared.append(self.left_of(self.texts))
        assert tables.open_table(self.home.documents).version() == len(self.prepared) - 1
        if sets:
            self.note(manifest.read_record(self.home, name="docs"), texts=self.left_of(old.texts))
            made_of = len(self.prepared) - 1
            while made_of != old.documents and made_of in self.without:
                made_of = self.without[made_of]
            replaced = made_of == old.documents
            assert self.published[-1].documents == (len(self.prepared) - 1 if replaced else old.documents)
        assert manifest.read_record(self.home, name="docs") == self.published[-1].record

    def left_of(self, texts: dict[int, str]) -> dict[int, str]:
        return {key: text for key, text in texts.items() if key not in self.erased}

    def is_readable(self, version: int) -> bool:
        """Whether a documents version held no row that was erased since."""
        return not self.erased & self.prepared[version].keys()

    def sound(self, one: Published) -> dict[str, str]:
        """The files of a version that hold no erased row."""
        return {file: sha256 for file, sha256 in one.files.items() if not one.keys[file] & self.erased}

    def sweep(self) -> None:
        for file in self.home.shards.rglob("*"):
            os.utime(file, times=(time.time() - 2 * DAY,) * 2)
        garbage.remove(list(of_shards(self.home, before=time.time() - DAY)))
        assert self.files_on_disk() == {file for one in self.published for file in self.sound(one)}

    def note(self, record: ShardRecord, *, texts: dict[int, str]) -> None:
        assert record.manifest.version == len(self.published)
        keys: dict[str, set[int]] = {}
        by_id = {row_of(key, "")["doc_id"]: key for key in texts}
        for row in spans(self.home, record):
            keys.setdefault(row["file"], set()).add(by_id[row["doc_id"]])
        files = hashes(self.home, name="docs")
        assert files.keys() == keys.keys()
        self.published.append(Published(record=record, texts=texts, files=files, keys=keys))

    def inodes(self) -> dict[str, int]:
        files = self.published[-1].files if self.published else {}
        return {file: (self.folder_of_set / file).stat().st_ino for file in files}

    def files_on_disk(self) -> set[str]:
        found = {f"{split}/{file.name}" for split in SPLITS for file in (self.folder_of_set / split).iterdir()}
        return found - {f"{split}/index.json" for split in SPLITS}

    def indexed(self) -> set[str]:
        """The files that `index.json` names to readers of mosaicml-streaming."""
        indexes = {split: json.loads((self.folder_of_set / split / "index.json").read_text()) for split in SPLITS}
        return {f"{split}/{shard['raw_data']['basename']}" for split in SPLITS for shard in indexes[split]["shards"]}

    def keys_on_disk(self) -> set[int]:
        """The rows of which any file of documents or shards, whoever names it, holds the head of the text."""
        decode = tokenizer.load(self.home.resolve(self.published[0].record.tokenizer.path)).decode
        shards = (
            decode(piece.tolist())
            for path in self.home.shards.rglob("*.mds*")
            for sample in mds.read_samples(path)
            for piece in pieces_of(sample)
        )
        files = [path for path in self.home.documents.rglob("*.parquet") if "_delta_log" not in path.parts]
        rows = (text for path in files for text in pq.read_table(path, columns=["text"])["text"].to_pylist())
        heads = (text.split(" ", 1)[0] for texts in (shards, rows) for text in texts)
        return {int(head) for head in heads if head.isdigit()}

    def kept_files_are_the_same(self, before: dict[str, int]) -> None:
        """Cells with the same documents have the same files, and nobody has written these again."""
        if len(self.published) < 2 or self.published[-2].compacted != self.published[-1].compacted:
            return  # a compaction has fewer, larger buckets
        after = self.inodes()
        old, new = (cells_of(spans(self.home, one.record)) for one in self.published[-2:])
        for cell, (documents, files) in old.items():
            if cell in new and new[cell][0] == documents:
                assert new[cell][1] == files
                assert {file: before[file] for file in files} == {file: after[file] for file in files}

    def check_newest(self) -> None:
        """Exactly the documents of the newest version, token by token."""
        newest = self.published[-1]
        assert documents_of(self.home, newest.record) == self.tokens_of(newest.texts)

    def tokens_of(self, texts: dict[int, str]) -> dict[str, list[int]]:
        """doc_id -> its tokens, and the end token."""
        loaded = tokenizer.load(self.home.resolve(self.published[0].record.tokenizer.path))
        encoded = loaded.encode_batch(list(texts.values()))
        return {row_of(key, "")["doc_id"]: [*ids, loaded.end_id] for key, ids in zip(texts, encoded, strict=True)}

    def check_all(self) -> None:
        """No version has changed since it was published, but by what an erasure took; that one holds no more."""
        on_disk = self.files_on_disk()
        for version, one in enumerate(self.published):
            sound = self.sound(one)
            assert one.files.keys() & on_disk == sound.keys()
            assert hashes(self.home, name="docs", version=version, among=sound) == sound
            held = {row["doc_id"] for row in spans(self.home, one.record)}
            assert held == {row_of(key, "")["doc_id"] for key in one.texts}
            assert stage.verify(one.record, home=self.home) == (sound == one.files)
        assert not self.erased & self.keys_on_disk()

    def read(self, number: int) -> None:
        """What training reads of a version: its tokens, or nothing once an erasure took of it."""
        version = number % len(self.published)
        one = self.published[version]
        path = self.folder / "read" / "shards.arrow"
        path.parent.mkdir(exist_ok=True)
        write_run_manifest(manifest.read_manifest(self.home, "docs", version), path)
        splits = [open_split(path, split=split, shards_root=self.folder_of_set) for split in SPLITS]
        if self.sound(one) != one.files:
            with pytest.raises(CorruptShard, match=r"docs@|\.mds"):
                [list(sequential(split, batch_size=8)) for split in splits]
            return
        found = Counter(
            token for split in splits for batch in sequential(split, batch_size=8)
            for token in batch["labels"].flatten().tolist() if token >= 0
        )  # fmt: skip
        assert found == Counter(token for tokens in self.tokens_of(one.texts).values() for token in tokens)

    def check_rebuild(self, number: int = -1) -> None:
        """Written whole, in another home, from the same documents: the same bytes, rows, and places."""
        one = self.published[number]
        chosen = SETTINGS.model_copy(update={"compact_through": one.compacted})
        target = self.folder / f"rebuilt-{time.monotonic_ns()}"
        prepared = self.history.records[one.documents]
        if not self.is_readable(one.documents):
            with pytest.raises(SourceError, match=f"at version {one.documents} is no longer readable"):
                rebuilt(self.spark, self.home, prepared, to=target, settings=chosen)
            return
        other, record = rebuilt(self.spark, self.home, prepared, to=target, settings=chosen)
        assert self.prepared[one.documents] == one.texts
        assert hashes(other, name="docs") == one.files
        assert spans(other, record) == spans(self.home, one.record)
        assert manifest.read_cells(other, record).equals(manifest.read_cells(self.home, one.record))
        totals = {"tokens", "shards", "splits", "generations", "fill", "recipe"}
        assert record.model_dump(include=totals) == one.record.model_dump(include=totals)
        shutil.rmtree(target)

    def check_step(self) -> None:
        """All that must hold after each step; a version is rebuilt once."""
        self.check_newest()
        self.check_all()
        if len(self.published) > self.num_rebuilt:
            self.check_rebuild()
        self.num_rebuilt = len(self.published)


NOTHING = Needles([])


@contextmanager
def failing_here(value: str) -> Iterator[None]:
    """A fault in this process."""
    failpoints._passed.clear()
    os.environ["TESSERA_FAIL"] = value
    try:
        yield
    finally:
        del os.environ["TESSERA_FAIL"]


def pieces_of(sample: dict[str, Any]) -> Iterator[Any]:
    """The tokens between the starts of a sample."""
    starts = sample["starts"].tolist()
    for first, last in zip(starts, [*starts[1:], len(sample["tokens"])], strict=True):
        yield sample["tokens"][first:last]


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
    sets.go_back(0)
    sets.sweep()
    sets.die("publish.after_commit", number=7)
    sets.compact()
    sets.change({3, 5, 130})
    sets.forget({4, 36, 128}, dies_after=3)
    sets.check_rebuild()
    sets.go_back(1)
    sets.sweep()

    sets.check_newest()
    sets.check_all()
    sets.publish(sets.texts | texts_of(range(300, 305)))
    sets.read(0)
    sets.read(-1)
    sets.check_rebuild()


class Histories(RuleBasedStateMachine):
    """The same, in any order."""

    def __init__(self, spark: "SparkSession", folder: Path) -> None:
        super().__init__()
        self.folder = folder / hashlib.sha256(str(time.monotonic_ns()).encode()).hexdigest()[:12]
        self.folder.mkdir()
        self.sets = Sets(spark, self.folder)

    def some(self, data: st.DataObject, *, at_most: int) -> set[int]:
        """Keys of documents; the first are left alone, so that no split is ever empty."""
        keys = sorted(key for key in self.sets.texts if key >= KEPT)
        assume(len(keys) >= at_most)
        return data.draw(st.sets(st.sampled_from(keys), min_size=1, max_size=at_most))

    @rule(number=st.integers(1, 30))
    def append(self, number: int) -> None:
        self.sets.append(number)

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        self.sets.change(self.some(data, at_most=5))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.sets.delete(self.some(data, at_most=15))

    @rule(data=st.data(), dies_after=st.integers(0, 3))
    def forget(self, data: st.DataObject, dies_after: int) -> None:
        self.sets.forget(self.some(data, at_most=4), dies_after=dies_after)

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
    def read_an_old_version(self, number: int) -> None:
        self.sets.read(number)

    @rule(number=st.integers(0, 20))
    def rebuild_an_old_version(self, number: int) -> None:
        self.sets.check_rebuild(number % len(self.sets.published))

    @invariant()
    def all_versions_are_what_they_must_be(self) -> None:
        self.sets.check_step()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_random_histories(spark: "SparkSession", tmp_path: Path) -> None:
    """TESSERA_EXAMPLES and TESSERA_SEED ask for more, or for the same again."""
    chosen = settings(
        max_examples=int(os.environ.get("TESSERA_EXAMPLES", "4")), stateful_step_count=8, deadline=None,
        print_blob=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None,
    )  # fmt: skip
    number = int(os.environ.get("TESSERA_SEED", time.time_ns() % 2**32))
    print(f"TESSERA_SEED={number}")
    run_state_machine_as_test(seed(number)(lambda: Histories(spark, tmp_path)), settings=chosen)
